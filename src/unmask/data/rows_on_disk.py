"""Token ids in memory-mapped Arrow files: rows of one length, and lists of any length.

`write_rows` writes a file of rows, and `open_rows` reads it. `TokenLists` reads the lists of a data
set.
"""

from __future__ import annotations

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
from unmask.data.cache import Log, make_once, no_log
from unmask.data.packing import check_rows

FORMAT_VERSION = 2  # of cached rows; part of the names of all cache entries
IDS_COLUMN = "input_ids"  # lists of token ids, as the Hugging Face libraries call them
PADDING_COLUMN = "attention_mask"  # lists of the same length; 0: the id is padding


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows [n, L] of token ids in mapped files; indexing reads them as int64.

    Attributes:
        blocks: integer arrays [k, L], one after the other.
        chosen: numbers of the rows to use, in order.
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
        """Read rows by number, int64 [k] in 0 .. n - 1, or by a slice: int64 [k, L]."""
        if isinstance(index, slice):
            part = self.chosen[index]
            numbers = np.arange(part.start, part.stop, part.step)
        else:
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
                raise IndexError(
                    f"row numbers are out of range: got {int(index.min())} to "
                    f"{int(index.max())}, want 0 to {len(self) - 1}"
                )
            numbers = self.chosen.start + self.chosen.step * index.cpu().numpy()
        block_of = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = np.empty((len(numbers), self.shape[1]), dtype=np.int64)
        for block in np.unique(block_of):
            inside = block_of == block
            rows[inside] = self.blocks[block][numbers[inside] - self._starts[block]]
        return torch.from_numpy(rows)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """The number of each block's first row."""
        return np.array([0, *accumulate(map(len, self.blocks))][:-1], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class TokenLists(Sequence[NDArray[np.int64]]):
    """Lists of token ids in an Arrow column, read from disk on access; a slice is a view.

    ValueError if a column has another type, or a list is missing.

    Attributes:
        column: the lists.
        chosen: numbers of the lists to use, in order.
        mask: lists of the same lengths; an id with mask 0 is padding and is left out. None: there
            is no padding.
        text: the texts that the ids encode, if they are known.
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
        lengths = [
            compute.list_value_length(column).combine_chunks().cast("int64")
            for column in (self.column, self.mask)
        ]
        if not lengths[0].equals(lengths[1]):
            raise ValueError(
                f"{PADDING_COLUMN} and {IDS_COLUMN} have lists of different lengths: want one "
                "number for each id; encode the text again"
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
        ids: NDArray[np.int64] = self.column[number].values.to_numpy().astype(np.int64)
        if self.mask is not None:
            ids = ids[self.mask[number].values.to_numpy(zero_copy_only=False) != 0]
        return ids

    def beside_text(self, most: int) -> list[tuple[str, NDArray[np.int64]]]:
        """At most `most` evenly spaced texts, each with its ids; empty without a text column."""
        if self.text is None or not len(self):
            return []
        places = sorted({len(self) * i // most for i in range(most)})
        pairs = ((self.text[self.chosen[place]].as_py(), self[place]) for place in places)
        return [(text, ids) for text, ids in pairs if isinstance(text, str)]

    @cached_property
    def length(self) -> int | None:
        """The length of all lists of the column; None if lengths differ or some ids are padding."""
        from pyarrow import compute

        ends = compute.min_max(compute.list_value_length(self.column)).as_py()
        return ends["min"] if ends["min"] == ends["max"] and not self._padded else None

    def rows(self) -> StoredRows:
        """Lists of one length as rows, without a copy."""
        if self.length is None:
            raise ValueError(f"{IDS_COLUMN} has lists of different lengths: pack them into rows")
        chunks = [chunk.flatten().to_numpy() for chunk in self.column.chunks if len(chunk)]
        return StoredRows([ids.reshape(-1, self.length) for ids in chunks], self.chosen)

    @property
    def _padded(self) -> bool:
        """Whether an id of the column is padding."""
        from pyarrow import compute

        marks = () if self.mask is None else (chunk.flatten() for chunk in self.mask.chunks)
        return any(compute.any(compute.equal(chunk.cast("int64"), 0)).as_py() for chunk in marks)


def _check_lists(column: Any, name: str) -> None:
    """ValueError unless a column holds lists of integers (a mask also: of booleans), no null."""
    from pyarrow import types

    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (
        types.is_integer(kind.value_type)
        or (name == PADDING_COLUMN and types.is_boolean(kind.value_type))
    ):
        raise ValueError(
            f"column {name} has the wrong type: got {kind}, want lists of integers; encode the "
            "text first"
        )
    if column.null_count or any(chunk.flatten().null_count for chunk in column.chunks):
        raise ValueError(f"column {name} has missing lists or numbers (null): drop them")


def arrow_table(file: Path) -> Any:
    """The table of an Arrow file, mapped into memory; in the file format or the stream format."""
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
                f"{file} is not a complete Arrow file ({error}): write it again, or remove it if "
                "unmask made it"
            ) from error


def write_rows(
    file: Path, blocks: Iterable[NDArray[np.int64]], length: int, vocab_size: int
) -> None:
    """Write rows to an Arrow file block by block, atomically.

    `datasets.Dataset.from_generator` writes such a file row by row, 300 times slower.

    Args:
        file: the file to write.
        blocks: rows [k, L] of token ids.
        length: L.
        vocab_size: V; a token takes two bytes if V <= 2^16, else four.

    Raises:
        ValueError: an id is outside the vocabulary.
        OSError: the file cannot be written; for example, the disk is full.
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
                lists = pa.FixedSizeListArray.from_arrays(ids, length)
                writer.write_batch(pa.record_batch([lists], schema=schema))
    except OSError as error:
        raise OSError(
            f"{file} cannot be written ({error}): free space there, or set UNMASK_CACHE to another "
            "directory"
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
    log: Log = no_log,
) -> StoredRows:
    """The rows of a file; if it does not exist, one process first writes it.

    Args:
        file: the file to read or write.
        blocks: returns the rows, block by block: [k, L].
        length: L.
        vocab_size: V.
        log: receives a line if another process writes the file.
    """
    make_once(file, lambda: write_rows(file, blocks(), length, vocab_size), log)
    return open_rows(file)
