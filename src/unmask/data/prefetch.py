"""Rows of a streamed text: written in windows as training needs them, with a prefetch thread.

A window is an Arrow file of W rows and a JSON file with the cursor after it. So a window is read if
it exists, else written from the cursor of the one before, by the process that holds the lock.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import deque
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
POLL_SECONDS, JOIN_SECONDS = 0.05, 10.0  # between checks for a window; for the thread's end


@dataclass(frozen=True)
class Cursor:
    """A place in a stream of tokens: `tokens` after the end of the first `documents`.

    documents  number of documents that were read before
    state      of the reader at that place
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
    """The rows of `packing.row_blocks` from the documents of a stream, in windows in a folder.

    Args:
        stream: the documents.
        encode: gives the token ids of some documents.
        folder: of the windows; processes may share it.
        vocab_size: V.
        length: L; a window has about `WINDOW_TOKENS` tokens.
        eos_id: as in `packing.pack`, like `wrap` and `bos_id`.
        wrap: put BOS and EOS at the ends of each row.
        bos_id: BOS; None uses EOS.
        log: receives lines about slow operations.
    """

    def open_reader(start: Cursor) -> RowReader:
        cut = partial(cut_rows, length=length, eos_id=eos_id, wrap=wrap, bos_id=bos_id)
        body = length - 2 if wrap else length
        return RowReader(read_pieces(stream, encode, eos_id, start), cut, body)

    size = max(1, WINDOW_TOKENS // length)
    write = partial(write_rows, length=length, vocab_size=vocab_size)
    windows = WindowFolder(folder, size, open_reader, write, log)
    return StreamedRows(size, windows.at_least, windows.close)


def read_pieces(
    stream: Stream, encode: Callable[[Any], Sequence[Ids]], eos_id: int | None, start: Cursor
) -> Iterator[tuple[Cursor, NDArray[np.int64]]]:
    """The stream of tokens from `start` on, EOS between documents: pieces with their cursors."""
    for number, state, documents in stream.read(start.documents, start.state):
        token_lists = [*encode(documents)]
        if number > stream.chosen.start and token_lists:
            token_lists.insert(0, [])  # EOS separates these documents from those before
        joined = np.concatenate([np.empty(0, np.int64), *join_documents(token_lists, eos_id)])
        skipped = start.tokens if number == start.documents else 0
        yield Cursor(number, state, skipped), joined[skipped:]


class RowReader:
    """Rows that are cut from pieces of a stream, and the cursor after the rows that were taken."""

    def __init__(
        self,
        pieces: Iterable[tuple[Cursor, NDArray[np.int64]]],
        cut: Callable[[Iterable[NDArray[np.int64]]], Iterator[NDArray[np.int64]]],
        body: int,
    ) -> None:
        """`cut` makes rows of tokens, and each row takes `body` of them."""
        self.taken = 0  # rows
        self._body = body
        self._read = 0  # tokens
        self._starts: deque[tuple[int, Cursor]] = deque()  # number of its first token, piece
        self._blocks = cut(self._tokens(pieces))
        self._left = np.empty((0, 0), dtype=np.int64)

    def take(self, n: int) -> Iterator[NDArray[np.int64]]:
        """The next n rows, in blocks; fewer if the text ends."""
        end = self.taken + n
        while self.taken < end:
            block = self._left if len(self._left) else next(self._blocks, self._left)
            if not len(block):
                return
            taken, self._left = np.split(block, [end - self.taken])
            yield taken
            self.taken += len(taken)

    @property
    def cursor(self) -> Cursor:
        """The place after the last row that was taken."""
        end = self.taken * self._body
        while len(self._starts) > 1 and self._starts[1][0] <= end:
            self._starts.popleft()
        start, cursor = self._starts[0]
        return replace(cursor, tokens=cursor.tokens + end - start)

    def _tokens(
        self, pieces: Iterable[tuple[Cursor, NDArray[np.int64]]]
    ) -> Iterator[NDArray[np.int64]]:
        for cursor, tokens in pieces:
            self._starts.append((self._read, cursor))
            self._read += len(tokens)
            yield tokens


class Closed(Exception):
    """Raised in the prefetch thread when the rows were closed."""


class WindowFolder:
    """The windows of a text in a folder: read if they exist, else written.

    The process that has a reader open also prefetches, in a thread that ends with the rows. Other
    processes write a window only when they need it and it does not exist. An error in the thread is
    logged, and raised again when the window is needed.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        open_reader: Callable[[Cursor], RowReader],
        write: Callable[[Path, Iterable[NDArray[np.int64]]], None],
        log: Log,
    ) -> None:
        self._folder, self._size, self._log = folder, size, log
        self._open_reader, self._write = open_reader, write
        # The windows that exist: their arrays, their numbers of rows, the cursor after the last.
        self._blocks: list[NDArray[Any]] = []
        self._counts: list[int] = []
        self._end = Cursor()
        self._rows = StoredRows([], range(0))
        self._scanning = threading.Lock()  # of the folder for new windows
        self._writing = threading.Lock()  # of a window, in one thread of this process
        self._reader: tuple[int, RowReader] | None = None  # with the number of its next window
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        weakref.finalize(self, _end, self._threads)  # at the latest when the interpreter exits

    def at_least(self, n: int) -> StoredRows:
        """The rows of the first whole windows, at least n; all rows if the text has fewer."""
        number, logged = (n - 1) // self._size, -1
        while not self._exists(number):
            if logged != len(self._counts):
                logged = len(self._counts)
                self._log(f"reading text beyond row {logged * self._size:,}")
            if self._writing.acquire(timeout=POLL_SECONDS):  # the thread may hold it for long
                try:
                    self._write_next(lambda: False)
                finally:
                    self._writing.release()
        with self._scanning:
            blocks, total = self._blocks[:], sum(self._counts)
        if not total:
            raise ValueError(
                "data.streaming: the text does not fill one row. Give more text or a smaller "
                "length, or leave data.streaming out: without a held-out split it holds out the "
                f"first {HEAD_SIZE:,} characters or token ids"
            )
        if len(self._rows) != total:
            self._rows = StoredRows(blocks, range(total))
        running = any(thread.is_alive() for thread, _ in self._threads)
        if not running and self._is_leading and not self._exists(number + PREFETCH):
            self._start_thread(number + PREFETCH)
        return self._rows

    def close(self) -> None:
        """End the prefetch; a window that is not complete is dropped."""
        _end(self._threads)

    @property
    def _is_leading(self) -> bool:
        """Whether this process has a reader at the beginning of the next window."""
        reader = self._reader  # the other thread may replace it meanwhile
        return reader is not None and reader[0] == len(self._counts)

    @property
    def _ended(self) -> bool:
        """Whether the text ends in the last window, which then has fewer rows."""
        return bool(self._counts) and self._counts[-1] < self._size

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.json"

    def _exists(self, number: int) -> bool:
        """Whether a window exists, or the text ends before it; first look for new windows."""
        with self._scanning:
            while not self._ended and (file := self._file(len(self._counts))).exists():
                entry = json.loads(file.read_text("utf-8"))
                if entry["rows"]:
                    self._blocks += open_rows(file.with_suffix(".arrow")).blocks
                self._end = Cursor(**entry["end"])
                self._counts.append(entry["rows"])
            return self._ended or number < len(self._counts)

    def _write_next(self, stop: Callable[[], bool]) -> None:
        """Write the window after those that exist, unless another process has done so."""
        number = len(self._counts)
        with file_lock(self._folder / "windows", self._log):
            if self._exists(number):
                return
            open_one = self._reader if self._is_leading else None
            reader = open_one[1] if open_one else self._open_reader(self._end)
            self._reader = None  # an error leaves it in the middle of a window
            before = reader.taken
            file = self._file(number)
            self._write(file.with_suffix(".arrow"), _until(stop, reader.take(self._size)))
            rows = reader.taken - before
            end = reader.cursor if rows == self._size else Cursor()
            # Last, because a window exists if this file does.
            write_text(file, json.dumps({"rows": rows, "end": asdict(end)}))
            self._reader = number + 1, reader

    def _start_thread(self, number: int) -> None:
        stop = threading.Event()
        thread = threading.Thread(
            target=self._prefetch, args=(number, stop.is_set), name="unmask-prefetch", daemon=True
        )
        self._threads[:] = [(thread, stop)]
        thread.start()

    def _prefetch(self, number: int, stop: Callable[[], bool]) -> None:
        """Write windows up to `number`, in the thread."""
        try:
            while not self._exists(number) and self._is_leading:
                with self._writing:
                    self._write_next(stop)
        except Closed:
            pass
        except (ValueError, OSError, RuntimeError) as error:
            self._log(f"prefetch of text failed, and is repeated when it is needed: {error}")


def _until(
    stop: Callable[[], bool], blocks: Iterator[NDArray[np.int64]]
) -> Iterator[NDArray[np.int64]]:
    for block in blocks:
        if stop():
            raise Closed
        yield block


def _end(threads: list[tuple[threading.Thread, threading.Event]]) -> None:
    """Stop threads and wait for them."""
    for _, stop in threads:
        stop.set()
    for thread, _ in threads:
        # The thread itself runs this if it drops the last reference to the folder.
        if thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)
