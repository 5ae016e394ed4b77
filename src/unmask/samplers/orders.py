"""Orders of unmasking: the sequence in which the MASKs of a text become visible.

A `LevelOrder` gives every position a level before the first network call, and the lowest level
comes first. A `Statistic` of the predictions orders the MASKs at each step. Both combine with
blocks from left to right, and with every count of `samplers.counts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from unmask.diffusion.levels import LEVEL_ORDERS, LevelOrder
from unmask.samplers.categorical import iter_blocks


@dataclass(frozen=True)
class Statistic:
    """A number for each MASK, from its prediction and its drawn token. The lowest comes first.

    Attributes:
        of: Maps (log p [m, V], tokens [m]) to the numbers, float64 [m].
        reads_token: Whether the number depends on the drawn token.
    """

    of: Callable[[Tensor, Tensor], Tensor]
    reads_token: bool = False


def _negative_log_p(log_p: Tensor, token: Tensor) -> Tensor:
    return -log_p.gather(-1, token[:, None]).squeeze(-1).double()


def _entropy(log_p: Tensor, token: Tensor) -> Tensor:
    return torch.cat([torch.special.entr(law.exp()).sum(-1) for _, law in iter_blocks(log_p)])


def _negative_margin(log_p: Tensor, token: Tensor) -> Tensor:
    best, second = log_p.topk(2, dim=-1).values.double().exp().unbind(-1)
    return second - best


# -log p of the drawn token, nats: MaskGIT (arXiv 2202.04200), LLaDA (arXiv 2502.09992).
CONFIDENCE = Statistic(_negative_log_p, reads_token=True)
# Entropy of p(x0_i | z), nats: EB-sampler (arXiv 2505.24857).
ENTROPY = Statistic(_entropy)
# Second greatest probability minus the greatest: top-K margin (arXiv 2502.06768), Dream.
MARGIN = Statistic(_negative_margin)

ORDERS: Mapping[str, LevelOrder | Statistic] = MappingProxyType(
    {**LEVEL_ORDERS, "confidence": CONFIDENCE, "entropy": ENTROPY, "margin": MARGIN}
)


def block_starts(free: Tensor, blocks: int | None) -> Tensor:
    """The number of free tokens before the block of each position: int64 [n, L]."""
    if blocks is None:
        return torch.zeros_like(free, dtype=torch.int64)
    return (free.cumsum(1) - 1).clamp(min=0) // blocks * blocks


def rank_order(values: Tensor, starts: Tensor, candidates: Tensor) -> Tensor:
    """Sort the columns of each sample [n, L]: candidates first, by block, value and column."""
    order = values.argsort(dim=1, stable=True)
    blocks = starts.where(candidates, torch.iinfo(torch.int64).max)
    return order.gather(1, blocks.gather(1, order).argsort(dim=1, stable=True))


def in_steps(values: Tensor) -> Tensor:
    """Round values to multiples of 2^-10, times 2^10, so that nearly equal values are a tie.

    If all tokens are MASKs, a network with rotary positions predicts one distribution everywhere.
    Without this function, rounding errors would decide about the order.
    """
    return (values * 2**10).round()


def in_blocks(levels: Tensor, free: Tensor, size: int) -> Tensor:
    """Levels that unmask blocks of `size` free tokens from left to right.

    A position has i of the F free tokens before it. Its block has first = size floor(i / size) of
    them before it. The block has b = min(size, F - first) tokens. The level becomes (first + b
    level) / F. So the share of the grid that a block takes is its share of the tokens.
    """
    count = free.sum(1, keepdim=True)
    first = block_starts(free, size)
    return (first + (count - first).clamp(max=size) * levels) / count.clamp(min=1)


def equal_levels(levels: Tensor, free: Tensor) -> Tensor:
    """Levels (rank + 1/2) / F of the F free positions, in the same order.

    Below a level a lie F a of them, rounded, halves up.
    """
    rank = levels.masked_fill(~free, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    count = free.sum(1, keepdim=True).clamp(min=1)
    equal: Tensor = (rank.double() + 0.5 - 1e-9) / count  # the 1e-9 rounds halves up
    return equal
