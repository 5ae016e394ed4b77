"""Data sets that the library `datasets` reads, on disk or of the hub: splits, columns, documents.

The documents of a data set are a column of strings, or a column of lists of token ids.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from unmask.data.cache import fingerprint
from unmask.data.corpus_files import corpus_files, group_by_split
from unmask.data.hub import HUB_PREFIX, check_no_file_left_out, resolve_dataset
from unmask.data.rows_on_disk import IDS_COLUMN, PADDING_COLUMN, TokenLists, arrow_table

TEXT_COLUMN = "text"
READ_AT_ONCE = 1000  # documents


@dataclass(frozen=True, eq=False)
class DatasetDocuments(Sequence[str]):
    """A text column of a `datasets.Dataset`, read from disk on access; a slice is a view.

    Attributes:
        table: the `datasets.Dataset`.
        column: the column's name.
        rows: the row numbers of the documents, in order.
    """

    table: Any
    column: str
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> DatasetDocuments: ...
    def __getitem__(self, index: int | slice) -> str | DatasetDocuments:
        if isinstance(index, slice):
            return DatasetDocuments(self.table, self.column, self.rows[index])
        return self._read([self.rows[index]])[0]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self.rows), READ_AT_ONCE):
            yield from self._read(self.rows[first : first + READ_AT_ONCE])

    def without(self, every: int) -> DatasetDocuments:
        """All but every k-th document. Their numbers are computed, not held in memory."""
        return DatasetDocuments(self.table, self.column, AllButEveryKth(self.rows, every))

    def _read(self, rows: Sequence[int]) -> list[str]:
        column = self._arrow[rows].column(self.column)
        return read_texts(column, rows, f"column {self.column!r}")

    @cached_property
    def _arrow(self) -> Any:
        return self.table.with_format("arrow")


@dataclass(frozen=True)
class AllButEveryKth(Sequence[int]):
    """A sequence of numbers without every k-th one, k = `every`."""

    numbers: Sequence[int]
    every: int

    def __len__(self) -> int:
        return len(self.numbers) - len(self.numbers) // self.every

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        return self.numbers[place + place // (self.every - 1)]


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set: .arrow, .parquet, a folder of .parquet or of `save_to_disk`.

    ValueError if the path can be read neither as a data set nor as text.
    """
    return corpus_files(path)[0] in ("arrow", "parquet", "saved")


def open_splits(name: str | Path, streaming: bool = False) -> tuple[dict[str, Any], str]:
    """Open the splits of a data set, by name, and compute its identity.

    The identity is a string that changes when the data set changes. For files it depends on their
    names, sizes and times; for the hub on repository, configuration and commit.

    Args:
        name: the path of a data set, or hub:OWNER/NAME.
        streaming: open each split as a `datasets.IterableDataset`.
    """
    import datasets

    on_hub = str(name).startswith(HUB_PREFIX)
    opened, identity = (_open_hub if on_hub else _open_path)(str(name), streaming)
    splits = {"train": opened} if isinstance(opened, datasets.Dataset) else dict(opened)
    if streaming:
        for split, table in splits.items():
            if isinstance(table, datasets.Dataset):
                splits[split] = table.with_format(None).to_iterable_dataset()
    return splits, identity


def _open_hub(name: str, streaming: bool) -> tuple[Any, str]:
    import datasets

    repository, configuration, commit = resolve_dataset(name)
    with _opening(name):
        builder = datasets.load_dataset_builder(repository, configuration, revision=commit)
    patterns = builder.config.data_files or {}  # None if only an earlier download is available
    read = [file for files in patterns.values() for file in files]
    check_no_file_left_out(repository, commit, read)
    options = {"revision": commit, "streaming": streaming}
    with _opening(name):
        opened = datasets.load_dataset(repository, configuration, **options)
    return opened, fingerprint("hub", repository, configuration, commit)


def _open_path(name: str, streaming: bool) -> tuple[Any, str]:
    import datasets

    path = Path(name)
    kind, files = corpus_files(path)
    identity = _identity(path, kind, files)
    splits = group_by_split(path, files) if path.is_dir() else {"train": files}
    with _opening(name):
        if kind == "saved":
            return datasets.load_from_disk(name), identity
        if kind == "arrow":
            table = datasets.table.InMemoryTable(arrow_table(files[0]))  # mapped, not read
            return datasets.Dataset(table, fingerprint=identity), identity
        names = {
            split: [glob.escape(str(file.absolute())) for file in group]
            for split, group in splits.items()
        }
        opened = datasets.load_dataset("parquet", data_files=names, streaming=streaming)
    return opened, identity


def choose_splits(splits: Mapping[str, Any], name: str | Path) -> tuple[str, str | None]:
    """The names of the training split and of the held-out one (`test`, else `validation`)."""
    train = "train" if "train" in splits else next(iter(splits))
    if train != "train" and len(splits) > 1:
        raise ValueError(
            f"{name} has no training split: got the splits {', '.join(splits)}, want one with the "
            "name train, or only one split"
        )
    held_out = next((s for s in ("test", "validation") if s in splits and s != train), None)
    if held_out and column_of(splits[train], name) != column_of(splits[held_out], name):
        raise ValueError(
            f"{name} has splits of two kinds: of {train} and {held_out}, one holds text and the "
            "other token ids; give both the same column"
        )
    return train, held_out


def columns_of(table: Any) -> list[str]:
    """The columns of a split. For some streams a row must be read first."""
    return table.column_names or list(next(iter(table), ()))


def column_of(table: Any, name: str | Path) -> str:
    """The name of the column that holds the documents of a split."""
    columns = columns_of(table)
    for column in (IDS_COLUMN, TEXT_COLUMN):
        if column in columns:
            return column
    raise ValueError(
        f"{name} has no column of documents: got {', '.join(columns)}, want {IDS_COLUMN!r} (lists "
        f"of token ids) or {TEXT_COLUMN!r}; rename the right column (`rename_column` of datasets)"
    )


def check_text(kind: Any, column: str, name: str | Path) -> None:
    """ValueError unless a column of this Arrow type holds strings."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise ValueError(
            f"column {column!r} of {name} has the wrong type: got {kind}, want a string in each "
            "row; convert it (`cast_column` of datasets)"
        )


def read_texts(column: Any, rows: Sequence[int], name: str) -> list[str]:
    """Read the strings of a part of an Arrow column.

    Args:
        column: the part.
        rows: its row numbers in the data set, for errors.
        name: the column's name, for errors.

    Raises:
        ValueError: a string is missing or not UTF-8.
    """
    try:
        texts: list[str] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text in rows {rows[0]} to {rows[-1]} ({error}): write these "
            "rows again, or drop them"
        ) from error
    missing = [row for row, text in zip(rows, texts, strict=True) if text is None]
    if missing:
        raise ValueError(f"{name} is empty in row {missing[0]}: drop rows without text")
    return texts


def documents_of(table: Any, name: str | Path) -> DatasetDocuments | TokenLists:
    """The documents of a split on disk."""
    if column_of(table, name) == TEXT_COLUMN:
        return text_documents(table, TEXT_COLUMN, name)
    data = table.data
    mask, text = (
        data.column(column) if column in data.column_names else None
        for column in (PADDING_COLUMN, TEXT_COLUMN)
    )
    return TokenLists(data.column(IDS_COLUMN), range(len(table)), mask, text)


def text_documents(table: Any, column: str, name: str | Path) -> DatasetDocuments:
    """The documents of a column of strings; ValueError if it has another type."""
    check_text(table.data.schema.field(column).type, column, name)
    return DatasetDocuments(table, column, range(len(table)))


@contextmanager
def _opening(name: str | Path) -> Iterator[None]:
    """Turn an error of `datasets` into a ValueError about the data set or the cache of `datasets`.

    `datasets` passes on all errors of its readers, such as an IndexError for an empty file.
    """
    import datasets

    try:
        yield
    except Exception as error:
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as fault:
            raise ValueError(
                f"HF_HOME cannot be written: `datasets` caches data sets in {folder} ({fault}); "
                "set HF_HOME to a writable directory"
            ) from error
        raise ValueError(
            f"the data set {name} cannot be opened: {error!r}. Check that it is complete and not "
            "empty, and that `datasets.load_from_disk` or `load_dataset` opens it"
        ) from error


def _identity(path: Path, kind: str, files: Sequence[Path]) -> str:
    """A fingerprint of the names, sizes and times of the files of a data set."""
    if kind == "saved":  # without the cache files of `map`, unless state.json names them
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        states = [file for file in files if file.name == "state.json"]
        named = "".join(file.read_text("utf-8", "replace") for file in states)
        files = [
            file
            for file in files
            if not file.name.startswith((".", "cache-")) or f'"{file.name}"' in named
        ]
    entries = [(os.fspath(file.relative_to(path)), file.stat()) for file in files]
    facts = (f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in entries)
    return fingerprint(os.fspath(path.resolve()), *facts)
