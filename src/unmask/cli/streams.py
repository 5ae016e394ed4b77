"""The standard streams: files get text unchanged, terminals get no control characters.

A stream that fails (a full disk, a closed pipe) does not lose the work.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

OUTPUT = "the output"  # file name in an OSError of a standard stream
# C0 except newline and tab, DEL, C1, and the characters that change the writing direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Escape the control characters of a text, except newline and tab.

    >>> print(visible("red: \x1b[31m"))
    red: \x1b[31m
    """
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Escape all control characters, for a cell of a table or the name of a bar.

    >>> print(one_line("a\tb"))
    a\tb
    """
    return re.sub("[\t\n]", _escape, visible(text))


def put(stream: TextIO, text: str, flush: bool = False) -> None:
    """Write a line: unchanged to a file or pipe, with control characters escaped to a terminal."""
    with written(stream):
        stream.write((visible(text) if stream.isatty() else text) + "\n")
        if flush:
            stream.flush()


def remark(line: str) -> None:
    """Write a line to stderr; if that fails, the work continues without it."""
    try:
        put(sys.stderr, line)
    except OSError:
        drop(sys.stderr)


@contextmanager
def written(stream: TextIO) -> Iterator[None]:
    """If the block raises an OSError, give it the file name OUTPUT and drop the stream."""
    try:
        yield
    except OSError as error:
        drop(stream)
        error.filename = OUTPUT
        raise


def open_streams() -> None:
    """Ensure that the process has three standard streams, and that output accepts any text.

    A closed stream becomes the null device. Otherwise the next opened file would get the number of
    the stream, and then its text. A character that the encoding lacks is written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: `number`
            os.set_inheritable(null, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that later writes to it cannot fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
