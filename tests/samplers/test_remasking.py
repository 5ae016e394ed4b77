"""Samplers that write noise: Bayes' rule over every x0, ReMDM's printed law, marginals."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from reference import (
    process_channel,
    sampler_p_value,
    sampler_remdm,
    sampler_renoised,
    sampler_reveal,
)
from toy_sampling import (
    FILTERS,
    MASK,
    L,
    N,
    V,
    alphas_of,
    draw,
    filtered,
    masked,
    run_frames,
    start,
    uniform,
)
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import LogLinear, Polynomial
from unmask.samplers.categorical import DRAWS
from unmask.samplers.counts import GRIDS
from unmask.samplers.remasking import Kappa, psi, remdm_cap, remdm_loop, remdm_rescale
from unmask.samplers.sample import sample

NOISE = {masked: np.eye(V)[MASK], uniform: np.full(V, 1 / V)}
FREE, PINNED = (-1, -1, -1), (-1, 2, -1)


def rising(alpha_t: float, alpha_s: float) -> float:
    return 0.9 * alpha_s


def exact(
    kind: type,
    model: SimpleNamespace,
    steps: int,
    pins: tuple[int, ...],
    kappa: Kappa,
    **filters: float,
) -> dict:
    return sampler_renoised(
        pins, alphas_of(model, steps), filtered(model, **filters), NOISE[kind], kappa
    )


@pytest.mark.parametrize("kind", [masked, uniform])
@pytest.mark.parametrize("kappa", [0, 0.4, 1.0, rising])
@pytest.mark.parametrize(
    ("steps", "eps", "sees_alpha"), [(1, 1e-3, False), (2, 0.3, True), (5, 1e-3, True)]
)
def test_law(kind: type, kappa: float | Kappa, steps: int, eps: float, sees_alpha: bool) -> None:
    model = kind(V, L, LogLinear(eps), sees_alpha=sees_alpha)
    law = exact(kind, model, steps, FREE, kappa if callable(kappa) else lambda a, b: kappa)
    assert sampler_p_value(draw(model, steps, sampler=psi(kappa)).tokens, law) > 1e-3


@pytest.mark.parametrize("kind", [masked, uniform])
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", ["gumbel_max", "inverse_cdf"])
def test_law_with_filters_pins_and_draws(kind: type, filters: dict[str, float], name: str) -> None:
    """The draw from one uniform number fails if a step uses this number a second time."""
    model = kind(V, L, LogLinear(0.1), seed=1)
    tokens = draw(model, 4, PINNED, sampler="psi:0.3", draw=name, **filters).tokens
    law = exact(kind, model, 4, PINNED, lambda a, b: 0.3, **filters)
    assert bool((tokens[:, 1] == 2).all()) and sampler_p_value(tokens, law) > 1e-3


@pytest.mark.parametrize("kind", [masked, uniform])
def test_the_test_can_fail(kind: type) -> None:
    """At 8 steps the laws of kappa 0, 0.5 and 1 differ, and N samples are enough to show it."""
    model, kappas = kind(V, L, contrast=3.0), (0.0, 0.5, 1.0)
    laws = [exact(kind, model, 8, FREE, lambda a, b, kappa=kappa: kappa) for kappa in kappas]
    tokens = [draw(model, 8, sampler=psi(kappa)).tokens for kappa in kappas]
    for i, j in ((0, 1), (0, 2), (1, 2), (2, 0)):
        assert sampler_p_value(tokens[i], laws[j]) < 1e-6


def test_kappa_1_is_ancestral() -> None:
    """In law for MASKs; token by token for other noise, where both make the same steps."""
    model = masked(V, L, LogLinear(0.2), sees_alpha=True)
    law = sampler_reveal(start(FREE), alphas_of(model, 3), filtered(model), MASK)
    assert sampler_p_value(draw(model, 3, sampler="psi:1").tokens, law) > 1e-3
    model = uniform(V, L, sees_alpha=True)
    for name in DRAWS:
        tokens = [
            draw(model, 3, sampler=sampler, draw=name).tokens for sampler in ("psi:1", "ancestral")
        ]
        assert torch.equal(*tokens)


def greatest(a: float, b: float) -> float:
    return min(1.0, (1 - b) / a if a else math.inf)


REMDM = [
    (remdm_cap(0.15), "uniform", lambda a, b: min(0.15, greatest(a, b))),
    (remdm_cap(1), "uniform", greatest),
    (remdm_rescale(0.4), "cosine", lambda a, b: 0.4 * greatest(a, b)),
    (remdm_rescale(1), "uniform", greatest),
    (remdm_loop(0.3), "loop", lambda a, b: min(0.3, greatest(a, b)) if a == b else 0.0),
]


@pytest.mark.parametrize(("sampler", "grid", "sigma"), REMDM)
@pytest.mark.parametrize(("pins", "eps"), [(FREE, 1e-3), (PINNED, 0.0), (FREE, 0.4)])
def test_remdm_as_printed(
    sampler: object, grid: str, sigma: Kappa, pins: tuple[int, ...], eps: float
) -> None:
    """Also at the greatest sigma, at which kappa is negative."""
    model = masked(V, L, LogLinear(eps), sees_alpha=True)
    law = sampler_remdm(
        pins, alphas_of(model, 6, grid), filtered(model, temperature=0.7), MASK, sigma
    )
    tokens = draw(model, 6, pins, sampler=sampler, grid=grid, temperature=0.7).tokens
    assert sampler_p_value(tokens, law) > 1e-3


@pytest.mark.parametrize(
    ("sampler", "kappa"),
    [
        (remdm_cap(0.2), lambda a, b: 1 - min(0.2, 1 - b) / (1 - b)),
        (remdm_rescale(0.7), lambda a, b: 0.3),
    ],
)
def test_remdm_of_uniform_noise_stops_at_kappa_0(sampler: object, kappa: Kappa) -> None:
    model = uniform(V, L, LogLinear(0.1))
    assert (
        sampler_p_value(
            draw(model, 6, sampler=sampler).tokens, exact(uniform, model, 6, FREE, kappa)
        )
        > 1e-3
    )


@given(st.floats(0, 0.99), st.floats(0.01, 0.99), st.floats(0, 1))
def test_psi_of_tables_is_remdm(low: float, share: float, eta: float) -> None:
    """With kappa = 1 - sigma / (1 - alpha_s) the law of psi has ReMDM's two rows."""
    a, b = low, low + (1 - low) * share
    sigma = eta * greatest(a, b)
    kappa, process = 1 - sigma / (1 - b), MaskedProcess(V, MASK)
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    z, (at, as_, one) = (
        torch.tensor([[1, MASK]]),
        torch.tensor([[a], [b], [1.0]], dtype=torch.float64),
    )
    known = process.posterior(p.expand(1, 2, V), z, at, one)
    rows = (
        kappa * process.posterior(p.expand(1, 2, V), z, at, as_)
        + (1 - kappa) * process.marginal(known, as_)
    )[0]
    x, m = torch.eye(V, dtype=torch.float64)[1], torch.eye(V, dtype=torch.float64)[MASK]
    shown = (1 - sigma) * x + sigma * m
    hidden = ((b - (1 - sigma) * a) * p + (1 - b - sigma * a) * m) / (1 - a)
    assert torch.allclose(rows, torch.stack([shown, hidden]), rtol=0, atol=1e-9) and bool(
        (rows > -1e-9).all()
    )


@pytest.mark.parametrize("process", [MaskedProcess(V, 1), UniformProcess(V)])
def test_forward_is_the_channel(process: MaskedProcess | UniformProcess) -> None:
    p = torch.rand(2, L, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = torch.tensor([0.3, 1.0], dtype=torch.float64)
    noise = (
        torch.eye(V)[1]
        if isinstance(process, MaskedProcess)
        else torch.full((V,), 1 / V, dtype=torch.float64)
    )
    p = p / p.sum(-1, keepdim=True)
    expected = torch.stack([p[i] @ process_channel(noise, float(alpha[i])) for i in range(2)])
    assert torch.allclose(process.marginal(p, alpha), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [masked, uniform])
@pytest.mark.parametrize(
    "sampler", ["psi:0", "psi:0.6", "remdm_cap:0.3", "remdm_rescale:1", "remdm_loop:0.2"]
)
def test_one_token_keeps_its_marginal(kind: type, sampler: str) -> None:
    """With the exact p(x0), z has the law alpha_k p + (1 - alpha_k) noise, for any kappa."""
    model = kind(V, 1, LogLinear(0.0))
    model.denoiser.logits[:] = model.denoiser.logits[0]
    p = model.denoiser.law((0,))[0]
    for frame in run_frames(
        model,
        n=N,
        length=1,
        steps=8,
        sampler=sampler,
        grid="loop" if "loop" in sampler else "uniform",
    ):
        counts = np.bincount(frame.z.flatten().numpy(), minlength=V)
        expected = N * (frame.alpha * p + (1 - frame.alpha) * NOISE[kind])
        possible = expected > 0
        assert counts[~possible].sum() == 0
        assert possible.sum() == 1 or chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_a_step_queries_only_the_masks_that_become_visible() -> None:
    """Each MASK that becomes a token needs one row of the head. No other position needs a row."""
    model = masked(V, 5, sees_alpha=True)
    pinned = torch.tensor([[-1] * 5, [0, -1, 1, 2, 1], [2] * 5, [-1, -1, 0, -1, -1]])
    frames = list(
        run_frames(model, n=4, length=5, steps=40, seed=1, pinned=pinned, sampler="psi:0.2")
    )
    hidden = 0
    calls, rows = [], []
    for before, after in pairwise(frames):
        shown = (before.z == MASK) & (after.z != MASK)
        hidden += int(((before.z != MASK) & (after.z == MASK)).sum())
        assert torch.equal(after.changed, shown | ((before.z != MASK) & (after.z == MASK)))
        assert after.rows.tolist() == shown.any(1).nonzero().flatten().tolist()
        if len(after.rows):
            calls.append((len(after.rows), before.alpha))
            rows.append(int(shown.sum()))
    denoiser = model.denoiser
    assert hidden > 10 and [*zip(denoiser.batches, denoiser.alphas, strict=True)] == calls
    assert denoiser.head_rows == rows and len(calls) < 40
    done = sample(model, n=4, length=5, steps=40, seed=1, pinned=pinned, sampler="psi:0.2")
    assert torch.equal(done.tokens, frames[-1].z) and done.calls == len(calls) and done.nfe[2] == 0
    assert done.nfe.sum() == sum(size for size, _ in calls) and bool((done.tokens != MASK).all())


@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_a_step_of_uniform_noise_queries_only_tokens_that_may_change(kappa: float) -> None:
    """A table needs every position; a mixture those whose number is < predict + noise at p = 0."""
    model, n, steps = uniform(V, L), 3000, 5
    sample(model, n=n, length=L, steps=steps, sampler=psi(kappa), draw="legacy_gumbel32")
    assert model.denoiser.head_rows == [n * L] * steps
    model.denoiser.head_rows.clear()
    model.denoiser.batches.clear()
    done = sample(model, n=n, length=L, steps=steps, sampler=psi(kappa))
    assert (
        done.calls == steps
        and sum(model.denoiser.batches) == done.nfe.sum()
        and done.nfe.max() <= steps
    )
    for count, (a, b) in zip(
        model.denoiser.head_rows, pairwise(alphas_of(model, steps)), strict=True
    ):
        weight = 1.0 if b == 1 else kappa
        fresh = weight * (b - a) / (1 - a) + (1 - weight) * b
        stray = weight * (1 - a / b) * (1 - b) / (1 - a) + (1 - weight) * (1 - b)
        share = fresh + stray * (
            1 - 1 / V
        )  # noise that is what stands there already changes nothing
        assert abs(count - n * L * share) <= 4 * math.sqrt(n * L * share * (1 - share)) + 1e-6


def test_a_large_vocabulary_has_no_table_of_all_rows() -> None:
    """The head gets the unmasked positions only, not all positions of all steps."""
    model = masked(40, 2, contrast=0.5)
    sample(model, n=200, length=2, steps=10, sampler="psi:0.7")
    assert sum(model.denoiser.head_rows) < 200 * 2 * 10 / 3


@pytest.mark.parametrize(
    ("make", "value", "match"),
    [
        (
            psi,
            1.5,
            r"kappa .* got 1.5, want 0 <= kappa <= 1",
        ),
        (psi, -0.1, "got -0.1"),
        (psi, math.nan, "got nan"),
        (psi, "0.5", "got '0.5'"),
        (psi, True, "got True"),
        (
            remdm_cap,
            1.1,
            r"eta .* got 1.1, want 0 <= eta <= 1",
        ),
        (remdm_rescale, -1, "eta .* got -1, want 0 <= eta <= 1"),
        (remdm_loop, math.inf, "eta .* got inf, want 0 <= eta <= 1"),
    ],
)
def test_numbers_out_of_range(make: type, value: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(value)


@pytest.mark.parametrize(
    ("kind", "kappa", "match"),
    [
        (
            masked,
            lambda a, b: -1.5,
            r"kappa .* got -1.5 from alpha_t = 0.5005 to alpha_s = 0.75025, want -0.998002",
        ),
        (
            masked,
            lambda a, b: 1.01,
            r"got 1.01 from .*, want -0.334668 <= kappa <= 1 .*negative.*; change",
        ),
        (
            uniform,
            lambda a, b: -0.01,
            r"got -0.01 from alpha_t = 0.001 to alpha_s = 0.25075, want 0 <= kappa <= 1",
        ),
        (uniform, lambda a, b: "x", "got 'x' from .*; change the function given to psi"),
    ],
)
def test_a_function_is_checked_before_the_first_call(kind: type, kappa: Kappa, match: str) -> None:
    model = kind(V, L)

    def partly_wrong(a: float, b: float) -> float:
        assert b < 1, "where alpha_s = 1 kappa plays no part"
        return 0.0 if kind is masked and a < 0.4 and kappa(a, b) == -1.5 else kappa(a, b)

    with pytest.raises(ValueError, match=match):
        sample(model, n=1, length=L, steps=4, sampler=psi(partly_wrong))
    assert model.denoiser.batches == []


@pytest.mark.parametrize("kind", [masked, uniform])
@pytest.mark.parametrize("sampler", ["psi:0.5", "remdm_cap:0.1", "remdm_rescale:0.5"])
def test_a_grid_may_reach_text_before_its_end(kind: type, sampler: str) -> None:
    """The grid "released" does so if 1 - 1e-20 rounds to 1: later steps cost nothing."""
    model = kind(V, L, Polynomial(4.0, eps=0.0))
    drawn = sample(model, n=5, length=L, steps=3, sampler=sampler, grid="released")
    assert float(GRIDS["released"](3, model.schedule)[-2]) == 1
    assert not (drawn.tokens == MASK).any() if kind is masked else drawn.calls == 3
