"""An exploding training stops before the bad step and names step, round and term."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from toy_training import Chase, Net, begin, contents, updates
from unmask.objectives.base import Loss
from unmask.training import STUDENT, LossGuard, TrainingError


@dataclass
class Spoiled(Chase):
    """Multiplies the loss of one step."""

    at: int = 6
    factor: float = math.nan

    def __call__(
        self, network: nn.Module, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        loss = Chase.__call__(self, network, x0, step=step, generator=generator)
        if step != self.at:
            return loss
        error = loss.per_token * self.factor
        return replace(
            loss, per_token=error, metrics={**loss.metrics, "error": error.detach().mean()}
        )


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e6])
def test_a_bad_step_is_refused_and_nothing_changes(factor: float) -> None:
    objective = Spoiled(factor=factor)
    state = begin(objective)
    loop = updates(state, objective, 10, guard=LossGuard(factor=100, window=2, patience=2))
    while state.step < 6:
        next(loop)
    before = {name: value.clone() for name, value in contents(state).items()}
    with pytest.raises(
        TrainingError, match=r"step 6, round 1, student: loss is .*error = "
    ) as caught:
        next(loop)
    assert ("terms that are not finite: error" in str(caught.value)) == (not math.isfinite(factor))
    after = contents(state)
    teacher = {name for name in after if name.startswith("teacher")}
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - teacher)


def test_a_nan_weight_stops_the_first_step() -> None:
    objective = Chase()
    state = begin(objective)
    with torch.no_grad():
        next(iter(state.student.parameters())).fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 0.*loss is nan"):
        next(updates(state, objective, 1))


@dataclass
class WrongTurn(Chase):
    """The loss of the student in the turn of a critic."""

    critic: nn.Module = field(default_factory=lambda: Net(seed=3))

    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def turn(self, step: int) -> str:
        return "critic" if step == 1 else STUDENT


def test_the_loss_of_another_network_stops_the_training() -> None:
    objective = WrongTurn()
    state = begin(objective)
    loop = updates(state, objective, 2)
    next(loop)
    before = contents(state)
    with pytest.raises(TrainingError, match=r"step 1.*critic: loss is .*gradient is 0"):
        next(loop)
    assert all(torch.equal(value, before[name]) for name, value in contents(state).items())


def test_a_loss_without_gradient_stops_the_training() -> None:
    class Detached(Chase):
        def __call__(self, *args: object, **options: object) -> Loss:
            loss = super().__call__(*args, **options)
            return replace(loss, per_token=loss.per_token.detach())

    objective = Detached()
    with pytest.raises(TrainingError, match=r"step 0.*student: loss is .*gradient is 0"):
        next(updates(begin(objective), objective, 1))


def test_a_loss_of_another_type_is_refused() -> None:
    class Mean(Chase):
        def __call__(self, *args: object, **options: object) -> Tensor:
            return super().__call__(*args, **options).per_token.mean()

    objective = Mean()
    with pytest.raises(TypeError, match=r"objective returned .*Tensor.*Loss"):
        next(updates(begin(objective), objective, 1))
    with pytest.raises(TypeError, match=r"weight of a Loss .*float"):
        Loss(torch.zeros(2, 3), 1.0)
    for rows, weights in (((2,), (2,)), ((), ()), ((2, 3), (2,))):
        with pytest.raises(ValueError, match=r"wrong shape: got .*want \[B, L\]"):
            Loss(torch.zeros(rows), torch.zeros(weights))


def refused_steps(guard: LossGuard, losses: list[float], rounds: list[int]) -> list[int]:
    """The steps whose loss a guard refuses."""
    refused, guard = [], replace(guard)
    for step, (loss, number) in enumerate(zip(losses, rounds, strict=True)):
        try:
            guard.check(step, "student", {"loss": loss}, {"round": float(number)})
        except TrainingError:
            refused.append(step)
    return refused


def test_only_values_far_above_the_median_of_their_round_are_refused() -> None:
    guard = LossGuard(factor=10, window=3, patience=0)
    assert refused_steps(guard, [1, 1, 1, 9, 11, 1], [0] * 6) == [4]
    # a new round has a new loss
    assert refused_steps(guard, [1, 1, 1, 99, 98, 97], [0, 0, 0, 1, 1, 1]) == []
    assert refused_steps(guard, [0, 0, 0, 1], [0] * 4) == []  # no scale to compare with
    assert refused_steps(replace(guard, patience=9), [1, 1, 1, 99], [0] * 4) == []


def test_a_guard_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="factor"):
        LossGuard(factor=1.0)
    with pytest.raises(ValueError, match="window"):
        LossGuard(window=0)
    with pytest.raises(ValueError, match="patience"):
        LossGuard(patience=-1)
