"""Held-out rows to measure a model on, and their scores under the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from unmask.data.corpora import evaluation_part, is_corpus_name, same_corpus
from unmask.data.packing import Rows, check_rows, evenly_spaced
from unmask.data.tokenizers import Tokenizer, start_token
from unmask.evaluation.likelihood import Convention
from unmask.evaluation.scoring_rules import ScoringRule, bound_rule, exact_rule
from unmask.models.model import CausalModel, LanguageModel, Model
from unmask.recipes.data import corpus_of, digest_of, documents, rows
from unmask.recipes.schema import HELD_OUT, DataSettings, Part, text_of

Limit: TypeAlias = int | Literal["all"]


@dataclass(frozen=True)
class Text:
    """Text to measure on; by default the held-out text of the model's training (or its teacher's).

    Attributes:
        corpus: corpus name, file or folder; None: the text of the model's card
        part: half of the documents; None: that of the card, or all documents of another text
        held_out: use only the documents that a training on the text holds out. None: True for the
            text of the card; for another text its published held-out split, if any, else all of it
        length: tokens in a row; None: the model's length
        wrap: True: rows with BOS and EOS at their ends. False: plain crops of L tokens. None: as in
            the card, or False if there is no card
        streaming: for a given data set, use the documents that a training with data.streaming
            holds out
    """

    corpus: str | None = None
    part: Part | None = None
    held_out: bool | None = None
    length: int | None = None
    wrap: bool | None = None
    streaming: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure a model on, and their origin.

    Attributes:
        rows: token ids [N, L].
        data: corpus, part and wrap.
        whole: True: the rows are the whole text; False: its held-out part.
        digest: digest of the documents.
        changed: True: the model's training held out other documents of this text, by the digest in
            its card.
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
        """A description of the text that the rows are made of."""
        part, corpus = self.data.part, self.data.corpus
        text = corpus if part == "all" else f"{part} of {corpus}"
        if self.whole:
            return text
        return f"held-out part of {text}{', changed since the training' if self.changed else ''}"

    def words(self, n: int) -> str:
        """A description of n of the N rows: number, choice, ends and source."""
        chosen = ", spread evenly" if n < len(self.rows) else ""
        size = f"{n} of {len(self.rows)} rows of {self.rows.shape[1]} tokens"
        return f"{size}{chosen}; {ends(self.data.wrap)}; {self.source}"


def held_out(text: Text, name: str, model: LanguageModel) -> HeldOut:
    """The rows of a text in the tokens of a model.

    Args:
        text: the text; by default the one that the model's card names.
        name: the model's name, for errors.
        model: its tokenizer encodes the text.

    Raises:
        ValueError: the text does not exist, does not fill one row, or its ids include MASK.
    """
    data, from_card = _data(text, name, model)
    if data.streaming and text.held_out is False:
        raise ValueError(
            "text.held_out has no effect: got False, but only the held-out part of a streamed "
            "text is read; omit it"
        )
    whole = not from_card if text.held_out is None else not text.held_out
    if not whole or data.streaming:
        corpus, whole = documents(data).held_out, False
    else:
        all_documents = corpus_of(data)
        corpus = evaluation_part(all_documents)
        whole = corpus is all_documents
    length = model.length if text.length is None else text.length
    token_rows = rows(corpus, require_tokenizer(model), length, data.wrap)
    check_rows(token_rows, model.vocab_size, model.mask_id)
    digest, card = digest_of(corpus), _text_of(model, name)
    comparable = (
        from_card
        and not whole
        and card is not None
        and (data.part, data.streaming) == (card.part, card.streaming)
    )
    changed = comparable and model.card.get(HELD_OUT, digest) != digest
    return HeldOut(token_rows, data, whole, digest, changed)


def scoring_rule(
    model: Model | CausalModel,
    wrap: bool,
    *,
    convention: Convention = "bound",
    passes: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> ScoringRule:
    """The rule that scores rows under a model.

    An autoregressive model reads a start token before each row, as in training and in the harness.
    It reads none if rows begin with BOS and the model has no card: the released baselines of MDLM
    were trained so.

    Args:
        model: the model.
        wrap: whether rows have BOS and EOS at their ends.
        convention: for a diffusion model: the bound, or the convention of MDLM's tables.
        passes: noise levels for each row of a diffusion model.
        batch_size: rows in a network call.
        seed: seed of the noise of a diffusion model.
    """
    if isinstance(model, Model):
        return bound_rule(model, convention, passes, batch_size, seed)
    if wrap and _text_of(model) is None:
        return exact_rule(model, batch_size=batch_size)
    start = start_token(model.tokenizer, model.vocab_size, model.mask_id)
    return exact_rule(model, start, batch_size)


def wraps(model: LanguageModel, chosen: bool | None, otherwise: bool) -> bool:
    """Whether the rows of a measurement have BOS and EOS at their ends.

    Args:
        model: the model. Its card decides if `chosen` is None.
        chosen: the user's choice.
        otherwise: the value if there is neither a choice nor a card.
    """
    card = _text_of(model)
    return chosen if chosen is not None else otherwise if card is None else card.wrap


def ends(wrap: bool) -> str:
    """A description of the ends of rows."""
    return "rows with BOS and EOS at their ends" if wrap else "rows are plain crops"


def require_tokenizer(model: LanguageModel) -> Tokenizer:
    """The tokenizer of a model; ValueError if it has none."""
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer, which a measurement on text needs: save the model with "
            "one, or run `unmask convert MODEL OUT --tokenizer gpt2`"
        )
    return model.tokenizer


def _text_of(model: LanguageModel, name: str = "the model") -> DataSettings | None:
    return text_of(model.card, name)


def _data(text: Text, name: str, model: LanguageModel) -> tuple[DataSettings, bool]:
    """The text to measure on, and whether it is the text of the model's card."""
    card, wrap = _text_of(model, name), wraps(model, text.wrap, False)
    if text.corpus is not None:
        if card is not None and same_corpus(text.corpus, card.corpus):
            part, streaming = text.part or card.part, text.streaming or card.streaming
            return DataSettings(text.corpus, part, wrap=wrap, streaming=streaming), True
        part = text.part or "all"
        return DataSettings(text.corpus, part, wrap=wrap, streaming=text.streaming), False
    if text.streaming:
        raise ValueError(
            "text.streaming has no effect without --text.corpus: give both, or omit both to use "
            "the text of the model's card"
        )
    if card is None:
        raise ValueError(
            f"text.corpus is missing, and {name} does not name its training text: give "
            "--text.corpus (and --text.part)"
        )
    if not (is_corpus_name(card.corpus) or Path(card.corpus).exists()):
        raise ValueError(
            f"text.corpus is missing: the card of {name} names the text {card.corpus!r}, but there "
            f"is no such file or folder in {Path.cwd()}. Give its path by --text.corpus, with "
            "--text.held-out True if it is that text"
        )
    return replace(card, part=text.part or card.part, wrap=wrap), True
