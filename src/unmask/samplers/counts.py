"""The number of tokens that a step unmasks: by a grid of noise levels, or by the predictions.

A grid holds the alphas before and after each step, from alpha(1) up to 1: N steps, N + 1 levels.
The grid "released" makes N + 1 steps. A `CountRule` ignores the grid, and unmasks as many tokens in
a step as the predictions allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.schedules import NoiseSchedule
from unmask.limits import MOST_STEPS, whole
from unmask.samplers.categorical import is_number
from unmask.samplers.orders import CONFIDENCE, ENTROPY, Statistic, in_steps

# steps N, schedule -> alphas, float64 [N + 1]; "released" has [N + 2]
Grid: TypeAlias = Callable[[int, NoiseSchedule], Tensor]

LAST_TIME = 1e-5  # the last t of the released codes of MDLM, SDTT and Duo


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
    1e-5. With the sampler "greedy_tail" the last step is an arg max (the column "greedy-tail" of
    Duo's tables), with "ancestral" a draw. In masked diffusion with log-linear noise, a token is
    left for the last step with probability 1e-5. So the last step rarely costs a call.

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


def visible_counts(alphas: Tensor, free: Tensor) -> list[Tensor]:
    """The visible free tokens of each sample after each step of the grid: int64 [n, 1] each.

    At alpha_k, F (alpha_k - alpha_0) / (1 - alpha_0) of the F free tokens are visible, rounded,
    halves up.
    """
    share = ((alphas - alphas[0]) / (1 - alphas[0])).to(free.device)
    # The 1e-9 makes a half round up, in spite of rounding errors.
    visible = (free.sum(1, keepdim=True) * share + 0.5 + 1e-9).long()
    return list(visible[:, 1:].split(1, dim=1))


@dataclass(frozen=True)
class CountRule:
    """The number of MASKs that a step unmasks: the longest prefix of the order that fits.

    The first MASK is always unmasked. `fits(values, limit)` gets the statistic in the order of
    unmasking, float64 [n, L], inf after the last MASK. It returns bool [n, L]: True up to the end
    of the prefix.

    Attributes:
        statistic: A number for each MASK.
        fits: The rule.
        limit: The number of the rule.
    """

    statistic: Statistic
    fits: Callable[[Tensor, float], Tensor]
    limit: float


def threshold(probability: float) -> CountRule:
    """Unmask tokens while the drawn token has at least this probability.

    Source: Fast-dLLM, arXiv 2505.22618. `probability` lies in [0, 1], else ValueError. 0 unmasks
    all MASKs at once.
    """
    if not (is_number(probability) and 0 <= probability <= 1):
        raise ValueError(
            f"threshold is out of range: got {probability!r}, want 0 <= threshold <= 1 (the least "
            "probability of a token that a step unmasks after its first)"
        )
    return CountRule(CONFIDENCE, _all_probable, probability)


def entropy_bound(nats: float) -> CountRule:
    """Unmask tokens that are nearly independent: the EB-sampler (arXiv 2505.24857).

    A step takes the longest prefix U of the order with

        sum_{l in U} H_l - max_{l in U} H_l <= nats,      H the entropy of p(x0_l | z)

    The left side bounds the total correlation of the tokens in U. So `nats` bounds the error of
    drawing these tokens independently. With 0 a step unmasks one token, and the tokens with H = 0.
    With inf one step unmasks all tokens.

    Raises:
        ValueError: nats is negative or not a number.
    """
    if not (is_number(nats) and nats >= 0):
        raise ValueError(
            f"bound is out of range: got {nats!r}, want bound >= 0 (nats, without the least "
            "certain token of a step; inf unmasks all at once)"
        )
    return CountRule(ENTROPY, _nearly_independent, nats)


GridCount = Literal["grid", "equal"]
Count: TypeAlias = GridCount | CountRule

COUNTS: Mapping[str, Callable[[float], CountRule]] = MappingProxyType(
    {"threshold": threshold, "bound": entropy_bound}
)


def _all_probable(negative_log_p: Tensor, probability: float) -> Tensor:
    return ((-negative_log_p).exp() >= probability).long().cumprod(1).bool()


def _nearly_independent(entropy: Tensor, nats: float) -> Tensor:
    total = F.pad(entropy.cumsum(1)[:, :-1], (1, 0))
    greatest = F.pad(entropy.cummax(1).values[:, :-1], (1, 0))
    # The sum without its greatest term. That is the last term, unless an earlier one is greater.
    surplus = (greatest - entropy).where(in_steps(greatest) > in_steps(entropy), 0.0)
    return total - surplus <= nats


def _share(steps: int) -> Tensor:
    steps = whole("steps", steps, "the number of steps from noise to text", 1, MOST_STEPS)
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _levels(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    alphas = schedule.alpha(t)
    alphas[-1] = 1.0
    return alphas
