"""Noise schedules: the share of text left, alpha, as a function of time t.

t = 0 is text and t = 1 is noise. alpha(t) is the probability that a token is not yet noise at time
t. It has no unit and falls from 1 to `eps`. `eps` keeps alpha(1) above zero, because the network's
input -log alpha is infinite at zero. Losses and samplers use alpha and never t, so a new schedule
needs no other change.

Every function computes in float64, because 1 - alpha cancels near t = 0, and returns the dtype of
its input. `alpha` and `time` are clamped to [0, 1], because processors round the last bit of sines
and powers differently.
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
    """alpha(t), its derivative and its inverse, for tensors [B]."""

    def alpha(self, t: PerSequence) -> PerSequence:
        """The share of text left at time t."""
        ...

    def dalpha(self, t: PerSequence) -> PerSequence:
        """d alpha / dt, <= 0."""
        ...

    def time(self, alpha: PerSequence) -> PerSequence:
        """The inverse of `alpha`; 1 for levels below alpha(1)."""
        ...


@dataclass(frozen=True)
class LogLinear:
    """alpha(t) = 1 - (1 - eps) t (SEDD, arXiv 2310.16834; MDLM, arXiv 2406.07524).

    The name comes from the total noise -log alpha.

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
        """The share of text left at time t, [B]."""
        return _share(lambda t: 1 - (1 - self.eps) * t, t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        """d alpha / dt, [B]."""
        return _in_float64(lambda t: torch.full_like(t, self.eps - 1), t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        """The time of a level alpha, [B]; 1 for levels below alpha(1)."""
        return _share(lambda alpha: (1 - alpha) / (1 - self.eps), alpha, "alpha")


@dataclass(frozen=True)
class Cosine:
    """alpha(t) = eps + (1 - eps) cos(pi t / 2), after Nichol and Dhariwal (2021).

    It adds noise slowly at small t and fast at large t.

    >>> Cosine(eps=0.0).alpha(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.7071, 0.0000])
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: PerSequence) -> PerSequence:
        # The sine of 1 - t is exactly 0 at t = 1. The cosine of t is not: pi / 2 is rounded.
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
                f"power is out of range: got {self.power}, want power > 0 (the exponent of t)"
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
    """Duo's diffusion transformation operator T as a schedule (arXiv 2506.10892, Eq. 8).

        gamma(t) = gamma_min + t (gamma_max - gamma_min),  snr_root = exp(-gamma / 2)
        alpha(t) = (K p - 1) / (K - 1),                    p = keep_probability(snr_root, K)

    The arg max of a Gaussian latent over K = vocab_size tokens is x0 with probability p. In
    uniform-state diffusion z = x0 has probability alpha + (1 - alpha) / K. T equates the two.
    gamma is minus the log signal-to-noise ratio. Duo trains on [-3.55, -1.85] (OpenWebText) and
    distils on [-4, -1]. The path is cut off at both ends: alpha(0) < 1 and alpha(1) > 0.

    alpha and its derivative (from `duality.keep_derivative`) are integrated once at 4097 times and
    interpolated by cubics. Where gamma spans at most 5, the error is 1e-13 in alpha and 1e-9 in its
    derivative. Over the whole tabulated range it is 1e-11 and 1e-7.

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
                f"gamma is out of range: got gamma_min = {self.gamma_min} and gamma_max = "
                f"{self.gamma_max}, want {least:.2f} <= gamma_min < gamma_max <= {most:.2f}; then "
                f"alpha is in [1e-6, 1 - 1e-9] for vocab_size = {self.vocab_size}"
            )

    def snr_root(self, t: PerSequence) -> PerSequence:
        """alpha~ / sigma~ of the Gaussian path at time t."""
        span = self.gamma_max - self.gamma_min
        return _in_float64(lambda t: torch.exp(-0.5 * (self.gamma_min + span * t)), t, "t")

    def alpha(self, t: PerSequence) -> PerSequence:
        return _share(lambda t: self._table(t.device).read(t)[0], t, "t")

    def dalpha(self, t: PerSequence) -> PerSequence:
        return _in_float64(lambda t: self._table(t.device).read(t)[1], t, "t")

    def time(self, alpha: PerSequence) -> PerSequence:
        """The inverse of `alpha`; 0 above alpha(0) and 1 below alpha(1)."""
        return _share(lambda alpha: self._table(alpha.device).inverse(alpha), alpha, "alpha")

    def _table(self, device: torch.device) -> _CubicTable:
        return _argmax_table(self.vocab_size, self.gamma_min, self.gamma_max, device)


ARGMAX_RANGE = (1e-6, 1 - 1e-9)  # outside it alpha or 1 - alpha has too few correct digits
_ARGMAX_NODES = 4097


@lru_cache(maxsize=32)
def gamma_at(alpha: float, vocab_size: int) -> float:
    """The gamma at which `GaussianArgmax` has this alpha: the inverse of Duo's operator T."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is out of range: got {alpha}, want 0 < alpha < 1")
    keep = ((vocab_size - 1) * alpha + 1) / vocab_size
    return -2 * math.log(float(duality.snr_root(keep, vocab_size)))


@lru_cache(maxsize=32)
def _argmax_table(
    vocab_size: int, gamma_min: float, gamma_max: float, device: torch.device
) -> _CubicTable:
    """The table of alpha(t) and its derivative.

    d alpha / dt = K / (K - 1) F_Y'(r) dr/dt, with r = snr_root and
    dr/dt = -(gamma_max - gamma_min) r / 2.
    """
    span = gamma_max - gamma_min
    t = torch.linspace(0, 1, _ARGMAX_NODES, dtype=torch.float64)
    root = torch.exp(-0.5 * (gamma_min + span * t))
    alpha = (vocab_size * duality.keep_probability(root, vocab_size) - 1) / (vocab_size - 1)
    density = duality.keep_derivative(root, vocab_size)
    slope = vocab_size / (vocab_size - 1) * density * -0.5 * span * root
    return _CubicTable(alpha.to(device), slope.to(device))


@dataclass(frozen=True)
class _CubicTable:
    """A decreasing function on [0, 1], interpolated by cubics from values and slopes on a grid."""

    values: Tensor
    slopes: Tensor

    def read(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the slope at t."""
        cells = len(self.values) - 1
        return self._cell((t * cells).long().clamp(max=cells - 1), t)

    def inverse(self, value: Tensor) -> Tensor:
        """Find the t of a value: start on the chord of its cell, then make Newton steps."""
        cells = len(self.values) - 1
        value = value.clamp(self.values[-1], self.values[0])
        i = torch.searchsorted(-self.values, -value).clamp(1, cells) - 1
        low = i / cells
        t = low + (self.values[i] - value) / (self.values[i] - self.values[i + 1]) / cells
        for _ in range(3):
            current, slope = self._cell(i, t)
            t = (t - (current - value) / slope).clamp(low, low + 1 / cells)
        return t

    def _cell(self, i: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the slope at t of the cubic of cell i."""
        cells = len(self.values) - 1
        x = t * cells - i
        a, b = self.values[i], self.values[i + 1]
        da, db = self.slopes[i] / cells, self.slopes[i + 1] / cells
        rise = b - a
        c2, c3 = 3 * rise - 2 * da - db, da + db - 2 * rise
        return a + x * (da + x * (c2 + x * c3)), (da + x * (2 * c2 + 3 * x * c3)) * cells


def check_unit(value: torch.Tensor, name: str) -> None:
    """Raise ValueError unless every value lies in [0, 1].

    Only on a CPU: elsewhere reading the values would stall the device.
    """
    if value.device.type == "cpu" and value.numel():
        inside = (value >= 0) & (value <= 1)
        if not bool(inside.all()):
            outside = value[~inside].flatten()[0].item()
            raise ValueError(
                f"{name} is out of range: got {outside}, want 0 <= {name} <= 1 ({_MEANING[name]})"
            )


_MEANING = {
    "t": "time, 0 for text and 1 for noise",
    "alpha": "the share of text left",
}


def _share(
    function: Callable[[PerSequence], PerSequence], value: PerSequence, name: str
) -> PerSequence:
    """Apply a function with values in [0, 1], and clamp rounding errors to that range."""
    return _in_float64(lambda value: function(value).clamp(0, 1), value, name)


def _in_float64(
    function: Callable[[PerSequence], PerSequence], value: PerSequence, name: str
) -> PerSequence:
    """Apply a function in float64, after a check, and convert to the dtype of the input."""
    if not value.is_floating_point():
        raise ValueError(
            f"{name} has the wrong dtype: got {value.dtype}, want float32 or float64 in [0, 1]"
        )
    check_unit(value, name)
    return function(value.double()).to(value.dtype)


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 1:
        raise ValueError(
            f"eps is out of range: got {eps}, want 0 <= eps < 1 (the share of text left at t = 1)"
        )
