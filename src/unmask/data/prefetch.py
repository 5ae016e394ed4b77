"""Rows of a text that is read while it is trained on, in windows that are kept as they come.

A window is an Arrow file of W rows and, beside it, the cursor behind it. So a window is read where it is there and else
written by going on from the one before it, by whichever process holds the lock; a text is read no further than its
windows go.
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

WINDOW_TOKENS = 2**24  # tokens of a window
AHEAD = 2  # windows beyond the one that is asked for
POLL, PATIENCE = 0.05, 10.0  # seconds between two looks for a window; and for a thread to end


@dataclass(frozen=True)
class Cursor:
    """A place in a stream of tokens: `tokens` beyond the end of the first `documents`, where the reader had `state`."""

    documents: int = 0
    state: Any = None
    tokens: int = 0


def pieces(
    stream: Stream, encode: Callable[[Any], Sequence[Ids]], eos_id: int | None, start: Cursor
) -> Iterator[tuple[Cursor, NDArray[np.int64]]]:
    """The stream of tokens from a place on, EOS between documents, in pieces: each with the place where it begins."""
    for number, state, some in stream.read(start.documents, start.state):
        lists = [*encode(some)]
        if number > stream.chosen.start and lists:  # there was a document before these
            lists.insert(0, [])
        joined = np.concatenate([np.empty(0, dtype=np.int64), *join_documents(lists, eos_id)])
        behind = start.tokens if number == start.documents else 0
        yield Cursor(number, state, behind), joined[behind:]


class WindowReader:
    """Rows as they are made of pieces, and the cursor behind those that were taken."""

    def __init__(
        self,
        pieces: Iterable[tuple[Cursor, NDArray[np.int64]]],
        rows: Callable[[Iterable[NDArray[np.int64]]], Iterator[NDArray[np.int64]]],
        body: int,
    ) -> None:
        """`rows` makes rows of pieces, each of which takes `body` tokens of them."""
        self.taken = 0  # rows
        self._body = body
        self._read = 0  # tokens
        self._begun: deque[tuple[int, Cursor]] = deque()
        self._blocks = rows(self._tokens(pieces))
        self._left = np.empty((0, 0), dtype=np.int64)

    def take(self, n: int) -> Iterator[NDArray[np.int64]]:
        """The next n rows, in blocks; fewer where the text ends."""
        end = self.taken + n
        while self.taken < end:
            some = self._left if len(self._left) else next(self._blocks, self._left)
            if not len(some):
                return
            now, self._left = np.split(some, [end - self.taken])
            yield now
            self.taken += len(now)

    @property
    def cursor(self) -> Cursor:
        """Behind the last row that was taken."""
        end = self.taken * self._body
        while len(self._begun) > 1 and self._begun[1][0] <= end:
            self._begun.popleft()
        begun, cursor = self._begun[0]
        return replace(cursor, tokens=cursor.tokens + end - begun)

    def _tokens(
        self, pieces: Iterable[tuple[Cursor, NDArray[np.int64]]]
    ) -> Iterator[NDArray[np.int64]]:
        for cursor, tokens in pieces:
            self._begun.append((self._read, cursor))
            self._read += len(tokens)
            yield tokens


@dataclass(frozen=True)
class RowWindow:
    """Rows that are on disk, fewer than W at the end of the text, and the cursor behind them."""

    blocks: Sequence[NDArray[Any]]
    rows: int
    end: Cursor


class Stopped(Exception):
    """Nobody asks for more."""


class Folder:
    """The windows of a text, in a folder: read where they are there, else written.

    Who has the text open also writes ahead, in a thread that ends with its windows; others write what they need and is
    not there. What goes wrong in the thread goes wrong again, and is told, where the window is needed.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        reading: Callable[[Cursor], WindowReader],
        write: Callable[[Path, Iterable[NDArray[np.int64]]], None],
        say: Log,
    ) -> None:
        self._folder, self._size, self._reading, self._write, self._say = (
            folder,
            size,
            reading,
            write,
            say,
        )
        self._known: list[RowWindow] = []
        self._rows = StoredRows([], range(0))
        self._look = threading.Lock()  # of adding to what is known
        self._turn = (
            threading.Lock()
        )  # of writing: that is done by one process, and by one thread of it
        self._live: tuple[int, WindowReader] | None = (
            None  # what is open, and the window that comes next
        )
        self._running: list[tuple[threading.Thread, threading.Event]] = []
        weakref.finalize(self, _end, self._running)  # at the latest when the interpreter ends

    def at_least(self, n: int) -> StoredRows:
        """The rows of the first whole windows, at least n; all of them where the text ends before."""
        number = (n - 1) // self._size
        told = None
        while not self._there(number):
            if told != len(self._known):
                told = len(self._known)
                self._say(f"reading text beyond row {told * self._size:,}")
            if self._turn.acquire(timeout=POLL):
                try:
                    self._make_next(lambda: False)
                finally:
                    self._turn.release()
        known = self._known[:]
        total = sum(window.rows for window in known)
        if not total:
            raise ValueError(
                "the text that is streamed does not fill one row: give more text or a smaller length; or leave "
                f"data.streaming out, since of a text without a split to hold out the first {HEAD_SIZE:,} characters, "
                "or token ids, are held out"
            )
        if len(self._rows) != total:
            self._rows = StoredRows(
                [block for window in known for block in window.blocks], range(total)
            )
        idle = not any(thread.is_alive() for thread, _ in self._running)
        if idle and self._leads and not self._there(number + AHEAD):
            stop = threading.Event()
            thread = threading.Thread(
                target=self._make_ahead, args=(number + AHEAD, stop.is_set), daemon=True
            )
            self._running[:] = [(thread, stop)]
            thread.start()
        return self._rows

    def close(self) -> None:
        """End what is written ahead; a window that is not whole is given up."""
        _end(self._running)

    @property
    def _leads(self) -> bool:
        """Whether this process has the text open where the next window begins."""
        live = self._live  # another thread may close it meanwhile
        return live is not None and live[0] == len(self._known)

    @property
    def _ended(self) -> bool:
        return bool(self._known) and self._known[-1].rows < self._size

    def _file(self, number: int, form: str) -> Path:
        return self._folder / f"{number:06}.{form}"

    def _there(self, number: int) -> bool:
        """Whether a window is there, or the text ends before it."""
        with self._look:
            while not self._ended and self._file(behind := len(self._known), "json").exists():
                told = json.loads(self._file(behind, "json").read_text("utf-8"))
                blocks = open_rows(self._file(behind, "arrow")).blocks if told["rows"] else []
                self._known.append(RowWindow(blocks, told["rows"], Cursor(**told["end"])))
        return number < len(self._known) or self._ended

    def _make_next(self, stop: Callable[[], bool]) -> None:
        """Write the window behind those that are known, unless somebody else has done so."""
        behind = len(self._known)
        with file_lock(self._folder / "windows", self._say):
            if self._there(behind):
                return
            live = self._live if self._leads else None
            reading = (
                live[1] if live else self._reading(self._known[-1].end if behind else Cursor())
            )
            self._live, before = None, reading.taken
            self._write(self._file(behind, "arrow"), _until(stop, reading.take(self._size)))
            rows = reading.taken - before
            told = {"rows": rows, "end": asdict(reading.cursor if rows == self._size else Cursor())}
            write_text(
                self._file(behind, "json"), json.dumps(told)
            )  # last: with it the window is there
            self._live = behind + 1, reading

    def _make_ahead(self, number: int, stop: Callable[[], bool]) -> None:
        try:
            while not self._there(number) and self._leads:
                with self._turn:
                    self._make_next(stop)
        except Stopped:
            pass
        except (ValueError, OSError, RuntimeError) as error:
            self._say(f"text was not read ahead, and is read again where it is needed: {error}")


def stream_rows(
    stream: Stream,
    encode: Callable[[Any], Sequence[Ids]],
    folder: Path,
    vocab_size: int,
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    say: Log = no_log,
) -> StreamedRows:
    """The rows of `row_blocks` from the documents of a stream, in windows of about `WINDOW_TOKENS` tokens in a folder."""

    def reading(start: Cursor) -> WindowReader:
        cut = partial(cut_rows, length=length, eos_id=eos_id, wrap=wrap, bos_id=bos_id)
        return WindowReader(
            pieces(stream, encode, eos_id, start), cut, length - 2 if wrap else length
        )

    size = max(1, WINDOW_TOKENS // length)
    found = Folder(
        folder, size, reading, partial(write_rows, length=length, vocab_size=vocab_size), say
    )
    return StreamedRows(size, found.at_least, found.close)


def _until(
    stop: Callable[[], bool], blocks: Iterator[NDArray[np.int64]]
) -> Iterator[NDArray[np.int64]]:
    for block in blocks:
        if stop():
            raise Stopped
        yield block


def _end(running: list[tuple[threading.Thread, threading.Event]]) -> None:
    for _, stop in running:
        stop.set()
    for thread, _ in running:
        if thread is not threading.current_thread():  # which lets go of what nobody else holds
            thread.join(PATIENCE)
