"""The text of a recipe as rows of token ids: in memory, on disk, or streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from unmask.models.model import LanguageModel
from unmask.recipes.schema import DataSettings, Part, Recipe

PARTS: Mapping[Part, slice] = MappingProxyType(
    {"all": slice(None), "first half": slice(0, None, 2), "second half": slice(1, None, 2)}
)
REPORT_EVERY = 30  # seconds between two lines about a long tokenization


@dataclass(frozen=True)
class TrainingData:
    """The rows of a training, their tokenizer, and digests of the text.

    Attributes:
        train: rows to train on, [n, L].
        held_out: rows to measure on, [m, L].
        tokenizer: the tokenizer of both.
        digest: digest of the held-out documents.
        text_digest: digest of the training documents, `Corpus.digest`, if they are in memory; else
            an identity that changes with their files or their commit.
        wrap: whether rows have BOS and EOS at their ends.
    """

    train: Rows | StreamedRows
    held_out: Rows
    tokenizer: Tokenizer
    digest: str
    text_digest: str
    wrap: bool = False

    @property
    def train_rows(self) -> int | None:
        """The number of rows to train on; None if they are streamed."""
        return None if isinstance(self.train, StreamedRows) else len(self.train)

    def close(self) -> None:
        """Stop the prefetching of streamed rows."""
        if isinstance(self.train, StreamedRows):
            self.train.close()


def documents(data: DataSettings, say: Log = no_log) -> Split:
    """Load the training documents and the held-out documents of a recipe."""
    if data.streaming:
        return load_stream(data.corpus, PARTS[data.part], say)
    return split(corpus_of(data))


def corpus_of(data: DataSettings) -> Corpus:
    """Load all documents of a recipe, for training and held out, in memory or on disk."""
    corpus = load_corpus(data.corpus)
    return corpus if data.part == "all" else halves(corpus)[PARTS[data.part].start]


def training_data(
    recipe: Recipe, say: Log = no_log, start: LanguageModel | None = None
) -> TrainingData:
    """Load, tokenize and pack the text of a recipe.

    Args:
        recipe: the run.
        say: receives a line about each slow operation.
        start: the model that the recipe starts from, if it is loaded already. Its tokenizer
            replaces "bpe:V".
    """
    data, length = recipe.data, recipe.network.length
    parts = documents(data, say)
    own = recipe.traits.start if data.tokenizer.startswith("bpe:") else ""
    if own:
        loaded = None if start is None else start.tokenizer
        tokenizer = tokenizer_named(own) if loaded is None else loaded
    else:
        tokenizer = tokenizer_of(data, parts.train, say)
    held_out = rows(parts.held_out, tokenizer, length, data.wrap, say)
    if isinstance(parts.train, Stream):
        lists = parts.held_out.documents
        are_rows = isinstance(lists, TokenLists) and _are_rows(lists)
        text_digest = parts.train.identity
        train: Rows | StreamedRows = streamed(
            parts.train, are_rows, tokenizer, length, data.wrap, say
        )
    else:
        text_digest = parts.train.identity or parts.train.digest
        train = rows(parts.train, tokenizer, length, data.wrap, say)
    digest = digest_of(parts.held_out)
    return TrainingData(train, held_out, tokenizer, digest, text_digest, data.wrap)


def rows(
    corpus: Corpus, tokenizer: Tokenizer, length: int, wrap: bool = False, say: Log = no_log
) -> Rows:
    """Make the rows [n, L] of a corpus.

    The rows of documents in memory are a tensor. The rows of documents on disk are a file in
    `cache_dir()`, written once for each text, tokenizer and length. Lists of ids that all have L
    tokens are rows already and are not copied.

    Args:
        corpus: the documents.
        tokenizer: encodes them.
        length: L, tokens in a row.
        wrap: begin each row with BOS and end it with EOS.
        say: receives a line about each slow operation.
    """
    lists = corpus.documents
    if isinstance(lists, TokenLists):
        check_ids(corpus.name, lists.beside_text(COMPARED_ROWS), tokenizer)
        if _are_rows(lists):
            return _unpacked(corpus.name, lists, tokenizer, length, wrap)

    def blocks() -> Iterator[NDArray[np.int64]]:
        ids, name = iter_encoded(corpus, tokenizer, say), f"the text {corpus.name!r}"
        return row_blocks(ids, length, tokenizer.eos_id, wrap, tokenizer.bos_id, name=name)

    if corpus.identity is None:
        return to_tensor(blocks())
    name = _key(corpus.identity, tokenizer, length, wrap)
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
    """Make the rows of a stream during training, in windows that are files in `cache_dir()`.

    Args:
        stream: the documents.
        are_rows: whether the documents are lists of L ids, which are rows already.
        tokenizer: encodes them.
        length: L, tokens in a row.
        wrap: begin each row with BOS and end it with EOS.
        say: receives a line about each slow operation.
    """

    def encode(some: Sequence[str] | TokenLists) -> Sequence[Ids]:
        if not isinstance(some, TokenLists):
            return encode_documents(some, tokenizer)
        if are_rows and any(len(ids) != length for ids in some):
            raise ValueError(
                f"{stream.name!r} has lists of ids of several lengths: the first lists have "
                f"{length} tokens, later ones do not; give lists of one length. (If the first "
                "lengths differ, all lists are packed.)"
            )
        return some

    check_ids(stream.name, stream.beside_text(COMPARED_ROWS), tokenizer)
    name = fingerprint(_key(stream.identity, tokenizer, length, wrap), WINDOW_TOKENS, are_rows)
    ends = (None, False, None) if are_rows else (tokenizer.eos_id, wrap, tokenizer.bos_id)
    folder = cache_dir() / "windows" / name
    return stream_rows(stream, encode, folder, tokenizer.vocab_size, length, *ends, say)


def _key(identity: str, tokenizer: Tokenizer, length: int, wrap: bool) -> str:
    """The cache key of the rows of a text."""
    return fingerprint(FORMAT_VERSION, identity, tokenizer.behaviour, length, wrap)


def iter_encoded(corpus: Corpus, tokenizer: Tokenizer, say: Log = no_log) -> Iterator[Ids]:
    """The token ids of each document. `DOCUMENTS_AT_ONCE` documents are encoded together."""
    if isinstance(corpus.documents, TokenLists):
        yield from corpus.documents
        return
    total, reported = len(corpus.documents), time.monotonic()
    left, done = iter(corpus.documents), 0
    while some := list(islice(left, DOCUMENTS_AT_ONCE)):
        yield from encode_documents(some, tokenizer)
        done += len(some)
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            say(f"tokenizing {corpus.name}: {done:,} of {total:,} documents")


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> Sequence[Ids]:
    """The token ids of documents. If one is long, all are encoded in pieces, as int64 arrays."""
    if max(map(len, documents), default=0) <= PIECE:
        return tokenizer.encode_batch(documents)
    return [
        np.concatenate([np.asarray(ids, dtype=np.int64) for ids in tokenizer.pieces(document)])
        for document in documents
    ]


def digest_of(corpus: Corpus) -> str:
    """The digest of a corpus. The digest of documents on disk is computed once and cached."""
    if corpus.identity is None:
        return corpus.digest
    file = cache_dir() / "digests" / fingerprint(FORMAT_VERSION, corpus.identity)
    return make_once(file, lambda: write_text(file, corpus.digest)).read_text("utf-8")


def tokenizer_of(data: DataSettings, train: Corpus | Stream, say: Log = no_log) -> Tokenizer:
    """The tokenizer of a recipe: of a directory or hub id, or trained on the text ("bpe:V").

    For a stream it is trained on the first documents. A tokenizer of documents on disk is trained
    once and cached.
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
    """Whether lists of ids are rows already: they all have one length."""
    return lists.length is not None and len(lists) > 1


def _unpacked(
    name: str, lists: TokenLists, tokenizer: Tokenizer, length: int, wrap: bool
) -> StoredRows:
    """Lists of ids as rows. ValueError for a wrong length, or with `wrap` for wrong ends."""
    if lists.length != length:
        raise ValueError(
            f"network.length does not match the data: got {length}, but the rows of {name!r} have "
            f"{lists.length} tokens. Give --network.length {lists.length} (for a measurement "
            "--text.length), or documents of different lengths, which are packed"
        )
    stored = lists.rows()
    if wrap:
        bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ends = stored[:DOCUMENTS_AT_ONCE][:, [0, -1]].unique(dim=0).tolist()
        if ends != [[bos, tokenizer.eos_id]]:
            raise ValueError(
                f"data.wrap does not match the data: the first rows of {name!r} begin and end with "
                f"{ends[:3]}, want BOS (id {bos}) and EOS (id {tokenizer.eos_id}). Give "
                "--data.no-wrap (for a measurement --text.wrap False), or the tokenizer that made "
                "the rows"
            )
    return stored
