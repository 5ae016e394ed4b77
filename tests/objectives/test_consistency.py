"""MCD is Eq. 14 and Algorithm 1 of Latent Shadows, and each switch changes one thing.

With uniform noise it is Duo's discrete consistency distillation: one divergence at every token.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import loss_cross_entropy, loss_eq14, loss_kl
from toy_denoiser import Toy
from unmask.diffusion.levels import LevelOrder, random_order, spread_order
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.schedules import Cosine, GaussianArgmax, LogLinear, NoiseSchedule, gamma_at
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.diffusion.vocabulary_losses import cross_entropy, forward_kl, reverse_kl
from unmask.objectives import consistency
from unmask.objectives.base import Loss
from unmask.objectives.consistency import Consistency, distillation_loss
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction

V, MASK, B, L = 6, 5, 8, 7
PROCESS = MaskedProcess(V, MASK)
ROUNDS = Rounds(10, 1 / 16, (0.9, 0.8, 0.7))
X0 = torch.randint(MASK, (B, L), generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(seed: int) -> tuple[Prediction, Prediction, Tensor, Tensor, Tensor]:
    """(student at z_t, teacher at z_s, x0, mask_t, mask_s), nested."""
    generator = seeded(seed)
    x0 = torch.randint(MASK, (3, L), generator=generator)
    u = torch.rand(3, L, generator=generator)
    mask_t, mask_s = u > 0.3, u > 0.6
    student, teacher = (Toy(V, MASK, seed=seed + i) for i in (1, 2))
    at = [torch.where(mask, MASK, x0) for mask in (mask_t, mask_s)]
    return student(at[0], u[:, 0]), teacher(at[1], u[:, 0]), x0, mask_t, mask_s


# --- the loss of two predictions


@given(st.integers(0, 10**6), st.sampled_from([1.0, 0.84, 0.5]))
def test_it_is_equation_14(seed: int, tau: float) -> None:
    student, teacher, x0, mask_t, mask_s = pair(seed)
    want = loss_eq14(
        student.log_p().detach(), teacher.log_p(temperature=tau).detach(), x0, mask_t, mask_s
    )
    got = distillation_loss(student, teacher, x0, mask_t, mask_s, temperature=tau)
    assert_close(got.detach(), want, rtol=1e-10, atol=1e-12)


@given(
    st.integers(0, 10**6),
    st.sampled_from(["reverse", "forward"]),
    st.sampled_from(["cross_entropy", "none"]),
)
def test_each_token_has_the_term_of_its_region(seed: int, direction: str, revealed: str) -> None:
    student, teacher, x0, mask_t, mask_s = pair(seed)
    got = distillation_loss(
        student,
        teacher,
        x0,
        mask_t,
        mask_s,
        temperature=0.7,
        direction=direction,
        revealed=revealed,
    )
    log_p, log_q = student.log_p(), teacher.log_p(temperature=0.7).detach()
    divergence = loss_kl(log_p, log_q) if direction == "reverse" else loss_kl(log_q, log_p)
    surprise = (
        loss_cross_entropy(log_p, x0)
        if revealed == "cross_entropy"
        else torch.zeros_like(divergence)
    )
    want = torch.where(mask_s, divergence, torch.where(mask_t, surprise, 0.0))
    assert_close(got, want)
    assert got.shape == x0.shape and float(got.detach().min()) >= -1e-12 and not got[~mask_t].any()


@given(st.integers(0, 10**6))
def test_forward_divergence_everywhere_is_divergence_and_cross_entropy(seed: int) -> None:
    """The paper's row 'KL-Fwd': q is a point mass at a token visible to the teacher (SUBS)."""
    student, teacher, x0, mask_t, mask_s = pair(seed)
    everywhere = distillation_loss(
        student,
        teacher,
        x0,
        mask_t,
        mask_s,
        temperature=0.8,
        direction="forward",
        revealed="divergence",
    )
    subs = scatter_rows(forward_kl(student, teacher, mask_t, 0.8), mask_t)
    hybrid = distillation_loss(
        student, teacher, x0, mask_t, mask_s, temperature=0.8, direction="forward"
    )
    apart = scatter_rows(forward_kl(student, teacher, mask_s, 0.8), mask_s) + scatter_rows(
        cross_entropy(student, x0, mask_t & ~mask_s), mask_t & ~mask_s
    )
    for same in (subs, hybrid, apart):
        assert_close(everywhere, same, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10**6))
def test_reverse_divergence_everywhere_explodes(seed: int) -> None:
    """The paper's row 'KL-Bwd: failed': about 1e6 (1 - p(x0)) nats at a revealed token."""
    student, teacher, x0, mask_t, mask_s = pair(seed)
    got = distillation_loss(student, teacher, x0, mask_t, mask_s, revealed="divergence")
    only_teacher = mask_t & ~mask_s
    p = student.log_p().exp().gather(-1, x0[..., None]).squeeze(-1)
    assert_close(got[only_teacher], (1e6 * (1 - p))[only_teacher], rtol=1e-4, atol=5)
    assert_close(got[mask_s], scatter_rows(reverse_kl(student, teacher, mask_s), mask_s)[mask_s])


def test_gradients_are_the_plain_ones_and_the_teachers_are_none() -> None:
    _, _, x0, mask_t, mask_s = pair(3)
    students, teachers = Toy(V, MASK, seed=4), Toy(V, MASK, seed=5)
    z_t, z_s = (torch.where(mask, MASK, x0) for mask in (mask_t, mask_s))
    alpha = torch.full((3,), 0.5)
    got = distillation_loss(
        students(z_t, alpha), teachers(z_s, alpha), x0, mask_t, mask_s, temperature=0.7
    )
    log_p, log_q = (
        students(z_t, alpha).log_p(),
        teachers(z_s, alpha).log_p(temperature=0.7).detach(),
    )
    plain = torch.where(
        mask_s, loss_kl(log_p, log_q), torch.where(mask_t, loss_cross_entropy(log_p, x0), 0.0)
    )
    factor = torch.randn(got.shape, generator=seeded(), dtype=torch.float64)
    mine, theirs = (
        torch.autograd.grad((loss * factor).sum(), students.parameters()) for loss in (got, plain)
    )
    for one, two in zip(mine, theirs, strict=True):
        assert_close(one, two, rtol=1e-9, atol=1e-12)
    got = distillation_loss(students(z_t, alpha), teachers(z_s, alpha), x0, mask_t, mask_s)
    got.sum().backward()
    assert all(weight.grad is None for weight in teachers.parameters())


def test_temperature_applies_to_the_teacher_only() -> None:
    """tau is the teacher's only: for equal laws the loss is zero for tau = 1 and no other."""
    student, _, x0, mask_t, _ = pair(0)
    twin = replace(student, hidden=student.hidden.detach())
    same = distillation_loss(student, twin, x0, mask_t, mask_t)
    assert float(same.detach().abs().max()) < 1e-12
    sharp = distillation_loss(student, twin, x0, mask_t, mask_t, temperature=0.7)
    log_p = student.log_p()
    sharpened = torch.log_softmax(log_p / 0.7, dim=-1)
    assert_close(sharp, torch.where(mask_t, loss_kl(log_p, sharpened), 0.0), rtol=1e-6, atol=1e-6)
    assert bool((sharp[mask_t] > 1e-6).all())


def test_empty_regions() -> None:
    student, teacher, x0, mask_t, mask_s = pair(0)
    nothing = torch.zeros_like(mask_t)
    for direction in ("reverse", "forward"):
        for revealed in ("cross_entropy", "divergence", "none"):
            switches = {"direction": direction, "revealed": revealed}
            assert not distillation_loss(student, teacher, x0, nothing, nothing, **switches).any()
            assert not distillation_loss(student, teacher, x0, nothing, mask_s, **switches).any()
    assert bool((distillation_loss(student, teacher, x0, mask_t, nothing)[mask_t] > 0).all())


def test_wrong_switches_and_masks() -> None:
    student, teacher, x0, mask_t, mask_s = pair(0)
    with pytest.raises(
        ValueError,
        match=r"direction .*got 'backward', want one of 'reverse', 'forward'",
    ):
        distillation_loss(student, teacher, x0, mask_t, mask_s, direction="backward")
    with pytest.raises(
        ValueError,
        match=r"revealed .*got 'ce', want one of 'cross_entropy', 'divergence', 'none'",
    ):
        distillation_loss(student, teacher, x0, mask_t, mask_s, revealed="ce")
    with pytest.raises(
        ValueError,
        match=r"mask_s .*got torch.float32 \(3, 7\), want bool",
    ):
        distillation_loss(student, teacher, x0, mask_t, mask_s.float())
    with pytest.raises(ValueError, match=r"mask_t .*got torch.bool \(1, 7\), want"):
        distillation_loss(student, teacher, x0, mask_t[:1], mask_s)
    with pytest.raises(ValueError, match="temperature"):
        distillation_loss(student, teacher, x0, mask_t, mask_s, temperature=0.0)


# --- the objective


def objective(**switches: object) -> Consistency:
    return Consistency(PROCESS, LogLinear(), Toy(V, MASK, seed=7), ROUNDS, **switches)


def step_of(
    method: Consistency, step: int = 0, seed: int = 0, x0: Tensor = X0
) -> tuple[Loss, Toy, tuple, tuple]:
    """(loss, student, (z_t, alpha_t), (z_s, alpha_s)) of one call."""
    student = Toy(V, MASK, seed=8)
    method.teacher.calls.clear()
    loss = method(student, x0, step=step, generator=seeded(seed))
    [at_t], [at_s] = student.calls, method.teacher.calls
    return loss, student, at_t, at_s


@pytest.mark.parametrize("step", [0, 9, 10, 25, 99])
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=["log-linear", "cosine"])
def test_a_step_is_equation_14_at_the_inputs_of_both_networks(
    step: int, schedule: LogLinear | Cosine
) -> None:
    method = replace(objective(), schedule=schedule)
    loss, student, (z_t, alpha_t), (z_s, alpha_s) = step_of(method, step)
    log_p = student(z_t, alpha_t).log_p().detach()
    log_q = method.teacher(z_s, alpha_s).log_p(temperature=ROUNDS.temperature(step)).detach()
    assert_close(
        loss.per_token.detach(),
        loss_eq14(log_p, log_q, X0, z_t == MASK, z_s == MASK),
        rtol=1e-9,
        atol=1e-9,
    )
    t, s = (schedule.time(alpha) for alpha in (alpha_t, alpha_s))
    assert_close(t - s, torch.full((B,), ROUNDS.delta(step)).double(), rtol=0, atol=1e-7)
    assert alpha_t.dtype == alpha_s.dtype == torch.float64


@given(st.integers(0, 10**9), st.sampled_from([0, 10, 20]))
def test_the_teachers_view_is_nested_in_the_students(seed: int, step: int) -> None:
    """Theorem 3.3: the teacher's MASKs are MASKs of the student. Elsewhere both see x0."""
    _, _, (z_t, alpha_t), (z_s, alpha_s) = step_of(objective(), step, seed)
    assert bool(((z_t == MASK) | (z_s != MASK)).all()) and bool((alpha_s > alpha_t).all())
    for z in (z_t, z_s):
        assert torch.equal(torch.where(z == MASK, X0, z), X0)


def test_independent_masks_are_not_nested_and_have_the_same_rates() -> None:
    x0 = X0.repeat(40, 20)
    shares = {}
    for coupling in ("locked", "independent"):
        _, _, (z_t, alpha_t), (z_s, alpha_s) = step_of(objective(coupling=coupling), 20, x0=x0)
        alone = (z_s == MASK) & (z_t != MASK)
        shares[coupling] = float(alone.double().mean())
        for z, alpha in ((z_t, alpha_t), (z_s, alpha_s)):
            assert float((z == MASK).double().mean()) == pytest.approx(
                float(1 - alpha.mean()), abs=0.01
            )
    assert shares["locked"] == 0
    assert shares["independent"] == pytest.approx(float(((1 - alpha_s) * alpha_t).mean()), abs=0.01)


@pytest.mark.parametrize("step", [0, 20])
def test_times_are_stratified_above_delta(step: int) -> None:
    """Algorithm 1: t ~ U(delta, 1], s = t - delta."""
    delta = ROUNDS.delta(step)
    for seed in range(30):
        _, _, (_, alpha_t), (_, alpha_s) = step_of(objective(), step, seed)
        t, s = LogLinear().time(alpha_t), LogLinear().time(alpha_s)
        assert delta < float(t.min()) and float(t.max()) <= 1 and float(s.min()) > 0
        assert sorted(((t - delta) / (1 - delta) * B).long().tolist()) == list(range(B))


@pytest.mark.parametrize("reduction", ["tokens", "masked"])
def test_weights_and_metrics(reduction: str) -> None:
    """The mean is over all tokens or over the MASKs of z_t.

    The metrics are the two parts of the loss.
    """
    loss, _, (z_t, _), _ = step_of(objective(reduction=reduction), step=20)
    want = torch.ones(B, L) if reduction == "tokens" else (z_t == MASK)
    assert_close(loss.weight.double(), want.double())
    total = float(loss.per_token.detach().sum() / loss.weight.sum())
    parts = {name: float(value) for name, value in loss.metrics.items()}
    assert parts["distillation"] + parts["reconstruction"] == pytest.approx(total, rel=1e-9)
    assert parts["reconstruction"] > 0 and parts["distillation"] > 0 and parts["round"] == 2
    assert not any(value.requires_grad for value in loss.metrics.values())


def test_a_batch_without_masks_has_weight_and_loss_zero() -> None:
    class Clear(LogLinear):
        def alpha(self, t: Tensor) -> Tensor:
            return torch.ones_like(t)

    loss, student, *_ = step_of(replace(objective(reduction="masked"), schedule=Clear()))
    assert not loss.per_token.any() and not loss.weight.any()
    assert all(math.isfinite(float(value)) for value in loss.metrics.values())
    loss.per_token.sum().backward()
    assert not any(weight.grad.any() for weight in student.parameters())


def test_switches_reach_the_loss() -> None:
    losses = {
        switches: step_of(objective(**dict([switches])), step=20)[0].per_token.detach()
        for switches in [
            ("direction", "reverse"), ("direction", "forward"), ("revealed", "none"),
            ("revealed", "divergence"), ("coupling", "independent"),
        ]
    }  # fmt: skip
    values = list(losses.values())
    assert all(not torch.equal(one, two) for i, one in enumerate(values) for two in values[:i])
    none, full = losses["revealed", "none"], losses["direction", "reverse"]
    assert float(none.sum()) < float(full.sum()) < float(losses["revealed", "divergence"].sum())


@pytest.mark.parametrize("name", ["direction", "revealed", "coupling", "reduction"])
def test_an_unknown_switch_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*got 'other', want one of "):
        objective(**{name: "other"})


def test_the_teacher_is_reset_at_the_start_of_a_round_only() -> None:
    """Algorithm 1's hard reset: a copy of the raw student weights, without gradient or dropout."""
    method, student = objective(), Toy(V, MASK, seed=8)
    for step in range(40):
        with torch.no_grad():
            student.head.bias.add_(1.0)  # the student moves on
        before = copy.deepcopy(method.teacher.state_dict())
        method.teacher.train()
        method.prepare(step, student)
        after, raw = method.teacher.state_dict(), student.state_dict()
        if step in (0, 10, 20):
            assert all(torch.equal(after[name], raw[name]) for name in raw)
            assert not method.teacher.training and not any(
                p.requires_grad for p in method.teacher.parameters()
            )
        else:
            assert all(torch.equal(after[name], before[name]) for name in before)
    shared = {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in method.teacher.parameters()
    }
    assert not shared and student.head.weight.requires_grad


def test_at_the_start_of_a_round_the_divergence_is_zero_for_equal_inputs() -> None:
    """At tau = 1 the first loss of a round is that of the revealed tokens: zero if z_s = z_t."""
    method = replace(objective(), rounds=Rounds(10, 1e-9, (1.0,)))
    student = Toy(V, MASK, seed=8)
    method.prepare(0, student)
    loss = method(student, X0, step=0, generator=seeded())
    assert float(loss.per_token.detach().abs().max()) < 1e-12


def test_the_teacher_gets_no_gradient_and_is_part_of_the_run() -> None:
    method = objective()
    loss, student, *_ = step_of(method)
    loss.per_token.sum().backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(bool(p.grad.any()) for p in student.parameters())
    assert (
        method.frozen() == {"teacher": method.teacher}
        and method.networks() == {}
        and method.turn(3) == "student"
    )


def test_a_step_is_a_function_of_step_and_generator() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        step_of(objective(coupling="independent"), 5, seed)[0].per_token for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("reduction", ["tokens", "masked"])
def test_revealed_weight_changes_revealed_tokens_only(weight: float, reduction: str) -> None:
    """Eq. 14 with a factor on its second sum. The weight of the mean does not change."""
    plain, _, (z_t, _), (z_s, _) = step_of(objective(reduction=reduction), step=20)
    scaled, *_ = step_of(objective(reduction=reduction, revealed_weight=weight), step=20)
    revealed = (z_t == MASK) & (z_s != MASK)
    assert revealed.any() and (z_s == MASK).any()
    assert_close(scaled.per_token, torch.where(revealed, weight, 1.0) * plain.per_token)
    assert torch.equal(scaled.weight, plain.weight)
    assert float(scaled.metrics["reconstruction"]) == pytest.approx(
        weight * float(plain.metrics["reconstruction"])
    )
    assert float(scaled.metrics["distillation"]) == pytest.approx(
        float(plain.metrics["distillation"])
    )


@pytest.mark.parametrize("coupling", ["locked", "independent"])
@pytest.mark.parametrize("order", [random_order, spread_order])
def test_both_inputs_have_the_order(
    order: LevelOrder, coupling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One path if locked, two if not. In spread order the share of MASKs is near alpha."""
    paths: list[Trajectory] = []

    def watched(*arguments: object) -> Trajectory:
        assert arguments[-1] is order
        paths.append(trajectory(*arguments))
        return paths[-1]

    monkeypatch.setattr(consistency, "trajectory", watched)
    _, _, (z_t, alpha_t), (z_s, alpha_s) = step_of(
        objective(order=order, coupling=coupling), step=20
    )
    assert len(paths) == (1 if coupling == "locked" else 2)
    assert torch.equal(paths[0].at(alpha_t), z_t) and torch.equal(paths[-1].at(alpha_s), z_s)
    for z, alpha in ((z_t, alpha_t), (z_s, alpha_s)):
        error = ((z == MASK).double().mean(1) - (1 - alpha)).abs().max()
        assert order is random_order or error < 2 / 7


# --- uniform noise: DCD

K = 6
UNIFORM = UniformProcess(K)
TEXT = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(1))
PATH = GaussianArgmax(K, gamma_at(0.998, K), gamma_at(0.02, K))
ON_SCHEDULES = pytest.mark.parametrize(
    "schedule", [LogLinear(), PATH], ids=["log-linear", "arg max"]
)


def uniform(schedule: NoiseSchedule = PATH, **switches: object) -> Consistency:
    return Consistency(UNIFORM, schedule, Toy(K, seed=7), ROUNDS, **switches)


@ON_SCHEDULES
@pytest.mark.parametrize("step", [0, 10, 99])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("revealed", ["cross_entropy", "divergence", "none"])
def test_dcd_is_the_divergence_at_every_token(
    direction: str, revealed: str, step: int, schedule: NoiseSchedule
) -> None:
    """Duo, section 4.2:

    KL(student at z_t || teacher at z_s), a mean over all tokens. x0 is not used.
    """
    method = uniform(schedule, direction=direction, revealed=revealed, revealed_weight=7.0)
    loss, student, (z_t, alpha_t), (z_s, alpha_s) = step_of(method, step, x0=TEXT)
    log_p = student(z_t, alpha_t).log_p().detach()
    log_q = method.teacher(z_s, alpha_s).log_p(temperature=ROUNDS.temperature(step)).detach()
    want = loss_kl(log_p, log_q) if direction == "reverse" else loss_kl(log_q, log_p)
    assert_close(loss.per_token.detach(), want, rtol=1e-9, atol=1e-12)
    assert bool((loss.weight == 1).all()) and loss.weight.shape == TEXT.shape
    assert float(loss.metrics["reconstruction"]) == 0
    assert float(loss.metrics["distillation"]) == pytest.approx(float(want.mean()))
    t, s = (schedule.time(alpha) for alpha in (alpha_t, alpha_s))
    assert_close(t - s, torch.full((B,), ROUNDS.delta(step)).double(), rtol=0, atol=1e-9)


@given(st.integers(0, 10**6))
def test_a_token_that_has_left_x0_at_s_is_the_same_at_t(seed: int) -> None:
    """The locked pair of the arg max path: the competitor never changes, and x0 at t is x0 at s."""
    _, _, (z_t, _), (z_s, _) = step_of(uniform(), 20, seed, TEXT)
    assert bool(((z_s == TEXT) | (z_t == z_s)).all()) and bool(
        ((z_t != TEXT) | (z_s == TEXT)).all()
    )


def test_the_coupling_selects_one_trajectory_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Trajectory] = []

    def watched(*arguments: object) -> Trajectory:
        paths.append(trajectory(*arguments))
        return paths[-1]

    monkeypatch.setattr(consistency, "trajectory", watched)
    for coupling in ("locked", "independent"):
        paths.clear()
        _, _, (z_t, alpha_t), (z_s, alpha_s) = step_of(uniform(coupling=coupling), 20, x0=TEXT)
        assert len(paths) == (1 if coupling == "locked" else 2)
        assert torch.equal(paths[0].at(alpha_t), z_t) and torch.equal(paths[-1].at(alpha_s), z_s)


def test_independent_inputs_return_to_x0_and_change_their_noise() -> None:
    x0 = TEXT.repeat(20, 20)
    _, _, (z_t, alpha_t), (z_s, alpha_s) = step_of(uniform(coupling="independent"), 20, x0=x0)
    # Both are noise, and no x0 by chance.
    both_lost = ((1 - alpha_t) * (1 - alpha_s) * (1 - 1 / K) ** 2)[:, None]
    changed = (z_s != x0) & (z_t != x0) & (z_s != z_t)
    want = float((both_lost * (1 - 1 / (K - 1))).mean())
    assert float(changed.double().mean()) == pytest.approx(want, abs=0.01)


def test_with_uniform_noise_the_masked_mean_is_the_mean() -> None:
    one, two = (step_of(uniform(reduction=name), 0, x0=TEXT)[0] for name in ("tokens", "masked"))
    assert torch.equal(one.weight.double(), two.weight.double()) and torch.equal(
        one.per_token, two.per_token
    )


def test_equal_networks_at_equal_inputs_have_loss_zero() -> None:
    method = replace(uniform(), rounds=Rounds(10, 1e-12, (1.0,)))
    student = Toy(K, seed=8)
    method.prepare(0, student)
    assert (
        float(method(student, TEXT, step=0, generator=seeded()).per_token.detach().abs().max())
        < 1e-12
    )
