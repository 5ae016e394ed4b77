"""The standard streams: text leaves as it is, a terminal gets no control characters, and a lost stream ends quietly."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

OUTPUT = "the output"  # as the file of an OSError: its reader went away, or its disk is full
# C0 but newline and tab, DEL, C1, and what turns the direction of writing: a terminal would obey them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Text with its control characters written out, newline and tab excepted.

    >>> print(visible("red: \x1b[31m"))
    red: \x1b[31m
    """
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    r"""`visible`, newline and tab too: for the cell of a table, the name of a bar.

    >>> print(one_line("a\tb"))
    a\tb
    """
    return re.sub("[\t\n]", _escape, visible(text))


def put(stream: TextIO, text: str, flush: bool = False) -> None:
    """Write a line: into a file or a pipe character by character, onto a terminal with control characters visible."""
    with written(stream):
        stream.write((visible(text) if stream.isatty() else text) + "\n")
        if flush:
            stream.flush()


def remark(line: str) -> None:
    """A line on the error stream; where that stream is lost, the work goes on without the line."""
    try:
        put(sys.stderr, line)
    except OSError:
        drop(sys.stderr)


@contextmanager
def written(stream: TextIO) -> Iterator[None]:
    """Inside, text is written to a stream: its OSError bears the name OUTPUT, and the stream is dropped."""
    try:
        yield
    except OSError as error:
        drop(stream)
        error.filename = OUTPUT
        raise


def open_streams() -> None:
    """Give the process its three standard streams, and let the two for output take any text.

    A closed stream becomes the null device. Otherwise the next file that is opened would take the number of the stream,
    and get its text. A character that the stream's encoding lacks is written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest free number is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop(stream: TextIO) -> None:
    """Send a stream to the null device, so that neither the work nor the end of the process fails at it again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
