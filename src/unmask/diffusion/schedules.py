"""Noise schedules: how much of the text is left at time t.

Time runs from t = 0 (text) to t = 1 (noise). `alpha(t)` is the probability that noise has not yet replaced a
token; it falls from 1 to `eps` and has no unit. Everything above this file speaks of alpha, never of t, so a new
schedule needs no new loss and no new sampler. `eps` keeps alpha(1) off zero, where -log alpha, the network's
input, is infinite.

Every function works in float64 inside, because 1 - alpha cancels near t = 0, and answers in the dtype it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from unmask.types import PerSequence


class NoiseSchedule(Protocol):
    """alpha of t, its derivative, and its inverse: tensors [B] in, tensors [B] out.

    Where alpha < eps, which is never reached, `time` answers 1.
    """

    def alpha(self, t: PerSequence) -> PerSequence: ...

    def dalpha(self, t: PerSequence) -> PerSequence: ...

    def time(self, alpha: PerSequence) -> PerSequence: ...


@dataclass(frozen=True)
class LogLinear:
    """alpha(t) = 1 - (1 - eps) t, named for its total noise -log alpha (SEDD, arXiv 2310.16834; MDLM, 2406.07524).

    >>> t = torch.tensor([0.0, 0.25, 1.0])
    >>> LogLinear(eps=0.0).alpha(t)
    tensor([1.0000, 0.7500, 0.0000])
    >>> LogLinear(eps=0.0).time(LogLinear(eps=0.0).alpha(t))
    tensor([0.0000, 0.2500, 1.0000])
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: 1 - (1 - self.eps) * t, t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: torch.full_like(t, self.eps - 1), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        return _in_float64(lambda alpha: ((1 - alpha) / (1 - self.eps)).clamp(0, 1), alpha, "alpha")


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = eps + (1 - eps) cos(pi t / 2): little noise early, much late (after Nichol and Dhariwal 2021).

    >>> Cosine(eps=0.0).alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.7071, 0.0000])
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: PerSequence) -> PerSequence:
        # The cosine as a sine of 1 - t: exactly 1 and 0 at the ends, where pi / 2 is rounded.
        return _in_float64(lambda t: self.eps + (1 - self.eps) * torch.sin(math.pi / 2 * (1 - t)), t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t / 2), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        def inverse(alpha: PerSequence) -> PerSequence:
            half = ((1 - alpha) / (2 * (1 - self.eps))).clamp(0, 0.5)
            return torch.asin(half.sqrt()) * 4 / math.pi

        return _in_float64(inverse, alpha, "alpha")


@dataclass(frozen=True)
class Polynomial:
    """alpha(t) = 1 - (1 - eps) t^power; power 1 is LogLinear (MD4, arXiv 2406.04329, table 1).

    >>> Polynomial(power=2, eps=0.0).alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.7500, 0.0000])
    """

    power: float = 2.0
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)
        if not self.power > 0:
            raise ValueError(f"power is the exponent of t in 1 - alpha: want power > 0, got {self.power}")

    def alpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: 1 - (1 - self.eps) * t**self.power, t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: -(1 - self.eps) * self.power * t ** (self.power - 1), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        return _in_float64(lambda alpha: ((1 - alpha) / (1 - self.eps)).clamp(0, 1) ** (1 / self.power), alpha, "alpha")


def check_unit(value: torch.Tensor, name: str) -> None:
    """Raise unless every value lies in [0, 1]. Looks at CPU tensors only: a look at others stalls the device."""
    if value.device.type == "cpu" and value.numel() and not bool(((value >= 0) & (value <= 1)).all()):
        outside = value[~((value >= 0) & (value <= 1))].flatten()[0].item()
        raise ValueError(f"{_MEANING[name]}: want 0 <= {name} <= 1, got {outside}")


_MEANING = {
    "t": "t is time, 0 for text and 1 for noise",
    "alpha": "alpha is the share of text left",
}


def _in_float64(function: Callable[[PerSequence], PerSequence], value: PerSequence, name: str) -> PerSequence:
    if not value.is_floating_point():
        raise ValueError(f"{name} is a number in [0, 1]: want a tensor of float32 or float64, got {value.dtype}")
    check_unit(value, name)
    return function(value.double()).to(value.dtype)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(f"eps is the share of text left at t = 1: want 0 <= eps < 1, got {eps}")
