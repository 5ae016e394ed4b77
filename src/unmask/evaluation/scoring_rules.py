"""How to score rows under a model: a bound for diffusion models, exact for autoregressive ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from unmask.data.packing import check_rows
from unmask.evaluation.judges import Scores
from unmask.evaluation.likelihood import (
    Convention,
    nelbo_batches,
    next_token_batches,
    summed,
)
from unmask.models.model import CausalModel, Model
from unmask.rng import generator


@dataclass(frozen=True)
class ScoringRule:
    """A rule that scores held-out rows under one model.

    Attributes:
        batches: x0 [n, L] -> nats [n] of each network call; their sum is the score of each row.
            ValueError for ids outside the vocabulary, and for a MASK among the ids
        batch_size: rows per network call
        passes: network calls per row
        unscored: tokens at the start of a row that have no score
        unit: name of the exponential of the mean score per token
        words: description of the scores for a protocol
    """

    batches: Callable[[Tensor], Iterator[Tensor]]
    batch_size: int
    passes: int
    unscored: int
    unit: str
    words: str

    def calls(self, n: int) -> int:
        """The number of network calls for n rows."""
        return -(-n // self.batch_size) * self.passes

    def scores(self, x0: Tensor) -> Scores:
        """Nats and number of scored tokens of each row of x0 [n, L]."""
        return summed(self.batches(x0), self.tokens(x0.shape[1]))

    def tokens(self, length: int) -> int:
        """The number of scored tokens of a row."""
        return length - self.unscored


def bound_rule(
    model: Model,
    convention: Convention = "bound",
    passes: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> ScoringRule:
    """The rule of a diffusion model.

    Args:
        model: the model.
        convention: an upper bound, or the convention of MDLM's tables.
        passes: noise levels per row.
        batch_size: rows per network call.
        seed: seed of the noise.
    """

    def batches(x0: Tensor) -> Iterator[Tensor]:
        x0 = x0.to(model.device)
        return nelbo_batches(
            model.denoiser,
            model.process,
            x0,
            convention=convention,
            passes=passes,
            batch_size=batch_size,
            generator=generator(seed, device=x0.device),
        )

    kind, unit = "upper bound", "perplexity bound"
    if convention != "bound":
        kind, unit = "convention of MDLM's tables, not a bound", "perplexity by convention mdlm"
    words = f"{kind}, {passes} noise levels a row, seed {seed}; products in {model.precision}"
    return ScoringRule(batches, batch_size, passes, 0, unit, words)


def exact_rule(model: CausalModel, start: int | None = None, batch_size: int = 64) -> ScoringRule:
    """The rule of an autoregressive model.

    Args:
        model: the model.
        start: token before each row. None: the first token of a row serves as start token.
        batch_size: rows per network call.
    """

    def batches(x0: Tensor) -> Iterator[Tensor]:
        x0 = x0.to(model.device)
        check_rows(x0, model.vocab_size, model.mask_id)
        return next_token_batches(model.predictor, x0, start=start, batch_size=batch_size)

    first, unscored = "start token before each row", 0
    if start is None:
        first, unscored = "after the first token of each row", 1
    words = f"exact, {first}; products in {model.precision}"
    return ScoringRule(batches, batch_size, 1, unscored, "perplexity", words)
