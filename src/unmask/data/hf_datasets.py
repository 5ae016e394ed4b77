"""Data sets of `datasets`, on disk or of the hub: a column of text as documents, or one of token ids as lists."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

from unmask.data.cache import fingerprint
from unmask.data.corpus_files import CorpusFiles, corpus_files, group_by_split
from unmask.data.hub import HUB_PREFIX, check_no_file_left_out, resolve_dataset
from unmask.data.rows_on_disk import IDS_COLUMN, PADDING_COLUMN, TokenLists, arrow_table

TEXT_COLUMN = "text"  # the column of documents
HELD_OUT = (
    "test",
    "validation",
)  # which split of a data set is measured on: the first of these that there is


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
        return DatasetDocuments(self.table, self.column, AllButEveryKth(self.rows, every))

    def _read(self, rows: Sequence[int]) -> list[str]:
        try:
            found: list[str | None] = self.table[rows][self.column]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"rows {rows[0]} to {rows[-1]} of the data set hold bytes in the column {self.column!r} that are no "
                f"UTF-8 text ({error}): write these rows again, or drop them"
            ) from error
        texts = [text for text in found if text is not None]
        if len(texts) < len(found):
            raise ValueError(
                f"row {rows[found.index(None)]} of the data set has nothing in its column {self.column!r}: drop rows "
                "without text"
            )
        return texts


@dataclass(frozen=True)
class AllButEveryKth(Sequence[int]):
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
class DatasetColumns:
    """What a data set holds: documents, those that it sets apart, and a name that changes with its files."""

    documents: DatasetDocuments | TokenLists
    held_out: DatasetDocuments | TokenLists | None
    identity: str


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set: .arrow or .parquet, what `save_to_disk` made, or a folder of .parquet files.

    ValueError for what is read neither as a data set nor as text.
    """
    return corpus_files(path).kind in ("arrow", "parquet", "saved")


def open_dataset(name: str | Path) -> DatasetColumns:
    """Open a data set that `is_dataset`, or hub:OWNER/NAME: `input_ids` where there is such a column, else `text`.

    Of several splits `train` is learnt from, and `test` (else `validation`) is held out. ValueError where there is
    neither column, or no split to learn from.
    """
    splits, identity = open_splits(name)
    train, apart = choose_splits(splits, name)
    documents = documents_of(splits[train], name)
    if apart is not None:
        return DatasetColumns(documents, documents_of(splits[apart], name), identity)
    return DatasetColumns(documents, None, identity)


def open_splits(name: str | Path, streaming: bool = False) -> tuple[dict[str, Any], str]:
    """The splits of a data set by name, and what tells it from others; `streaming`: to be read in order as they come.

    On disk the latter is made of the names, sizes and times of files; of the hub, of repository, configuration and
    commit.
    """
    import datasets

    if str(name).startswith(HUB_PREFIX):
        repository, configuration, commit = resolve_dataset(str(name))
        identity, there = (
            fingerprint("hub", repository, configuration, commit),
            {"revision": commit},
        )
        builder = _opened(
            name, partial(datasets.load_dataset_builder, repository, configuration, **there)
        )
        read = (
            builder.config.data_files or {}
        )  # none where only what an earlier download left is there
        check_no_file_left_out(
            repository, commit, [file for files in read.values() for file in files]
        )
        load = partial(
            datasets.load_dataset, repository, configuration, **there, streaming=streaming
        )
    else:
        found = corpus_files(Path(name))
        splits = (
            group_by_split(Path(name), found.files)
            if Path(name).is_dir()
            else {"train": [*found.files]}
        )
        identity = _identity(Path(name), found)
        load = partial(_load, found.kind, splits, identity, streaming)
    opened = _opened(name, load)
    tables = {"train": opened} if isinstance(opened, datasets.Dataset) else dict(opened)
    if not streaming:
        return tables, identity
    in_order = {
        split: table.with_format(None).to_iterable_dataset()
        if isinstance(table, datasets.Dataset)
        else table
        for split, table in tables.items()
    }
    return in_order, identity


def _opened(name: str | Path, load: Callable[[], Any]) -> Any:
    """What `load` opens; ValueError that names the data set, or the cache of `datasets` if that cannot be written."""
    import datasets

    try:
        return load()
    except (
        Exception
    ) as error:  # `datasets` passes on whatever its readers raise, an IndexError where it is empty
        folder = Path(datasets.config.HF_DATASETS_CACHE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as why:
            raise ValueError(
                f"HF_HOME cannot be written: `datasets` keeps what it reads in {folder} ({why}); set HF_HOME to a "
                "directory that can be written"
            ) from error
        raise ValueError(
            f"the data set {name} could not be opened: {error!r}. Is it whole, and not empty? "
            "`datasets.load_from_disk` or `load_dataset` is to open it"
        ) from error


def _load(kind: str, splits: Mapping[str, Sequence[Path]], identity: str, streaming: bool) -> Any:
    """What `datasets` makes of files on disk; those of a folder that `save_to_disk` made are named in it."""
    import datasets

    first = next(iter(splits.values()))[0]
    if kind == "saved":
        return datasets.load_from_disk(str(first))
    if kind == "arrow":
        table = datasets.table.InMemoryTable(
            arrow_table(first)
        )  # of mapped memory: nothing is read
        return datasets.Dataset(table, fingerprint=identity)
    files = {
        split: [glob.escape(str(file.absolute())) for file in some]
        for split, some in splits.items()
    }
    return datasets.load_dataset("parquet", data_files=files, streaming=streaming)


def choose_splits(splits: Mapping[str, Any], name: str | Path) -> tuple[str, str | None]:
    """The split to learn from, and the one that is held out, where there is one."""
    train = "train" if "train" in splits else next(iter(splits))
    if train != "train" and len(splits) > 1:
        raise ValueError(
            f"{name} has the splits {', '.join(splits)}: want one that is called train, or only one"
        )
    apart = next((split for split in HELD_OUT if split in splits and split != train), None)
    if apart is not None and column_of(splits[train], name) != column_of(splits[apart], name):
        raise ValueError(
            f"the splits {train} and {apart} of {name} hold text and token ids: want the same in both"
        )
    return train, apart


def columns_of(table: Any) -> list[str]:
    """The columns of a split; a stream may not know them before it is read."""
    return table.column_names or list(next(iter(table), ()))


def column_of(table: Any, name: str | Path) -> str:
    """The column of a split that holds its documents."""
    columns = columns_of(table)
    if IDS_COLUMN in columns or TEXT_COLUMN in columns:
        return IDS_COLUMN if IDS_COLUMN in columns else TEXT_COLUMN
    raise ValueError(
        f"{name} has the columns {', '.join(columns)}: want {IDS_COLUMN!r}, lists of token ids, or {TEXT_COLUMN!r}; "
        "rename the column that holds one of these (`rename_column` of datasets)"
    )


def check_text(kind: Any, column: str, name: str | Path) -> None:
    """ValueError unless a column of this Arrow type holds strings."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
        raise ValueError(
            f"column {column!r} of {name} holds {kind}, want a string a row: write the text into it"
        )


def documents_of(table: Any, name: str | Path) -> DatasetDocuments | TokenLists:
    """The documents of a split on disk."""
    column, data = column_of(table, name), table.data
    if column == IDS_COLUMN:
        mask, text = (
            data.column(each) if each in data.column_names else None
            for each in (PADDING_COLUMN, TEXT_COLUMN)
        )
        return TokenLists(data.column(IDS_COLUMN), range(len(table)), mask, text)
    check_text(data.schema.field(TEXT_COLUMN).type, TEXT_COLUMN, name)
    return DatasetDocuments(table.with_format(None), TEXT_COLUMN, range(len(table)))


def _identity(path: Path, found: CorpusFiles) -> str:
    """Changes with the files of a data set, as far as their names, sizes and times tell (not what `map` adds)."""
    files = found.files
    if found.kind == "saved":
        inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
        named = "".join(
            file.read_text("utf-8", "replace") for file in inside if file.name == "state.json"
        )
        files = [
            file
            for file in inside
            if not file.name.startswith((".", "cache-")) or f'"{file.name}"' in named
        ]
    told = [(os.fspath(file.relative_to(path)), file.stat()) for file in files]
    return fingerprint(
        os.fspath(path.resolve()),
        *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in told),
    )
