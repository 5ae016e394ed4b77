"""A latent is a function of (seed, sample) and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from unmask.rng import gumbel
from unmask.samplers.latent import draw_latent


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**9))
def test_a_sample_keeps_its_latent_in_any_batch(seed: int, n: int, length: int, first: int) -> None:
    batch = draw_latent(n, length, seed, first)
    assert batch.u.shape == (n, length) and batch.u.dtype == torch.float64 and batch.key.dtype == torch.int64
    for row in range(n):
        alone = draw_latent(1, length, seed, first + row)
        assert torch.equal(alone.u[0], batch.u[row]) and alone.key[0] == batch.key[row]
        part = batch[row : row + 1]
        assert len(part) == 1 and torch.equal(part.u, alone.u) and torch.equal(part.key, alone.key)


def test_a_longer_sample_begins_as_the_shorter_one() -> None:
    assert torch.equal(draw_latent(3, 9, seed=1).u[:, :4], draw_latent(3, 4, seed=1).u)


def test_addresses_tell_samples_positions_and_occasions_apart() -> None:
    latent = draw_latent(50, 40, seed=3)
    states = torch.cat([latent.address(torch.arange(2000), occasion) for occasion in range(3)])
    assert len(states.unique()) == 6000


def test_levels_and_noise_are_uniform_and_independent() -> None:
    latent = draw_latent(200, 100, seed=5)
    u = latent.u.flatten()
    noise = torch.exp(-torch.exp(-gumbel(latent.address(torch.arange(20_000)))))  # the Gumbel CDF
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert kstest(noise.numpy(), "uniform").pvalue > 1e-3
    across = torch.corrcoef(torch.stack([u, noise, u.roll(1), u.roll(100)]))
    assert across.fill_diagonal_(0).abs().max() < 4 / 20_000**0.5


def test_a_seed_is_a_64_bit_number() -> None:
    with pytest.raises(ValueError, match=r"seed.*64-bit"):
        draw_latent(1, 1, seed=2**63)
