"""Rows of a streamed text: written in windows as training needs them, with a prefetch thread.

A window is an Arrow file of W rows and a JSON file with the cursor after it. An existing window is
read. A missing one is written from the cursor of the previous one, by the process with the lock.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.atomic_files import write_text
from unmask.data.cache import Log, file_lock, no_log
from unmask.data.packing import Ids, StreamedRows, cut_rows, join_documents
from unmask.data.rows_on_disk import StoredRows, open_rows, write_rows
from unmask.data.streaming import HEAD_SIZE, Stream

WINDOW_TOKENS = 2**24
PREFETCH = 2  # windows that are written beyond the one in use
POLL_SECONDS, JOIN_SECONDS = 0.05, 10.0  # between two checks for a window; to end the thread


@dataclass(frozen=True)
class Cursor:
    """A place in a stream of tokens.

    Attributes:
        documents: number of whole documents before a place that the reader can return to.
        state: state of the reader at that place.
        tokens: number of tokens between that place and the cursor.
    """

    documents: int = 0
    state: Any = None
    tokens: int = 0


def stream_rows(
    stream: Stream,
    encode: Callable[[Any], Sequence[Ids]],
    folder: Path,
    vocab_size: int,
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    log: Log = no_log,
) -> StreamedRows:
    """The rows of a stream, written as needed in windows: the same rows as of `packing.row_blocks`.

    Args:
        stream: the documents.
        encode: returns the token ids of some documents.
        folder: the folder of the windows, which processes may share.
        vocab_size: V.
        length: L; a window has about `WINDOW_TOKENS` tokens.
        eos_id: EOS; None puts nothing between documents.
        wrap: put BOS and EOS at the ends of each row.
        bos_id: BOS; None uses EOS.
        log: receives lines about slow operations.
    """

    def write(file: Path, pieces: Iterable[NDArray[np.int64]]) -> None:
        write_rows(file, cut_rows(pieces, length, eos_id, wrap, bos_id), length, vocab_size)

    windows = WindowFolder(
        folder,
        max(1, WINDOW_TOKENS // length),
        length - 2 if wrap else length,
        partial(read_pieces, stream, encode, eos_id),
        write,
        log,
    )
    return StreamedRows(windows.size, windows.at_least, windows.close)


def read_pieces(
    stream: Stream, encode: Callable[[Any], Sequence[Ids]], eos_id: int | None, start: Cursor
) -> Iterator[tuple[NDArray[np.int64], Cursor]]:
    """Yield pieces of tokens from `start` on, each with its place; EOS separates documents."""
    for number, state, documents in stream.read(start.documents, start.state):
        token_lists = [*encode(documents)]
        if number > stream.chosen.start and token_lists:
            token_lists.insert(0, [])  # EOS after the documents before this group
        joined = np.concatenate([np.empty(0, np.int64), *join_documents(token_lists, eos_id)])
        skipped = start.tokens if number == start.documents else 0
        yield joined[skipped:], Cursor(number, state, skipped)


def read_windows(
    pieces: Iterable[tuple[NDArray[np.int64], Cursor]], size: int
) -> Iterator[tuple[list[NDArray[np.int64]], Cursor]]:
    """Group pieces of tokens into windows of `size` tokens, each with the cursor after it.

    The last window has fewer tokens, perhaps none. Its cursor is the beginning of the stream.
    """
    window: list[NDArray[np.int64]] = []
    missing = size
    for piece, start in pieces:
        used = 0  # tokens of this piece in windows that are complete
        while len(piece) - used >= missing:
            window.append(piece[used : used + missing])
            used += missing
            yield window, replace(start, tokens=start.tokens + used)
            window, missing = [], size
        window.append(piece[used:])
        missing -= len(piece) - used
    yield window, Cursor()


class Closed(Exception):
    """Raised in the prefetch thread when the rows were closed."""


class WindowFolder:
    """The windows of a text in a folder: read if they exist, else written.

    The process with an open reader also prefetches, in a thread. Other processes write a window
    only if they need it and it does not exist. An error in the thread is logged, and raised when
    the window is needed.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        row_tokens: int,
        read: Callable[[Cursor], Iterator[tuple[NDArray[np.int64], Cursor]]],
        write: Callable[[Path, Iterable[NDArray[np.int64]]], None],
        log: Log,
    ) -> None:
        """Each window has `size` rows, and each row takes `row_tokens` tokens of the text."""
        self.size = size
        self._folder, self._row_tokens, self._log = folder, row_tokens, log
        self._read, self._write = read, write
        # The windows that exist: the arrays of each, and the cursor after the last one.
        self._windows: list[Sequence[NDArray[Any]]] = []
        self._end = Cursor()
        self._rows = StoredRows([], range(0))
        self._scanning = threading.Lock()  # one thread looks for new windows
        self._writing = threading.Lock()  # one thread of this process writes a window
        # The number of the next window, and the reader of the windows from there on.
        self._reader: tuple[int, Iterator[tuple[list[NDArray[np.int64]], Cursor]]] | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        # The threads end when this object is collected or the interpreter exits.
        weakref.finalize(self, _end, self._stop, self._threads)

    def at_least(self, n: int) -> StoredRows:
        """The rows of the first whole windows, at least n; all rows if the text has fewer."""
        number, logged = (n - 1) // self.size, -1
        self._stop.clear()
        while not self._exists(number):
            if logged != len(self._windows):
                logged = len(self._windows)
                self._log(f"reading text beyond row {logged * self.size:,}")
            if self._writing.acquire(timeout=POLL_SECONDS):  # the thread may hold the lock for long
                try:
                    self._write_next()
                finally:
                    self._writing.release()
        with self._scanning:
            blocks = [block for window in self._windows for block in window]
        total = _count(blocks)
        if not total:
            raise ValueError(
                "data.streaming: the text does not fill one row. Give more text or a smaller "
                "length, or leave data.streaming out: without a held-out split it holds out the "
                f"first {HEAD_SIZE:,} characters or token ids"
            )
        if len(self._rows) != total:
            self._rows = StoredRows(blocks, range(total))
        running = any(thread.is_alive() for thread in self._threads)
        if not running and self._is_leading and not self._exists(number + PREFETCH):
            thread = threading.Thread(
                target=self._prefetch, args=[number + PREFETCH], name="unmask-prefetch", daemon=True
            )
            self._threads[:] = [thread]
            thread.start()
        return self._rows

    def close(self) -> None:
        """End the prefetch; a window that is not complete is dropped."""
        _end(self._stop, self._threads)

    @property
    def _is_leading(self) -> bool:
        """Whether this process has a reader at the end of the existing windows."""
        reader = self._reader  # another thread may replace `_reader` meanwhile
        return reader is not None and reader[0] == len(self._windows)

    @property
    def _ended(self) -> bool:
        """Whether the text ends in the last existing window, which then has fewer rows."""
        return bool(self._windows) and _count(self._windows[-1]) < self.size

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.json"

    def _exists(self, number: int) -> bool:
        """Look for new windows; return whether window `number` exists or the text ended before."""
        with self._scanning:
            while not self._ended and (file := self._file(len(self._windows))).exists():
                entry = json.loads(file.read_text("utf-8"))
                blocks = open_rows(file.with_suffix(".arrow")).blocks if entry["rows"] else []
                self._end = Cursor(**entry["end"])
                self._windows.append(blocks)
            return self._ended or number < len(self._windows)

    def _write_next(self) -> None:
        """Write the window after the existing ones, unless another process has done so."""
        number = len(self._windows)
        with file_lock(self._folder / "windows", self._log):
            if self._exists(number):
                return
            if self._reader and self._is_leading:
                _, reader = self._reader
            else:
                pieces = _until(self._stop, self._read(self._end))
                reader = read_windows(pieces, self.size * self._row_tokens)
            self._reader = None  # after an error the reader is inside a window
            window, end = next(reader)
            rows, file = _count(window) // self._row_tokens, self._file(number)
            self._write(file.with_suffix(".arrow"), window)
            # This file is written last, because a window exists if this file does.
            write_text(file, json.dumps({"rows": rows, "end": asdict(end)}))
            self._reader = number + 1, reader

    def _prefetch(self, number: int) -> None:
        """Write the windows up to `number`; the target of the thread."""
        try:
            while not self._exists(number) and self._is_leading:
                with self._writing:
                    self._write_next()
        except Closed:
            pass
        except (ValueError, OSError, RuntimeError) as error:
            self._log(f"prefetch of text failed, and is repeated when it is needed: {error}")


def _count(arrays: Iterable[NDArray[Any]]) -> int:
    """The number of rows, or of tokens, in all arrays."""
    return sum(map(len, arrays))


def _until(
    stop: threading.Event, pieces: Iterable[tuple[NDArray[np.int64], Cursor]]
) -> Iterator[tuple[NDArray[np.int64], Cursor]]:
    """Yield the pieces; raise `Closed` after `stop`."""
    for piece in pieces:
        if stop.is_set():
            raise Closed
        yield piece


def _end(stop: threading.Event, threads: Sequence[threading.Thread]) -> None:
    """Stop threads and wait for them."""
    stop.set()
    for thread in threads:
        # The thread itself runs this if it drops the last reference to the folder.
        if thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)
