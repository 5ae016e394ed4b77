"""A latent is a function of (seed, sample) and nothing else."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, multivariate_normal, norm

from reference import sampler_p_value
from toy_sampling import causal, masked, planned_nfe
from toy_sampling import uniform as uniform_model
from unmask.diffusion.correlated_masking import (
    CorrelatedBlocks,
    CorrelatedSpan,
    NestedBlocks,
    Structure,
)
from unmask.diffusion.schedules import LogLinear
from unmask.rng import address, gumbel, uniform
from unmask.samplers.counts import uniform_grid
from unmask.samplers.latent import draw_latent
from unmask.samplers.remasking import ancestral, psi
from unmask.samplers.sample import sample
from unmask.samplers.unmasking import confidence, unmasking_schedule


@given(
    st.integers(-(2**63), 2**63 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**9)
)
def test_a_sample_keeps_its_latent_in_any_batch(seed: int, n: int, length: int, first: int) -> None:
    batch = draw_latent(n, length, seed, first)
    assert (
        batch.u.shape == (n, length)
        and batch.u.dtype == torch.float64
        and batch.key.dtype == torch.int64
    )
    for row in range(n):
        alone = draw_latent(1, length, seed, first + row)
        assert torch.equal(alone.u[0], batch.u[row]) and alone.key[0] == batch.key[row]
        part = batch[row : row + 1]
        assert len(part) == 1 and torch.equal(part.u, alone.u) and torch.equal(part.key, alone.key)


def test_a_longer_sample_begins_as_the_shorter_one() -> None:
    assert torch.equal(draw_latent(3, 9, seed=1).u[:, :4], draw_latent(3, 4, seed=1).u)


def test_samples_positions_and_occasions_have_different_addresses() -> None:
    latent = draw_latent(50, 40, seed=3)
    states = torch.cat(
        [latent.address(latent.everywhere, occasion).flatten() for occasion in range(3)]
    )
    assert len(states.unique()) == 6000


def test_levels_and_noise_are_uniform_and_independent() -> None:
    latent = draw_latent(200, 100, seed=5)
    u = latent.u.flatten()
    noise = torch.exp(
        -torch.exp(-gumbel(latent.address(latent.everywhere).flatten()))
    )  # the Gumbel CDF
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert kstest(noise.numpy(), "uniform").pvalue > 1e-3
    across = torch.corrcoef(torch.stack([u, noise, u.roll(1), u.roll(100)]))
    assert across.fill_diagonal_(0).abs().max() < 4 / 20_000**0.5


def test_a_seed_is_a_64_bit_number() -> None:
    with pytest.raises(ValueError, match=r"seed.*64-bit"):
        draw_latent(1, 1, seed=2**63)


PINNED_U = [
    [0.9883135075181885, 0.23088011188763102, 0.13803794365940047],
    [0.24457064778702609, 0.025421263063631794, 0.2109635695640394],
]
STRUCTURES = [
    CorrelatedBlocks(4, 0.8),
    CorrelatedBlocks(8, 1.0),
    CorrelatedSpan(5.0),
    NestedBlocks((8, 2), (0.4, 0.5)),
]


@given(
    st.sampled_from(STRUCTURES),
    st.integers(0, 2**40),
    st.integers(1, 6),
    st.integers(2, 30),
    st.integers(0, 10**9),
)
def test_a_structured_sample_keeps_its_latent(
    structure: Structure, seed: int, n: int, length: int, first: int
) -> None:
    """In any batch, at any length, and with the Gumbel noise that it has without a structure."""
    batch = draw_latent(n, length, seed, first, structure=structure)
    assert batch.u.shape == (n, length) and batch.u.dtype == torch.float64
    assert torch.equal(batch.key, draw_latent(n, length, seed, first).key)
    for row in range(n):
        alone = draw_latent(1, length - 1, seed, first + row, structure=structure)
        assert torch.equal(alone.u[0], batch.u[row, :-1]) and alone.key[0] == batch.key[row]


def test_the_latent_without_structure_never_changes() -> None:
    """The bits are fixed, because published samples depend on them."""
    for latent in (draw_latent(2, 3, 7, 5), draw_latent(2, 3, 7, 5, structure=None)):
        own = [[uniform(address(7, number, 0, i)).item() for i in range(3)] for number in (5, 6)]
        assert latent.u.tolist() == own == PINNED_U
        assert latent.key.tolist() == [address(7, number, 1).item() for number in (5, 6)]


def test_structured_numbers_have_addresses_that_never_change() -> None:
    """Stream 0 is a token's own; stream 2 has a number for each level and block start."""
    latent = draw_latent(1, 5, 7, 3, structure=NestedBlocks((4, 2), (0.5, 0.2)))
    for i in range(5):
        keys = [(7, 3, 0, i), (7, 3, 2, 1, i - i % 4), (7, 3, 2, 2, i - i % 2)]
        own, outer, inner = (norm.ppf(uniform(address(*key)).item()) for key in keys)
        due = norm.cdf(math.sqrt(0.3) * own + math.sqrt(0.5) * outer + math.sqrt(0.2) * inner)
        assert latent.u[0, i].item() == pytest.approx(due, rel=1e-12)


def test_without_correlation_a_structure_is_the_independent_latent() -> None:
    """Phi(Phi^-1(u)) = u to 16 roundings: Phi^-1 errs by some 8 relatively, and phi(x) x <= 1/4."""
    own = draw_latent(20, 50, seed=4).u
    for structure in (
        CorrelatedBlocks(4, 0.0),
        NestedBlocks((8, 2), (0.0, 0.0)),
        CorrelatedSpan(1e-3),
    ):
        assert (
            float((draw_latent(20, 50, seed=4, structure=structure).u - own).abs().max())
            < 16 * 2**-53
        )


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_structured_levels_are_uniform_and_correlated(structure: Structure) -> None:
    """Every position, and every pair within 4.5 standard errors."""
    n, length = 10_000, 10
    latent = draw_latent(n, length, seed=6, structure=structure)
    assert (
        min(kstest(latent.u[:, i].numpy(), "uniform").pvalue for i in range(length)) > 1e-3 / length
    )
    inputs = structure.sources * length
    basis = (
        torch.eye(inputs, dtype=torch.float64)
        .view(inputs, structure.sources, length)
        .transpose(0, 1)
    )
    a = structure(basis).T
    due = a @ a.T  # the stated one: tests/diffusion/test_correlated_masking.py
    seen = torch.special.ndtri(latent.u).T.corrcoef()
    assert bool(((seen - due).abs() <= 4.5 * (1 - due**2).clamp(min=0) / math.sqrt(n) + 1e-9).all())
    noise = torch.exp(
        -torch.exp(-gumbel(latent.address((torch.arange(n), torch.zeros(n, dtype=torch.int64)))))
    )
    across = (
        torch.stack([noise, latent.u[:, 0], latent.u[:, 0].roll(1)]).corrcoef().fill_diagonal_(0)
    )
    assert float(across.abs().max()) < 4 / math.sqrt(n), (
        "samples are independent, and so is the Gumbel noise"
    )


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_texts_of_independent_tokens_do_not_depend_on_the_structure(structure: Structure) -> None:
    """The time of unmasking does not change a token: the texts are equal, their law the product."""
    model = masked(4, 3)
    model.denoiser.logits[:] = model.denoiser.logits[0]
    plain, structured = (
        sample(model, n=8000, length=3, steps=4, structure=how).tokens for how in (None, structure)
    )
    assert torch.equal(plain, structured)
    p = model.denoiser.law((3, 3, 3))
    product = {
        text: float(np.prod([p[i, v] for i, v in enumerate(text)])) for text in np.ndindex(3, 3, 3)
    }
    assert sampler_p_value(structured, product) > 1e-3


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_batches_make_no_difference_to_structured_samples(structure: Structure) -> None:
    model = masked(4, 5)
    whole, parts = (
        sample(model, n=8, length=5, steps=6, structure=structure, batch_size=size)
        for size in (None, 3)
    )
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.nfe, parts.nfe)
    tail = sample(model, n=5, length=5, steps=6, structure=structure, first=3)
    assert torch.equal(tail.tokens, whole.tokens[3:]) and torch.equal(tail.nfe, whole.nfe[3:])
    assert not torch.equal(whole.nfe, sample(model, n=8, length=5, steps=6).nfe)


def mean_nfe(structure: Structure | None, n: int, length: int, steps: int) -> tuple[float, float]:
    """The mean number of calls a sample, and its standard error."""
    free = torch.ones(n, length, dtype=torch.bool)
    latent = draw_latent(n, length, seed=9, structure=structure)
    queries = unmasking_schedule(latent.u, uniform_grid(steps, LogLinear()), free)
    nfe = planned_nfe(queries, n).double()
    return float(nfe.mean()), float(nfe.std()) / math.sqrt(n)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_tokens_revealed_together_cost_fewer_calls(structure: Structure) -> None:
    (alone, error), (together, other) = (mean_nfe(how, 2000, 64, 64) for how in (None, structure))
    assert alone - together > 10 * math.hypot(error, other)


@pytest.mark.parametrize(("length", "steps"), [(64, 64), (60, 16)])
def test_expected_nfe_of_whole_blocks(length: int, steps: int) -> None:
    """A block of one level costs what one token costs: sum_k 1 - (1 - 1/N)^blocks calls."""
    mean, error = mean_nfe(CorrelatedBlocks(8, 1.0), 4000, length, steps)
    due = steps * (1 - (1 - 1 / steps) ** math.ceil(length / 8))
    assert abs(mean - due) < 4.5 * error
    assert mean_nfe(CorrelatedSpan(math.inf), 100, length, steps)[0] == 1


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_two_tokens_share_a_step_with_the_probability_of_the_copula(rho: float) -> None:
    """E[nfe] = 2 - P(same step), the bivariate normal on the squares of the grid, by quadrature."""
    steps = 5
    law = multivariate_normal([0, 0], [[1, rho], [rho, 1]])
    edge = [-9.0, *norm.ppf([k / steps for k in range(1, steps)]), 9.0]
    met = sum(
        law.cdf([b, b]) - law.cdf([a, b]) - law.cdf([b, a]) + law.cdf([a, a])
        for a, b in pairwise(edge)
    )
    mean, error = mean_nfe(CorrelatedBlocks(2, rho), 20_000, 2, steps)
    assert abs(mean - (2 - met)) < 4.5 * error


def test_tokens_of_one_step_are_drawn_independently() -> None:
    """Two tokens that are always equal agree only by chance if one call draws both."""
    model = masked(3, 2)
    copy = torch.full((9, 2, 3), -40.0, dtype=torch.float64)
    for text in range(9):
        for i, other in enumerate((text // 3, text % 3)):  # position 0 is the lowest digit
            copy[text, i, slice(0, 2) if other == 2 else other] = 0.0
    model.denoiser.logits[:] = copy
    n, steps = 4000, 8
    for structure, met in ((None, 1 / steps), (CorrelatedBlocks(2, 1.0), 1.0)):
        tokens = sample(model, n=n, length=2, steps=steps, structure=structure).tokens
        unequal = float((tokens[:, 0] != tokens[:, 1]).double().mean())
        assert abs(unequal - met / 2) < 4.5 * math.sqrt(met / 2 * (1 - met / 2) / n)


def test_sample_takes_text_forms_and_refuses_a_structure_without_effect() -> None:
    model = masked(4, 5)
    by_text, by_value, plain = (
        sample(model, n=3, length=5, steps=3, structure=how).nfe.tolist()
        for how in ("block:5:1", CorrelatedBlocks(5, 1.0), "none")
    )
    assert (
        by_text == by_value == [1, 1, 1]
        and plain == sample(model, n=3, length=5, steps=3).nfe.tolist()
    )
    greedy = sample(model, n=3, length=5, steps=3, sampler="greedy_tail", structure="block:5:1")
    assert greedy.nfe.tolist() == by_text
    with pytest.raises(ValueError, match=r"structure .* got 'spam:3'"):
        sample(model, n=1, length=5, structure="spam:3")
    for name in ("ancestral", "confidence", "entropy_bounded:0.1", "remdm_cap:0.02"):
        with pytest.raises(
            ValueError,
            match=rf"structure .*got CorrelatedSpan\(length=3.*'{name}'.*'reveal'",
        ):
            sample(model, n=1, length=5, sampler=name, structure="span:3")
    for sampler in (confidence, psi(0.5), ancestral):
        with pytest.raises(ValueError, match=r"structure has no effect.*this sampler"):
            sample(model, n=1, length=5, sampler=sampler, structure="span:3")
    with pytest.raises(ValueError, match=r"structure has no effect.*this sampler"):
        sample(uniform_model(4, 5), n=1, length=5, structure="span:3")
    with pytest.raises(ValueError, match=r"structure has no effect.*autoregressive"):
        sample(causal(4, 5), n=1, length=5, structure="span:3")
