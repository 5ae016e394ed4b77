"""Samplers: from noise to text in steps. This docstring is all that a new sampler needs.

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

- Only positions in `problem.free` may change.
- Random numbers come from `problem.latent`, so that a sample does not depend on its batch. A step
  that draws a position again passes its own index as `occasion`.
- Without `Query.alpha`, step k runs at `problem.alphas[k]`, and the grid has an interval for each
  step.
- What follows from the latent and the grid is computed by the sampler, before the first call. What
  follows from the text is computed by the step.
- A test compares the texts with an enumeration of all paths: see tests/samplers/test_steps.py.

Most samplers of masked diffusion need no code: `Unmasking` combines an order with a count. Samplers
that can change a visible token are in `samplers.remasking`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import Process
from unmask.limits import whole
from unmask.rng import uniform
from unmask.samplers.categorical import UNFILTERED, Draw, SamplingFilters, draw_rows, gumbel_max
from unmask.samplers.counts import CountRule, Pace, check_alphas, paces
from unmask.samplers.inputs import FREE
from unmask.samplers.latent import INITIAL_NOISE, Latent, Positions
from unmask.samplers.orders import (
    CONFIDENCE,
    RANDOM,
    LevelOrder,
    Statistic,
    block_starts,
    in_steps,
    rank_order,
)
from unmask.types import Tokens

LogProbs: TypeAlias = Iterable[tuple[Positions, Tensor]]  # chunks of (positions [m], log p [m, V])


@dataclass(frozen=True)
class SamplingProblem:
    """The samples to draw: everything that a sampler can use except the text.

    pins     int64 [n, L]: given tokens, -1 where free; given tokens never change
    latent   the random numbers of the n samples
    alphas   float64 [steps + 1], the grid: step k goes from alphas[k] to alphas[k + 1]
    filters  temperature, top-k and top-p of p(x0), before any posterior
    draw     from log-probabilities to a token
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
        return self.pins.where(~self.free, self.process.noise(number))

    def level(self, z: Tokens) -> Tensor:
        """The alpha at which as many tokens are visible as in z, on average: float64 [n].

        alpha_0 + (1 - alpha_0) x (visible share of the free tokens); 1 if no token is free.
        """
        hidden = (self.free & self.process.is_noised(z)).sum(1)
        return 1 - (1 - self.alphas[0].to(z.device)) * hidden / self.free.sum(1).clamp(min=1)

    def draw_tokens(self, log_p: Tensor, at: Positions, occasion: int = 0) -> Tensor:
        """Draw x0 [m] at positions [m] from log p [m, V], after the filters."""
        return draw_rows(self.draw, self.filters, log_p, self.latent.address(at, occasion))


@dataclass(frozen=True)
class Query:
    """The positions whose predictions a step needs.

    samples, columns  int64 [N], as `nonzero(as_tuple=True)` gives them: samples in rising order
    alpha             float64 [n], the network's alpha for each sample; None: the alpha of the grid
    """

    samples: Tensor
    columns: Tensor
    alpha: Tensor | None = None

    @staticmethod
    def of(mask: Tensor, alpha: Tensor | None = None) -> Query:
        """The positions where `mask` [n, L] is True."""
        samples, columns = mask.nonzero(as_tuple=True)
        return Query(samples, columns, alpha)

    @cached_property
    def _grouped(self) -> tuple[Tensor, Tensor]:
        rows, row = torch.unique(self.samples, return_inverse=True)
        return rows, row

    @cached_property
    def rows(self) -> Tensor:
        """The samples that have a position: int64 [b], each once, in rising order."""
        return self._grouped[0]

    @cached_property
    def row(self) -> Tensor:
        """The index in `rows` of the sample of each position: int64 [N]."""
        return self._grouped[1]

    @cached_property
    def padded_columns(self) -> Tensor:
        """The columns of each of the b samples [b, W]; short rows repeat their last column."""
        counts = torch.bincount(self.row, minlength=len(self.rows))
        first = counts.cumsum(0) - counts
        width = int(counts.max()) if len(counts) else 0
        rank = torch.arange(width, device=self.row.device).minimum(counts[:, None] - 1)
        return self.columns[first[:, None] + rank]

    def to(self, device: torch.device) -> Query:
        """The query on a device. All properties are computed here: a GPU would wait for them."""
        moved = Query(self.samples.to(device), self.columns.to(device))
        for name in ("rows", "row", "padded_columns"):
            vars(moved)[name] = getattr(self, name).to(device)  # the value of the cached property
        return moved


class Step(Protocol):
    """One step z_t -> z_s of a sampler: see the module."""

    def query(self, z: Tokens) -> Query: ...

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens: ...


Sampler: TypeAlias = Callable[[SamplingProblem], Sequence[Step]]


@dataclass(frozen=True)
class Unmasking:
    """A sampler of masked diffusion: an order of the MASKs, and how many of them a step unmasks.

    order   a `LevelOrder` of the latent, or a `Statistic` of the predictions (`samplers.orders`)
    count   None: as the grid says. A `CountRule`: as the predictions allow, whatever the grid
    blocks  free tokens of a block: blocks come from left to right, and `order` acts inside a block;
            None: one block

    With a `LevelOrder` and the grid all positions of all steps are known before the first call, and
    a token is drawn from one prediction. A token of level u is unmasked at the step whose alphas
    contain alpha_0 + (1 - alpha_0) u. In the order RANDOM that is the law of MDLM's ancestral
    sampler. The same latent gives coupled texts at different numbers of steps.

    With a `Statistic` a step draws a token at every MASK it can reach, and keeps the first ones in
    the order. Ties (`orders.in_steps`) go to the earlier column. The statistic is that of p(x0) at
    the temperature, before top-k and top-p. By the grid, of F free tokens F (alpha_k - alpha_0) /
    (1 - alpha_0) are visible after step k, rounded, halves up. A step that fills a block continues
    in the next one.

    A `CountRule` unmasks at least one token of each sample in a step, and no token outside the
    current block. The number of steps is at most the number of free tokens. The network's alpha is
    `SamplingProblem.level`, because the grid does not say how many tokens are visible.

    In training the visible tokens are random. With a `Statistic`, a `CountRule` or blocks they are
    not: for a network that reads alpha, its alpha is then the nearest level, not an exact one. An
    order that depends on the drawn token (CONFIDENCE) does not draw from the model's law: it
    prefers safe tokens. Blocks unmask neighbours together, which depend on each other most.
    """

    order: LevelOrder | Statistic = RANDOM
    count: CountRule | None = None
    blocks: int | None = None

    def __post_init__(self) -> None:
        if self.blocks is not None:
            whole("blocks", self.blocks, "the free tokens of a block")

    def __call__(self, problem: SamplingProblem) -> Sequence[Step]:
        if problem.mask_id is None:
            raise ValueError(
                f"sampler needs MaskedProcess, got {type(problem.process).__name__}: it unmasks "
                "MASKs; use sampler='ancestral'"
            )
        free, order = problem.free, self.order
        key = (
            order.of(problem.latent, free, self.blocks) if isinstance(order, LevelOrder) else order
        )
        if self.count is None and isinstance(key, Tensor):
            queries = unmasking_schedule(key, problem.alphas, free)
            return [RevealStep(problem, query) for query in queries]
        starts = block_starts(free, self.blocks)
        counts: Sequence[Pace | CountRule] = paces(problem.alphas, free)
        if self.count is not None:
            counts = [self.count] * int(free.sum(1).max())
        return [PrefixStep(problem, k, key, count, starts) for k, count in enumerate(counts)]


reveal = Unmasking()
confidence = Unmasking(CONFIDENCE)


def unmasking_schedule(levels: Tensor, alphas: Tensor, free: Tensor) -> list[Query]:
    """The positions that each step unmasks, known before the first network call.

    Step k unmasks the free positions [n, L] with

        alpha_k <= alpha_0 + (1 - alpha_0) level < alpha_{k+1}

    For uniform levels it unmasks a MASK with probability (alpha_{k+1} - alpha_k) / (1 - alpha_k),
    the ancestral law (MDLM, arXiv 2406.07524, Eq. 6), also if alpha_0 = alpha(1) > 0.
    """
    level = alphas[0] + (1 - alphas[0]) * levels.cpu()
    step = torch.bucketize(level, alphas[1:-1], right=True)
    samples, columns = free.cpu().nonzero(as_tuple=True)
    step = step[samples, columns]
    order = step.argsort(stable=True)
    counts = torch.bincount(step, minlength=len(alphas) - 1).tolist()
    parts = zip(samples[order].split(counts), columns[order].split(counts), strict=True)
    return [Query(*part).to(free.device) for part in parts]


@dataclass(frozen=True)
class RevealStep:
    """Draw tokens at positions that are known beforehand."""

    problem: SamplingProblem
    positions: Query

    def query(self, z: Tokens) -> Query:
        return self.positions

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        for at, log_p in log_probs:
            z = z.index_put(at, self.problem.draw_tokens(log_p, at))
        return z


@dataclass(frozen=True)
class PrefixStep:
    """Draw tokens at all MASKs that the step can reach, and keep the first ones in the order.

    k       index of the step
    order   levels [n, L] that follow from the latent, or a `Statistic` of the predictions
    count   the pace of the grid, or a `CountRule`
    starts  int64 [n, L]: free tokens before the block of each position
    """

    problem: SamplingProblem
    k: int
    order: Tensor | Statistic
    count: Pace | CountRule
    starts: Tensor

    def query(self, z: Tokens) -> Query:
        alpha = None if isinstance(self.count, Pace) else self.problem.level(z)
        return Query.of(self._candidates(z), alpha)

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        order, count = self.order, self.count
        used = order, None if isinstance(count, Pace) else count.statistic
        statistics = [part for part in used if isinstance(part, Statistic)]
        # A drawn token that decides about the order, and is dropped, must be drawn again later.
        occasion = self.k if any(statistic.reads_token for statistic in statistics) else 0
        unread = torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)
        drawn, values = z, dict.fromkeys(statistics, unread)
        for at, log_p in log_probs:
            token = self.problem.draw_tokens(log_p, at, occasion)
            drawn = drawn.index_put(at, token)
            values = {
                statistic: column.index_put(at, statistic.of(log_p, token))
                for statistic, column in values.items()
            }
        candidates = self._candidates(z)
        key = in_steps(values[order]) if isinstance(order, Statistic) else order
        ranked = rank_order(key, self.starts, candidates)
        rank = torch.arange(z.shape[1], device=z.device)
        if isinstance(count, Pace):
            first = rank < count.after - count.before
        else:
            first = (rank == 0) | count.fits(values[count.statistic].gather(1, ranked))
        return drawn.where(torch.zeros_like(candidates).scatter(1, ranked, first) & candidates, z)

    def _candidates(self, z: Tokens) -> Tensor:
        """MASKs [n, L] in the blocks that the step can reach."""
        hidden = masks(self.problem, z)
        if isinstance(self.count, Pace):
            return (
                hidden & (self.count.before < self.count.after) & (self.starts < self.count.after)
            )
        return hidden & (self.starts <= (self.problem.free & ~hidden).sum(1, keepdim=True))


def masks(problem: SamplingProblem, z: Tokens) -> Tensor:
    """Free positions [n, L] that can still change: in masked diffusion, the MASKs."""
    return problem.free & problem.process.is_noised(z)
