"""Orders of levels: each level is exactly uniform, and spread order keeps neighbours apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.diffusion.levels import LEVEL_ORDERS, LevelOrder, spread_order
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.trajectory import trajectory


def midpoints(length: int, parts: int) -> tuple[Tensor, int]:
    """Independent levels whose first one takes all midpoints of a grid of [0, 1): [M, L], M."""
    size = 2 ** (length - 1).bit_length() * parts
    first = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rest = torch.rand(size, length - 1, generator=torch.Generator().manual_seed(0)).double()
    return torch.cat([first[:, None], rest], dim=1), size


@given(st.integers(1, 70), st.integers(1, 5))
def test_each_level_of_spread_order_is_exactly_uniform(length: int, parts: int) -> None:
    """As the first level takes all points of a grid, each other level does too, at any length."""
    u, size = midpoints(length, parts)
    levels = spread_order(u)
    assert levels.dtype == torch.float64 and levels.shape == u.shape
    ranks = (levels * size - 0.5).round().long()
    assert torch.equal(levels, (ranks + 0.5) / size) or parts not in (1, 2, 4)
    assert torch.equal(ranks.sort(0).values, torch.arange(size)[:, None].expand(-1, length))


@given(st.integers(2, 100), st.floats(0, 1, exclude_max=True), st.integers(0, 6))
def test_similar_levels_are_far_apart(length: int, first: float, bits: int) -> None:
    """Tokens whose levels lie in one of 2^j equal intervals are multiples of 2^j places apart."""
    bits = min(bits, (length - 1).bit_length())
    levels = spread_order(torch.tensor([first] + [0.5] * (length - 1), dtype=torch.float64))
    assert bool((levels >= 0).all()) and bool((levels < 1).all())
    interval = (levels * 2**bits).long()
    counts = interval.bincount(minlength=2**bits)
    assert counts.max() <= -(-length // 2**bits) and counts.min() >= length // 2**bits
    for k in range(2**bits):
        places = (interval == k).nonzero().squeeze(-1)
        assert bool((places.diff() % 2**bits == 0).all())


def test_rows_are_independent_and_other_numbers_do_not_matter() -> None:
    u = torch.rand(5, 3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = spread_order(u)
    assert torch.equal(levels[2, 1], spread_order(u[2, 1]))
    changed = torch.cat([u[..., :1], 1 - u[..., 1:]], dim=-1)
    assert torch.equal(levels, spread_order(changed))


@pytest.mark.parametrize("order", LEVEL_ORDERS.values())
def test_two_laws_of_a_trajectory_hold_in_any_order(order: LevelOrder) -> None:
    """P(visible at alpha) = alpha for each position, and the MASKs at a higher alpha are nested."""
    n, length, alphas = 20_000, 11, (0.15, 0.6)
    x0 = torch.zeros(n, length, dtype=torch.int64)
    path = trajectory(MaskedProcess(2, 1), x0, torch.Generator().manual_seed(2), order)
    less, more = (path.at(torch.full((n,), alpha)) == 0 for alpha in alphas)
    assert not bool((less & ~more).any())
    for visible, alpha in ((less, alphas[0]), (more, alphas[1])):
        error = (visible.double().mean(0) - alpha).abs().max()
        assert error < 5 * (alpha * (1 - alpha) / n) ** 0.5


def test_an_order_that_is_no_function_is_refused() -> None:
    x0 = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="order is not a function of levels: got 'spread'"):
        trajectory(MaskedProcess(2, 1), x0, order="spread")
