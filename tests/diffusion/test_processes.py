"""Masked and uniform noise against enumeration: posterior, chain of steps, bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from reference import (
    float32_log_softmax_error,
    loss_uniform_rate,
    network_golden,
    process_channel,
    process_posterior,
)
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.prediction import Prediction

V = 4
MASKED, UNIFORM = MaskedProcess(V, mask_id=3), UniformProcess(V)
NOISE = {
    MASKED: torch.tensor([0.0, 0.0, 0.0, 1.0]).double(),
    UNIFORM: torch.full((V,), 1 / V).double(),
}
BOTH = pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
EVERY_TOKEN = torch.arange(V)[None]  # a row in which each token stands once

pair_of_levels = st.tuples(st.floats(0, 0.999), st.floats(1e-3, 1)).map(sorted)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def laws(process: Process, rows: int, seed: int = 0) -> Tensor:
    """Random laws of x0, [1, rows, V], with probability 0 on MASK."""
    p = (
        torch.rand(1, rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        + 0.01
    )
    if process is MASKED:
        p[..., MASKED.mask_id] = 0
    return p / p.sum(-1, keepdim=True)


# --- prior


@BOTH
def test_the_prior_is_the_law_of_noise(process: Process) -> None:
    like = torch.zeros(2, 20_000, dtype=torch.int64)
    drawn = process.prior(like, torch.Generator().manual_seed(0))
    assert drawn.shape == like.shape and drawn.dtype == torch.int64
    share = torch.bincount(drawn.flatten(), minlength=V) / drawn.numel()
    assert float((share - NOISE[process]).abs().max()) < 0.01


# --- posterior


@BOTH
@given(levels=pair_of_levels, seed=st.integers(0, 10**6))
def test_the_posterior_is_bayes_rule(process: Process, levels: list[float], seed: int) -> None:
    p = laws(process, V, seed)
    got = process.posterior(p, EVERY_TOKEN, double(levels[0]), double(levels[1]))
    want = torch.stack([process_posterior(NOISE[process], p[0, z], z, *levels) for z in range(V)])
    possible = ~want.isnan().any(-1)  # at alpha = 0 a masked process shows no token
    assert_close(got[0, possible], want[possible], rtol=1e-9, atol=1e-12)
    assert_close(got.sum(-1), torch.ones(1, V).double())
    assert float(got.min()) >= -1e-15


@BOTH
@given(
    levels=pair_of_levels,
    p_z=st.lists(st.floats(0, 1), min_size=V, max_size=V).map(sorted),
    token=st.integers(0, 3),
)
def test_the_posterior_mixture_is_monotone_in_p_z(
    process: Process, levels: list[float], p_z: list[float], token: int
) -> None:
    """`keep` never falls, `predict` and `noise` never grow, as p(x0 = z_t) grows."""
    z = torch.full((1, V), token)
    weights = torch.stack(
        process.posterior_mixture(z, double(*p_z)[None], double(levels[0]), double(levels[1]))
    )[:, 0]
    assert_close(weights.sum(0), torch.ones(V).double())
    assert bool((weights >= 0).all())
    keep, predict, noise = weights.diff(dim=1)
    assert bool((keep >= 0).all()) and bool((predict <= 0).all()) and bool((noise <= 0).all())


@BOTH
def test_uniform_numbers_give_noise_of_the_right_law(process: Process) -> None:
    u = (torch.arange(1000) + 0.5).double() / 1000
    share = (
        torch.bincount(process.prior_from(torch.cat([u, double(2**-53, 1 - 2**-53)])), minlength=V)
        / 1002
    )
    assert float((share - NOISE[process]).abs().max()) < 0.002


@BOTH
@given(
    alphas=st.lists(st.floats(1e-3, 1 - 1e-3), min_size=3, max_size=3).map(sorted),
    token=st.integers(0, V - 2),
)
def test_two_reverse_steps_are_one(process: Process, alphas: list[float], token: int) -> None:
    """Chapman-Kolmogorov for known x0.

    The sum over z_s of q(z_r | z_s, x0) q(z_s | z_t, x0) is q(z_r | z_t, x0).
    """
    a_t, a_s, a_r = (double(a) for a in alphas)
    x0 = torch.nn.functional.one_hot(torch.full((1, V), token), V).double()
    first = process.posterior(x0, EVERY_TOKEN, a_t, a_s)[0]
    second = process.posterior(x0, EVERY_TOKEN, a_s, a_r)[0]
    at_once = process.posterior(x0, EVERY_TOKEN, a_t, a_r)[0]
    # A shown token of a masked process is x0 itself.
    seen = process_channel(NOISE[process], alphas[0])[token] > 0
    assert_close((first @ second)[seen], at_once[seen], rtol=1e-9, atol=1e-12)


@BOTH
@given(levels=pair_of_levels, token=st.integers(0, V - 2))
def test_a_reverse_step_keeps_the_marginal(
    process: Process, levels: list[float], token: int
) -> None:
    x0 = torch.nn.functional.one_hot(torch.full((1, V), token), V).double()
    back = process.posterior(x0, EVERY_TOKEN, double(levels[0]), double(levels[1]))[0]
    at_t, at_s = (process_channel(NOISE[process], alpha)[token] for alpha in levels)
    assert_close(at_t @ back, at_s, rtol=1e-9, atol=1e-12)


@BOTH
def test_the_ends_of_the_posterior(process: Process) -> None:
    p = laws(process, V)
    for alpha, tokens in ((0.0, V), (0.3, V), (1.0, V - 1)):  # at alpha = 1 there is no MASK
        here = process.posterior(p, EVERY_TOKEN, double(alpha), double(alpha))
        assert_close(here[0, :tokens], torch.eye(V).double()[:tokens])  # no time, no step
    masks = torch.full((1, V), MASKED.mask_id)
    # One step is a draw from the prediction.
    assert_close(MASKED.posterior(p, masks, double(0.0), double(1.0)), p)
    assert_close(UNIFORM.posterior(p, EVERY_TOKEN, double(0.0), double(1.0)), p)


@BOTH
@pytest.mark.parametrize("alpha_dtype", [torch.float32, torch.float64])
def test_the_posterior_has_the_dtype_of_the_law_and_float64_inside(
    process: Process, alpha_dtype: torch.dtype
) -> None:
    """Short steps: the rates are differences of levels, precise for float32 probabilities too."""
    p = laws(process, V)
    for level in (0.501, 0.50001, 1 - 1e-6):
        a_t, a_s = (torch.tensor([alpha], dtype=alpha_dtype) for alpha in (0.5, level))
        exact = process.posterior(p, EVERY_TOKEN, a_t.double(), a_s.double())
        got = process.posterior(p.float(), EVERY_TOKEN, a_t, a_s)
        assert got.dtype == torch.float32
        assert_close(got.double(), exact, rtol=1e-6, atol=0)


def test_each_sequence_has_its_own_levels() -> None:
    a_t, a_s = double(0.1, 0.4), double(0.3, 0.9)
    for process in (MASKED, UNIFORM):
        p = laws(process, 2 * V).view(2, V, V)
        both = process.posterior(p, EVERY_TOKEN.expand(2, V), a_t, a_s)
        for row in range(2):
            alone = process.posterior(
                p[row : row + 1], EVERY_TOKEN, a_t[row : row + 1], a_s[row : row + 1]
            )
            assert_close(both[row], alone[0])


# --- nelbo, one token


def priced(process: Process, log_p: Tensor, alpha: float) -> Tensor:
    """The bound of every pair of tokens, [x0, z], under one law log_p [V], at -dalpha = 1."""
    x0, z = (
        grid.flatten()[None]
        for grid in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij")
    )
    table = log_p.expand(1, V * V, V)
    shown = z if process is MASKED else None
    prediction = Prediction(
        table, nn.Identity(), V, None if shown is None else MASKED.mask_id, shown
    )
    return process.nelbo(prediction, x0, z, double(alpha), double(-1.0)).view(V, V)


@BOTH
@pytest.mark.parametrize("alpha", [0.9, 0.4, 0.05])
def test_nelbo_is_the_limit_of_kl_over_dt(process: Process, alpha: float) -> None:
    """KL(q(z_s | z_t, x0) || p(z_s | z_t)) / (alpha_s - alpha_t) for short steps, [x0, z_t]."""
    p = laws(process, 1, seed=4)[0, 0]
    got = priced(process, p.log(), alpha)
    for token in range(V - 1):
        for z in range(V):
            if process is MASKED and z not in (token, MASKED.mask_id):
                continue
            rates = []
            for step in (2e-5, 1e-5):
                truth = torch.eye(V).double()[token]
                q, guess = (
                    process_posterior(NOISE[process], law, z, alpha, alpha + step)
                    for law in (truth, p)
                )
                rates.append(float((torch.xlogy(q, q) - torch.xlogy(q, guess)).sum()) / step)
            assert float(got[token, z]) == pytest.approx(
                2 * rates[1] - rates[0], rel=1e-4, abs=1e-8
            )


@BOTH
@given(alpha=st.floats(1e-3, 1 - 1e-6), logits=st.lists(st.floats(-30, 30), min_size=V, max_size=V))
def test_nelbo_is_never_negative(process: Process, alpha: float, logits: list[float]) -> None:
    """Up to the rounding of its terms.

    They are as large as 1 / (1 - alpha) and cancel for a right prediction.
    """
    log_p = torch.log_softmax(double(*logits), dim=-1)
    got = priced(process, log_p, alpha)
    possible = torch.ones(V, V, dtype=torch.bool)
    if process is MASKED:
        possible = torch.eye(V, dtype=torch.bool)
        possible[:, MASKED.mask_id] = True
        possible[MASKED.mask_id] = False
    assert (
        bool(torch.isfinite(got).all())
        and float(got[possible].min()) >= -1e-14 / (1 - alpha) - 1e-11
    )


@BOTH
@given(alpha=st.floats(1e-3, 1 - 1e-3), token=st.integers(0, V - 2))
def test_a_perfect_prediction_has_bound_zero(process: Process, alpha: float, token: int) -> None:
    point = torch.full((V,), -1e6).double().index_fill(0, torch.tensor(token), 0.0)
    assert float(priced(process, point, alpha)[token].abs().max()) < 1e-10


def test_the_masked_bound_is_the_weighted_cross_entropy() -> None:
    """MDLM, Eq. 10: -alpha' / (1 - alpha) times -log p(x0)."""
    p = laws(MASKED, 1)[0, 0]
    got = priced(MASKED, p.log(), 0.75)
    assert_close(got[:3, 3], -p[:3].log() / 0.25)
    assert not got[torch.arange(3), torch.arange(3)].any()


@BOTH
def test_the_bound_is_finite_at_both_ends(process: Process) -> None:
    """alpha = 1 is the text itself. At alpha = 0 with uniform noise, z holds no information."""
    p = laws(process, 1)[0, 0]
    for edge, inside in ((1.0, 1 - 1e-7), (0.0, 1e-7)):
        at, near = (priced(process, p.log(), alpha) for alpha in (edge, inside))
        possible = (
            torch.eye(V, dtype=torch.bool)[:3] if edge == 1 else torch.ones(3, V, dtype=torch.bool)
        )
        assert_close(at[:3][possible], near[:3][possible], atol=1e-5, rtol=1e-5)
    point = torch.full((V,), -1e6).double().index_fill(0, torch.tensor(1), 0.0)
    assert abs(float(priced(process, point, 1.0)[1, 1])) < 1e-10


@BOTH
def test_nelbo_has_the_dtype_of_the_prediction_and_float64_inside(process: Process) -> None:
    p = laws(process, 1)[0, 0].expand(1, 1, V)
    x0, z = torch.tensor([[1]]), torch.tensor([[3]])
    for alpha in (1e-3, 0.5, 1 - 1e-6):
        exact = process.nelbo(Prediction.from_log_p(p.log()), x0, z, double(alpha), double(-1.0))
        low = process.nelbo(
            Prediction.from_log_p(p.log().float()), x0, z, double(alpha), double(-1.0)
        )
        assert low.dtype == torch.float32 and exact.dtype == torch.float64
        assert_close(low.double(), exact, rtol=1e-5, atol=1e-6)


@BOTH
def test_the_gradient_of_nelbo_is_that_of_its_formula(process: Process) -> None:
    logits = torch.randn(
        1, V * V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x0, z = (
        grid.flatten()[None]
        for grid in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij")
    )
    if process is MASKED:
        x0, z = x0.clamp(max=2), torch.where(z == x0.clamp(max=2), z, 3)

    def loss(table: Tensor) -> Tensor:
        return process.nelbo(Prediction.from_log_p(table), x0, z, double(0.3), double(-1.0))

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


# --- the uniform bound in float32, at the vocabulary of GPT-2 and at both ends of the noise


def rows_to_price(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [1, n, K] float32, x0, z): from random to almost perfect predictions."""
    generator = torch.Generator().manual_seed(size)
    logits = 2 * torch.randn(1, 12, size, generator=generator)
    x0 = torch.randint(size, (1, 12), generator=generator)
    z = torch.where(
        torch.arange(12) % 2 == 0, torch.randint(size, (1, 12), generator=generator), x0
    )
    sure = torch.tensor([0.0, 12.0, 30.0]).repeat_interleave(4)
    return logits.scatter_add(-1, x0[..., None], sure[None, :, None]), x0, z


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("size", [7, 1024, 50258])
def test_the_uniform_bound_keeps_its_digits_in_float32(size: int, alpha: float) -> None:
    """Value and gradient in float32 against the plain formula, although large terms cancel.

    The terms are as large as 1 / alpha and 1 / (1 - alpha). The plain formula in float32 loses 100
    times as many digits at both ends. What remains is the rounding of log p itself, over K tokens.
    """
    logits, x0, z = rows_to_price(size)
    close = (5e-6 if size > 10_000 else 6e-7) * (1 / alpha + 1 / (1 - alpha))
    low, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    got = UniformProcess(size).nelbo(Prediction.from_log_p(low), x0, z, double(alpha), double(-1.0))
    want = loss_uniform_rate(torch.log_softmax(exact, -1)[0], x0[0], z[0], alpha)
    assert got.dtype == torch.float32 and bool((got >= 0).all())
    assert_close(got.detach()[0].double(), want.detach(), rtol=2e-7, atol=close)
    (mine,), (theirs,) = (
        torch.autograd.grad(loss.sum(), leaf) for loss, leaf in ((got, low), (want, exact))
    )
    assert float((mine.double() - theirs).norm(dim=-1).max()) < close
    assert float(theirs.norm(dim=-1).max()) > 1e-6 / alpha, "there is something to compare"


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_prediction_over_many_tokens_has_bound_zero(
    alpha: float, dtype: torch.dtype
) -> None:
    size = 50258
    x0 = torch.tensor([[3, 3, 50257]])
    z = torch.tensor([[3, 9, 0]])
    points = (
        torch.full((1, 3, size), -1e6, dtype=dtype)
        .scatter_(-1, x0[..., None], 0.0)
        .requires_grad_()
    )
    price = UniformProcess(size).nelbo(
        Prediction.from_log_p(points), x0, z, double(alpha), double(-1.0)
    )
    assert float(price.detach().max()) < (1e-6 if dtype == torch.float32 else 1e-12) / (1 - alpha)
    (slope,) = torch.autograd.grad(price.sum(), points)
    assert float(slope.abs().max()) < 1e-9


# --- golden data


# The error of float32 logits through two blocks of width 48, and twice that of log p: some 8
# products in sequence, sums of up to 192 terms of order 1, each with an error of 192 x 2^-24.
NETWORK = 2e-4


@pytest.mark.processor
def test_mdlms_bound() -> None:
    """Both are float32 log softmaxes of logits: they differ by their roundings."""
    network, want = network_golden("hub_mdlm")
    process, schedule = MaskedProcess(38, mask_id=37), LogLinear(1e-3)
    alpha, slope = schedule.alpha(want["t"].double()), schedule.dalpha(want["t"].double())
    from_logits = Prediction(want["logits"], nn.Identity(), 38, 37, want["zt"])
    from_network = NetworkDenoiser(network, 37, sees_alpha=False)(want["zt"], alpha)
    masked = want["zt"] == 37
    rounding = 2 * float32_log_softmax_error(want["log_probs_masked"][:, :37].double())
    own = rounding.gather(-1, want["x0"][masked][:, None]).squeeze(-1)
    for prediction, error in ((from_logits, 0.0), (from_network, NETWORK)):
        weight = (-slope / (1 - alpha))[:, None].expand(masked.shape)[masked]
        got = process.nelbo(prediction, want["x0"], want["zt"], alpha, slope)
        # Both round the product with the weight, and MDLM's weight is float32.
        within(
            got[masked],
            want["nelbo_per_token"][masked],
            weight * (own + error) + 2e-6 * got[masked],
        )
        assert not got[~masked].any() and not want["nelbo_per_token"][~masked].any()
        within(prediction.log_p(masked)[:, :37], want["log_probs_masked"][:, :37], rounding + error)


@pytest.mark.processor
def test_duos_posterior_and_bound() -> None:
    """Duo's float64 sums over a float32 softmax against ours, from its logits or our network's.

    A relative error e of each p changes a posterior by at most 2 e of it, and the bound by e times
    the sum of its slopes.
    """
    network, want = network_golden("hub_duo")
    process = UniformProcess(37)
    z, alpha_t, alpha_s, slope = (
        want[name].double() for name in ("zt", "alpha_t", "alpha_s", "dalpha_t")
    )
    from_logits = Prediction.from_log_p(want["logits"].double())
    from_network = NetworkDenoiser(network, None, sees_alpha=True)(want["zt"], want["alpha_t"])
    table = from_logits.log_p().requires_grad_()
    bound = process.nelbo(Prediction.from_log_p(table), want["x0"], z.long(), alpha_t, slope)
    (change,) = torch.autograd.grad(bound.sum(), table)
    rounding = float32_log_softmax_error(table.detach()) + 2.0**-23  # and that of the exponential
    for prediction, error in ((from_logits, rounding), (from_network, 2 * rounding + NETWORK)):
        law = prediction.log_p().double().exp()
        posterior = process.posterior(law, z.long(), alpha_t, alpha_s)
        within(
            posterior, want["posterior"], 2.02 * error.amax(-1, keepdim=True) * want["posterior"]
        )
        nll = process.nelbo(prediction, want["x0"], z.long(), alpha_t, slope)
        # A float32 bound rounds its terms, which are as large as K / alpha (see the test above).
        close = (
            6e-7 * (1 / alpha_t + 1 / (1 - alpha_t)) if nll.dtype == torch.float32 else 0 * alpha_t
        )
        within(nll, want["nll_per_token"], 1.01 * (error * change.abs()).sum(-1) + close[:, None])


def within(got: Tensor, want: Tensor, error: Tensor) -> None:
    """The values are equal within `error`, and `error` is small compared to them."""
    assert got.shape == want.shape and bool(((got.double() - want.double()).abs() <= error).all())
    assert float(error.detach().mean()) < 1e-3 * float(want.abs().mean())


# --- bad input


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match=r"vocab_size .*got 1, want"):
        UniformProcess(1)
    with pytest.raises(ValueError, match=r"vocab_size .*got 0, want"):
        MaskedProcess(0, 0)
    for mask_id in (-1, 4):
        with pytest.raises(ValueError, match=f"mask_id .*got {mask_id}, want 0 <= mask_id < 4"):
            MaskedProcess(4, mask_id)


@BOTH
def test_wrong_levels(process: Process) -> None:
    p = laws(process, V)
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"alpha .*got {bad}, want 0 <= alpha <= 1"):
            process.posterior(p, EVERY_TOKEN, double(bad), double(1.0))
        with pytest.raises(ValueError, match=f"alpha .*got {bad}, want 0 <= alpha <= 1"):
            process.posterior(p, EVERY_TOKEN, double(0.0), double(bad))
        with pytest.raises(ValueError, match=f"alpha .*got {bad}, want 0 <= alpha <= 1"):
            process.nelbo(
                Prediction.from_log_p(p.log()), EVERY_TOKEN, EVERY_TOKEN, double(bad), double(-1.0)
            )
    with pytest.raises(ValueError, match=r"alpha_s = \[0.4\] and alpha_t = \[0.5\]"):
        process.posterior(p, EVERY_TOKEN, double(0.5), double(0.4))
