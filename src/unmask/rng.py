"""Randomness that is a value: numbers addressed by what they are for, not by when they are drawn.

`uniform(address(*keys))` is a counter-based generator: each number is a hash of its address (seed, sample, position,
...), so sample i is the same in any batch, on any device, in any order. The hash is the output function of SplitMix64
(Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") applied once a key.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number: 2^64 / golden ratio
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix_(state: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers: int64 of any shape, in place (L V numbers a text)."""
    state ^= _shift(state, 30)
    state *= _MIX_1
    state ^= _shift(state, 27)
    state *= _MIX_2
    state ^= _shift(state, 31)
    return state


def address(*keys: Tensor | int) -> Tensor:
    """Hash integer keys, left to right, into one int64 a combination; tensors broadcast."""
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        key = torch.as_tensor(key, dtype=torch.int64)
        state = mix_((state.to(key.device) if state.dim() == 0 else state) * 3 + (key + 1) * _GOLDEN)
    return state


def uniform(state: Tensor) -> Tensor:
    """Hashed states -> float64 in the open interval (0, 1): (k + 1/2) 2^-52, 52 bits; with 53 the last rounds to 1."""
    return _shift(state, 12).double().add_(0.5).mul_(2.0**-52)


def gumbel(state: Tensor) -> Tensor:
    """Hashed states -> standard Gumbel noise, float64: -log(-log u)."""
    return uniform(state).log_().neg_().log_().neg_()


def stratified(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """n numbers in [0, 1), one in each of n equal strata, in random order: float64 [n], each marginally uniform."""
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    order = torch.randperm(n, generator=generator, device=device)
    return (order + u) / n
