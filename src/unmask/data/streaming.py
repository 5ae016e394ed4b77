"""Documents of a data set that are read in their order, only as far as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.atomic_files import writing
from unmask.data.cache import Log, cache_dir, file_lock, fingerprint, no_log
from unmask.data.hf_datasets import (
    TEXT_COLUMN,
    DatasetDocuments,
    check_text,
    columns_of,
    documents_of,
    open_splits,
)
from unmask.data.rows_on_disk import FORMAT_VERSION, IDS_COLUMN, PADDING_COLUMN, TokenLists

DOCUMENTS_AT_ONCE = 64  # documents that are read and tokenized together
HEAD_SIZE = (
    2**24
)  # characters, or ids, at the beginning of a text: held out, or what a tokenizer is trained on


@dataclass(frozen=True)
class Stream:
    """Documents of a data set that are read in their order, only as far as they are asked for.

    table     a `datasets.IterableDataset`
    column    `text`, or `input_ids`
    chosen    the numbers of those that count
    identity  a name that changes when they do
    padded    there is a column `attention_mask`, whose zeros mark padding
    """

    name: str
    table: Any
    column: str
    chosen: range
    identity: str
    padded: bool = False

    def read(
        self, number: int = 0, state: Any = None
    ) -> Iterator[tuple[int, Any, list[str] | TokenLists]]:
        """`DOCUMENTS_AT_ONCE` documents at a time, of them those that count, each time with the number and the reader's state
        before them: with these it goes on from there. ValueError where they cannot be read.
        """
        columns = [self.column, PADDING_COLUMN] if self.padded else [self.column]
        table = self.table.select_columns(columns).with_format("arrow")
        table.load_state_dict(state)
        some = table.iter(DOCUMENTS_AT_ONCE)
        while (found := self._next(some, number)) is not None:
            chosen = from_number(self.chosen, number)
            yield (
                number,
                state,
                self._documents(found, number)[chosen.start - number :: chosen.step],
            )
            number, state = number + len(found), table.state_dict()

    def beginning(self) -> Iterator[str | NDArray[np.int64]]:
        """The first documents, in steps of `DOCUMENTS_AT_ONCE`, until they hold `HEAD_SIZE` characters or ids."""
        held = 0
        for _, _, some in self.read():
            yield from some
            held += sum(map(len, some))
            if held >= HEAD_SIZE:
                return

    @property
    def texts(self) -> Iterator[str]:
        """The documents at the beginning, where they are text; ValueError where they are token ids."""
        for document in self.beginning():
            if not isinstance(document, str):
                raise ValueError(
                    f"{self.name!r} holds token ids, and text is wanted here: give the text itself"
                )
            yield document

    def beside_text(self, most: int) -> list[tuple[str, NDArray[np.int64]]]:
        """The first texts, at most this many, each with its ids; none where there is no column of texts beside ids."""
        columns = columns_of(self.table)
        if self.column != IDS_COLUMN or TEXT_COLUMN not in columns:
            return []
        names = [name for name in (IDS_COLUMN, PADDING_COLUMN, TEXT_COLUMN) if name in columns]
        found = self._next(self.table.select_columns(names).with_format("arrow").iter(most), 0)
        mask = found.column(PADDING_COLUMN) if self.padded else None
        return TokenLists(
            found.column(IDS_COLUMN), range(len(found)), mask, found.column(TEXT_COLUMN)
        ).beside_text(most)

    def _documents(self, found: Any, number: int) -> list[str] | TokenLists:
        """The documents of some rows of the table, of which the first has this number."""
        column = found.column(self.column)
        if self.column == IDS_COLUMN:
            return TokenLists(
                column, range(len(found)), found.column(PADDING_COLUMN) if self.padded else None
            )
        check_text(column.type, self.column, self.name)
        rows = f"rows {number} to {number + len(found) - 1}"
        if column.null_count:
            raise ValueError(
                f"{self.name} has nothing in the column {self.column!r} of some of its {rows}: drop rows without text"
            )
        try:
            texts: list[str] = column.to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name} has bytes in the column {self.column!r} of some of its {rows} that are no UTF-8 text "
                f"({error}): write these rows again, or drop them"
            ) from error
        return texts

    def _next(self, some: Iterator[Any], number: int) -> Any:
        try:
            return next(some, None)
        except Exception as error:  # `datasets` passes on whatever its readers and transports raise
            raise ValueError(
                f"{self.name} could not be read beyond document {number}: {error!r}. What was read is kept: the same "
                "command goes on from there"
            ) from error


def from_number(numbers: range, first: int) -> range:
    """Those of an ascending range that are not below `first`."""
    return numbers[max(0, -((numbers.start - first) // numbers.step)) :]


def cached_head(stream: Stream, say: Log = no_log) -> DatasetDocuments | TokenLists:
    """The documents at the beginning of a stream, which are read once and kept in `cache()`."""
    import pyarrow as pa

    file = (
        cache_dir()
        / "beginnings"
        / f"{fingerprint(FORMAT_VERSION, stream.identity, HEAD_SIZE)}.arrow"
    )
    if not file.exists():
        with file_lock(file, say):
            if not file.exists():
                say(f"reading the beginning of {stream.name}")
                kind = {TEXT_COLUMN: pa.large_string(), IDS_COLUMN: pa.list_(pa.int64())}[
                    stream.column
                ]
                found = pa.table({stream.column: pa.array(list(stream.beginning()), kind)})
                with writing(file) as new, pa.ipc.new_file(str(new), found.schema) as sheet:
                    sheet.write_table(found)
    return documents_of(open_splits(file)[0]["train"], file)
