"""Orders of the levels of a text: joint laws in which each level alone is uniform.

A token of level u is visible while u < alpha. So the levels of a text decide the order in which its
tokens become noise, and the order in which a sampler unmasks them. A `LevelOrder` maps independent
levels to levels that depend on one another. If each level alone is uniform, two laws hold for any
order. A token is visible with probability alpha. The MASKs of z_s are among those of z_t, because
both read one u (Latent Shadows, arXiv 2602.00792, Theorem 3.3). The paper leaves open whether this
extends to structured masks: docs/papers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch

from unmask.types import PerToken

# Independent levels, float64 [..., L] in [0, 1) -> dependent levels of the same shape.
LevelOrder: TypeAlias = Callable[[PerToken], PerToken]


def random_order(u: PerToken) -> PerToken:
    """Return u: independent levels, as in MDLM."""
    return u


def spread_order(u: PerToken) -> PerToken:
    """Levels of bit-reversed positions: tokens with similar levels are far apart in the text.

        u_i = (reverse_B((i + s) mod 2^B) + v) / 2^B,    B = ceil(log2 L),    s + v = 2^B u_0

    Here s is a whole number, v lies in [0, 1), and reverse_B reverses the B bits of a number. Both
    are uniform, so each u_i is exactly uniform. Each u_i is a one-to-one function of u_0. For L =
    2^B, 2^j equal intervals of levels hold L / 2^j tokens each, and these are 2^j places apart.

    Source: the van der Corput sequence with a random shift of positions and levels. Halton
    scheduler (arXiv 2503.17076) and dilated unmasking (arXiv 2506.19037) are close relatives.

    >>> spread_order(torch.tensor([0.05, 0.3, 0.8, 0.1], dtype=torch.float64))
    tensor([0.0500, 0.5500, 0.3000, 0.8000], dtype=torch.float64)
    """
    length = u.shape[-1]
    bits = (length - 1).bit_length()
    place = u[..., :1] * 2**bits
    shift = place.floor()
    at = (torch.arange(length, device=u.device) + shift.long()) % 2**bits
    reversed_ = torch.zeros_like(at)
    for bit in range(bits):
        reversed_ += (at >> bit & 1) << (bits - 1 - bit)
    levels: PerToken = (reversed_ + (place - shift)) / 2**bits
    return levels


LEVEL_ORDERS: Mapping[str, LevelOrder] = MappingProxyType(
    {"random": random_order, "spread": spread_order}
)
