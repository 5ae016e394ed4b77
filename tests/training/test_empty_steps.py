"""A step whose weights are all 0, such as a batch without a MASK: loss 0, no update."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from toy_denoiser import Toy
from toy_training import CPU, Chase, batch_at, begin, contents
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import LogLinear
from unmask.objectives.base import Loss, Objective
from unmask.objectives.consistency import Consistency
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import DIVERGENCES, Sdtt
from unmask.training import AdamW, LossGuard, State, TrainingError, fit

V, MASK = 6, 5
PROCESS, LEVELS, ROUNDS = MaskedProcess(V, MASK), LogLinear(), Rounds(20, 1 / 32, (1.0, 1.0))


def toy() -> Toy:
    return Toy(V, MASK, seed=7)


WEIGHTLESS: dict[str, Objective] = {
    **{
        f"sdtt {name}": Sdtt(PROCESS, LEVELS, toy(), ROUNDS, divergence=name)
        for name in DIVERGENCES
    },
    "sdtt released": Sdtt(PROCESS, LEVELS, toy(), ROUNDS, time_grid="released"),
    "mcd": Consistency(PROCESS, LEVELS, toy(), ROUNDS, reduction="masked"),
    "mcd forward": Consistency(
        PROCESS, LEVELS, toy(), ROUNDS, reduction="masked", direction="forward"
    ),
    "mcd divergence": Consistency(
        PROCESS, LEVELS, toy(), ROUNDS, reduction="masked", revealed="divergence"
    ),
    "mcd none": Consistency(PROCESS, LEVELS, toy(), ROUNDS, reduction="masked", revealed="none"),
    "mcd independent": Consistency(
        PROCESS, LEVELS, toy(), ROUNDS, reduction="masked", coupling="independent"
    ),
}
WEIGHTED: dict[str, Objective] = {
    "nelbo": Nelbo(PROCESS, LEVELS),
    "nelbo uniform": Nelbo(UniformProcess(V), LEVELS),
    "mcd tokens": Consistency(PROCESS, LEVELS, toy(), ROUNDS),
}


def rows(step: int) -> Tensor:
    """One row [1, 2]: with probability 1 / 3 it shows no MASK."""
    return torch.tensor([[step % MASK, (step + 1) % MASK]])


def steps_of(
    objective: Objective, state: State, steps: int
) -> Iterator[tuple[float, float, set[str]]]:
    """(loss, round, names of changed tensors) of each step, without the frozen teacher's."""
    before = {name: value.clone() for name, value in contents(state).items()}
    for update in fit(objective, state, rows, steps=steps, seed=3, engine=CPU):
        now = {name: value.clone() for name, value in contents(state).items()}
        changed = {
            name
            for name in now
            if not name.startswith("teacher") and not torch.equal(now[name], before[name])
        }
        yield update.loss, update.metrics.get("round", 0.0), changed - {"step"}
        before = now


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_batch_without_a_mask_changes_nothing_and_training_continues(name: str) -> None:
    objective = WEIGHTLESS[name]
    state = State.begin(objective, Toy(V, MASK, seed=8), AdamW(lr=0.01, weight_decay=0.1), CPU)
    steps_seen = list(steps_of(objective, state, 40))
    idle = [loss for loss, _, changed in steps_seen if not changed]
    assert len(steps_seen) == state.step == 40 and 5 < len(idle) < 25
    assert set(idle) == {0.0}
    assert [number for _, number, _ in steps_seen] == [0.0] * 20 + [1.0] * 20, (
        "the round is known without a token"
    )
    averaged = state.trained["student"].ema
    assert averaged is not None and averaged.updates == 40 - len(idle)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_mean_over_all_tokens_learns_in_every_step(name: str) -> None:
    objective = WEIGHTED[name]
    student = Toy(V, None if "uniform" in name else MASK, seed=8)
    state = State.begin(objective, student, AdamW(lr=0.01), CPU)
    assert all(changed for _, _, changed in steps_of(objective, state, 20))


@pytest.mark.parametrize("name", [*WEIGHTLESS, "mcd tokens"])
def test_a_loss_without_a_mask_keeps_its_graph(name: str) -> None:
    """Of sharded weights every process goes backward, also one whose rows show no MASK."""
    objective, student = (WEIGHTLESS | WEIGHTED)[name], Toy(V, MASK, seed=8)
    for step in range(100):
        loss = objective(student, rows(step), step=0, generator=torch.Generator().manual_seed(step))
        if not (student.calls[-1][0] == MASK).any():
            loss.per_token.sum().backward()
            assert not loss.per_token.detach().any()
            return
    raise AssertionError("no row without a MASK was drawn")


class Weighed(Chase):
    """The loss of `Chase` with another weight of each token."""

    weight: float = 0.0
    factor: float = 0.0

    def __call__(
        self, network: nn.Module, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        loss = Chase.__call__(self, network, x0, step=step, generator=generator)
        weight = torch.full_like(loss.weight, self.weight)
        return replace(loss, per_token=self.factor * loss.per_token, weight=weight)


def trained(weight: float, factor: float, steps: int, guard: LossGuard) -> int:
    objective = Weighed()
    objective.weight, objective.factor = weight, factor
    return len(
        list(fit(objective, begin(objective), batch_at, steps=steps, engine=CPU, guard=guard))
    )


def test_a_training_that_never_learns_ends() -> None:
    guard = LossGuard(window=7)
    assert trained(0.0, 0.0, 6, guard) == 6
    with pytest.raises(
        TrainingError, match=r"step 6.*weights of the loss are 0 in 7 consecutive steps"
    ):
        trained(0.0, 0.0, 7, guard)


def test_negative_and_missing_weights_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"step 0.*weights of the loss sum to -48"):
        trained(-1.0, 1.0, 1, LossGuard())
    with pytest.raises(TrainingError, match=r"step 0.*weights of the loss sum to nan"):
        trained(float("nan"), 1.0, 1, LossGuard())
    with pytest.raises(TrainingError, match=r"step 0.*weights of the loss are 0, but .* loss"):
        trained(0.0, 1.0, 1, LossGuard())


def test_steps_without_weight_do_not_move_the_median_of_the_guard() -> None:
    guard = LossGuard(factor=10, window=3, patience=0)
    for step, loss in enumerate([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]):
        assert guard.accept(step, "student", loss, {"loss": loss}, {}) == (loss > 0)
    with pytest.raises(TrainingError, match="10 times its median 1"):
        guard.accept(6, "student", 1.0, {"loss": 11.0}, {})
