"""Samplers that unmask: an order of the MASKs, and a count of the MASKs of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from unmask.diffusion.levels import LevelOrder, random_order, spread_order
from unmask.limits import check_choice, whole
from unmask.samplers.counts import Count, CountRule, GridCount, visible_counts
from unmask.samplers.orders import (
    CONFIDENCE,
    Statistic,
    block_starts,
    equal_levels,
    in_blocks,
    in_steps,
    rank_order,
)
from unmask.samplers.steps import LogProbs, Query, RevealStep, SamplingProblem, Step
from unmask.types import Tokens


@dataclass(frozen=True)
class Unmasking:
    """A sampler of masked diffusion: an order of the MASKs, and a count of the MASKs of a step.

    With a `LevelOrder` and a grid, all positions of all steps are known before the first call. A
    token is then drawn from one prediction. A token of level u is unmasked at the step whose alphas
    contain alpha_0 + (1 - alpha_0) u. In random order this is MDLM's ancestral sampler in law.
    The same latent gives coupled texts at different numbers of steps.

    With a `Statistic`, a step draws a token at every MASK that it can reach, and keeps the first
    ones in the order. Ties (`orders.in_steps`) go to the earlier column. The statistic is computed
    from p(x0) at the temperature, before top-k and top-p. A step that fills a block continues in
    the next block.

    With the count "equal", and with a `Statistic` and the grid, F (alpha_k - alpha_0) / (1 -
    alpha_0) of F free tokens are visible after k steps, rounded, halves up.

    With a `CountRule`, a step unmasks at least one token of each sample, and no token outside the
    current block. The number of steps is at most the number of free tokens. The network's alpha is
    `SamplingProblem.level`, because the grid does not give the number of visible tokens.

    In training the visible tokens are random. With a `Statistic`, a `CountRule` or blocks they are
    not. Then the alpha that a network gets is only approximate. An order that depends on the drawn
    token (CONFIDENCE) does not draw from the model's law: it prefers probable tokens. Blocks unmask
    neighbours together, although neighbours depend on each other most.

    Attributes:
        order: A `LevelOrder` of the latent, or a `Statistic` of the predictions.
        count: "grid": the tokens whose levels the step reaches. "equal": equal counts on a grid of
            equal intervals. A `CountRule`: the number that the predictions allow, whatever the
            grid.
        blocks: Free tokens of a block. Blocks come from left to right, and the order acts inside a
            block. None: one block.
    """

    order: LevelOrder | Statistic = random_order
    count: Count = "grid"
    blocks: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, CountRule):
            check_choice("count", self.count, get_args(GridCount))
        if self.blocks is not None:
            whole("blocks", self.blocks, "the free tokens of a block")

    def __call__(self, problem: SamplingProblem) -> Sequence[Step]:
        if problem.mask_id is None:
            raise ValueError(
                f"sampler needs MaskedProcess, got {type(problem.process).__name__}: it unmasks "
                "MASKs; use sampler='ancestral'"
            )
        free, order, count = problem.free, self.order, self.count
        key = order if isinstance(order, Statistic) else self.levels(problem.latent.u, free)
        if isinstance(key, Tensor) and not isinstance(count, CountRule):
            schedule = unmasking_schedule(key, problem.alphas, free)
            return [RevealStep.of(problem, positions) for positions in schedule]
        counts: Sequence[Tensor | CountRule] = (
            [count] * int(free.sum(1).max())
            if isinstance(count, CountRule)
            else visible_counts(problem.alphas, free)
        )
        starts = block_starts(free, self.blocks)
        return [PrefixStep(problem, k, key, part, starts) for k, part in enumerate(counts)]

    def levels(self, u: Tensor, free: Tensor) -> Tensor:
        """The levels of the free positions in a `LevelOrder`, float64 [n, L].

        Other positions hold no valid level. ValueError for a `Statistic`.
        """
        if isinstance(self.order, Statistic):
            raise ValueError("order has no levels before the first call: got a Statistic")
        levels = self.order(u)
        if self.blocks is not None:
            levels = in_blocks(levels, free, self.blocks)
        return equal_levels(levels, free) if self.count == "equal" else levels


reveal = Unmasking()
spread = Unmasking(spread_order)
confidence = Unmasking(CONFIDENCE)


def unmasking_schedule(levels: Tensor, alphas: Tensor, free: Tensor) -> list[Query]:
    """Return the positions that each step unmasks, on the CPU, before the first network call.

    Step k unmasks the free positions [n, L] with

        alpha_k <= alpha_0 + (1 - alpha_0) level < alpha_{k+1}

    For uniform levels it unmasks a MASK with probability (alpha_{k+1} - alpha_k) / (1 - alpha_k).
    This is the ancestral law (MDLM, arXiv 2406.07524, Eq. 6), also if alpha_0 = alpha(1) > 0.
    """
    level = alphas[0] + (1 - alphas[0]) * levels.cpu()
    step = torch.bucketize(level, alphas[1:-1], right=True)
    samples, columns = free.cpu().nonzero(as_tuple=True)
    step = step[samples, columns]
    order = step.argsort(stable=True)
    counts = torch.bincount(step, minlength=len(alphas) - 1).tolist()
    parts = zip(samples[order].split(counts), columns[order].split(counts), strict=True)
    return [Query.at(*part) for part in parts]


@dataclass(frozen=True)
class PrefixStep:
    """Draw tokens at all MASKs that the step can reach, and keep the first ones in the order.

    Attributes:
        problem: The samples to draw.
        k: Index of the step.
        order: Levels [n, L] that follow from the latent, or a `Statistic` of the predictions.
        count: Visible free tokens after the step, int64 [n, 1], or a `CountRule`.
        starts: Free tokens before the block of each position, int64 [n, L].
    """

    problem: SamplingProblem
    k: int
    order: Tensor | Statistic
    count: Tensor | CountRule
    starts: Tensor

    def query(self, z: Tokens) -> Query:
        alpha = None if isinstance(self.count, Tensor) else self.problem.level(z)
        return Query.of(self._candidates(z), alpha)

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        order, count = self.order, self.count
        used = order, None if isinstance(count, Tensor) else count.statistic
        statistics = [part for part in used if isinstance(part, Statistic)]
        # If the order depends on the drawn tokens, a dropped token must be drawn again later.
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
        if isinstance(count, Tensor):
            first = rank < count - self._visible(z)
        else:
            first = (rank == 0) | count.fits(values[count.statistic].gather(1, ranked), count.limit)
        return drawn.where(torch.zeros_like(candidates).scatter(1, ranked, first) & candidates, z)

    def _candidates(self, z: Tokens) -> Tensor:
        """MASKs [n, L] in the blocks that the step can reach."""
        hidden, visible = self.problem.noised(z), self._visible(z)
        if isinstance(self.count, Tensor):
            return hidden & (visible < self.count) & (self.starts < self.count)
        return hidden & (self.starts <= visible)

    def _visible(self, z: Tokens) -> Tensor:
        """Visible free tokens of each sample, int64 [n, 1]."""
        return (self.problem.free & ~self.problem.noised(z)).sum(1, keepdim=True)
