"""Noise schedules: how much of the text is left at time t.

Time runs from t = 0 (text) to t = 1 (noise). `alpha(t)` is the probability that noise has not yet replaced a
token; it falls from 1 to `eps` and has no unit. Everything above this file speaks of alpha, never of t, so a new
schedule needs no new loss and no new sampler. `eps` keeps alpha(1) off zero, where -log alpha, the network's
input, is infinite.

Every function works in float64 inside, because 1 - alpha cancels near t = 0, and answers in the dtype it was given.
`alpha` and `time` lie in [0, 1] on every processor: processors round sines and powers differently in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from unmask.diffusion import duality
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
        return _share(lambda t: 1 - (1 - self.eps) * t, t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: torch.full_like(t, self.eps - 1), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        return _share(lambda alpha: (1 - alpha) / (1 - self.eps), alpha, "alpha")


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
        # The cosine as a sine of 1 - t: 0 exactly at t = 1, where pi / 2 is rounded.
        return _share(
            lambda t: self.eps + (1 - self.eps) * torch.sin(math.pi / 2 * (1 - t)), t, "t"
        )

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(
            lambda t: -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t / 2), t, "t"
        )

    def time(self, alpha: PerSequence) -> PerSequence:
        def inverse(alpha: PerSequence) -> PerSequence:
            half = ((1 - alpha) / (2 * (1 - self.eps))).clamp(0, 0.5)
            return torch.asin(half.sqrt()) * 4 / math.pi

        return _share(inverse, alpha, "alpha")


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
            raise ValueError(
                f"power is the exponent of t in 1 - alpha: want power > 0, got {self.power}"
            )

    def alpha(self, t: PerSequence) -> PerSequence:
        return _share(lambda t: 1 - (1 - self.eps) * t**self.power, t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: -(1 - self.eps) * self.power * t ** (self.power - 1), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        return _share(
            lambda alpha: ((1 - alpha) / (1 - self.eps)).clamp(0, 1) ** (1 / self.power),
            alpha,
            "alpha",
        )


@dataclass(frozen=True)
class GaussianArgmax:
    """Duo's operator T: the share of text that the arg max of a Gaussian path keeps (arXiv 2506.10892, Eq. 8).

        gamma(t) = gamma_min + t (gamma_max - gamma_min),   snr_root = exp(-gamma / 2)
        alpha(t) = (K p - 1) / (K - 1),                     p = duality.keep_probability(snr_root, K)

    Of K = vocab_size tokens the arg max is x0 with probability p, and with alpha + (1 - alpha) / K in uniform-state
    diffusion: the two are one. gamma is minus the log signal-to-noise ratio; Duo trains on [-3.55, -1.85] (OpenWebText)
    and distils on [-4, -1]. alpha(0) < 1 and alpha(1) > 0: a path that is cut off at both ends.

    alpha and its derivative, the density of the margin (`duality.keep_derivative`), are integrated at 4097 times once;
    between them the cubic with these values and slopes is right to 1e-13 in alpha and 1e-9 in its derivative where
    the range of gamma is no wider than 5, and to 1e-11 and 1e-7 over all that is tabulated.

    >>> GaussianArgmax(50257, -4.0, -1.0).alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.9987, 0.2380, 0.0062])
    """

    vocab_size: int
    gamma_min: float
    gamma_max: float

    def __post_init__(self) -> None:
        least, most = (gamma_at(alpha, self.vocab_size) for alpha in reversed(ARGMAX_RANGE))
        if not least <= self.gamma_min < self.gamma_max <= most:
            raise ValueError(
                f"gamma is minus the log of the signal-to-noise ratio, and for vocab_size = {self.vocab_size} its "
                f"operator is tabulated down to alpha = 1e-6 and up to 1 - 1e-9: want {least:.2f} <= gamma_min < "
                f"gamma_max <= {most:.2f}, got {self.gamma_min} and {self.gamma_max}"
            )

    def snr_root(self, t: PerSequence) -> PerSequence:
        """alpha~ / sigma~ of the Gaussian path at t."""
        span = self.gamma_max - self.gamma_min
        return _in_float64(lambda t: torch.exp(-0.5 * (self.gamma_min + span * t)), t, "t")

    def alpha(self, t: PerSequence) -> PerSequence:
        return _share(lambda t: self._table(t.device).read(t)[0], t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: self._table(t.device).read(t)[1], t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        """The inverse; 0 above alpha(0) and 1 below alpha(1), which are never reached."""
        return _share(lambda alpha: self._table(alpha.device).find(alpha), alpha, "alpha")

    def _table(self, device: torch.device) -> _Cubic:
        return _argmax_table(self.vocab_size, self.gamma_min, self.gamma_max, device)


ARGMAX_RANGE = (1e-6, 1 - 1e-9)  # beyond it alpha, or 1 - alpha, carries too few digits
_ARGMAX_NODES = 4097


@lru_cache(maxsize=32)
def gamma_at(alpha: float, vocab_size: int) -> float:
    """The gamma at which the operator of K = vocab_size tokens is alpha, 0 < alpha < 1: `GaussianArgmax` inverted."""
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha is the share of text that the operator keeps: want 0 < alpha < 1, got {alpha}"
        )
    keep = ((vocab_size - 1) * alpha + 1) / vocab_size
    return -2 * math.log(float(duality.snr_root(keep, vocab_size)))


@lru_cache(maxsize=32)
def _argmax_table(
    vocab_size: int, gamma_min: float, gamma_max: float, device: torch.device
) -> _Cubic:
    """alpha(t) with its slope: d alpha / dt = K / (K - 1) F_Y'(r) dr/dt, dr/dt = -(gamma_max - gamma_min) r / 2."""
    span = gamma_max - gamma_min
    t = torch.linspace(0, 1, _ARGMAX_NODES, dtype=torch.float64)
    root = torch.exp(-0.5 * (gamma_min + span * t))
    alpha = (vocab_size * duality.keep_probability(root, vocab_size) - 1) / (vocab_size - 1)
    slope = (
        vocab_size
        / (vocab_size - 1)
        * duality.keep_derivative(root, vocab_size)
        * -0.5
        * span
        * root
    )
    return _Cubic(alpha.to(device), slope.to(device))


@dataclass(frozen=True)
class _Cubic:
    """A falling function on [0, 1] by values and slopes at equal distances, a cubic between two neighbours."""

    values: Tensor
    slopes: Tensor

    def read(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope at t."""
        cells = len(self.values) - 1
        return self._cell((t * cells).long().clamp(max=cells - 1), t)

    def _cell(self, i: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        cells = len(self.values) - 1
        x = t * cells - i
        a, b, da, db = (
            self.values[i], self.values[i + 1], self.slopes[i] / cells, self.slopes[i + 1] / cells
        )  # fmt: skip
        rise = b - a
        bend, twist = 3 * rise - 2 * da - db, da + db - 2 * rise
        return a + x * (da + x * (bend + x * twist)), (da + x * (2 * bend + 3 * x * twist)) * cells

    def find(self, value: Tensor) -> Tensor:
        """The t of a value: Newton steps inside its cell, from the chord."""
        cells = len(self.values) - 1
        value = value.clamp(self.values[-1], self.values[0])
        i = torch.searchsorted(-self.values, -value).clamp(1, cells) - 1
        low = i / cells
        t = low + (self.values[i] - value) / (self.values[i] - self.values[i + 1]) / cells
        for _ in range(3):
            found, slope = self._cell(i, t)
            t = (t - (found - value) / slope).clamp(low, low + 1 / cells)
        return t


def check_unit(value: torch.Tensor, name: str) -> None:
    """Raise unless every value lies in [0, 1]. Looks at CPU tensors only: a look at others stalls the device."""
    if (
        value.device.type == "cpu"
        and value.numel()
        and not bool(((value >= 0) & (value <= 1)).all())
    ):
        outside = value[~((value >= 0) & (value <= 1))].flatten()[0].item()
        raise ValueError(f"{_MEANING[name]}: want 0 <= {name} <= 1, got {outside}")


_MEANING = {
    "t": "t is time, 0 for text and 1 for noise",
    "alpha": "alpha is the share of text left",
}


def _share(
    function: Callable[[PerSequence], PerSequence], value: PerSequence, name: str
) -> PerSequence:
    """A function into [0, 1]: the last bit of its value may lie outside."""
    return _in_float64(lambda value: function(value).clamp(0, 1), value, name)


def _in_float64(
    function: Callable[[PerSequence], PerSequence], value: PerSequence, name: str
) -> PerSequence:
    if not value.is_floating_point():
        raise ValueError(
            f"{name} is a number in [0, 1]: want a tensor of float32 or float64, got {value.dtype}"
        )
    check_unit(value, name)
    return function(value.double()).to(value.dtype)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(f"eps is the share of text left at t = 1: want 0 <= eps < 1, got {eps}")
