"""Grids: at which noise levels a sampler stops. N steps, N + 1 levels, from alpha(1) up to text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.schedules import NoiseSchedule

Grid: TypeAlias = Callable[[int, NoiseSchedule], Tensor]  # steps N, schedule -> alphas, float64 [N + 1]


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
    return _levels(torch.cos(math.pi / 2 * _share(steps)).clamp(min=0), schedule)


GRIDS: Mapping[str, Grid] = MappingProxyType({"uniform": uniform_grid, "cosine": cosine_grid})


def check_levels(alphas: Tensor) -> None:
    """ValueError unless `alphas` [N + 1] rise from noise to exactly 1."""
    rises = alphas.dim() == 1 and len(alphas) > 1 and bool((alphas.diff() >= 0).all())
    if not (rises and 0 <= alphas[0] < 1 and alphas[-1] == 1):
        raise ValueError(
            "a grid is the share of text after each step: want N + 1 levels alpha that never fall, from "
            f"alpha(1) < 1 to exactly 1, got {alphas.tolist()}"
        )


def _share(steps: int) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps is the number of moves from noise to text: want steps >= 1, got {steps}")
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _levels(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    alphas = schedule.alpha(t)
    alphas[-1] = 1.0
    return alphas
