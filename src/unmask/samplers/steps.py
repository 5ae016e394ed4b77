"""Samplers: from noise to text in steps. This docstring is a guide to writing a sampler.

A sampler is a function from a `SamplingProblem` to a list of `Step`s. It runs before the first
network call. The loop (`samplers.sample.denoise`) then makes one network call for each step:

    query = step.query(z)      # the positions of the text z [n, L] whose predictions the step needs
    z = step(z, log_probs)     # the text after the step

`log_probs` yields chunks (at, log_p). `at` is a pair of index tensors (samples [m], columns [m]),
so that `z[at]` reads tokens and `z.index_put(at, tokens)` returns a copy with other tokens. `log_p`
[m, V] is log p(x0 = v | z) in nats, at the temperature; MASK has probability 0. A query without
positions costs no call, and a sample without positions takes no part in a call.

This sampler unmasks one column in each step, from left to right:

    @dataclass(frozen=True)
    class Column:
        problem: SamplingProblem
        column: int

        def query(self, z):
            here = torch.arange(z.shape[1], device=z.device) == self.column
            return Query.of(self.problem.free & here, alpha=self.problem.level(z))

        def __call__(self, z, log_probs):
            for at, log_p in log_probs:
                z = z.index_put(at, self.problem.draw_tokens(log_p, at))
            return z

    def left_to_right(problem):
        return [Column(problem, i) for i in range(problem.pins.shape[1])]

    unmask.sample(model, sampler=left_to_right)

Rules:

- Only positions in `problem.free` may change, and the last step leaves no MASK.
- Random numbers come from `problem.latent`, so that a sample does not depend on its batch. A step
  that draws a position again passes its own index as `occasion`.
- Without `Query.alpha`, step k runs at `problem.alphas[k]`, and the grid has an interval for each
  step.
- The sampler computes the values that depend only on latent and grid. A step computes the values
  that depend on the text. It keeps no state between calls.
- If all positions are known before the first call, `RevealStep.of(problem, Query.of(mask))` is the
  whole step.
- A test compares the texts with an enumeration of all paths: see tests/samplers/test_steps.py.

Most samplers of masked diffusion need no code: `samplers.unmasking` combines an order with a count.
Samplers that can change a visible token are in `samplers.remasking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import Process
from unmask.rng import uniform
from unmask.samplers.categorical import UNFILTERED, Draw, SamplingFilters, draw_rows, gumbel_max
from unmask.samplers.counts import check_alphas
from unmask.samplers.inputs import FREE
from unmask.samplers.latent import INITIAL_NOISE, Latent, Positions
from unmask.types import Tokens

LogProbs: TypeAlias = Iterable[tuple[Positions, Tensor]]  # chunks of (positions [m], log p [m, V])


@dataclass(frozen=True)
class SamplingProblem:
    """The samples to draw: all inputs of a sampler except the text.

    Attributes:
        process: The noise process of the model.
        pins: Given tokens, int64 [n, L], -1 where free. Given tokens never change.
        latent: The random numbers of the n samples.
        alphas: The grid, float64 [steps + 1]: step k goes from alphas[k] to alphas[k + 1].
        filters: Temperature, top-k and top-p of p(x0), before any posterior.
        draw: Maps log-probabilities to a token.
    """

    process: Process
    pins: Tokens
    latent: Latent
    alphas: Tensor
    filters: SamplingFilters = UNFILTERED
    draw: Draw = gumbel_max

    def __post_init__(self) -> None:
        check_alphas(self.alphas)

    @cached_property
    def free(self) -> Tensor:
        """Positions to be drawn, bool [n, L]."""
        return self.pins == FREE

    @property
    def mask_id(self) -> int | None:
        """The id of MASK; None unless the process is masked diffusion."""
        return self.process.mask_id

    def canvas(self) -> Tokens:
        """The text before the first step [n, L]: given tokens, and noise elsewhere."""
        number = uniform(self.latent.address(self.latent.everywhere, INITIAL_NOISE))
        return self.pins.where(~self.free, self.process.prior_from(number))

    def noised(self, z: Tokens) -> Tensor:
        """Free positions that can hold noise, bool [n, L]: in masked diffusion, the MASKs."""
        return self.free & self.process.is_noised(z)

    def level(self, z: Tokens) -> Tensor:
        """The alpha at which as many tokens are visible as in z, on average: float64 [n].

        alpha_0 + (1 - alpha_0) x (visible share of the free tokens); 1 if no token is free.
        """
        hidden = self.noised(z).sum(1)
        return 1 - (1 - self.alphas[0].to(z.device)) * hidden / self.free.sum(1).clamp(min=1)

    def draw_tokens(self, log_p: Tensor, at: Positions, occasion: int = 0) -> Tensor:
        """Draw x0 [m] at positions [m] from log p [m, V], after the filters."""
        return draw_rows(self.draw, self.filters, log_p, self.latent.address(at, occasion))


@dataclass(frozen=True)
class Query:
    """The positions whose predictions a step needs. `Query.of` and `Query.at` make one.

    Attributes:
        samples: The sample of each position, int64 [N], in rising order.
        columns: The column of each position, int64 [N].
        rows: The samples that have a position, int64 [b], each once, in rising order.
        alpha: The network's alpha for each sample, float64 [n]. None: the alpha of the grid.
    """

    samples: Tensor
    columns: Tensor
    rows: Tensor
    alpha: Tensor | None = None

    @staticmethod
    def of(mask: Tensor, alpha: Tensor | None = None) -> Query:
        """The positions where `mask`, bool [n, L], is True."""
        if mask.dtype != torch.bool:
            raise ValueError(
                f"mask is not a bool tensor: got {str(mask.dtype).removeprefix('torch.')}, want "
                "bool [n, L], True at the positions"
            )
        samples, columns = mask.nonzero(as_tuple=True)
        return Query.at(samples, columns, alpha)

    @staticmethod
    def at(samples: Tensor, columns: Tensor, alpha: Tensor | None = None) -> Query:
        """The positions (samples [N], columns [N]), with samples in rising order."""
        return Query(samples, columns, samples.unique_consecutive(), alpha)


class Step(Protocol):
    """One step z_t -> z_s of a sampler. The docstring of this module explains both methods."""

    def query(self, z: Tokens) -> Query: ...

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens: ...


Sampler: TypeAlias = Callable[[SamplingProblem], Sequence[Step]]


@dataclass(frozen=True)
class RevealStep:
    """Draw tokens at positions that are known before the first call. `RevealStep.of` makes one.

    Attributes:
        problem: The samples to draw.
        positions: The positions.
        columns: The columns of each of `positions.rows`, int64 [b, W]. Short rows repeat their last
            column.
    """

    problem: SamplingProblem
    positions: Query
    columns: Tensor

    @staticmethod
    def of(problem: SamplingProblem, positions: Query) -> RevealStep:
        """Make a step on the problem's device. If the positions are on the CPU, no copy waits."""
        _, counts = positions.samples.unique_consecutive(return_counts=True)
        first = (counts.cumsum(0) - counts)[:, None]
        width = int(counts.max()) if len(counts) else 0
        rank = torch.arange(width, device=counts.device).minimum(counts[:, None] - 1)
        device = problem.free.device
        moved = replace(
            positions,
            samples=positions.samples.to(device),
            columns=positions.columns.to(device),
            rows=positions.rows.to(device),
        )
        return RevealStep(problem, moved, positions.columns[first + rank].to(device))

    def query(self, z: Tokens) -> Query:
        return self.positions

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        for at, log_p in log_probs:
            z = z.index_put(at, self.problem.draw_tokens(log_p, at))
        return z
