"""Grids: at which noise levels a sampler stops. N steps, N + 1 levels, from alpha(1) up to text.

"released" has one move more than it has steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.schedules import NoiseSchedule
from unmask.limits import MOST_STEPS, whole

Grid: TypeAlias = Callable[
    [int, NoiseSchedule], Tensor
]  # steps N, schedule -> alphas, float64 [moves + 1]

LAST_TIME = 1e-5  # where the released codes stop


def uniform_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k), t_k = 1 - k/N: float64 [N + 1], the last exactly 1, so that the last step reveals all that is left.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> uniform_grid(4, LogLinear(eps=0.0))
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return _levels(1 - _share(steps), schedule)


def cosine_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k), t_k = cos(pi k / 2N): few tokens while little is known, many at the end (MaskGIT, arXiv 2202.04200).

    >>> from unmask.diffusion.schedules import LogLinear
    >>> cosine_grid(3, LogLinear(eps=0.0))
    tensor([0.0000, 0.1340, 0.5000, 1.0000], dtype=torch.float64)
    """
    return _levels(torch.cos(math.pi / 2 * _share(steps)).clamp(0, 1), schedule)


def released_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """alpha(t_k), t_k from 1 to 1e-5 at equal distances, and then text: float64 [N + 2], N + 1 moves.

    So the released codes of MDLM, SDTT and Duo walk: N steps, then one more network call that removes the noise left
    at t = 1e-5. With the sampler "greedy_tail" that call is an arg max (the column "greedy-tail" of Duo's tables), with
    "ancestral" a draw. In masked diffusion a token is left for it with probability 1e-5 (log-linear), and mostly none.

    >>> from unmask.diffusion.schedules import LogLinear
    >>> released_grid(2, LogLinear(eps=0.0))
    tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    alphas = schedule.alpha(1 - (1 - LAST_TIME) * _share(steps))
    return torch.cat([alphas, alphas.new_ones(1)])


def loop_grid(steps: int, schedule: NoiseSchedule) -> Tensor:
    """Up to alpha = 0.9 at t = 0.55, level until t = 0.05, then up to text, t_k = 1 - k/N (ReMDM-loop, 2503.00307).

    alpha is linear in t on both slopes, whatever the schedule, which gives alpha(1) only: float64 [N + 1]. For samplers
    that change tokens at a level that stands ("remdm_loop", "psi"): the others do nothing there.

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


def check_levels(alphas: Tensor) -> None:
    """ValueError unless `alphas` [moves + 1] rise from noise to exactly 1."""
    rises = alphas.dim() == 1 and len(alphas) > 1 and bool((alphas.diff() >= 0).all())
    if not (rises and 0 <= alphas[0] < 1 and alphas[-1] == 1):
        raise ValueError(
            "a grid is the share of text after each step: want a level alpha more than there are moves, that "
            f"never falls, from alpha(1) < 1 to exactly 1, got {alphas.tolist()}"
        )


def _share(steps: int) -> Tensor:
    steps = whole("steps", steps, "the number of moves from noise to text", 1, MOST_STEPS)
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _levels(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    alphas = schedule.alpha(t)
    alphas[-1] = 1.0
    return alphas
