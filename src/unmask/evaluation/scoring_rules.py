"""How to score rows under a model: a bound for diffusion models, exact for autoregressive ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from unmask.data.packing import check_rows
from unmask.evaluation.judges import Scores
from unmask.evaluation.likelihood import (
    Convention,
    nelbo_batches,
    next_token_batches,
    summed,
    unit_of,
)
from unmask.models.model import CausalModel, Model
from unmask.rng import generator


@dataclass(frozen=True)
class BoundRule:
    """Scores rows under a diffusion model by a bound, or by the convention of MDLM's tables.

    convention  which of the two
    passes      noise levels for each row
    batch_size  rows in a network call
    seed        seed of the noise
    """

    model: Model
    convention: Convention = "bound"
    passes: int = 4
    batch_size: int = 64
    seed: int = 0

    def calls(self, n: int) -> int:
        """The number of network calls for n rows."""
        return -(-n // self.batch_size) * self.passes

    def batches(self, x0: Tensor) -> Iterator[Tensor]:
        """Nats [n] of each row of x0 [n, L], from each network call; their sum is its score.

        ValueError for ids outside the vocabulary, and for a MASK among them.
        """
        x0 = x0.to(self.model.device)
        return nelbo_batches(
            self.model.denoiser,
            self.model.process,
            x0,
            convention=self.convention,
            passes=self.passes,
            batch_size=self.batch_size,
            generator=generator(self.seed, device=x0.device),
        )

    def scores(self, x0: Tensor) -> Scores:
        """Nats and counted tokens of each row of x0 [n, L]."""
        return summed(self.batches(x0), self.tokens(x0.shape[1]))

    def tokens(self, length: int) -> int:
        """The number of tokens of a row that count: all of them."""
        return length

    @property
    def unit(self) -> str:
        """The name of the exponential of the mean score per token."""
        return unit_of(self.convention)

    @property
    def words(self) -> str:
        """The kind of the scores, in words."""
        bound = self.convention == "bound"
        kind = "upper bound" if bound else "convention of MDLM's tables, not a bound"
        precision = f"products in {self.model.precision}"
        return f"{kind}, {self.passes} noise levels a row, seed {self.seed}; {precision}"


@dataclass(frozen=True)
class ExactRule:
    """Scores rows under an autoregressive model exactly.

    start       token before each row; None: the first token of a row is its start token
    batch_size  rows in a network call
    """

    model: CausalModel
    start: int | None = None
    batch_size: int = 64

    def calls(self, n: int) -> int:
        """The number of network calls for n rows."""
        return -(-n // self.batch_size)

    def batches(self, x0: Tensor) -> Iterator[Tensor]:
        """Nats [n] of each row of x0 [n, L], from each network call; their sum is its score.

        ValueError for ids outside the vocabulary, and for a MASK among them.
        """
        x0 = x0.to(self.model.device)
        check_rows(x0, self.model.vocab_size, self.model.mask_id)
        return next_token_batches(
            self.model.predictor, x0, start=self.start, batch_size=self.batch_size
        )

    def scores(self, x0: Tensor) -> Scores:
        """Nats and counted tokens of each row of x0 [n, L]."""
        return summed(self.batches(x0), self.tokens(x0.shape[1]))

    def tokens(self, length: int) -> int:
        """The number of tokens of a row that count."""
        return length if self.start is not None else length - 1

    @property
    def unit(self) -> str:
        """The name of the exponential of the mean score per token."""
        return "perplexity"

    @property
    def words(self) -> str:
        """The kind of the scores, in words."""
        first = "after the first token of each row"
        place = first if self.start is None else "start token before each row"
        return f"exact, {place}; products in {self.model.precision}"


ScoringRule: TypeAlias = BoundRule | ExactRule
