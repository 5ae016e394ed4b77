"""SDTT against a walk of the teacher written token by token, by the paper and as released."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from reference import loss_distance, sdtt_shares_released, sdtt_step
from toy_denoiser import Toy
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.objectives import sdtt
from unmask.objectives.base import Loss
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import Sdtt

V, MASK, B, L = 6, 5, 6, 24
PROCESS = MaskedProcess(V, MASK)
ROUNDS = Rounds(10, 1 / 32, (1.0, 1.0, 1.0))
X0 = torch.randint(MASK, (B, L), generator=torch.Generator().manual_seed(0))
DIVERGENCES = ["reverse", "forward", "mse", "tvd"]
TIME_GRIDS = pytest.mark.parametrize("time_grid", ["paper", "released"])
SCHEDULES = pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial(3.0)], ids=repr)
Draw = Callable[[Tensor, Tensor], None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(**switches: object) -> Sdtt:
    settings = {
        "process": PROCESS,
        "schedule": LogLinear(),
        "teacher": Toy(V, MASK, seed=7),
        "rounds": ROUNDS,
    }
    return Sdtt(**(settings | switches))


def step_of(
    method: Sdtt, step: int = 0, seed: int = 0, x0: Tensor = X0
) -> tuple[Loss, Toy, list[Tensor]]:
    """(loss, student, inputs of the teacher): z_t first, one view for each step."""
    student = Toy(V, MASK, seed=8)
    method.teacher.calls.clear()
    loss = method(student, x0, step=step, generator=seeded(seed))
    [(z_t, _)] = student.calls
    views = [z for z, _ in method.teacher.calls]
    assert torch.equal(z_t, views[0]), "the walk starts where the student stands"
    return loss, student, views


def walked(views: list[Tensor]) -> Tensor:
    """The step that unmasked each token [B, L], from the teacher's inputs; -1: visible in z_t."""
    last = len(views) - 1
    steps = torch.full(views[0].shape, -1)
    for b in range(steps.shape[0]):
        for i in range(steps.shape[1]):
            if views[0][b, i] == MASK:
                steps[b, i] = next((j for j in range(last) if views[j + 1][b, i] != MASK), last)
    return steps


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Set the times t [B] and the levels u [B, L] of a step in place of random ones."""

    def chosen(t: Tensor, u: Tensor) -> None:
        monkeypatch.setattr(sdtt, "stratified", lambda *_: t)
        noise = torch.full(u.shape, MASK)
        monkeypatch.setattr(
            sdtt, "trajectory", lambda process, x0, generator: Trajectory(x0, noise, u)
        )

    return chosen


# --- the walk and its targets


@TIME_GRIDS
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_target_of_a_mask_is_the_law_it_was_drawn_from(
    k: int, divergence: str, time_grid: str
) -> None:
    """A MASK that the walk leaves is compared with the last law. A visible token has no loss."""
    method = objective(teacher_steps=k, divergence=divergence, time_grid=time_grid)
    loss, student, views = step_of(method, step=25)
    assert len(views) == k
    alpha = student.calls[0][1]
    laws = [method.teacher(z, alpha).log_p().detach().exp() for z in views]
    p, by = student(views[0], alpha).log_p().detach().exp(), walked(views)
    assert {*range(k)} <= {*by.unique().tolist()}, "every step reveals something"
    for b in range(B):
        for i in range(L):
            want = 0.0 if by[b, i] < 0 else loss_distance(divergence, p[b, i], laws[by[b, i]][b, i])
            assert float(loss.per_token[b, i].detach()) == pytest.approx(
                want, rel=1e-5, abs=1e-7
            ), (b, i)


def test_one_step_is_the_divergence_from_the_teacher_at_the_same_text() -> None:
    for divergence in DIVERGENCES:
        method = objective(teacher_steps=1, divergence=divergence)
        loss, student, [z_t] = step_of(method)
        p, q = (
            net(z_t, student.calls[0][1]).log_p().detach().exp()
            for net in (student, method.teacher)
        )
        want = [
            loss_distance(divergence, p[b, i], q[b, i]) for b, i in (z_t == MASK).nonzero().tolist()
        ]
        assert_close(
            loss.per_token.detach()[z_t == MASK],
            torch.tensor(want, dtype=torch.float64),
            rtol=1e-5,
            atol=1e-7,
        )


@SCHEDULES
@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_papers_walk_reads_one_trajectory(
    k: int, schedule: NoiseSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MASKs before step j are those of the student's trajectory at t - j delta."""
    paths: list[Trajectory] = []

    def watched(*arguments: object) -> Trajectory:
        paths.append(trajectory(*arguments))
        return paths[-1]

    monkeypatch.setattr(sdtt, "trajectory", watched)
    method = objective(schedule=schedule, teacher_steps=k)
    for seed in range(20):
        _, student, views = step_of(method, step=10, seed=seed)
        t = schedule.time(student.calls[0][1])
        for j, (z, (_, alpha)) in enumerate(zip(views, method.teacher.calls, strict=True)):
            s = (t - j * ROUNDS.delta(10)).clamp(min=0)
            assert_close(alpha, schedule.alpha(s), rtol=0, atol=1e-6)
            assert torch.equal(z == MASK, paths[-1].at(alpha) == MASK)


@TIME_GRIDS
@SCHEDULES
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 4),
    t=st.floats(0.01, 1),
    delta=st.sampled_from([1e-3, 0.05, 0.2]),
)
def test_the_step_that_unmasks_a_token(
    schedule: NoiseSchedule, time_grid: str, seed: int, k: int, t: float, delta: float
) -> None:
    """The share of each step:

    (alpha_{j+1} - alpha_j) / (1 - alpha_j), or the released delta / t_j.
    """
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        times = torch.tensor([t], dtype=torch.float64)
        alpha = float(schedule.alpha(times))
        u = torch.rand(1, L, generator=seeded(seed), dtype=torch.float64)
        # Else few tokens would be a MASK.
        u = (alpha + (1 - alpha) * u).clamp(max=1 - 2**-53) if t < 0.5 else u
        context.setattr(sdtt, "stratified", lambda *_: times)
        context.setattr(
            sdtt, "trajectory", lambda process, x0, _: Trajectory(x0, torch.full_like(x0, MASK), u)
        )
        method = objective(
            schedule=schedule,
            teacher_steps=k,
            time_grid=time_grid,
            rounds=Rounds(1, delta, (1.0,)),
            t_min=0.0,
        )
        _, _, views = step_of(method, x0=X0[:1])
    grid = schedule.alpha(
        torch.tensor([max(0.0, t - j * delta) for j in range(k + 1)]).double()
    ).tolist()
    paper = [(b - a) / (1 - a) if a < 1 else 1.0 for a, b in pairwise(grid)]
    shares = paper if time_grid == "paper" else sdtt_shares_released(t, delta, k)
    for level, z, by in zip(
        u[0].tolist(), views[0][0].tolist(), walked(views)[0].tolist(), strict=True
    ):
        if z == MASK:
            due = sdtt_step(level, alpha, shares)
            near = [
                sdtt_step(min(max(level + x, alpha), 1 - 2**-53), alpha, shares)
                for x in (-1e-14, 1e-14)
            ]
            assert by in (due, *near), "but for the last digits of u"
        else:
            assert by == -1 and level < alpha


# --- the released slip


@pytest.mark.parametrize(("t", "start"), [(0.5, 0.749), (0.9, 0.990), (0.1, 0.188)])
def test_the_released_first_step_is_that_of_another_time(
    t: float, start: float, draw: Draw
) -> None:
    """At delta = 1/1024 the released walk of two steps starts at .749, .990, .188 instead of t.

    The start of the second step does not matter: its target is one law, whether it unmasks the
    token or not.
    """
    delta, n = 1 / 1024, 200_000
    alpha = float(LogLinear().alpha(torch.tensor(t).double()))
    level = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # the MASKs, evenly
    draw(torch.tensor([t], dtype=torch.float64), (alpha + (1 - alpha) * level)[None])
    shares = {}
    for time_grid in ("paper", "released"):
        method = objective(time_grid=time_grid, rounds=Rounds(1, delta, (1.0,)), t_min=0.0)
        _, _, views = step_of(method, x0=torch.zeros(1, n, dtype=torch.int64))
        shares[time_grid] = float((views[1] != MASK).double().mean())
    assert shares["paper"] == pytest.approx(delta / t, abs=2 / n)
    assert delta / shares["released"] == pytest.approx(start, rel=6e-3)


def test_the_released_first_step_is_half_near_the_text_and_whole_at_noise(draw: Draw) -> None:
    delta, n = 1 / 1024, 200_000
    ratio = {}
    for t in (0.01, 1.0):
        alpha = float(LogLinear(0.0).alpha(torch.tensor(t).double()))
        level = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        draw(torch.tensor([t], dtype=torch.float64), (alpha + (1 - alpha) * level)[None])
        count = []
        for time_grid in ("released", "paper"):
            method = objective(
                schedule=LogLinear(0.0),
                time_grid=time_grid,
                rounds=Rounds(1, delta, (1.0,)),
                t_min=0.0,
            )
            _, _, views = step_of(method, x0=torch.zeros(1, n, dtype=torch.int64))
            count.append(int((views[1] != MASK).sum()))
        ratio[t] = count[0] / count[1]
    # delta / (t + (1 - t)(t - 2 delta)) against delta / t
    assert ratio[1.0] == 1 and ratio[0.01] == pytest.approx(
        1 / (2 - 0.01 - 0.99 * 2 * delta / 0.01), rel=1e-2
    )


# --- laws of chance


@TIME_GRIDS
def test_shares_by_chance(time_grid: str) -> None:
    """Random levels: the number of MASKs that each step unmasks is binomial."""
    method, x0 = (
        objective(teacher_steps=3, time_grid=time_grid),
        torch.zeros(4, 60_000, dtype=torch.int64),
    )
    _, student, views = step_of(method, step=25, x0=x0)
    delta, by = ROUNDS.delta(25), walked_fast(views)
    for b, t in enumerate(LogLinear().time(student.calls[0][1]).tolist()):
        share = [min(1.0, delta / (t - j * delta)) if t > j * delta else 1.0 for j in range(3)]
        share = share if time_grid == "paper" else sdtt_shares_released(t, delta, 3)
        left = int((views[0][b] == MASK).sum())
        for j in range(2):
            seen = int((by[b] == j).sum())
            assert (
                abs(seen - left * share[j])
                <= 5 * math.sqrt(left * share[j] * (1 - share[j])) + 1e-9
            ), (t, j)
            left -= seen


def walked_fast(views: list[Tensor]) -> Tensor:
    """As `walked`, for many tokens: the number of views in which the token is masked, less one."""
    return torch.stack([z == MASK for z in views]).sum(0) - 1


def test_the_two_ways_to_read_a_walk_agree() -> None:
    _, _, views = step_of(objective(teacher_steps=3), step=25)
    assert torch.equal(walked(views), walked_fast(views))


def test_revealed_tokens_follow_the_teachers_law_and_stay() -> None:
    """The counts of each token against its probabilities under the law of the step before."""
    method, x0 = objective(teacher_steps=3), torch.randint(MASK, (8, 8000), generator=seeded(1))
    _, _, views = step_of(method, step=25, x0=x0)
    alpha = torch.full((8,), 0.5)
    for before, after in pairwise(views):
        new = (before == MASK) & (after != MASK)
        p = method.teacher(before, alpha).log_p(new).detach().exp()
        seen = torch.bincount(after[new], minlength=V)
        assert len(p) > 1000 and seen[MASK] == 0
        z = (seen - p.sum(0)) / (p * (1 - p)).sum(0).sqrt().clamp(min=1e-9)
        assert float(z.abs().max()) < 4.5
        assert torch.equal(after[before != MASK], before[before != MASK])
    shown = views[0] != MASK
    assert torch.equal(views[0][shown], x0[shown])


class Alone(Toy):
    """With a product law, whatever the walk unmasks, the target is the same."""

    def forward(self, z: Tensor, alpha: Tensor):  # type: ignore[no-untyped-def]
        plain = super().forward(z, alpha)
        return replace(plain, hidden=torch.ones(*z.shape, 6, dtype=torch.float64))


@TIME_GRIDS
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_product_law_gains_nothing_from_more_steps(
    k: int, divergence: str, time_grid: str
) -> None:
    """For a product law a student that equals the teacher has loss zero, at any number of steps."""
    method = objective(
        teacher=Alone(V, MASK, seed=8), teacher_steps=k, divergence=divergence, time_grid=time_grid
    )
    student, other = Alone(V, MASK, seed=8), Alone(V, MASK, seed=9)
    for step in (0, 25):
        assert (
            float(method(student, X0, step=step, generator=seeded()).per_token.detach().abs().max())
            < 1e-7
        )
        masks = method(other, X0, step=step, generator=seeded())
        assert bool((masks.per_token[masks.weight > 0] > 1e-4).all()), "and another student has"


# --- the loss


def test_the_mean_is_over_the_masks() -> None:
    loss, _, views = step_of(objective(), step=10)
    assert torch.equal(loss.weight > 0, views[0] == MASK) and {*loss.weight.unique().tolist()} == {
        0.0,
        1.0,
    }
    assert float(loss.per_token.detach()[views[0] != MASK].abs().max()) == 0
    assert float(loss.metrics["round"]) == 1 and not loss.metrics["round"].requires_grad


def test_the_student_learns_and_the_teacher_does_not() -> None:
    """The gradient of the plain formula with constant targets."""
    method = objective(teacher_steps=2)
    loss, student, views = step_of(method, step=20)
    factor = torch.randn(B, L, generator=seeded(3), dtype=torch.float64)
    (loss.per_token * factor).sum().backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    twin, alpha = copy.deepcopy(student), student.calls[0][1]
    twin.zero_grad()
    log_p, by = twin(views[0], alpha).log_p(), walked(views)
    log_q = torch.where(
        (by == 0)[..., None], *(method.teacher(z, alpha).log_p().detach() for z in views)
    )
    plain = torch.where(by >= 0, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0)
    (plain * factor).sum().backward()
    for one, two in zip(student.parameters(), twin.parameters(), strict=True):
        assert bool(one.grad.any())
        assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-6)


class Counting(nn.Linear):
    """A head that counts its rows."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return super().forward(x)


@TIME_GRIDS
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_head_runs_on_masks_only(k: int, time_grid: str) -> None:
    """Head rows: a MASK needs one for the student, one for its target, and one to be drawn."""
    method, student = objective(teacher_steps=k, time_grid=time_grid), Toy(V, MASK, seed=8)
    for toy in (student, method.teacher):
        counting = Counting(6, V, dtype=torch.float64)
        counting.load_state_dict(toy.head.state_dict())
        toy.head = counting
    method(student, X0, step=25, generator=seeded())
    first, *_, last = views = (
        [z for z, _ in method.teacher.calls] if k > 1 else [student.calls[0][0]] * 2
    )
    masks, drawn = int((first == MASK).sum()), int((first == MASK).sum() - (last == MASK).sum())
    assert 0 < masks < B * L and (drawn > 0) == (k > 1) and len(views) >= 2
    assert student.head.rows == masks and masks <= method.teacher.head.rows <= masks + drawn


def test_a_round_starts_with_the_student_and_doubles_the_step() -> None:
    method, student = objective(), Toy(V, MASK, seed=8)
    for step in range(35):
        with torch.no_grad():
            student.head.bias.add_(1.0)
        method.prepare(step, student)
        same = torch.equal(method.teacher.head.bias, student.head.bias)
        assert same == (step in (0, 10, 20)), step
    seen = []
    for step in (0, 10, 20, 500):
        _, run, _ = step_of(method, step)
        t, s = (LogLinear().time(alpha) for alpha in (run.calls[0][1], method.teacher.calls[1][1]))
        seen.append(float((t - s)[t > 0.5].mean()))
    assert seen == pytest.approx([1 / 32, 1 / 16, 1 / 8, 1 / 8])
    assert (
        method.frozen() == {"teacher": method.teacher}
        and method.networks() == {}
        and method.turn(1) == "student"
    )


@TIME_GRIDS
@SCHEDULES
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 3])
def test_steps_that_end_before_time_zero_are_harmless(
    k: int, divergence: str, schedule: NoiseSchedule, time_grid: str, draw: Draw
) -> None:
    """t < delta: the first step unmasks every MASK, and the last steps have nothing to do."""
    t = torch.tensor([0.0, 1e-9, 1e-6, 0.01, 0.1, 0.12], dtype=torch.float64)
    t = 1e-5 + (1 - 1e-5) * t
    alpha = schedule.alpha(t)[:, None]
    u = alpha + (1 - alpha) * torch.rand(B, L, generator=seeded(), dtype=torch.float64)
    draw((t - 1e-5) / (1 - 1e-5), u.clamp(max=1 - 2**-53))
    method = objective(
        schedule=schedule,
        teacher_steps=k,
        divergence=divergence,
        time_grid=time_grid,
        rounds=Rounds(1, 0.13, (1.0,)),
    )
    loss, student, views = step_of(method)
    assert (views[0] == MASK).any() and bool(torch.isfinite(loss.per_token).all())
    (loss.per_token.sum() / loss.weight.sum()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in student.parameters())
    if time_grid == "paper":
        assert all(not (z == MASK).any() for z in views[1:])


def test_a_batch_without_masks_has_weight_and_loss_zero() -> None:
    class Clear(LogLinear):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    loss, student, _ = step_of(objective(schedule=Clear()))
    assert not loss.per_token.any() and not loss.weight.any()
    loss.per_token.sum().backward()
    assert not any(p.grad.any() for p in student.parameters())


def test_a_step_is_a_function_of_step_and_generator() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        step_of(objective(teacher_steps=3), 25, seed)[0].per_token for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_times_are_stratified_from_t_min_on() -> None:
    for seed in range(10):
        _, student, _ = step_of(objective(t_min=0.2), seed=seed)
        t = LogLinear().time(student.calls[0][1])
        assert sorted(((t - 0.2) / 0.8 * B).long().tolist()) == list(range(B))


def test_switches_are_checked_when_the_objective_is_made() -> None:
    with pytest.raises(ValueError, match=r"teacher_steps .*got 0, want"):
        objective(teacher_steps=0)
    with pytest.raises(ValueError, match=r"teacher_steps x delta .*got 1 in the last round"):
        objective(teacher_steps=8)  # 8 x 1/8
    objective(teacher_steps=7)
    with pytest.raises(ValueError, match=r"got 1\.5 in the last round"):
        objective(rounds=Rounds(1, 0.75, (1.0,)))
    with pytest.raises(
        ValueError,
        match=r"divergence .*got 'kl', want one of 'reverse', 'forward', 'mse', 'tvd'",
    ):
        objective(divergence="kl")
    with pytest.raises(
        ValueError, match=r"time_grid .*got 'code', want one of 'paper', 'released'"
    ):
        objective(time_grid="code")


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher .*got 7 and 6 tokens"):
        objective(teacher=Toy(V + 1, MASK))(Toy(V, MASK), X0, step=0, generator=seeded())
