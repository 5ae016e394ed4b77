"""Text to measure a model on, and rows read under the model, both as in the training that its card names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from unmask.data.corpora import corpus_exists, evaluation_part, same_corpus
from unmask.data.packing import Rows, check_rows, evenly_spaced
from unmask.data.tokenizers import Tokenizer, start_token
from unmask.evaluation.judges import Scores
from unmask.evaluation.likelihood import (
    Convention,
    nelbo_batches,
    next_token_batches,
    summed,
    unit_of,
)
from unmask.models.model import CausalModel, Model
from unmask.recipes.build import HELD_OUT, text_of
from unmask.recipes.data import corpus_of, digest_of, documents, rows
from unmask.recipes.schema import DataSettings, Part
from unmask.rng import generator

Limit: TypeAlias = int | Literal["all"]


@dataclass(frozen=True)
class Text:
    """Text to measure on; by default the held-out text of the training of the model (of two models: the teacher).

    corpus     a corpus by name, a file or a folder (the text of the model's card)
    part       the half of the documents (that of the card; of another text: all)
    held_out   only the documents that a training on the text holds out (yes for the text of the card). Another text is
               measured whole, or its published held-out split where it has one
    length     tokens of a row (the model's)
    wrap       rows with BOS and EOS at their ends, else plain crops (what the card says; without a card: plain crops)
    streaming  of a data set that is given, the documents that a training with data.streaming holds out
    """

    corpus: str | None = None
    part: Part | None = None
    held_out: bool | None = None
    length: int | None = None
    wrap: bool | None = None
    streaming: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Rows [N, L] to measure a model on, and how they were made.

    data     corpus, part and wrap
    whole    whether they are the whole text; else its held-out part
    digest   of the documents
    changed  whether a training held out other documents of this text, by the digest in its card
    """

    rows: Rows
    data: DataSettings
    whole: bool
    digest: str
    changed: bool = False

    def some(self, limit: Limit) -> Tensor:
        """At most `limit` of the rows, spread evenly over all of them: int64 [n, L]."""
        return self.rows[:] if limit == "all" else self.rows[evenly_spaced(len(self.rows), limit)]

    @property
    def source(self) -> str:
        """The text that the rows are made of."""
        of = (
            self.data.corpus
            if self.data.part == "all"
            else f"{self.data.part} of {self.data.corpus}"
        )
        return (
            of
            if self.whole
            else f"held-out part of {of}" + (", changed since the training" if self.changed else "")
        )

    def words(self, n: int) -> str:
        """The number of these rows, n of N, their choice, their ends and their source."""
        chosen = ", spread evenly" if n < len(self.rows) else ""
        size = f"{n} of {len(self.rows)} rows of {self.rows.shape[1]} tokens"
        return f"{size}{chosen}; {ends(self.data.wrap)}; {self.source}"


@dataclass(frozen=True)
class ScoringRule:
    """How rows are read under a model.

    start  the token before each row of an autoregressive model; None: the first token of a row is its start token
    """

    model: Model | CausalModel
    start: int | None = None
    convention: Convention = "bound"
    passes: int = 4
    batch_size: int = 64
    seed: int = 0

    def calls(self, n: int) -> int:
        """The network calls that n rows take."""
        return -(-n // self.batch_size) * (
            1 if isinstance(self.model, CausalModel) else self.passes
        )

    def batches(self, x0: Tensor) -> Iterator[Tensor]:
        """The nats [n] that each row of x0 [n, L] gets from each network call; their sum is its score.

        ValueError for ids outside the vocabulary, and for a MASK among them.
        """
        x0 = x0.to(self.model.device)
        if isinstance(self.model, CausalModel):
            check_rows(x0, self.model.vocab_size, self.model.mask_id)
            return next_token_batches(
                self.model.predictor, x0, start=self.start, batch_size=self.batch_size
            )
        noise = generator(self.seed, device=x0.device)
        return nelbo_batches(
            self.model.denoiser, self.model.process, x0, convention=self.convention, passes=self.passes,
            batch_size=self.batch_size, generator=noise,
        )  # fmt: skip

    def scores(self, x0: Tensor) -> Scores:
        """The nats and the counted tokens of each row of x0 [n, L]: a bound for diffusion, else exact."""
        return summed(self.batches(x0), self.tokens(x0.shape[1]))

    def tokens(self, length: int) -> int:
        """The tokens of a row that count."""
        return length - (isinstance(self.model, CausalModel) and self.start is None)

    @property
    def unit(self) -> str:
        """The name of the exponential of the mean score a token."""
        return "perplexity" if isinstance(self.model, CausalModel) else unit_of(self.convention)

    @property
    def words(self) -> str:
        """The kind of the scores, in words."""
        if isinstance(self.model, CausalModel):
            after = (
                "after the first token of each row"
                if self.start is None
                else "start token before each row"
            )
            return f"exact, {after}; products in {self.model.precision}"
        kind = (
            "upper bound"
            if self.convention == "bound"
            else "convention of MDLM's tables, not a bound"
        )
        how = f"{self.passes} noise levels a row, seed {self.seed}"
        return f"{kind}, {how}; products in {self.model.precision}"


def held_out(text: Text, name: str, model: Model | CausalModel) -> HeldOut:
    """The rows of `text` in the tokens of a model, by its card, and how they were made; errors call it `name`.

    ValueError for a text that is not there, is too short for a row, or has a MASK among its ids.
    """
    data, own = _data(text, name, model)
    if data.streaming and text.held_out is False:
        raise ValueError(
            "text.held_out has no effect: got False, and of a streamed text only the held-out part is read; omit it"
        )
    whole = not own if text.held_out is None else not text.held_out
    if not whole or data.streaming:
        corpus, whole = documents(data).held_out, False
    else:
        all_of_it = corpus_of(data)
        corpus = evaluation_part(all_of_it)
        whole = corpus is all_of_it
    length = model.length if text.length is None else text.length
    found = rows(corpus, spoken(model), length, data.wrap)
    check_rows(found, model.vocab_size, model.mask_id)
    digest, card = digest_of(corpus), _text_of(model, name)
    same = (
        own
        and not whole
        and card is not None
        and (data.part, data.streaming) == (card.part, card.streaming)
    )
    return HeldOut(
        found, data, whole, digest, changed=same and model.card.get(HELD_OUT, digest) != digest
    )


def reading(model: Model | CausalModel, wrap: bool) -> ScoringRule:
    """How rows, with `wrap` or without, are read under a model.

    A start token stands before each row of an autoregressive model, as in our training and in the harness. Only a model
    without a card reads rows with BOS without it: the released baselines of MDLM were trained so.
    """
    if isinstance(model, CausalModel) and not (wrap and _text_of(model) is None):
        return ScoringRule(model, start_token(model.tokenizer, model.vocab_size, model.mask_id))
    return ScoringRule(model)


def wraps(model: Model | CausalModel, chosen: bool | None, otherwise: bool) -> bool:
    """Whether rows have BOS and EOS at their ends: as chosen, else as the card of a model says, else `otherwise`."""
    card = _text_of(model)
    return chosen if chosen is not None else otherwise if card is None else card.wrap


def ends(wrap: bool) -> str:
    """The ends of rows, in words."""
    return "rows with BOS and EOS at their ends" if wrap else "rows are plain crops"


def spoken(model: Model | CausalModel) -> Tokenizer:
    """The tokenizer of a model; ValueError where it has none."""
    if model.tokenizer is None:
        raise ValueError(
            "text is measured in tokens, and this model's directory has no tokenizer: save it with one, or "
            "`unmask convert MODEL OUT --tokenizer gpt2`"
        )
    return model.tokenizer


def _text_of(model: Model | CausalModel, name: str = "the model") -> DataSettings | None:
    return text_of(model.card, name)


def _data(text: Text, name: str, model: Model | CausalModel) -> tuple[DataSettings, bool]:
    """The text to measure on, and whether it is that of the card."""
    card, wrap = _text_of(model, name), wraps(model, text.wrap, False)
    if text.corpus is not None:
        if card is not None and same_corpus(text.corpus, card.corpus):
            streaming = text.streaming or card.streaming
            return DataSettings(
                text.corpus, text.part or card.part, wrap=wrap, streaming=streaming
            ), True
        return DataSettings(
            text.corpus, text.part or "all", wrap=wrap, streaming=text.streaming
        ), False
    if text.streaming:
        raise ValueError(
            "text.streaming says how --text.corpus is read: give it too, or leave both to the model's card"
        )
    if card is None:
        raise ValueError(
            f"{name} does not say which text it was trained on: give --text.corpus (and --text.part)"
        )
    if not corpus_exists(card.corpus):
        raise ValueError(
            f"text.corpus is needed: the card of {name} names the text {card.corpus!r}, and there is no such file or "
            f"folder in {Path.cwd()}; give its path by --text.corpus, with --text.held-out True if it is that text"
        )
    return replace(card, part=text.part or card.part, wrap=wrap), True
