"""Network calls that reuse keys and values: full forward passes, and windows in between.

With `cache` = r the steps form periods of r. The first step of a period makes a full forward pass
and keeps the keys and values of all positions. Each other step computes a window. The window of a
sample is the smallest span of columns that contains all queries of the period. It attends to the
kept keys and values of the other columns, which do not change before the next full pass.

This is an approximation, as in Fast-dLLM (arXiv 2505.22618) and dKV-Cache (arXiv 2505.15781). When
the keys and values were computed, the window held other tokens. From the present tokens a
bidirectional network would compute other keys and values. The result is exact only for networks
that are trained for such windows (block diffusion, arXiv 2503.09573). Predictions outside the
window are NaN, so that a step that uses one raises an error.

One period for the whole run (r >= its steps) computes the prompt once. With blocks from left to
right and a period for each block, each period computes all other blocks once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from unmask.models.kv_cache import Cache
from unmask.prediction import Prediction
from unmask.samplers.counts import CountRule
from unmask.samplers.remasking import MixturePosteriorStep, TablePosteriorStep
from unmask.samplers.steps import Query, RevealStep, SamplingProblem, Step
from unmask.samplers.unmasking import PrefixStep
from unmask.types import Denoiser, PerSequence, Tokens

# The samples [b] of a network call, in rising order, and their prediction: a row for each, or one
# row for all.
NetworkCall: TypeAlias = tuple[Tensor, Prediction]
# (index of a step, text, alpha [n], query) -> its network call; None: no call is needed
Forward: TypeAlias = Callable[[int, Tokens, PerSequence, Query], NetworkCall | None]


@runtime_checkable
class WindowedDenoiser(Protocol):
    """A `Denoiser` that can compute a part of the positions.

    `forward_window` predicts the columns `queries` [B, W] of each row of z [B, L]; None: all. With
    a new `cache` it keeps the keys and values of z. With a filled cache and a `window` [B, W] it
    computes the window only, and attends to the cache. The prediction has the shape of z in any
    case. It is NaN at columns that were not computed.
    """

    def forward_window(
        self,
        z: Tokens,
        alpha: PerSequence,
        queries: Tensor | None,
        cache: Cache | None,
        window: Tensor | None,
        /,
    ) -> Prediction: ...


@dataclass(frozen=True)
class CachedWindow:
    """The span of columns that the steps of a period compute, for each sample of the period.

    Attributes:
        rows: The samples, int64 [b], in rising order.
        first: The first column of each span, int64 [b, 1].
        last: The last column of each span, int64 [b, 1].
        width: W, the width of the widest span.
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    width: int

    @property
    def columns(self) -> Tensor:
        """The columns of each span, int64 [b, W]. Shorter spans repeat their last column."""
        return (self.first + torch.arange(self.width, device=self.first.device)).minimum(self.last)


def window_of(steps: Sequence[Step], z: Tokens) -> CachedWindow:
    """The smallest spans that contain the queries of all steps at z."""
    needed = torch.zeros_like(z, dtype=torch.bool)
    for step in steps:
        query = step.query(z)
        needed[query.samples, query.columns] = True
    rows = needed.any(dim=1).nonzero().squeeze(-1)
    column, needed = torch.arange(z.shape[1], device=z.device), needed[rows]
    first = column.where(needed, z.shape[1]).amin(dim=1, keepdim=True)
    last = column.where(needed, -1).amax(dim=1, keepdim=True)
    width = int((last - first).max()) + 1 if len(rows) else 0
    return CachedWindow(rows, first, last, width)


class CachedForward:
    """A `Forward` with a full pass at the first step of every period, and windows in between.

    The full pass computes all samples that the period queries.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        problem: SamplingProblem,
        steps: Sequence[Step],
        period: int,
    ) -> None:
        self._denoiser = _checked(denoiser, problem, steps, period)
        self._steps, self._period = steps, period
        # Windows that do not depend on the text are computed here: later a GPU would wait for them.
        periods = [steps[k : k + period] for k in range(0, len(steps), period)]
        self._fixed_windows = [
            window_of(part, problem.pins) if all(isinstance(s, RevealStep) for s in part) else None
            for part in periods
        ]
        self._window = window_of([], problem.pins)
        self._cache = Cache()

    def __call__(self, k: int, z: Tokens, alpha: PerSequence, query: Query) -> NetworkCall | None:
        """Predict z at the positions of the query of step k; None if no call is needed."""
        if k % self._period == 0:
            return self._full(k, z, alpha)
        return self._windowed(k, z, alpha, query) if len(query.rows) else None

    def _full(self, k: int, z: Tokens, alpha: PerSequence) -> NetworkCall | None:
        fixed = self._fixed_windows[k // self._period]
        self._window = window_of(self._steps[k : k + self._period], z) if fixed is None else fixed
        self._cache, rows = Cache(), self._window.rows
        if not len(rows):
            return None
        forward = self._denoiser.forward_window
        return rows, forward(z[rows], alpha[rows], None, self._cache, None)

    def _windowed(self, k: int, z: Tokens, alpha: PerSequence, query: Query) -> NetworkCall:
        rows, kept, columns = query.rows, self._window.rows, self._window.columns
        # Only on a CPU: on a GPU this check would wait, and a missing sample gives NaN instead.
        if rows.device.type == "cpu" and not torch.isin(rows, kept).all():
            raise ValueError(
                f"cache lacks a sample of step {k}: got samples {rows.tolist()}, want a subset of "
                f"{kept.tolist()} (the last full forward pass); leave cache out"
            )
        step, forward = self._steps[k], self._denoiser.forward_window
        queries = step.columns if isinstance(step, RevealStep) else None
        if len(rows) == len(kept):
            return rows, forward(z[rows], alpha[rows], queries, self._cache, columns)
        place = torch.searchsorted(kept, rows).clamp(max=len(kept) - 1)
        prediction = forward(z[rows], alpha[rows], queries, self._cache[place], columns[place])
        foreign = (kept[place] != rows)[:, None, None]
        hidden = prediction.hidden.masked_fill(foreign, torch.nan)
        return rows, replace(prediction, hidden=hidden)


def _checked(
    denoiser: Denoiser, problem: SamplingProblem, steps: Sequence[Step], period: int
) -> WindowedDenoiser:
    """The denoiser; ValueError if it has no cache, or if the steps would use outdated keys."""
    if not isinstance(denoiser, WindowedDenoiser):
        raise ValueError(
            f"cache is not possible for this denoiser: got {type(denoiser).__name__}, want one "
            "with a method forward_window; leave cache out, or use a network of this library"
        )
    if problem.mask_id is None or any(
        isinstance(step, MixturePosteriorStep | TablePosteriorStep) and step.kappa != 1
        for step in steps
    ):
        raise ValueError(
            f"cache is not possible for this sampler: got {period}, want None or 1, because with "
            "uniform noise, psi or ReMDM any token can change; use a sampler that only unmasks, "
            "such as 'reveal'"
        )
    if any(
        isinstance(step, PrefixStep)
        and isinstance(step.count, CountRule)
        and bool(step.starts.any())
        for step in steps
    ):
        raise ValueError(
            f"cache is not possible for this sampler: got {period}, want None or 1, because a "
            "block ends at a step that depends on the text; use count=grid, or leave blocks out"
        )
    return denoiser
