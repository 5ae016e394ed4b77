"""How many tokens a step unmasks: by a grid of noise levels, or by a rule on the predictions.

A grid holds the alphas at which a sampler stops, from alpha(1) up to 1: N steps, N + 1 levels. The
grid "released" makes N + 1 steps. A `CountRule` ignores the grid, and unmasks as many tokens at
once as the predictions at hand allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.schedules import NoiseSchedule
from unmask.limits import MOST_STEPS, whole
from unmask.samplers.categorical import is_number
from unmask.samplers.orders import CONFIDENCE, ENTROPY, Statistic, in_steps

# steps N, schedule -> alphas, float64 [N + 1]; "released" has [N + 2]
Grid: TypeAlias = Callable[[int, NoiseSchedule], Tensor]

LAST_TIME = 1e-5  # where the released codes stop


def uniform_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k) at t_k = 1 - k/N: float64 [N + 1].

    The last alpha is exactly 1, so that the last step unmasks all remaining tokens.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> uniform_grid(4, LogLinear(eps=0.0))
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return _levels(1 - _share(steps), schedule)


def cosine_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k) at t_k = cos(pi k / 2N): few tokens first, many at the end: float64 [N + 1].

    Source: MaskGIT, arXiv 2202.04200.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> cosine_grid(3, LogLinear(eps=0.0))
    tensor([0.0000, 0.1340, 0.5000, 1.0000], dtype=torch.float64)
    """
    return _levels(torch.cos(math.pi / 2 * _share(steps)).clamp(0, 1), schedule)


def released_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k) at equal distances from t = 1 to 1e-5, and then 1: float64 [N + 2], N + 1 steps.

    The released codes of MDLM, SDTT and Duo use it. The last step removes the noise left at t =
    1e-5. With the sampler "greedy_tail" that step is an arg max (the column "greedy-tail" of Duo's
    tables), with "ancestral" a draw. In masked diffusion with log-linear noise a token is left for
    it with probability 1e-5, so that the step mostly costs no call.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> released_grid(2, LogLinear(eps=0.0))
    tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    alphas = schedule.alpha(1 - (1 - LAST_TIME) * _share(steps))
    return torch.cat([alphas, alphas.new_ones(1)])


def loop_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """The grid of ReMDM-loop: float64 [N + 1], with t_k = 1 - k/N.

    alpha rises to 0.9 at t = 0.55, stays there until t = 0.05, and rises to 1. Both slopes are
    linear in t; the schedule gives alpha(1) only. The grid is for samplers that change tokens at a
    constant level ("remdm_loop", "psi"): other samplers do nothing there. Source: arXiv 2503.00307.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> loop_grid(4, LogLinear(eps=0.0))
    tensor([0.0000, 0.5000, 0.9000, 0.9000, 1.0000], dtype=torch.float64)
    """
    t = 1 - _share(steps)
    first = schedule.alpha(t[:1])
    return torch.maximum(first + (0.9 - first) * ((1 - t) / 0.45).clamp(max=1), 1 - 2 * t)


GRIDS: Mapping[str, Grid] = MappingProxyType(
    {"uniform": uniform_grid, "cosine": cosine_grid, "released": released_grid, "loop": loop_grid}
)


def check_alphas(alphas: Tensor) -> None:
    """Raise ValueError unless `alphas` [steps + 1] rise from noise to exactly 1."""
    rises = alphas.dim() == 1 and len(alphas) > 1 and bool((alphas.diff() >= 0).all())
    if not (rises and 0 <= alphas[0] < 1 and alphas[-1] == 1):
        raise ValueError(
            f"grid is not a rising list of alphas: got {alphas.tolist()}, want one alpha more than "
            "there are steps, from alpha(1) < 1 to exactly 1"
        )


class Pace(NamedTuple):
    """The visible free tokens of each sample before and after a step: int64 [n, 1] each."""

    before: Tensor
    after: Tensor


def paces(alphas: Tensor, free: Tensor) -> list[Pace]:
    """The pace of each step of the grid.

    Of the F free tokens F (alpha_k - alpha_0) / (1 - alpha_0), rounded, halves up, are visible at
    alpha_k.
    """
    share = ((alphas - alphas[0]) / (1 - alphas[0])).to(free.device)
    # 1e-9: a half counts as a half in spite of rounding.
    visible = (free.sum(1, keepdim=True) * share + 0.5 + 1e-9).long()
    return [Pace(*pair) for pair in pairwise(visible.split(1, dim=1))]


class CountRule(Protocol):
    """How many of the first MASKs in the order a step unmasks: the longest prefix that fits.

    The first MASK is always unmasked. `fits` gets the statistic in the order of unmasking, [n, L],
    inf after the last MASK. It returns bool [n, L] that is True up to the end of the prefix.
    """

    @property
    def statistic(self) -> Statistic: ...

    def fits(self, values: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Threshold:
    """Unmask tokens while the drawn token has at least this probability.

    Source: Fast-dLLM, arXiv 2505.22618.

    probability  in [0, 1]; 0 unmasks all MASKs at once
    """

    probability: float
    statistic: ClassVar[Statistic] = CONFIDENCE

    def __post_init__(self) -> None:
        if not (is_number(self.probability) and 0 <= self.probability <= 1):
            raise ValueError(
                f"threshold is out of range: got {self.probability!r}, want 0 <= threshold <= 1 "
                "(the least probability of a token that a step unmasks after its first)"
            )

    def fits(self, values: Tensor, /) -> Tensor:
        return ((-values).exp() >= self.probability).long().cumprod(1).bool()


@dataclass(frozen=True)
class EntropyBound:
    """Unmask tokens that are nearly independent: the EB-sampler (arXiv 2505.24857).

    A step takes the longest prefix U of the order with

        sum_{l in U} H_l - max_{l in U} H_l <= nats,      H the entropy of p(x0_l | z)

    The left side bounds the total correlation of the tokens in U, so it bounds the cost of drawing
    them independently. nats = 0: one token a step, and the tokens with H = 0; inf: all in one step.
    """

    nats: float
    statistic: ClassVar[Statistic] = ENTROPY

    def __post_init__(self) -> None:
        if not (is_number(self.nats) and self.nats >= 0):
            raise ValueError(
                f"bound is out of range: got {self.nats!r}, want bound >= 0 (nats of entropy that "
                "a step may draw without its least certain token; inf unmasks all at once)"
            )

    def fits(self, values: Tensor, /) -> Tensor:
        total = F.pad(values.cumsum(1)[:, :-1], (1, 0))
        greatest = F.pad(values.cummax(1).values[:, :-1], (1, 0))
        # The sum without the greatest term: in rising order, ties included, that is the last term.
        surplus = (greatest - values).where(in_steps(greatest) > in_steps(values), 0.0)
        return total - surplus <= self.nats


COUNTS: Mapping[str, Callable[[float], CountRule]] = MappingProxyType(
    {"threshold": Threshold, "bound": EntropyBound}
)


def _share(steps: int) -> Tensor:
    steps = whole("steps", steps, "the number of steps from noise to text", 1, MOST_STEPS)
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _levels(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    alphas = schedule.alpha(t)
    alphas[-1] = 1.0
    return alphas
