"""A latent is a function of (seed, sample) and nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from toy_sampling import masked
from unmask.rng import address, gumbel, uniform
from unmask.samplers.latent import draw_latent
from unmask.samplers.sample import sample


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


def test_the_latent_never_changes() -> None:
    """The bits are fixed, because published samples depend on them."""
    latent = draw_latent(2, 3, 7, 5)
    own = [[uniform(address(7, number, 0, i)).item() for i in range(3)] for number in (5, 6)]
    assert latent.u.tolist() == own == PINNED_U
    assert latent.key.tolist() == [address(7, number, 1).item() for number in (5, 6)]


@pytest.mark.parametrize(("order", "steps", "met"), [("random", 8, 1 / 8), ("spread", 2, 0.0)])
def test_tokens_of_one_step_are_drawn_independently(order: str, steps: int, met: float) -> None:
    """Two tokens that are always equal agree only by chance if one call draws both.

    In spread order two steps are enough that no call draws both.
    """
    model = masked(3, 2)
    copy = torch.full((9, 2, 3), -40.0, dtype=torch.float64)
    for text in range(9):
        for i, other in enumerate((text // 3, text % 3)):  # position 0 is the lowest digit
            copy[text, i, slice(0, 2) if other == 2 else other] = 0.0
    model.denoiser.logits[:] = copy
    n = 4000
    tokens = sample(model, n=n, length=2, steps=steps, order=order).tokens
    unequal = float((tokens[:, 0] != tokens[:, 1]).double().mean())
    assert abs(unequal - met / 2) <= 4.5 * math.sqrt(met / 2 * (1 - met / 2) / n)
