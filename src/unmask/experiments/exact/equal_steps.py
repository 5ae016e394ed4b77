"""Samplers of masked diffusion that unmask equally many tokens in each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from unmask.samplers.steps import Query, RevealStep, SamplingProblem, Step


def equal_count_order(problem: SamplingProblem) -> Sequence[Step]:
    """Unmask equally many tokens in each step, in the random order of the latent's u.

    Of F masked tokens, F k / N (rounded) are visible after step k. `reveal` draws the number of
    tokens of a step, which may be 0. So at N = L it makes about 0.64 L calls and is not exact. This
    sampler makes N calls, as `confidence` does. At N = L it draws one token a call, so that q = p.
    """
    return _ranked(problem, problem.latent.u)


def bit_reversed_order(problem: SamplingProblem) -> Sequence[Step]:
    """Unmask equally many tokens in each step, in the order of their bit-reversed positions.

    The tokens of a step are far apart. In a Markov chain, where neighbours depend most on each
    other, this shows how much an order can gain.
    """
    length = problem.pins.shape[1]
    bits = (length - 1).bit_length()
    position, key = torch.arange(length), torch.zeros(length)
    for bit in range(bits):
        key += (position >> bit & 1) << (bits - 1 - bit)
    return _ranked(problem, key.double().expand(problem.pins.shape))


def _ranked(problem: SamplingProblem, key: Tensor) -> Sequence[Step]:
    """Unmask free tokens in increasing order of key [n, L], equally many in each step."""
    steps = len(problem.alphas) - 1
    free = problem.free.sum(1, keepdim=True)
    rank = key.masked_fill(~problem.free, math.inf).argsort(1).argsort(1)
    bounds = (free * torch.arange(steps + 1) / steps + 0.5 + 1e-9).long()[:, None]  # [n, 1, N + 1]
    due = [
        problem.free & (rank >= low) & (rank < high) for low, high in pairwise(bounds.unbind(-1))
    ]
    return [RevealStep.of(problem, Query.of(mask)) for mask in due]
