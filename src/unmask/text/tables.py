"""Data sets of `datasets`, on disk or of the hub: a column of text as documents, or one of token ids as lists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from unmask.text.cache import key
from unmask.text.hub import DATA, data_set
from unmask.text.stored import COLUMN, TokenLists, arrow_table

TEXT = "text"  # the column of documents
HELD_OUT = ("test", "validation")  # which split of a data set is measured on: the first of these that there is
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


@dataclass(frozen=True, eq=False)
class DatasetDocuments(Sequence[str]):
    """A text column of a `datasets.Dataset`, left on disk until it is read; a slice is a view of `rows`."""

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
        for first in range(0, len(self.rows), 1000):
            yield from self._read(self.rows[first : first + 1000])

    def without(self, every: int) -> DatasetDocuments:
        """All but every k-th document; no number of a document is kept in memory."""
        return DatasetDocuments(self.table, self.column, Others(self.rows, every))

    def _read(self, rows: Sequence[int]) -> list[str]:
        found: list[str | None] = self.table[rows][self.column]
        texts = [text for text in found if text is not None]
        if len(texts) < len(found):
            raise ValueError(
                f"row {rows[found.index(None)]} of the data set has nothing in its column {self.column!r}: drop rows "
                "without text"
            )
        return texts


@dataclass(frozen=True)
class Others(Sequence[int]):
    """All but every k-th entry of a sequence, k = `every`, in order."""

    of: Sequence[int]
    every: int

    def __len__(self) -> int:
        return len(self.of) - len(self.of) // self.every

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]
        return self.of[place + place // (self.every - 1)]


@dataclass(frozen=True)
class Table:
    """What a data set holds: documents, those that it sets apart, and a name that changes with its files."""

    documents: DatasetDocuments | TokenLists
    held_out: DatasetDocuments | TokenLists | None
    identity: str


def is_table(path: Path) -> bool:
    """Whether a path is a data set: .arrow or .parquet, what `save_to_disk` made, or a folder with .parquet files."""
    if path.is_file():
        return path.suffix in (".arrow", ".parquet")
    return path.is_dir() and (any((path / name).exists() for name in _SAVED) or any(path.rglob("*.parquet")))


def load_table(name: str | Path) -> Table:
    """Open a data set that `is_table`, or hub:OWNER/NAME: `input_ids` where there is such a column, else `text`.

    Of several splits `train` is learnt from, and `test` (else `validation`) is held out. ValueError where there is
    neither column, or no split to learn from.
    """
    splits, identity = open_splits(name)
    train, apart = told_apart(splits, name)
    documents = documents_of(splits[train], name)
    if apart is not None:
        return Table(documents, documents_of(splits[apart], name), identity)
    return Table(documents, None, identity)


def open_splits(name: str | Path, streaming: bool = False) -> tuple[dict[str, Any], str]:
    """The splits of a data set by name, and what tells it from others; `streaming`: to be read in order as they come.

    On disk the latter is made of the names, sizes and times of files; of the hub, of repository, configuration and
    commit.
    """
    import datasets

    if str(name).startswith(DATA):
        repository, configuration, commit = data_set(str(name))
        identity = key("hub", repository, configuration, commit)
        load = partial(datasets.load_dataset, repository, configuration, revision=commit, streaming=streaming)
    else:
        identity, load = _identity(Path(name)), partial(_load, Path(name), streaming)
    try:
        found = load()
    except Exception as error:  # `datasets` passes on whatever its readers raise, an IndexError where it is empty
        raise ValueError(
            f"the data set {name} could not be opened: {error!r}. Is it whole, and not empty? "
            "`datasets.load_from_disk` or `load_dataset` is to open it"
        ) from error
    splits = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if not streaming:
        return splits, identity
    in_order = {
        split: table.with_format(None).to_iterable_dataset() if isinstance(table, datasets.Dataset) else table
        for split, table in splits.items()
    }
    return in_order, identity


def _load(path: Path, streaming: bool) -> Any:
    """What `datasets` makes of a path."""
    import datasets

    if path.suffix == ".arrow":
        table = datasets.table.InMemoryTable(arrow_table(path))  # of mapped memory: nothing is read
        return datasets.Dataset(table, fingerprint=_identity(path))
    if path.is_file():
        return datasets.load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming)
    if any((path / name).exists() for name in _SAVED):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset("parquet", data_dir=str(path), streaming=streaming)


def told_apart(splits: Mapping[str, Any], name: str | Path) -> tuple[str, str | None]:
    """The split to learn from, and the one that is held out, where there is one."""
    train = "train" if "train" in splits else next(iter(splits))
    if train != "train" and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: want one that is called train, or only one")
    apart = next((split for split in HELD_OUT if split in splits and split != train), None)
    if apart is not None and column_of(splits[train], name) != column_of(splits[apart], name):
        raise ValueError(f"the splits {train} and {apart} of {name} hold text and token ids: want the same in both")
    return train, apart


def column_of(table: Any, name: str | Path) -> str:
    """The column of a split that holds its documents."""
    columns = table.column_names or list(next(iter(table), ()))  # a stream may not know before it is read
    if COLUMN in columns or TEXT in columns:
        return COLUMN if COLUMN in columns else TEXT
    raise ValueError(
        f"{name} has the columns {', '.join(columns)}: want {COLUMN!r}, lists of token ids, or {TEXT!r}; "
        "rename the column that holds one of these (`rename_column` of datasets)"
    )


def documents_of(table: Any, name: str | Path) -> DatasetDocuments | TokenLists:
    """The documents of a split on disk."""
    column = column_of(table, name)
    if column == COLUMN:
        return TokenLists(table.data.column(COLUMN), range(len(table)))
    return DatasetDocuments(table.with_format(None), TEXT, range(len(table)))


def _identity(path: Path) -> str:
    """Changes with the files of a data set, as far as their names, sizes and times tell (not what `map` adds)."""
    inside = path.rglob("*") if path.is_dir() else [path]
    files = sorted(file for file in inside if file.is_file() and not file.name.startswith((".", "cache-")))
    told = [(os.fspath(file.relative_to(path)), file.stat()) for file in files]
    return key(os.fspath(path.resolve()), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in told))
