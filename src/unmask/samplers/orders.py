"""Orders of unmasking: the sequence in which the MASKs of a text become visible.

A `LevelOrder` follows from the latent: it gives every position a level in (0, 1), before the first
network call. A `Statistic` of the predictions orders the MASKs at each step. Both combine with
blocks from left to right, and with every count of `samplers.counts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from unmask.rng import address, uniform
from unmask.samplers.categorical import iter_blocks
from unmask.samplers.latent import ORDER, Latent


@dataclass(frozen=True)
class LevelOrder:
    """An order that follows from the latent: the position with the lowest level comes first.

    Attributes:
        levels: Maps the latent to levels, float64 [n, L] in (0, 1).
        even: Replace the levels of the F free positions of a sample by (rank + 1/2) / F. Equal
            intervals of alpha then unmask equally many tokens, to rounding.
    """

    levels: Callable[[Latent], Tensor]
    even: bool = False

    def of(self, latent: Latent, free: Tensor, blocks: int | None = None) -> Tensor:
        """The levels [n, L] of the free positions [n, L]. Other positions hold no valid level."""
        levels = self.levels(latent)
        if blocks is not None:
            levels = _in_blocks(levels, free, blocks)
        return _even(levels, free) if self.even else levels


@dataclass(frozen=True)
class Statistic:
    """A number for each MASK, from its prediction and its drawn token. The lowest comes first.

    Attributes:
        of: Maps (log p [m, V], tokens [m]) to the numbers, float64 [m].
        reads_token: Whether the number depends on the drawn token.
    """

    of: Callable[[Tensor, Tensor], Tensor]
    reads_token: bool = False


def spread_levels(latent: Latent) -> Tensor:
    """The levels of bit-reversed positions after a random shift: one step's tokens lie far apart.

    key_i = reverse_B((i + s) mod 2^B) with B = ceil(log2 L), and s uniform on 0, ..., 2^B - 1 for
    each sample. The level is (key + 1/2) / 2^B. This is the van der Corput sequence. Close
    relatives: Halton scheduler (arXiv 2503.17076), dilated unmasking (arXiv 2506.19037).
    """
    length = latent.u.shape[1]
    bits = (length - 1).bit_length()
    shift = (uniform(address(latent.key, ORDER)) * 2**bits).long()
    place = (torch.arange(length, device=shift.device) + shift[:, None]) % 2**bits
    key = torch.zeros_like(place)
    for bit in range(bits):
        key += (place >> bit & 1) << (bits - 1 - bit)
    level: Tensor = (key + 0.5).double() / 2**bits
    return level


def _negative_log_p(log_p: Tensor, token: Tensor) -> Tensor:
    return -log_p.gather(-1, token[:, None]).squeeze(-1).double()


def _entropy(log_p: Tensor, token: Tensor) -> Tensor:
    return torch.cat([torch.special.entr(law.exp()).sum(-1) for _, law in iter_blocks(log_p)])


def _negative_margin(log_p: Tensor, token: Tensor) -> Tensor:
    best, second = log_p.topk(2, dim=-1).values.double().exp().unbind(-1)
    return second - best


# Independent levels: the order of MDLM's ancestral sampler.
RANDOM = LevelOrder(lambda latent: latent.u)
SPREAD = LevelOrder(spread_levels, even=True)
# -log p of the drawn token, nats: MaskGIT (arXiv 2202.04200), LLaDA (arXiv 2502.09992).
CONFIDENCE = Statistic(_negative_log_p, reads_token=True)
# Entropy of p(x0_i | z), nats: EB-sampler (arXiv 2505.24857).
ENTROPY = Statistic(_entropy)
# Second greatest probability minus the greatest: top-K margin (arXiv 2502.06768), Dream.
MARGIN = Statistic(_negative_margin)

ORDERS: Mapping[str, LevelOrder | Statistic] = MappingProxyType(
    {
        "random": RANDOM,
        "spread": SPREAD,
        "confidence": CONFIDENCE,
        "entropy": ENTROPY,
        "margin": MARGIN,
    }
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


def _in_blocks(levels: Tensor, free: Tensor, size: int) -> Tensor:
    """Levels that unmask blocks of `size` free tokens from left to right.

    A position has i of the F free tokens before it. Its block has first = size floor(i / size) of
    them before it. The block has b = min(size, F - first) tokens. The level becomes (first + b
    level) / F. So the share of the grid that a block takes is its share of the tokens.
    """
    count = free.sum(1, keepdim=True)
    first = block_starts(free, size)
    return (first + (count - first).clamp(max=size) * levels) / count.clamp(min=1)


def _even(levels: Tensor, free: Tensor) -> Tensor:
    """Levels (rank + 1/2) / F of the F free positions, in the same order."""
    rank = levels.masked_fill(~free, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    even: Tensor = (rank + 0.5).double() / free.sum(1, keepdim=True).clamp(min=1)
    return even
