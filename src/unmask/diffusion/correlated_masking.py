"""Structured trajectories: tokens that turn to noise together, each still at a uniform level.

A Gaussian copula. Standard normals g_1 .. g_L with a correlation matrix C give the levels u_i = Phi(g_i): each is
uniform, whatever C is, and how they depend on one another is C alone. A `Trajectory` reads u_i < alpha, so that
P(token i untouched) = alpha and the nesting of z_s in z_t hold as for independent levels (Latent Shadows, arXiv
2602.00792, Theorem 3.3): the paper's open question, whether locking extends to structured or hierarchical masking.

A structure is a linear map from independent normals to correlated ones, not the matrix: O(L) numbers a text, and exact
where C is singular, as for a block that moves as one. Position i depends on the normals of positions up to i alone, so
that a longer text begins as the shorter one.
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

_EDGE = 2.0**-53  # the distance of `rng.uniform` from 0 and 1
_ROUNDING = 1e-12  # shares that are meant to leave nothing may miss 1 by their rounding


class Structure(Protocol):
    """How the levels of a text depend on one another.

    `structure(normals)`, [sources, ..., L] -> [..., L]: from independent standard normals, float64, to standard normals
    that are correlated along L. normals[0] is each token's own; where nothing is correlated it is the answer.
    """

    @property
    def sources(self) -> int:
        """Independent normals a position."""
        ...

    def __call__(self, normals: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CorrelatedBlocks:
    """Blocks of `size` neighbours: C_ij = correlation within a block, 0 between blocks.

    g_i = sqrt(correlation) b_{i // size} + sqrt(1 - correlation) e_i; at 1 a block turns to noise as one token. The
    last block may be shorter.
    """

    size: int
    correlation: float

    def __post_init__(self) -> None:
        _check_size(self.size, "size")
        if not 0 <= self.correlation <= 1:
            raise ValueError(
                "correlation is that of two tokens of a block, 0 for none, 1 for always together: "
                f"want 0 <= correlation <= 1, got {self.correlation}"
            )

    @property
    def sources(self) -> int:
        return 2

    def __call__(self, normals: Tensor) -> Tensor:
        return _nest(normals, (self.size,), (self.correlation,))


@dataclass(frozen=True)
class CorrelatedSpan:
    """Tokens near one another, without borders: C_ij = exp(-|i - j| / length), a stationary Ornstein-Uhlenbeck path.

    g_0 = e_0 and g_i = a g_{i-1} + sqrt(1 - a^2) e_i with a = exp(-1 / length). `length`, in tokens, may be infinite:
    the whole text turns to noise as one token.
    """

    length: float

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise ValueError(
                "length is the number of tokens over which the correlation falls by a factor e: "
                f"want length > 0, got {self.length}"
            )

    @property
    def sources(self) -> int:
        return 1

    def __call__(self, normals: Tensor) -> Tensor:
        e = normals[0]
        innovation = math.sqrt(
            -math.expm1(-2 / self.length)
        )  # not 1 - a^2, which cancels for long spans
        g = torch.cat([e[..., :1], innovation * e[..., 1:]], dim=-1)
        gap = 1
        while (
            gap < e.shape[-1]
        ):  # the recursion by doubling: g_i holds the 2 gap newest terms, in log2 L rounds
            older = math.exp(-gap / self.length) * g[..., :-gap]
            g = torch.cat([g[..., :gap], g[..., gap:] + older], dim=-1)
            gap *= 2
        return g


@dataclass(frozen=True)
class NestedBlocks:
    """Blocks within blocks: C_ij = the sum of the shares of all levels at which i and j are in one block.

    g_i = sum_k sqrt(shares_k) b_{k, i // sizes_k} + sqrt(1 - sum_k shares_k) e_i, from the largest blocks to the
    smallest; each size divides the one before. Shares are of the variance: what they leave is each token's own.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.shares):
            raise ValueError(
                "a hierarchy has a size and a share for each level: want as many sizes as shares, at least one, got "
                f"sizes {self.sizes} and shares {self.shares}"
            )
        for size in self.sizes:
            _check_size(size, "sizes")
        for outer, inner in zip(self.sizes, self.sizes[1:], strict=False):
            if inner >= outer or outer % inner:
                raise ValueError(
                    "sizes are those of blocks within blocks, the largest first: want each size to be a proper "
                    f"divisor of the one before, got {self.sizes}"
                )
        if not (
            all(share >= 0 for share in self.shares) and math.fsum(self.shares) <= 1 + _ROUNDING
        ):
            raise ValueError(
                "shares are parts of the variance, a level each: want shares >= 0 with a sum of at most 1, "
                f"got {self.shares}"
            )

    @property
    def sources(self) -> int:
        return 1 + len(self.sizes)

    def __call__(self, normals: Tensor) -> Tensor:
        return _nest(normals, self.sizes, self.shares)


def gaussian_copula(structure: Structure, normals: Tensor) -> PerToken:
    """Independent standard normals [sources, ..., L], float64 -> levels u = Phi(g) [..., L], each uniform on (0, 1).

    Phi(g) rounds to 1 for g > 8.3; u stays in [2^-53, 1 - 2^-53], the range of `rng.uniform`, so that u < 1 always
    and no token is left at alpha = 0.
    """
    u: Tensor = torch.special.ndtr(structure(normals))
    return u.clamp(_EDGE, 1 - _EDGE)


def parse_structure(text: str) -> Structure | None:
    """Read a structure from its text form; None, independent levels, for "" and "none".

    >>> parse_structure("block:8:0.9")
    CorrelatedBlocks(size=8, correlation=0.9)
    >>> parse_structure("span:16")
    CorrelatedSpan(length=16.0)
    >>> parse_structure("hierarchy:64,16,4:0.3,0.3,0.3")
    NestedBlocks(sizes=(64, 16, 4), shares=(0.3, 0.3, 0.3))

    ValueError for any other form, and for numbers outside their range.
    """
    match text.split(":"):
        case [""] | ["none"]:
            return None
        case ["block", size, correlation]:
            return CorrelatedBlocks(_read(int, size, text), _read(float, correlation, text))
        case ["span", length]:
            return CorrelatedSpan(_read(float, length, text))
        case ["hierarchy", sizes, shares]:
            levels = tuple(_read(int, size, text) for size in sizes.split(","))
            return NestedBlocks(
                levels, tuple(_read(float, share, text) for share in shares.split(","))
            )
    raise ValueError(_forms(text))


def _nest(normals: Tensor, sizes: tuple[int, ...], shares: tuple[float, ...]) -> Tensor:
    """Each token's own normal, and for each level that of the first token of its block."""
    position = torch.arange(normals.shape[-1], device=normals.device)
    rest = 1 - math.fsum(shares)
    g = math.sqrt(rest if rest > _ROUNDING else 0.0) * normals[0]
    for size, share, level in zip(sizes, shares, normals[1:], strict=True):
        g = g + math.sqrt(share) * level[..., position // size * size]
    return g


def _check_size(size: int, name: str) -> None:
    whole(f"{name} of a structure", size, "the tokens of a block")


def _read(kind: Callable[[str], Number], number: str, text: str) -> Number:
    try:
        return kind(number)
    except ValueError:
        raise ValueError(_forms(text)) from None


def _forms(text: str) -> str:
    return (
        "a structure says which tokens turn to noise together: want 'none', 'block:SIZE:CORRELATION', 'span:LENGTH' or "
        f"'hierarchy:SIZE,SIZE,...:SHARE,SHARE,...', as in 'block:8:0.9', got {text!r}"
    )
