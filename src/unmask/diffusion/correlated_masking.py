"""Correlated masking: tokens of a text become noise together, each still at a uniform level.

The levels come from a Gaussian copula. Standard normals g_1 .. g_L with a correlation matrix C give
the levels u_i = Phi(g_i). Each level is uniform for any C, and C sets the dependence of the levels.
`Trajectory` compares u_i with alpha, so two laws of independent levels still hold. A token stays
text with probability alpha, and the MASKs of z_s are among those of z_t (Latent Shadows, arXiv
2602.00792, Theorem 3.3). Trajectory locking is the use of one u at all noise levels. The paper
leaves open whether locking extends to structured or hierarchical masking. Locking extends to both
(docs/papers.md).

A `Structure` is a linear map from independent normals to correlated ones, not the matrix C. The map
needs O(L) numbers a text. It is exact for singular C too, such as a block that changes as one
token. Position i depends only on normals of positions up to i, so a longer text begins as a shorter
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from unmask.limits import whole
from unmask.types import PerToken

Number = TypeVar("Number", int, float)

_EDGE = 2.0**-53  # the least distance of `rng.uniform` from 0 and 1
_ROUNDING = 1e-12  # the allowed rounding error of a sum of shares


class Structure(Protocol):
    """The correlation of the levels within a text.

    `structure(normals)` maps independent standard normals [sources, ..., L], float64, to standard
    normals [..., L] that are correlated along L. The slice normals[0] holds each token's own
    number. Without correlation the result equals this slice.
    """

    @property
    def sources(self) -> int:
        """The number of independent normals for each position."""
        ...

    def __call__(self, normals: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CorrelatedBlocks:
    """Blocks of neighbours: C_ij = correlation within a block, 0 between blocks.

        g_i = sqrt(correlation) b_{i // size} + sqrt(1 - correlation) e_i

    Attributes:
        size: tokens of a block; the last block may be shorter
        correlation: in [0, 1]; at 1 the tokens of a block become noise at the same level
    """

    size: int
    correlation: float

    def __post_init__(self) -> None:
        _check_size(self.size, "size")
        if not 0 <= self.correlation <= 1:
            raise ValueError(
                f"correlation is out of range: got {self.correlation}, want 0 <= correlation <= 1 "
                "(of two tokens in a block)"
            )

    @property
    def sources(self) -> int:
        return 2

    def __call__(self, normals: Tensor) -> Tensor:
        return _nest(normals, (self.size,), (self.correlation,))


@dataclass(frozen=True)
class CorrelatedSpan:
    """A correlation that decays with distance: C_ij = exp(-|i - j| / length).

    The normals form a stationary Ornstein-Uhlenbeck path:

        g_0 = e_0,   g_i = a g_{i-1} + sqrt(1 - a^2) e_i,   a = exp(-1 / length)

    Attributes:
        length: tokens, > 0; infinite: all tokens of the text become noise at the same level
    """

    length: float

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise ValueError(
                f"length is out of range: got {self.length}, want length > 0 (the tokens over "
                "which the correlation falls by a factor e)"
            )

    @property
    def sources(self) -> int:
        return 1

    def __call__(self, normals: Tensor) -> Tensor:
        e = normals[0]
        # expm1 in place of 1 - a^2, which cancels for a long span.
        innovation = math.sqrt(-math.expm1(-2 / self.length))
        g = torch.cat([e[..., :1], innovation * e[..., 1:]], dim=-1)
        # Doubling computes the recursion in log2 L rounds. After a round, g_i has its 2 gap newest
        # terms.
        gap = 1
        while gap < e.shape[-1]:
            older = math.exp(-gap / self.length) * g[..., :-gap]
            g = torch.cat([g[..., :gap], g[..., gap:] + older], dim=-1)
            gap *= 2
        return g


@dataclass(frozen=True)
class NestedBlocks:
    """Blocks within blocks: C_ij = the sum of the shares of the blocks that contain both i and j.

        g_i = sum_k sqrt(shares_k) b_{k, i // sizes_k} + sqrt(1 - sum_k shares_k) e_i

    Attributes:
        sizes: tokens of a block, from the largest blocks to the smallest; each size divides the one
            before
        shares: for each size its share of the variance, >= 0, sum <= 1; the rest of the variance is
            each token's own
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.shares):
            raise ValueError(
                f"sizes and shares differ in length or are empty: got sizes {self.sizes} and "
                f"shares {self.shares}, want one share for each size"
            )
        for size in self.sizes:
            _check_size(size, "sizes")
        for outer, inner in zip(self.sizes, self.sizes[1:], strict=False):
            if inner >= outer or outer % inner:
                raise ValueError(
                    f"sizes do not nest: got {self.sizes}, want each size to be a proper divisor "
                    "of the one before"
                )
        positive = all(share >= 0 for share in self.shares)
        if not (positive and math.fsum(self.shares) <= 1 + _ROUNDING):
            raise ValueError(
                f"shares are out of range: got {self.shares}, want shares >= 0 of sum <= 1 (of the "
                "variance)"
            )

    @property
    def sources(self) -> int:
        return 1 + len(self.sizes)

    def __call__(self, normals: Tensor) -> Tensor:
        return _nest(normals, self.sizes, self.shares)


def gaussian_copula(structure: Structure, normals: Tensor) -> PerToken:
    """Turn independent standard normals into the levels u = Phi(g), each uniform on (0, 1).

    [sources, ..., L] float64 -> [..., L]. Phi(g) rounds to 1 for g > 8.3, so u is clamped to
    [2^-53, 1 - 2^-53], the range of `rng.uniform`. Then no token is left at alpha = 0.
    """
    u: Tensor = torch.special.ndtr(structure(normals))
    return u.clamp(_EDGE, 1 - _EDGE)


def parse_structure(text: str) -> Structure | None:
    """Parse the text form of a structure; "" and "none" give None, which is independent levels.

    >>> parse_structure("block:8:0.9")
    CorrelatedBlocks(size=8, correlation=0.9)
    >>> parse_structure("span:16")
    CorrelatedSpan(length=16.0)
    >>> parse_structure("hierarchy:64,16,4:0.3,0.3,0.3")
    NestedBlocks(sizes=(64, 16, 4), shares=(0.3, 0.3, 0.3))

    ValueError for any other form and for a number out of range.
    """
    match text.split(":"):
        case [""] | ["none"]:
            return None
        case ["block", size, correlation]:
            return CorrelatedBlocks(_read(int, size, text), _read(float, correlation, text))
        case ["span", length]:
            return CorrelatedSpan(_read(float, length, text))
        case ["hierarchy", sizes, shares]:
            return NestedBlocks(
                tuple(_read(int, size, text) for size in sizes.split(",")),
                tuple(_read(float, share, text) for share in shares.split(",")),
            )
    raise ValueError(_forms(text))


def _nest(normals: Tensor, sizes: tuple[int, ...], shares: tuple[float, ...]) -> Tensor:
    """Mix each token's own normal with one normal of each block that contains the token.

    The normal of a block is the one at its first position.
    """
    position = torch.arange(normals.shape[-1], device=normals.device)
    own_share = 1 - math.fsum(shares)
    g = math.sqrt(own_share if own_share > _ROUNDING else 0.0) * normals[0]
    for size, share, shared in zip(sizes, shares, normals[1:], strict=True):
        g = g + math.sqrt(share) * shared[..., position // size * size]
    return g


def _check_size(size: int, name: str) -> None:
    whole(name, size, "the tokens of a block of a structure")


def _read(kind: Callable[[str], Number], number: str, text: str) -> Number:
    try:
        return kind(number)
    except ValueError:
        raise ValueError(_forms(text)) from None


def _forms(text: str) -> str:
    return (
        f"structure is unknown: got {text!r}, want 'none', 'block:SIZE:CORRELATION', 'span:LENGTH' "
        "or 'hierarchy:SIZE,SIZE,...:SHARE,SHARE,...', such as 'block:8:0.9'"
    )
