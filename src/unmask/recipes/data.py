"""The text of a recipe as rows of token ids: in memory, on disk, or on disk as they are read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from unmask.atomic_files import replacing, write_text
from unmask.data.cache import Log, cache_dir, fingerprint, make_once, no_log
from unmask.data.corpora import Corpus, Split, halves, load_corpus, load_stream, split
from unmask.data.long_texts import PIECE
from unmask.data.packing import Ids, Rows, StreamedRows, row_blocks, to_tensor
from unmask.data.prefetch import WINDOW_TOKENS, stream_rows
from unmask.data.rows_on_disk import FORMAT_VERSION, StoredRows, TokenLists, cached_rows
from unmask.data.streaming import DOCUMENTS_AT_ONCE, Stream
from unmask.data.tokenizers import (
    COMPARED_ROWS,
    Tokenizer,
    bpe_size,
    check_ids,
    tokenizer_named,
    train_bpe,
)
from unmask.recipes.build import starts_from
from unmask.recipes.schema import DataSettings, Part, Recipe

PARTS: Mapping[Part, slice] = MappingProxyType(
    {"all": slice(None), "first half": slice(0, None, 2), "second half": slice(1, None, 2)}
)
SPEAK_EVERY = 30  # seconds between two lines about a long tokenization


@dataclass(frozen=True)
class TrainingData:
    """The rows of a recipe, [n, L] to train on and [m, L] to measure on, what encoded them, and the held-out digest.

    text_digest  of the training documents: `Corpus.digest` of those in memory; of those on disk, and of a stream, the
                 identity, which changes when their files or their commit do
    identity     of text that is streamed, a name that changes when it does
    wrap         whether rows have BOS and EOS at their ends
    """

    train: Rows | StreamedRows
    held_out: Rows
    tokenizer: Tokenizer
    digest: str
    text_digest: str
    identity: str | None = None
    wrap: bool = False

    @property
    def tokenizer_digest(self) -> str:
        """Changes when the tokenizer gives the same text other ids, though its vocabulary may be the same."""
        return self.tokenizer.behaviour

    @property
    def train_rows(self) -> int | None:
        """How many rows there are to train on; None where that is not known because they are streamed."""
        return None if isinstance(self.train, StreamedRows) else len(self.train)

    def close(self) -> None:
        """End what is read ahead."""
        if isinstance(self.train, StreamedRows):
            self.train.close()


def documents(data: DataSettings, say: Log = no_log) -> Split:
    """The documents that a recipe trains on and holds out."""
    return (
        load_stream(data.corpus, PARTS[data.part], say)
        if data.streaming
        else split(corpus_of(data))
    )


def corpus_of(data: DataSettings) -> Corpus:
    """The documents that `data` names, in memory or on disk, those to train on and those to hold out."""
    corpus = load_corpus(data.corpus)
    return corpus if data.part == "all" else halves(corpus)[PARTS[data.part].start]


def texts(recipe: Recipe, say: Log = no_log) -> TrainingData:
    """Load, tokenize and pack what the recipe names; `say` hears of what takes long."""
    parts = documents(recipe.data, say)
    start = starts_from(recipe)
    named = (
        replace(recipe.data, tokenizer=start)
        if start and recipe.data.tokenizer.startswith("bpe:")
        else recipe.data
    )
    tokenizer = tokenizer_of(named, parts.train, say)
    form = tokenizer, recipe.network.length, recipe.data.wrap
    held_out = rows(parts.held_out, *form, say)
    if isinstance(parts.train, Stream):
        are_rows = isinstance(parts.held_out.documents, TokenLists) and _are_rows(
            parts.held_out.documents
        )
        digest, identity = digest_of(parts.held_out), parts.train.identity
        ahead = streamed(parts.train, are_rows, *form, say)
        return TrainingData(
            ahead, held_out, tokenizer, digest, identity, identity, recipe.data.wrap
        )
    text_digest = parts.train.identity or parts.train.digest
    train = rows(parts.train, *form, say)
    return TrainingData(
        train, held_out, tokenizer, digest_of(parts.held_out), text_digest, wrap=recipe.data.wrap
    )


def rows(
    corpus: Corpus, tokenizer: Tokenizer, length: int, wrap: bool = False, say: Log = no_log
) -> Rows:
    """The documents of a corpus as token rows [n, L].

    Documents in memory give a tensor. Those on disk give rows on disk, in `cache()`: tokenized a few at a time, once
    for a text, tokenizer and length. Lists of ids that all have L tokens are rows already and stay where they are.
    """
    lists = corpus.documents
    if isinstance(lists, TokenLists):
        check_ids(corpus.name, lists.beside_text(COMPARED_ROWS), tokenizer)
    if isinstance(lists, TokenLists) and _are_rows(lists):
        return _as_they_are(corpus.name, lists, tokenizer, length, wrap)

    def blocks() -> Iterator[NDArray[np.int64]]:
        lists = encoded(corpus, tokenizer, say)
        return row_blocks(
            lists,
            length,
            tokenizer.eos_id,
            wrap,
            tokenizer.bos_id,
            name=f"the text {corpus.name!r}",
        )

    if corpus.identity is None:
        return to_tensor(blocks())
    name = _name(corpus.identity, tokenizer, length, wrap)
    return cached_rows(
        cache_dir() / "rows" / f"{name}.arrow", blocks, length, tokenizer.vocab_size, say
    )


def streamed(
    stream: Stream,
    are_rows: bool,
    tokenizer: Tokenizer,
    length: int,
    wrap: bool = False,
    say: Log = no_log,
) -> StreamedRows:
    """The same rows of documents that are read as they are asked for, in windows that are kept in `cache()`.

    are_rows  they are lists of L ids, rows as they are
    """

    def encode(some: Sequence[str] | TokenLists) -> Sequence[Ids]:
        if not isinstance(some, TokenLists):
            return coded(some, tokenizer)
        if are_rows and any(len(ids) != length for ids in some):
            raise ValueError(
                f"the first lists of ids of {stream.name!r} are rows of {length} tokens, others have other lengths: "
                "give lists of one length, or lists whose first ones differ, which are packed"
            )
        return some

    check_ids(stream.name, stream.beside_text(COMPARED_ROWS), tokenizer)
    folder = (
        cache_dir()
        / "windows"
        / fingerprint(_name(stream.identity, tokenizer, length, wrap), WINDOW_TOKENS, are_rows)
    )
    ends = (None, False, None) if are_rows else (tokenizer.eos_id, wrap, tokenizer.bos_id)
    return stream_rows(stream, encode, folder, tokenizer.vocab_size, length, *ends, say)


def _name(identity: str, tokenizer: Tokenizer, length: int, wrap: bool) -> str:
    """Of the rows that are made of a text."""
    return fingerprint(FORMAT_VERSION, identity, tokenizer.behaviour, length, wrap)


def encoded(corpus: Corpus, tokenizer: Tokenizer, say: Log = no_log) -> Iterator[Ids]:
    """The token ids of each document, `DOCUMENTS_AT_ONCE` documents at a time; lists of ids as they are."""
    total, told = len(corpus.documents), time.monotonic()
    if isinstance(corpus.documents, TokenLists):
        yield from corpus.documents
        return
    left, done = iter(corpus.documents), 0
    while some := list(islice(left, DOCUMENTS_AT_ONCE)):
        yield from coded(some, tokenizer)
        done += len(some)
        if time.monotonic() - told > SPEAK_EVERY:
            told = time.monotonic()
            say(f"tokenizing {corpus.name}: {done:,} of {total:,} documents")


def coded(documents: Sequence[str], tokenizer: Tokenizer) -> Sequence[Ids]:
    """The token ids of documents, 8 bytes each where a document is long."""
    if max(map(len, documents), default=0) <= PIECE:
        return tokenizer.encode_batch(documents)
    found = (
        [np.asarray(ids, dtype=np.int64) for ids in tokenizer.pieces(document)]
        for document in documents
    )
    return [np.concatenate(pieces) for pieces in found]


def digest_of(corpus: Corpus) -> str:
    """The digest of a corpus; that of documents on disk is kept in `cache()`, so that they are read for it once."""
    if corpus.identity is None:
        return corpus.digest
    file = cache_dir() / "digests" / fingerprint(FORMAT_VERSION, corpus.identity)
    return make_once(file, lambda: write_text(file, corpus.digest)).read_text("utf-8")


def tokenizer_of(data: DataSettings, train: Corpus | Stream, say: Log = no_log) -> Tokenizer:
    """The tokenizer that `data` names: "bpe:V" is trained on the text (of one that is streamed, on its beginning), else
    a directory or a hub id.

    One that is trained on documents on disk is kept in `cache()`, so that they are read for it once.
    """
    if not data.tokenizer.startswith("bpe:"):
        return tokenizer_named(data.tokenizer)
    size = bpe_size(data.tokenizer)
    if train.identity is None:
        return train_bpe(train.texts, size)
    folder = cache_dir() / "tokenizers" / fingerprint(FORMAT_VERSION, train.identity, size)

    def make() -> None:
        say(f"training a tokenizer of {size} tokens on {train.name}")
        with replacing(folder) as new:
            train_bpe(train.texts, size).save(new)

    return Tokenizer.load(make_once(folder, make, say))


def _are_rows(lists: TokenLists) -> bool:
    """Lists of one length are rows, and not packed."""
    return lists.length is not None and len(lists) > 1


def _as_they_are(
    name: str, lists: TokenLists, tokenizer: Tokenizer, length: int, wrap: bool
) -> StoredRows:
    """Lists of ids as rows, if they have the length, and with `wrap` the ends, that are asked for."""
    if lists.length != length:
        raise ValueError(
            f"rows of {name!r} have {lists.length} tokens each and network.length is {length}: give --network.length "
            f"{lists.length} (of a measurement: --text.length), or documents of different lengths, which are packed"
        )
    found = lists.rows()
    if wrap:
        bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ends = found[:DOCUMENTS_AT_ONCE][:, [0, -1]].unique(dim=0).tolist()
        if ends != [[bos, tokenizer.eos_id]]:
            raise ValueError(
                f"data.wrap says that a row begins with BOS (id {bos}) and ends with EOS (id {tokenizer.eos_id}); the "
                f"first rows of {name!r} begin and end with {ends[:3]}: give --data.no-wrap (of a measurement: "
                "--text.wrap False), or the tokenizer that made them"
            )
    return found
