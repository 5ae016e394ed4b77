"""The network calls of a run: each a whole pass, or, with a cache, most of them over a window of the text.

With `cache` = r the moves come in periods of r. The first of a period makes a whole pass, which keeps the keys and
values of all positions. The others compute a window: of each sample the smallest span that holds all positions that are
read in the period. Elsewhere they attend to what is kept, where no token changes before the next whole pass. But what
is kept was made when the window held other tokens, and a bidirectional network would now make something else: this is
an approximation (as Fast-dLLM, arXiv 2505.22618; dKV-Cache, arXiv 2505.15781), exact only for networks that were
trained to it (block diffusion, arXiv 2503.09573). A read outside the window is not a number, and stops the run.

One period for the whole run, r >= its moves, keeps the prompt; blocks from left to right (`blockwise`) with a period a
block keep all other blocks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.models.kv_cache import Cache
from unmask.prediction import Prediction
from unmask.samplers.steps import MixturePosteriorStep, RevealStep, Step, TablePosteriorStep, Task
from unmask.samplers.unmasking_schedule import Reads
from unmask.types import Denoiser, PerSequence, Tokens


@runtime_checkable
class PartialDenoiser(Protocol):
    """A `Denoiser` that computes no more than it must.

    Of z [B, L] the places `asked` [B, W]; with a new `cache`, it keeps keys and values of z; with one that holds them
    and a `window` [B, W], it computes the window beside what is kept. The prediction has the shape of z all the same,
    and is not a number at other places.
    """

    def part(
        self,
        z: Tokens,
        alpha: PerSequence,
        asked: Tensor | None,
        cache: Cache | None,
        window: Tensor | None,
        /,
    ) -> Prediction: ...


class Calls(Protocol):
    """What move k asks of the network at text z [n, L], and the answer for its samples, told alpha [b].

    The answer is a prediction and, of what is read, the flat rows [N] in it.
    """

    def reads(self, k: int, z: Tokens) -> Reads: ...

    def predict(
        self, k: int, z: Tokens, alpha: PerSequence, reads: Reads
    ) -> tuple[Prediction, Tensor]: ...


def calls_of(denoiser: Denoiser, task: Task, steps: Sequence[Step], cache: int | None) -> Calls:
    """Whole passes where cache is None or 1, else `Cached`; ValueError where a cache cannot be had, or not be right."""
    if cache is None or cache == 1:
        return Whole(denoiser, steps, task.alike)
    if not isinstance(denoiser, PartialDenoiser):
        raise ValueError(
            f"cache asks the model to keep keys and values, and {type(denoiser).__name__} has no method `part` for "
            "it: leave cache out, or give a network of this library"
        )
    if task.mask_id is None or any(
        isinstance(step, MixturePosteriorStep | TablePosteriorStep) and step.kappa != 1
        for step in steps
    ):
        raise ValueError(
            "cache keeps what a network made of tokens that stay, and with uniform noise, psi and ReMDM any token can "
            f"change in any move: want cache = None or 1, got {cache}; leave it out, or use a sampler of masked "
            "diffusion that only reveals, such as 'reveal'"
        )
    return Cached(denoiser, task, steps, cache)


@dataclass(frozen=True)
class Whole:
    """Every call is a whole pass: exact.

    But for what nobody reads: where all samples are still alike, and are told the same, one stands for all; and where
    the places that are read were known beforehand, the last block computes no others.
    """

    denoiser: Denoiser
    steps: Sequence[Step]
    alike: bool

    def reads(self, k: int, z: Tokens) -> Reads:
        return self.steps[k].reads(z)

    def predict(
        self, k: int, z: Tokens, alpha: PerSequence, reads: Reads
    ) -> tuple[Prediction, Tensor]:
        if k == 0 and self.alike and (reads.alpha is None or bool((alpha == alpha[0]).all())):
            return self.denoiser(z[:1], alpha[:1]), reads.where % z.shape[1]
        if reads.places is not None and isinstance(self.denoiser, PartialDenoiser):
            return self.denoiser.part(z[reads.rows], alpha, reads.places, None, None), reads.where
        return self.denoiser(z[reads.rows], alpha), reads.where


@dataclass(frozen=True)
class CachedWindow:
    """The samples of a period, `rows` [b] in rising order, what its moves compute of each: `first` to `last` [b, 1].

    width  of the widest
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    width: int

    @property
    def places(self) -> Tensor:
        """[b, W]; shorter ones repeat their last place: a sample's window is its own in any batch."""
        return (self.first + torch.arange(self.width, device=self.first.device)).minimum(self.last)


def window(steps: Sequence[Step], z: Tokens) -> CachedWindow:
    """The smallest spans that hold all that the steps would read at z; they may read less when their turn comes."""
    n, length = z.shape
    read = torch.zeros(n * length, dtype=torch.bool, device=z.device)
    for step in {
        id(step): step for step in steps
    }.values():  # some samplers take one step again and again
        read[step.reads(z).at(length)] = True
    read = read.view(n, length)
    rows = read.any(dim=1).nonzero().squeeze(-1)
    place, some = torch.arange(length, device=z.device), read[rows]
    first = place.where(some, length).amin(dim=1, keepdim=True)
    last = place.where(some, -1).amax(dim=1, keepdim=True)
    width = int((last - first).max()) + 1 if len(rows) else 0
    return CachedWindow(rows, first, last, width)


@dataclass
class Cached:
    """The first of every `period` moves a whole pass, of all samples read in the period; the others windows."""

    denoiser: PartialDenoiser
    task: Task
    steps: Sequence[Step]
    period: int
    planned: list[CachedWindow | None] = field(init=False)
    window: CachedWindow = field(init=False)
    cache: Cache = field(init=False)

    def __post_init__(self) -> None:
        # What does not follow from the text is laid out before the first call: later an accelerator would wait for it.
        starts = range(0, len(self.steps), self.period)
        parts = [self.steps[start : start + self.period] for start in starts]
        blind = [all(isinstance(step, RevealStep) for step in part) for part in parts]
        self.planned = [
            window(part, self.task.pins) if each else None
            for part, each in zip(parts, blind, strict=True)
        ]

    def reads(self, k: int, z: Tokens) -> Reads:
        reads, length = self.steps[k].reads(z), z.shape[1]
        if k % self.period:
            return reads
        known = self.planned[k // self.period]
        self.window = window(self.steps[k : k + self.period], z) if known is None else known
        self.cache = Cache()
        at, rows, alpha = reads.at(length), self.window.rows, reads.alpha
        if alpha is not None:  # samples that are read later in the period have their own
            alpha = self.task.level(z).index_copy(0, reads.rows, alpha)[rows]
        return Reads(rows, torch.searchsorted(rows, at // length) * length + at % length, alpha)

    def predict(
        self, k: int, z: Tokens, alpha: PerSequence, reads: Reads
    ) -> tuple[Prediction, Tensor]:
        rows, text = reads.rows, z[reads.rows]
        if not self.cache.pairs:
            return self.denoiser.part(text, alpha, None, self.cache, None), reads.where
        if (
            rows.device.type == "cpu" and not torch.isin(rows, self.window.rows).all()
        ):  # elsewhere it would wait
            raise ValueError(
                "cache keeps the samples that a step would read when its period begins, and this sampler later read "
                f"others, {rows.tolist()} of {self.window.rows.tolist()}: leave cache out, or let its reads only shrink"
            )
        cache, places = self.cache, self.window.places
        if len(rows) == len(self.window.rows):
            return self.denoiser.part(text, alpha, reads.places, cache, places), reads.where
        some = torch.searchsorted(self.window.rows, rows).clamp(max=len(self.window.rows) - 1)
        found = self.denoiser.part(text, alpha, reads.places, cache[some], places[some])
        strange = (self.window.rows[some] != rows)[:, None, None]  # of another sample: not a number
        return replace(found, hidden=found.hidden.masked_fill(strange, torch.nan)), reads.where
