"""Rows on disk: equal to rows in memory, indexed like a tensor, atomic, written by one process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import unmask
from unmask.atomic_files import TEMPORARY
from unmask.data.packing import batch_at, check_rows, pack, row_blocks
from unmask.data.rows_on_disk import (
    IDS_COLUMN,
    StoredRows,
    TokenLists,
    arrow_table,
    cached_rows,
    open_rows,
    write_rows,
)

EOS = 50
documents = st.lists(st.lists(st.integers(0, 49), max_size=30), min_size=1, max_size=12).filter(
    lambda d: sum(map(len, d)) > 9
)


def numbered(n: int, length: int = 3) -> torch.Tensor:
    return torch.arange(n)[:, None] * 10 + torch.arange(length)


def stored(rows: torch.Tensor, folder: Path, block: int = 4) -> StoredRows:
    write_rows(
        folder / "rows.arrow", (part.numpy() for part in rows.split(block)), rows.shape[1], 50_000
    )
    return open_rows(folder / "rows.arrow")


@given(
    documents,
    st.integers(3, 7),
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([51, 2**16, 2**16 + 1]),
)
@settings(max_examples=60)
def test_rows_on_disk_are_the_rows_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[list[int]],
    length: int,
    block: int,
    wrap: bool,
    size: int,
) -> None:
    """For any documents, length, block size and token width."""
    file = tmp_path_factory.mktemp("rows") / "rows.arrow"
    write_rows(file, row_blocks(lists, length, EOS, wrap=wrap, block=block), length, size)
    stored_rows, expected = open_rows(file), pack(lists, length, EOS, wrap=wrap)
    assert stored_rows.shape == tuple(expected.shape) and len(stored_rows) == len(expected)
    assert stored_rows.blocks[0].dtype == (np.uint16 if size <= 2**16 else np.int32)
    assert torch.equal(stored_rows[:], expected) and stored_rows[:].dtype == torch.int64


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, StoredRows]:
    rows = numbered(30)
    return rows, stored(rows, tmp_path_factory.mktemp("pair"))


@given(
    st.lists(st.integers(0, 29), max_size=40),
    st.tuples(*[st.none() | st.integers(-40, 40)] * 2),
    st.sampled_from([None, 1, 3]),
)
def test_rows_are_indexed_like_a_tensor(
    pair: tuple[torch.Tensor, StoredRows],
    numbers: list[int],
    ends: tuple[int | None, int | None],
    step: int | None,
) -> None:
    """By numbers in any order, also repeated, and by slices."""
    rows, on_disk = pair
    index = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(on_disk[index], rows[index])
    assert torch.equal(on_disk[slice(*ends, step)], rows[slice(*ends, step)])


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]), st.integers(1, 9), st.integers(0, 3))
def test_batches_do_not_depend_on_where_rows_are(
    pair: tuple[torch.Tensor, StoredRows], step: int, world: int, share: int, seed: int
) -> None:
    """Batches do not depend on the number of processes either."""
    rows, on_disk = pair
    whole = batch_at(rows, step, world * share, seed)
    parts = [batch_at(on_disk, step, world * share, seed, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_row_number_out_of_range_is_refused(pair: tuple[torch.Tensor, StoredRows]) -> None:
    for wrong in (-1, 30):
        with pytest.raises(IndexError, match=r"got (0 to 30|-1 to 0), want 0 to 29"):
            pair[1][torch.tensor([0, wrong])]


def test_stored_rows_are_checked_like_others(pair: tuple[torch.Tensor, StoredRows]) -> None:
    check_rows(pair[1], 293, None)
    with pytest.raises(ValueError, match=r"got 0 to 292, .*vocab_size = 292"):
        check_rows(pair[1], 292, None)


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    """Two bytes would silently hold the remainder of a greater id."""
    for wrong in (-1, 70_000):
        with pytest.raises(ValueError, match="0 <= id < vocab_size = 60000"):
            write_rows(tmp_path / "rows.arrow", [np.full((2, 3), wrong)], 3, 60_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_opening_rows_reads_none_of_them(tmp_path: Path) -> None:
    """64 MiB on disk are a few pages in memory: anonymous memory does not grow with the rows."""
    code = """
import sys, torch
from pathlib import Path
from unmask.data.packing import batch_at, check_rows
from unmask.data.rows_on_disk import open_rows
def anonymous():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
open_rows(Path(sys.argv[2]))
before = anonymous()
rows = open_rows(Path(sys.argv[1]))
check_rows(rows, 2**16, None)
batch_at(rows, 3, 64, seed=1)
print(anonymous() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from Linux's /proc")
    write_rows(tmp_path / "large.arrow", (np.full((1024, 1024), i) for i in range(32)), 1024, 2**16)
    write_rows(tmp_path / "small.arrow", [np.zeros((1, 1024), dtype=np.int64)], 1024, 2**16)
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "large.arrow"),
        str(tmp_path / "small.arrow"),
    ]
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 40_000, "kB; the rows are 65,536 kB on disk and 262,144 kB as int64"


# --- written once


def test_cached_rows_are_not_written_again(tmp_path: Path) -> None:
    def refuse() -> Iterator[NDArray[np.int64]]:
        raise AssertionError("the rows exist")
        yield

    rows = numbered(5)
    first = cached_rows(tmp_path / "new" / "rows.arrow", lambda: [rows.numpy()], 3, 100)
    assert torch.equal(first[:], rows)
    assert torch.equal(cached_rows(tmp_path / "new" / "rows.arrow", refuse, 3, 100)[:], rows)


WRITER = """
import os, sys, time
from pathlib import Path
import numpy as np
from unmask.data.rows_on_disk import cached_rows
file, number, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

def blocks():
    with log.open("a") as file_handle:
        file_handle.write(f"{number}\\n")
    for place in range(40):
        yield np.full((2, 3), place)
        time.sleep(0.01)
    if number < 0:
        time.sleep(60)  # until it is killed

rows = cached_rows(file, blocks, 3, 100, lambda line: print(line, flush=True))
assert rows[:][::2, 0].tolist() == list(range(40))
"""


def writer(file: Path, number: int) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, str(file), str(number), str(file.with_name("log"))]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_one_of_several_processes_writes(tmp_path: Path) -> None:
    """The others wait, log it, and read its file."""
    writers = [writer(tmp_path / "rows.arrow", number) for number in range(3)]
    outputs = [process.communicate(timeout=60) for process in writers]
    assert [process.returncode for process in writers] == [0, 0, 0], outputs
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


@pytest.mark.slow
def test_a_killed_process_leaves_no_rows(tmp_path: Path) -> None:
    """The process that waits starts again."""
    file = tmp_path / "rows.arrow"
    killed = writer(file, -1)
    started = time.monotonic()
    while not (tmp_path / "log").exists():
        assert time.monotonic() - started < 60
        time.sleep(0.01)
    waiting = writer(file, 1)
    assert waiting.stdout.readline() == f"waiting for the process that writes {file}\n"
    assert not file.exists() and list(tmp_path.glob(f"{TEMPORARY}*")), "half-written"
    killed.kill()
    killed.wait()
    assert waiting.communicate(timeout=60) is not None and waiting.returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == ["-1", "1"]
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_an_error_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[NDArray[np.int64]]:
        yield np.zeros((2, 3), dtype=np.int64)
        raise RuntimeError("text that cannot be read")

    with pytest.raises(RuntimeError, match="cannot be read"):
        cached_rows(tmp_path / "rows.arrow", failing, 3, 100)
    assert [file.name for file in tmp_path.iterdir()] == [".lock-rows.arrow"]


def test_the_error_of_a_full_disk_names_the_remedy(tmp_path: Path) -> None:
    def full() -> Iterator[NDArray[np.int64]]:
        yield np.zeros((2, 3), dtype=np.int64)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"rows\.arrow .*No space left.* UNMASK_CACHE"):
        cached_rows(tmp_path / "rows.arrow", full, 3, 100)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    stored(numbered(30), tmp_path)
    whole = (tmp_path / "rows.arrow").read_bytes()
    (tmp_path / "rows.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"not a complete Arrow file .* remove it"):
        open_rows(tmp_path / "rows.arrow")


# --- lists of ids


def column(lists: object, kind: pa.DataType) -> pa.ChunkedArray:
    """Three chunks, cut from longer arrays: their offsets do not begin at 0."""
    whole = pa.array(lists, kind)
    return pa.chunked_array([whole[:2], whole[2:2], whole[2:]], kind)


KINDS = [
    pa.list_(pa.int32()),
    pa.large_list(pa.int64()),
    pa.list_(pa.uint16()),
    pa.list_(pa.uint8(), 3),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists_of_one_length_are_rows(kind: pa.DataType) -> None:
    ids = numbered(7)
    lists = TokenLists(column(ids.tolist(), kind), range(7))
    assert lists.length == 3 and torch.equal(lists.rows()[:], ids)
    assert [list(one) for one in lists] == ids.tolist() and lists[-1].dtype == np.int64
    assert torch.equal(lists[1:6:2].rows()[torch.tensor([2, 0])], ids[[5, 1]])


def test_lists_of_different_lengths_are_not_rows() -> None:
    lists = TokenLists(column([[1], [2, 3], [], [4]], KINDS[0]), range(4))
    assert lists.length is None and [list(one) for one in lists[1:]] == [[2, 3], [], [4]]
    with pytest.raises(ValueError, match="input_ids has lists of different lengths"):
        lists.rows()


@pytest.mark.parametrize(
    ("lists", "kind", "message"),
    [
        ([1, 2, 3], pa.int64(), "input_ids .*got int64, want lists of integers"),
        ([["a"], ["b"]], pa.list_(pa.string()), "got list<item: string>"),
        ([[1], None], KINDS[0], "missing"),
        ([[1], [None]], KINDS[0], "missing"),
    ],
)
def test_a_column_of_something_else_is_refused(
    lists: object, kind: pa.DataType, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLists(pa.chunked_array([pa.array(lists, kind)]), range(2))


def test_both_formats_of_an_arrow_file_are_read(tmp_path: Path) -> None:
    table = pa.table({IDS_COLUMN: [[1, 2], [3, 4]]})
    for form in (pa.ipc.new_file, pa.ipc.new_stream):
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, form(sink, table.schema) as sheet:
            sheet.write_table(table)
        assert arrow_table(tmp_path / "a.arrow").equals(table)
