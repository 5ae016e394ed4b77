"""Token ids on disk: rows and lists in Arrow files that are mapped into memory, so that only what is read is there.

`write_rows` makes such a file from blocks of rows as they come; `open_rows` gives it back as `StoredRows`, which
`packing.batch_at` takes like a tensor. `TokenLists` is a column of lists of ids that somebody else wrote.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.atomic_files import writing
from unmask.data.cache import Log, file_lock, no_log
from unmask.data.packing import check_rows

FORMAT_VERSION = 2  # of the rows that are kept
IDS_COLUMN = "input_ids"  # of token ids, as the Hugging Face libraries call it
PADDING_COLUMN = "attention_mask"  # of marks, 0 where an id is padding


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows [n, L] of token ids in mapped files; a batch is read when it is asked for, as int64.

    blocks  arrays [k, L] of integers, one after the other
    chosen  which of their rows count, in order
    """

    blocks: Sequence[NDArray[Any]]
    chosen: range

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.chosen), self.blocks[0].shape[1]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """Rows by number, int64 [k] in 0 .. n - 1, or by a slice: int64 [k, L] in memory."""
        if isinstance(index, slice):
            some = self.chosen[index]
            numbers = np.arange(some.start, some.stop, some.step)
        else:
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
                raise IndexError(
                    f"rows are numbered 0 to {len(self) - 1}: got {int(index.min())} to {int(index.max())}"
                )
            numbers = self.chosen.start + self.chosen.step * index.cpu().numpy()
        block = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = np.empty((len(numbers), self.shape[1]), dtype=np.int64)
        for one in np.unique(block):
            here = block == one
            rows[here] = self.blocks[one][numbers[here] - self._starts[one]]
        return torch.from_numpy(rows)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The number of each block's first row."""
        return np.array([0, *accumulate(map(len, self.blocks))][:-1], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class TokenLists(Sequence[NDArray[np.int64]]):
    """Lists of token ids, a column of an Arrow table, left on disk until they are read.

    chosen  which of them, in order: a slice is a view
    mask    a column of lists as long: an id where it is 0 is padding, and left out (None: there is no padding)
    text    a column of the texts that the ids encode, where there is one

    ValueError for a column of something else, or with nothing in the place of a list.
    """

    column: Any
    chosen: range
    mask: Any = None
    text: Any = None

    def __post_init__(self) -> None:
        from pyarrow import compute

        _check_lists(self.column, IDS_COLUMN)
        if self.mask is None:
            return
        _check_lists(self.mask, PADDING_COLUMN)
        ids, marks = (
            compute.list_value_length(column).combine_chunks()
            for column in (self.column, self.mask)
        )
        if not ids.cast("int64").equals(marks.cast("int64")):
            raise ValueError(
                f"{PADDING_COLUMN} has a mark for each id of {IDS_COLUMN}, and some lists have other lengths: encode it again"
            )

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: slice) -> TokenLists: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | TokenLists:
        if isinstance(index, slice):
            return replace(self, chosen=self.chosen[index])
        number = self.chosen[index]
        chunk = bisect_right(self._starts, number) - 1
        values = self.column.chunk(chunk)[number - self._starts[chunk]].values
        ids: NDArray[np.int64] = values.to_numpy().astype(np.int64)
        if self.mask is None:
            return ids
        kept: NDArray[np.bool_] = self.mask[number].values.to_numpy(zero_copy_only=False) != 0
        return ids[kept]

    def beside_text(self, most: int) -> list[tuple[str, NDArray[np.int64]]]:
        """At most this many of the texts, spread evenly, each with its ids; none where there is no column of texts."""
        if self.text is None:
            return []
        places = sorted({len(self) * place // most for place in range(most)}) if len(self) else []
        pairs = ((self.text[self.chosen[place]].as_py(), self[place]) for place in places)
        return [(text, ids) for text, ids in pairs if isinstance(text, str)]

    @cached_property
    def length(self) -> int | None:
        """The tokens of each list of the column, where they are equally many and none is padding."""
        from pyarrow import compute

        ends = compute.min_max(compute.list_value_length(self.column)).as_py()
        return ends["min"] if ends["min"] == ends["max"] and not self._padded else None

    def rows(self) -> StoredRows:
        """The lists as rows, where they have one length: nothing is copied."""
        if self.length is None:
            raise ValueError("lists of different lengths are no rows: pack them")
        blocks = [
            chunk.flatten().to_numpy().reshape(-1, self.length)
            for chunk in self.column.chunks
            if len(chunk)
        ]
        return StoredRows(blocks, self.chosen)

    @property
    def _padded(self) -> bool:
        """Whether some id of the column is padding."""
        from pyarrow import compute

        marks = () if self.mask is None else (chunk.flatten() for chunk in self.mask.chunks)
        return any(compute.any(compute.equal(chunk.cast("int64"), 0)).as_py() for chunk in marks)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(map(len, self.column.chunks))][:-1]


def _check_lists(column: Any, name: str) -> None:
    """ValueError unless a column holds lists of integers, or marks of two values, and none is missing."""
    from pyarrow import types

    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (
        types.is_integer(kind.value_type)
        or (name == PADDING_COLUMN and types.is_boolean(kind.value_type))
    ):
        raise ValueError(
            f"a column of tokens holds lists of integers, {name} holds {kind}: encode the text first"
        )
    if column.null_count or any(chunk.flatten().null_count for chunk in column.chunks):
        raise ValueError(
            f"{name} holds a list for each document, and some lists or ids are missing (null): drop them"
        )


def arrow_table(file: Path) -> Any:
    """The table of an Arrow file (its file or stream format), mapped into memory; ValueError where it is none."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            try:
                return pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"{file} is no whole Arrow file ({error}): write it anew, or remove it where unmask made it"
                ) from error


def write_rows(
    file: Path, blocks: Iterable[NDArray[np.int64]], length: int, vocab_size: int
) -> None:
    """Write rows of L = `length` block by block, whole or not at all: two bytes a token where V allows it, else four.

    ValueError for ids outside of the vocabulary, OSError where there is no room; what was there before is kept.
    """
    import pyarrow as pa

    kind = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    schema = pa.schema([(IDS_COLUMN, pa.list_(kind, length))])
    try:
        with (
            writing(file) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            for rows in blocks:
                check_rows(torch.from_numpy(rows), vocab_size, None)
                ids = pa.array(rows.astype(kind.to_pandas_dtype()).reshape(-1))
                writer.write_batch(
                    pa.record_batch([pa.FixedSizeListArray.from_arrays(ids, length)], schema=schema)
                )
    except OSError as error:
        raise OSError(
            f"the rows were not written to {file}: {error}; make room there, or name another directory in UNMASK_CACHE"
        ) from error


def open_rows(file: Path) -> StoredRows:
    """The rows of a file of `write_rows`, mapped into memory."""
    column = arrow_table(file).column(IDS_COLUMN)
    return TokenLists(column, range(len(column))).rows()


def cached_rows(
    file: Path,
    blocks: Callable[[], Iterable[NDArray[np.int64]]],
    length: int,
    vocab_size: int,
    say: Log = no_log,
) -> StoredRows:
    """The rows of `file`, which is written first, from `blocks`, where it is not there.

    One process writes, others wait for it; if it is killed, the next one begins anew.
    """
    if not file.exists():
        with file_lock(file, say):
            if not file.exists():
                write_rows(file, blocks(), length, vocab_size)
    return open_rows(file)
