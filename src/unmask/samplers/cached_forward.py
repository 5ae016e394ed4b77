"""Network calls that reuse keys and values: full forward passes, and windows in between.

With `cache` = r the steps form periods of r. The first step of a period makes a full forward pass
and keeps the keys and values of all positions. The other steps compute a window: of each sample the
smallest span of columns that contains all queries of the period. A window attends to the kept keys
and values outside it, where no token changes before the next full pass.

Kept keys and values were computed while the window held other tokens, and a bidirectional network
would now compute other ones. So this is an approximation, as in Fast-dLLM (arXiv 2505.22618) and
dKV-Cache (arXiv 2505.15781). It is exact only for networks trained for it (block diffusion, arXiv
2503.09573). Positions outside the window are NaN, so that a step that uses one raises an error.

One period for the whole run, r >= its steps, keeps the prompt. Blocks from left to right, with a
period for each block, keep all other blocks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.models.kv_cache import Cache
from unmask.prediction import Prediction
from unmask.samplers.counts import Pace
from unmask.samplers.remasking import MixturePosteriorStep, TablePosteriorStep
from unmask.samplers.steps import PrefixStep, Query, RevealStep, SamplingProblem, Step
from unmask.types import Denoiser, PerSequence, Tokens


@runtime_checkable
class WindowedDenoiser(Protocol):
    """A `Denoiser` that can compute a part of the positions.

    Of z [B, L] it computes the `queries` [B, W], columns of each row. With a new `cache` it keeps
    the keys and values of z. With a filled cache and a `window` [B, W] it computes the window only,
    and attends to the cache. The prediction has the shape of z in any case, and is NaN at other
    columns.
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
class NetworkCall:
    """The prediction of a step, and the samples [b] that took part in the call.

    index  flat rows [N] in the prediction of the positions of the query
    """

    rows: Tensor
    prediction: Prediction
    index: Tensor


def alphas_of(problem: SamplingProblem, k: int, query: Query, rows: Tensor) -> PerSequence:
    """The network's alpha for samples [b] in step k: float64 [b]."""
    if query.alpha is not None:
        return query.alpha[rows]
    return problem.alphas[k].to(rows.device).expand(len(rows))


@dataclass(frozen=True)
class CachedWindow:
    """The samples of a period [b], in rising order, and the span of columns that its steps compute.

    first, last  int64 [b, 1]
    width        of the widest span
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    width: int

    @property
    def columns(self) -> Tensor:
        """int64 [b, W]; shorter spans repeat their last column."""
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
    """A full forward pass at the first step of every period, windows at the other steps.

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
        self._problem, self._steps, self._period = problem, steps, period
        # Windows that do not depend on the text are computed here: later a GPU would wait for them.
        periods = [steps[k : k + period] for k in range(0, len(steps), period)]
        self._fixed_windows = [
            window_of(part, problem.pins) if all(isinstance(s, RevealStep) for s in part) else None
            for part in periods
        ]
        self._window = window_of([], problem.pins)
        self._cache = Cache()

    def __call__(self, k: int, z: Tokens, query: Query) -> NetworkCall | None:
        """The prediction for a query of step k at z; None if no call is needed."""
        if k % self._period == 0:
            return self._full(k, z, query)
        return self._windowed(k, z, query) if len(query.rows) else None

    def _full(self, k: int, z: Tokens, query: Query) -> NetworkCall | None:
        fixed = self._fixed_windows[k // self._period]
        self._window = window_of(self._steps[k : k + self._period], z) if fixed is None else fixed
        self._cache, rows = Cache(), self._window.rows
        if not len(rows):
            return None
        alpha = alphas_of(self._problem, k, query, rows)
        prediction = self._denoiser.forward_window(z[rows], alpha, None, self._cache, None)
        index = torch.searchsorted(rows, query.samples) * z.shape[1] + query.columns
        return NetworkCall(rows, prediction, index)

    def _windowed(self, k: int, z: Tokens, query: Query) -> NetworkCall:
        rows, kept, columns = query.rows, self._window.rows, self._window.columns
        # On a GPU this check would wait for the device. There such a read gives NaN instead.
        if rows.device.type == "cpu" and not torch.isin(rows, kept).all():
            raise ValueError(
                f"cache does not hold all samples of step {k}: got samples {rows.tolist()}, want "
                f"some of {kept.tolist()}, those that its period queries at the first step; leave "
                "cache out"
            )
        alpha, planned = alphas_of(self._problem, k, query, rows), None
        if isinstance(self._steps[k], RevealStep):
            planned = query.padded_columns
        index, forward = query.row * z.shape[1] + query.columns, self._denoiser.forward_window
        if len(rows) == len(kept):
            return NetworkCall(rows, forward(z[rows], alpha, planned, self._cache, columns), index)
        place = torch.searchsorted(kept, rows).clamp(max=len(kept) - 1)
        prediction = forward(z[rows], alpha, planned, self._cache[place], columns[place])
        foreign = (kept[place] != rows)[:, None, None]
        hidden = prediction.hidden.masked_fill(foreign, torch.nan)
        return NetworkCall(rows, replace(prediction, hidden=hidden), index)


def _checked(
    denoiser: Denoiser, problem: SamplingProblem, steps: Sequence[Step], period: int
) -> WindowedDenoiser:
    """The denoiser; ValueError if it has no cache, or if the steps would use outdated keys."""
    if not isinstance(denoiser, WindowedDenoiser):
        raise ValueError(
            f"cache needs a denoiser with a method forward_window, got {type(denoiser).__name__}: "
            "leave cache out, or use a network of this library"
        )
    if problem.mask_id is None or any(
        isinstance(step, MixturePosteriorStep | TablePosteriorStep) and step.kappa != 1
        for step in steps
    ):
        raise ValueError(
            f"cache is not possible for this sampler: got {period}, want None or 1, because with "
            "uniform noise, psi and ReMDM any token can change in any step; use a sampler of "
            "masked diffusion that only unmasks, such as 'reveal'"
        )
    if any(
        isinstance(step, PrefixStep)
        and not isinstance(step.count, Pace)
        and bool(step.starts.any())
        for step in steps
    ):
        raise ValueError(
            f"cache is not possible for this sampler: got {period}, want None or 1, because a "
            "block ends at a step that depends on the text; use count=grid, or leave blocks out"
        )
    return denoiser
