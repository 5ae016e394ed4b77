"""Laws that connect schedules, processes, trajectories, predictions and losses.

The source has texts of 3 tokens and length 2. Its tokens depend on each other, and it is small
enough to enumerate.
"""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from torch.testing import assert_close

from reference import process_channel, process_leave_one_out, process_texts
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import (
    Cosine,
    GaussianArgmax,
    LogLinear,
    NoiseSchedule,
    Polynomial,
    gamma_at,
)
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.objectives.consistency import distillation_loss
from unmask.prediction import Prediction

TOKENS, L = 3, 2
MASKED, UNIFORM = MaskedProcess(TOKENS + 1, mask_id=TOKENS), UniformProcess(TOKENS)
BOTH = pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
SCHEDULES = [LogLinear(), LogLinear(0.0), Cosine(), Polynomial(3.0)]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise_of(process: Process) -> Tensor:
    return double(0, 0, 0, 1) if process is MASKED else torch.full((TOKENS,), 1 / TOKENS).double()


def source(process: Process) -> Tensor:
    size = process.vocab_size
    joint = torch.zeros(size, size, dtype=torch.float64)
    joint[:TOKENS, :TOKENS] = double(8, 1, 2, 1, 9, 3, 4, 1, 12).view(3, 3)
    return joint / joint.sum()


def exact(process: Process, z: Tensor, alpha: float) -> Tensor:
    """log p(x0_i | z without i) of the source, [n, L, V]. Any number for an impossible z."""
    return (
        process_leave_one_out(source(process), noise_of(process), z, alpha)
        .log()
        .nan_to_num(nan=0.0, neginf=-1e6)
    )


@BOTH
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_the_posterior_allows_the_less_noisy_input(
    process: Process, a: float, b: float, seed: int
) -> None:
    """z_s of a trajectory has a positive probability under the posterior given z_t and x0."""
    low, high = sorted((a, b))
    x0 = torch.randint(TOKENS, (2, 6), generator=torch.Generator().manual_seed(seed))
    path = trajectory(process, x0, torch.Generator().manual_seed(seed + 1))
    z_t, z_s = (path.at(torch.full((2,), alpha, dtype=torch.float64)) for alpha in (low, high))
    point = torch.nn.functional.one_hot(x0, process.vocab_size).double()
    back = process.posterior(point, z_t, double(low, low), double(high, high))
    assert float(back.gather(-1, z_s[..., None]).min()) > 0


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_many_exact_reverse_steps_sample_the_source(
    process: Process, schedule: NoiseSchedule
) -> None:
    """Sampling by the posterior with the exact law has an error of first order in the step.

    40 and 80 steps, starting from the forward law at t = 1, so that eps causes no error.
    """
    joint, noise, texts = source(process), noise_of(process), process_texts(process.vocab_size, L)
    weight = joint[tuple(texts.T)]
    errors = []
    for steps in (40, 80):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alphas = schedule.alpha(times).tolist()
        law = weight @ process_channel(noise, alphas[0])[texts[:, None], texts].prod(-1)
        for a_t, a_s in pairwise(alphas):
            back = process.posterior(
                exact(process, texts, a_t).exp(), texts, double(a_t), double(a_s)
            )
            # Table [z_t, z_s].
            law = law @ torch.stack([back[:, i][:, texts[:, i]] for i in range(L)]).prod(0)
        errors.append(float((law - weight).abs().sum()) / 2)
    assert errors[1] < 0.6 * errors[0] + 1e-12 and errors[1] < 0.02


def test_the_exact_law_is_a_martingale() -> None:
    """E[p(x0_i | z_s) | z_t] = p(x0_i | z_t) for z_t all MASK.

    The exact law is a martingale along a nested pair.
    """
    alpha_s = 0.6
    now = exact(MASKED, torch.tensor([[TOKENS, TOKENS]]), 0.0).exp()[0, 0]
    texts, channel = process_texts(TOKENS + 1, L), process_channel(noise_of(MASKED), alpha_s)
    law = torch.einsum("ab,az,by->zy", source(MASKED), channel, channel)  # of z_s
    masked = texts[texts[:, 0] == TOKENS]
    mean = (law[tuple(masked.T)][:, None] * exact(MASKED, masked, alpha_s).exp()[:, 0]).sum(0)
    assert_close(mean / law[TOKENS].sum(), now)


def test_forward_kl_leaves_a_perfect_masked_teacher_unchanged() -> None:
    """At tau = 1 the teacher itself minimises the mean forward loss over z_s.

    It does not minimise the reverse loss: the gradient there is not zero and favours a narrower
    student.
    """
    alpha_s = 0.6
    texts = process_texts(TOKENS + 1, L)
    joint, channel = source(MASKED), process_channel(noise_of(MASKED), alpha_s)
    x0 = joint.nonzero()
    pairs = torch.cartesian_prod(torch.arange(len(x0)), torch.arange(len(texts)))
    text, z_s = x0[pairs[:, 0]], texts[pairs[:, 1]]
    weight = joint[tuple(text.T)] * channel[text, z_s].prod(-1)
    z_t = torch.full_like(z_s, TOKENS)
    teacher = Prediction.from_log_p(exact(MASKED, z_s, alpha_s))
    slopes = {}
    for direction in ("forward", "reverse"):
        table = exact(MASKED, z_t[:1], 0.0).requires_grad_()
        student = Prediction.from_log_p(table.expand(len(z_t), L, TOKENS + 1))
        loss = distillation_loss(
            student, teacher, text, z_t == TOKENS, z_s == TOKENS, direction=direction
        )
        (gradient,) = torch.autograd.grad((loss.sum(-1) * weight).sum(), table)
        slopes[direction] = float(gradient.abs().max())
    assert slopes["forward"] < 1e-12 and slopes["reverse"] > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_is_only_a_speed(schedule: NoiseSchedule) -> None:
    """The integrand is a function of alpha, times -dalpha/dt.

    At one alpha any two schedules agree.
    """
    t = double(0.4)
    alpha, slope = schedule.alpha(t), schedule.dalpha(t)
    x0, z = torch.tensor([[0, 1]]), torch.tensor([[2, 2]])
    for process in (MASKED, UNIFORM):
        prediction = Prediction.from_log_p(exact(process, z, float(alpha)))
        assert_close(
            process.nelbo(prediction, x0, z, alpha, slope),
            -slope * process.nelbo(prediction, x0, z, alpha, double(-1.0)),
        )


def test_a_completion_is_noised_on_the_same_path() -> None:
    """A model's completion with z_t's own u: the bridge keeps every visible token of z_t."""
    x0 = torch.randint(TOKENS, (4, 30), generator=torch.Generator().manual_seed(0))
    path = trajectory(MASKED, x0, torch.Generator().manual_seed(1))
    alpha_t, alpha_s = torch.full((4,), 0.3), torch.full((4,), 0.7)
    z_t = path.at(alpha_t)
    guess = torch.where(z_t == TOKENS, torch.zeros_like(x0), z_t)
    bridge = Trajectory(guess, path.noise, path.u).at(alpha_s)
    assert torch.equal(bridge[z_t != TOKENS], x0[z_t != TOKENS])
    assert torch.equal(bridge == TOKENS, path.at(alpha_s) == TOKENS)


# --- Duo's path


def coupled_law(size: int, token: int, alphas: list[float]) -> np.ndarray:
    """P(z_1, .., z_n) of an arg max that leaves x0 once and then never changes, [size] * n.

    The alphas decrease.
    """
    law = np.zeros([size] * len(alphas))
    for left in range(len(alphas) + 1):  # x0 is gone from this reading on
        low = alphas[left] if left < len(alphas) else 0.0
        high = alphas[left - 1] if left else 1.0
        if left < len(alphas):
            for rival in range(size):
                law[(*[token] * left, *[rival] * (len(alphas) - left))] += (high - low) / size
        else:
            law[(token,) * len(alphas)] += high
    return law


@pytest.mark.parametrize("times", [(0.15, 0.5, 0.9), (0.4, 0.45, 0.5), (0.0, 0.3, 1.0)], ids=str)
def test_a_trajectory_is_duos_gaussian_path_at_three_times(
    times: tuple[float, float, float],
) -> None:
    """The arg max of K Gaussians at three times has the law of two numbers a token.

    Every cell of the joint law of (z_1, z_2, z_3) is tested: both against the exact law and against
    each other, and every transition. The levels are those of `GaussianArgmax`: P(arg max = x0) =
    alpha + (1 - alpha) / K.
    """
    size, token, n = 5, 3, 200_000
    schedule = GaussianArgmax(size, gamma_at(0.97, size), gamma_at(0.04, size))
    t = double(*times)
    alphas = schedule.alpha(t)
    eps = torch.randn(n, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    signal = torch.nn.functional.one_hot(torch.tensor(token), size)
    gaussian = [(root * signal + eps).argmax(-1) for root in schedule.snr_root(t)]  # w / sigma~
    path = trajectory(
        UniformProcess(size), torch.full((1, n), token), torch.Generator().manual_seed(6)
    )
    pair = [path.at(alpha[None])[0] for alpha in alphas]
    due = coupled_law(size, token, alphas.tolist()).flatten()
    assert due.sum() == pytest.approx(1)
    weights = torch.tensor([size**2, size, 1])
    counts = [
        np.bincount((torch.stack(views, -1) * weights).sum(-1).numpy(), minlength=size**3)
        for views in (gaussian, pair)
    ]
    possible = due > 1e-12
    for seen in counts:
        assert not seen[~possible].any(), "a token that came back, or a rival that changed"
        assert chisquare(seen[possible], n * due[possible]).pvalue > 1e-4
    common = counts[0][possible], counts[1][possible]
    enough = sum(common) >= 10
    assert chi2_contingency([seen[enough] for seen in common]).pvalue > 1e-4
    # Transitions: rows of P(z_later | z_earlier), both directions of time.
    for one, two in (
        (0, 1),
        (1, 2),
        (0, 2),
    ):
        tables = [
            np.bincount((views[one] * size + views[two]).numpy(), minlength=size**2).reshape(
                size, size
            )
            for views in (gaussian, pair)
        ]
        for rows in (zip(*tables, strict=True), zip(*(table.T for table in tables), strict=True)):
            for a, b in rows:
                many = (a + b) >= 10
                assert many.sum() < 2 or chi2_contingency([a[many], b[many]]).pvalue > 1e-5


def test_forward_kl_sharpens_a_perfect_uniform_teacher() -> None:
    """Two equal fair bits: the teacher's probability is .750, the optimum of DCD .788.

    z_t = (0, 0), alpha_t = .5, alpha_s = .6. The optimum is the mean of the teacher's laws p(x_1 |
    z_s,2) given all of z_t, over the locked path. Each token keeps x0 at both levels, loses it
    between them, or is the same noise at both.
    """
    alpha_t, alpha_s = 0.5, 0.6
    # Where the token still shows x0.
    kinds = {
        "both": alpha_t,
        "s": alpha_s - alpha_t,
        "none": 1 - alpha_s,
    }
    seen = {0: 0.0, 1: 0.0}  # z_s,2 -> probability, together with z_t = (0, 0)
    for x, noise_1, noise_2 in product((0, 1), repeat=3):
        for one, two in product(kinds, repeat=2):
            z_t = (x if one == "both" else noise_1, x if two == "both" else noise_2)
            if z_t == (0, 0):
                seen[noise_2 if two == "none" else x] += kinds[one] * kinds[two] / 8
    agree, differ = (1 + alpha_s) / 2, (1 - alpha_s) / 2
    optimum = (seen[0] * agree + seen[1] * differ) / (seen[0] + seen[1])
    assert round((1 + alpha_t) / 2, 3) == 0.750 and round(optimum, 3) == 0.788
    z = torch.zeros(1, 2, dtype=torch.int64)
    law = process_leave_one_out(
        torch.eye(2, dtype=torch.float64) / 2, torch.full((2,), 0.5), z, alpha_t
    )
    assert_close(float(law[0, 0, 0]), (1 + alpha_t) / 2)
