"""Data sets that are read in order and only as far as needed.

`Stream` reads groups of documents and can continue before any group. `cached_head` stores the first
documents in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.atomic_files import writing
from unmask.data.cache import Log, cache_dir, fingerprint, make_once, no_log
from unmask.data.hf_datasets import (
    TEXT_COLUMN,
    DatasetDocuments,
    check_text,
    columns_of,
    documents_of,
    open_splits,
    read_texts,
)
from unmask.data.rows_on_disk import FORMAT_VERSION, IDS_COLUMN, PADDING_COLUMN, TokenLists

DOCUMENTS_AT_ONCE = 64  # documents that are read and tokenized together
HEAD_SIZE = 2**24  # characters or ids: held out, or used to train a tokenizer


@dataclass(frozen=True)
class Stream:
    """Documents of a data set that are read in order and only as far as needed.

    Attributes:
        name: the data set's name, for errors and logs.
        table: a `datasets.IterableDataset`.
        column: `text` or `input_ids`.
        chosen: numbers of the documents to use, ascending.
        identity: a string that changes when the documents change.
    """

    name: str
    table: Any
    column: str
    chosen: range
    identity: str

    @cached_property
    def padded(self) -> bool:
        """Whether a column `attention_mask` marks padding."""
        return self.column == IDS_COLUMN and PADDING_COLUMN in columns_of(self.table)

    def read(
        self, number: int = 0, state: Any = None
    ) -> Iterator[tuple[int, Any, list[str] | TokenLists]]:
        """Read groups of documents; a later call can continue before any group.

        Args:
            number: the number of the first document.
            state: the reader's state before that document; None: the beginning.

        Yields:
            The number and the state before a group, and the group: the chosen ones of
            `DOCUMENTS_AT_ONCE` documents. ValueError if they cannot be read.
        """
        columns = [self.column, PADDING_COLUMN] if self.padded else [self.column]
        table = self.table.select_columns(columns).with_format("arrow")
        table.load_state_dict(state)
        groups = table.iter(DOCUMENTS_AT_ONCE)
        while (group := self._next(groups, number)) is not None:
            chosen = from_number(self.chosen, number)
            documents = self._documents(group, number)
            yield number, state, documents[chosen.start - number :: chosen.step]
            number, state = number + len(group), table.state_dict()

    def head(self) -> Iterator[str | NDArray[np.int64]]:
        """The first groups of documents, until they hold `HEAD_SIZE` characters or ids."""
        size = 0
        for _, _, documents in self.read():
            yield from documents
            size += sum(map(len, documents))
            if size >= HEAD_SIZE:
                return

    @property
    def texts(self) -> Iterator[str]:
        """The texts of `head`; ValueError if they are token ids."""
        for document in self.head():
            if not isinstance(document, str):
                raise ValueError(
                    f"data set {self.name!r} is not text: got token ids; give their text"
                )
            yield document

    def beside_text(self, most: int) -> list[tuple[str, NDArray[np.int64]]]:
        """The first texts, at most `most`, each with its ids; empty unless both columns exist."""
        columns = columns_of(self.table)
        if self.column != IDS_COLUMN or TEXT_COLUMN not in columns:
            return []
        names = [name for name in (IDS_COLUMN, PADDING_COLUMN, TEXT_COLUMN) if name in columns]
        group = self._next(self.table.select_columns(names).with_format("arrow").iter(most), 0)
        return self._token_lists(group, group.column(TEXT_COLUMN)).beside_text(most)

    def _token_lists(self, group: Any, text: Any = None) -> TokenLists:
        mask = group.column(PADDING_COLUMN) if self.padded else None
        return TokenLists(group.column(IDS_COLUMN), range(len(group)), mask, text)

    def _documents(self, group: Any, number: int) -> list[str] | TokenLists:
        """The documents of a group of rows. `number` is the number of the first row."""
        if self.column == IDS_COLUMN:
            return self._token_lists(group)
        column = group.column(self.column)
        check_text(column.type, self.column, self.name)
        rows = range(number, number + len(group))
        return read_texts(column, rows, f"{self.name}: column {self.column!r}")

    def _next(self, groups: Iterator[Any], number: int) -> Any:
        """The next group; None at the end of the data set."""
        try:
            return next(groups, None)
        except Exception as error:  # `datasets` passes on all errors of its readers and transports
            raise ValueError(
                f"{self.name} could not be read beyond document {number}: {error!r}. The earlier "
                "documents are saved: run the same command again to continue there"
            ) from error


def from_number(numbers: range, first: int) -> range:
    """The numbers of an ascending range from `first` on."""
    return numbers[max(0, -((numbers.start - first) // numbers.step)) :]


def cached_head(stream: Stream, log: Log = no_log) -> DatasetDocuments | TokenLists:
    """The documents of `stream.head()`, read once and stored in the cache."""
    import pyarrow as pa

    name = fingerprint(FORMAT_VERSION, stream.identity, HEAD_SIZE)
    file = cache_dir() / "beginnings" / f"{name}.arrow"

    def write() -> None:
        log(f"reading the beginning of {stream.name}")
        kind = pa.large_string() if stream.column == TEXT_COLUMN else pa.list_(pa.int64())
        table = pa.table({stream.column: pa.array(list(stream.head()), kind)})
        with writing(file) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)

    splits, _ = open_splits(make_once(file, write, log))
    return documents_of(splits["train"], file)
