"""Laws of the loop: one normalizer for all micro-batches, randomness from the step, turns."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toy_training import (
    CPU,
    RECIPE,
    ROUND,
    TOKENS,
    Chase,
    Net,
    batch_at,
    begin,
    contents,
    differing,
    updates,
)
from unmask.objectives.base import Loss
from unmask.training import (
    AdamW,
    Engine,
    RunDir,
    State,
    Update,
    fit,
    stop_signals,
    with_checkpoints,
)

pytestmark = pytest.mark.processor


def quiet() -> tuple[Chase, State]:
    """No noise, no dropout, float64: a step is an exact function of the batch."""
    objective = Chase(noise=0.0, teacher=Net(0.0, seed=9).double())
    return objective, begin(objective, Net(dropout=0.0).double())


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_accumulation_changes_nothing(accumulation: int) -> None:
    """sum / sum over all micro-batches. The mean of their means differs: token 0 has no weight."""
    objective, whole = quiet()
    expected = list(updates(whole, objective, 6))
    objective, parts = quiet()
    got = list(updates(parts, objective, 6, accumulation=accumulation))
    for one, two in zip(expected, got, strict=True):
        assert (one.loss, one.grad_norm, one.tokens) == pytest.approx(
            (two.loss, two.grad_norm, two.tokens), rel=1e-12
        )
        assert one.metrics == pytest.approx(two.metrics, rel=1e-12)
    for name, value in contents(whole).items():
        torch.testing.assert_close(value, contents(parts)[name], rtol=1e-9, atol=1e-12)


def test_a_step_is_adamw_on_the_mean_with_a_clip() -> None:
    """Compared with a plain training loop."""
    objective, state = quiet()
    state.trained["student"].settings = replace(state.trained["student"].settings, clip_norm=0.5)
    twin = Net(dropout=0.0).double()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    for update in updates(state, objective, ROUND, accumulation=2):
        step = update.step - 1
        optimizer.param_groups[0]["lr"] = update.lr
        loss = objective(twin, batch_at(step), step=step)
        mean = loss.per_token.sum() / loss.weight.sum()
        optimizer.zero_grad()
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        assert (update.loss, update.grad_norm) == pytest.approx(
            (mean.item(), norm.item()), rel=1e-9
        )
        assert (
            update.metrics["error"] == pytest.approx(update.loss) and update.metrics["round"] == 0
        )
        assert update.grad_norm > 0.5 and update.lr == pytest.approx(0.01 * min(1, update.step / 3))
    for got, want in zip(state.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_dropout_and_noise_are_functions_of_seed_step_and_rank() -> None:
    def losses(disturb: Callable[[], object], seed: int = 1, rank: int = 0) -> list[float]:
        objective, losses_ = Chase(), []
        engine = Engine(torch.device("cpu"), rank)
        for update in fit(objective, begin(objective), batch_at, steps=4, seed=seed, engine=engine):
            losses_.append(update.loss)
            disturb()
        return losses_

    usual = losses(lambda: None)
    assert losses(lambda: torch.rand(3)) == usual
    assert losses(lambda: None, seed=2)[0] != usual[0] != losses(lambda: None, rank=1)[0]


def test_the_callers_random_numbers_do_not_change() -> None:
    objective = Chase()
    state = begin(objective)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(updates(state, objective, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_prepare_runs_once_a_step_and_the_teacher_follows_at_a_rounds_start() -> None:
    objective = Chase()
    state = begin(objective)
    for update in updates(state, objective, 2 * ROUND + 1, accumulation=4):
        if update.step == 2 * ROUND:
            student = {name: value.clone() for name, value in state.student.state_dict().items()}
    assert objective.prepared == list(range(2 * ROUND + 1))
    assert not objective.teacher.training and not any(
        p.requires_grad for p in objective.teacher.parameters()
    )
    teacher = objective.teacher.state_dict()
    assert all(torch.equal(teacher[name], student[name]) for name in student)


def test_a_micro_batch_without_weight_changes_nothing() -> None:
    def some(step: int) -> Tensor:
        return torch.cat([torch.zeros(1, 6, dtype=torch.int64), batch_at(step)])

    @dataclass
    class Detached(Chase):
        """A micro-batch that has nothing to learn from has no graph at all."""

        def __call__(
            self, network: nn.Module, x0: Tensor, *, step: int, generator: object = None
        ) -> Loss:
            loss = Chase.__call__(self, network, x0, step=step)
            return loss if x0.any() else replace(loss, per_token=torch.zeros_like(loss.per_token))

    objective, state = quiet()
    detached = Detached(0.0, objective.teacher)
    with_nothing = next(fit(detached, state, some, steps=1, accumulation=9, engine=CPU))
    objective, state = quiet()
    assert with_nothing.loss == pytest.approx(
        next(fit(objective, state, batch_at, steps=1, engine=CPU)).loss
    )
    before = {name: value.clone() for name, value in contents(state).items()}
    nothing = fit(detached, state, lambda step: torch.zeros_like(batch_at(0)), steps=2, engine=CPU)
    assert [(update.loss, update.grad_norm, update.metrics["error"]) for update in nothing] == [
        (0, 0, 0)
    ]
    assert all(
        torch.equal(value, before[name])
        for name, value in contents(state).items()
        if name != "step"
    )


@dataclass
class Duel(Chase):
    """Two trained networks that take turns; the loss of each turn reaches both."""

    critic: nn.Module = field(default_factory=lambda: Net(seed=3))
    modes: list[tuple[bool, bool]] = field(default_factory=list)

    def __call__(
        self, network: nn.Module, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        self.modes.append((network.training, self.critic.training))
        x = torch.nn.functional.one_hot(x0, TOKENS).float()
        per_token = (network(x) * self.critic(x) - 1) ** 2
        return Loss(per_token, torch.ones_like(per_token))

    def networks(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def turn(self, step: int) -> str:
        return "critic" if step % 2 else "student"


def test_each_network_has_its_turn_its_settings_and_its_average() -> None:
    objective = Duel()
    settings = {"student": AdamW(lr=0.1), "critic": AdamW(lr=0.2, ema_decay=None)}
    state = State.begin(objective, Net(), settings, CPU)
    names = ["student", "critic"]
    before = {name: [p.clone() for p in state.trained[name].network.parameters()] for name in names}
    for update in fit(objective, state, batch_at, steps=4, engine=CPU):
        after = {
            name: [p.clone() for p in state.trained[name].network.parameters()] for name in names
        }
        moved = [
            n
            for n in names
            if any(not torch.equal(a, b) for a, b in zip(after[n], before[n], strict=True))
        ]
        assert moved == [update.turn]
        assert update.lr == settings[update.turn].lr
        before = after
    assert objective.modes == [(True, False), (False, True)] * 2
    assert state.trained["critic"].ema is None and state.trained["student"].ema.updates == 2
    with pytest.raises(ValueError, match=r"settings .*student.*critic"):
        State.begin(objective, Net(), {"student": AdamW()}, CPU)


@dataclass
class Alternation(Duel):
    """Five updates of the critic, then one of the student."""

    def turn(self, step: int) -> str:
        return "critic" if step % 6 < 5 else "student"


@pytest.mark.parametrize("stops", [[], [3], [5], [6, 14]])
def test_a_learning_rate_follows_the_updates_of_its_own_network(
    tmp_path: Path, stops: list[int]
) -> None:
    """Warm-up and decay are counted in a network's updates, also after a resume at any step."""
    settings = {
        "student": AdamW(lr=0.1, warmup_steps=2, ema_decay=0.9),
        "critic": AdamW(lr=0.2, warmup_steps=4, decay_steps=12, ema_decay=None),
    }

    def train(path: Path, steps: int) -> tuple[State, list[Update]]:
        objective = Alternation()
        state = State.begin(objective, Net(), settings, CPU)
        loop = fit(objective, state, batch_at, steps=steps, seed=1, engine=CPU)
        with RunDir.open(path, RECIPE) as directory:
            directory.restore(state)
            return state, list(with_checkpoints(loop, directory, state, every=100))

    updates: list[Update] = []
    for steps in (*stops, 20):
        state, some = train(tmp_path / "run", steps)
        updates += some
    for name, setting in settings.items():
        rates = [update.lr for update in updates if update.turn == name]
        assert rates == [setting.learning_rate(update) for update in range(len(rates))]
    assert [update.turn for update in updates].count("student") == 3
    straight, _ = train(tmp_path / "straight", 20)
    assert differing(state, straight) == []


def test_a_teacher_that_is_the_student_is_refused() -> None:
    student = Net()
    with pytest.raises(ValueError, match=r"'teacher' shares weights with .*'student'"):
        begin(Chase(teacher=student), student)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_training_after_its_step(number: int) -> None:
    objective, straight = Chase(), Chase()
    state, expected = begin(objective), begin(straight)
    handler = signal.getsignal(number)
    with stop_signals() as stop:
        for update in updates(state, objective, 100, stop=stop):
            if update.step == 3:
                os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):  # the second signal
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is handler
    list(updates(expected, straight, 4))
    assert differing(state, expected) == []


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup unmask train ...` goes on when its terminal closes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulation": 0}, "accumulation"),
        ({"accumulation": 9}, "want 1 to 8"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_options_are_named(options: dict[str, int], message: str) -> None:
    objective = Chase()
    with pytest.raises(ValueError, match=message):
        next(fit(objective, begin(objective), batch_at, **{"steps": 1, **options}, engine=CPU))


def test_metrics_keep_their_names() -> None:
    update = next(updates(begin(Chase()), Chase(), 1))
    assert update.record()["error"] == update.metrics["error"]
    with pytest.raises(ValueError, match=r"metrics .*\['loss'\]"):
        replace(update, metrics={"loss": 1.0}).record()
    assert replace(update, metrics={"term": float("nan")}).record()["term"] is None
