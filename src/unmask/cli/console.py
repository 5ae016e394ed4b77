"""What all verbs print with: lines, tables, a progress bar where there is a terminal, JSON for machines."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from unmask.cli import streams
from unmask.cli.help_text import empty_flag, explain
from unmask.cli.streams import one_line, visible, written
from unmask.dataclass_json import dumps, not_finite

if TYPE_CHECKING:
    from rich.console import (
        Console,
    )  # rich draws from the global random numbers when it is imported: not at the top

T = TypeVar("T")
LOG_WIDTH = 160  # columns of a table in a file or a pipe
Advance = Callable[[str, int, int], None]  # stage, done, total


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Arguments to a dataclass, with its docstring as help; exits with code 2 on wrong use."""
    explain(kind)
    if flag := empty_flag(kind, arguments):
        streams.remark(
            f"unmask {verb}: {flag} is empty: got '', want a value; leave it out for its default"
        )
        raise SystemExit(2)
    ask = partial(
        tyro.cli,
        kind,
        prog=f"unmask {verb}",
        args=list(arguments),
        config=(tyro.conf.AvoidSubcommands,),
    )
    with written(sys.stdout):  # --help
        try:
            answer: T = ask() if default is None else ask(default=default)
        finally:
            sys.stdout.flush()
    return answer


def speaks() -> bool:
    """False on all processes of a `torchrun` but the first: they have nothing of their own to say, errors excepted."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str, flush: bool = False) -> None:
    """A line of the result; `flush` where the next one takes its time."""
    if speaks():
        streams.put(sys.stdout, line, flush)


def remark(line: str) -> None:
    """A line about the work, not its result."""
    if speaks():
        streams.remark(line)


def show_usage(verb: str, usage: str, arguments: Sequence[str]) -> int:
    """The usage of a verb with a second word, and the exit code: 0 on --help, else 2, on the error stream."""
    if arguments and arguments[0] in ("-h", "--help"):
        say(usage)
        return 0
    remark(usage)
    if arguments:
        remark(
            f"unmask {verb}: the first argument is wrong: got {arguments[0]!r}, want one of the usage above"
        )
    return 2


def console(stderr: bool = False) -> Console:
    """For tables and bars: a name in them is no markup, no emoji, no code to colour."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else LOG_WIDTH
    return Console(
        stderr=stderr,
        soft_wrap=not terminal,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
    )


def emit(value: Any) -> None:
    """A JSON value for machines; a number that is not finite is null, with a remark."""
    _write(value, indent=2)


def emit_line(value: Any) -> None:
    """A JSON value on a line of its own; see `emit`."""
    _write(value)


def _write(value: Any, indent: int | None = None) -> None:
    if speaks():
        plain = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
        streams.put(sys.stdout, dumps(value, indent, plain), flush=True)
    if places := not_finite(value):
        remark(f"not finite, written as null: {', '.join(places)}")


def result_folder(out: Path) -> Path:
    """The directory of a result, made and tried before the work; ValueError where no file can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(
            f"out takes no files: got {str(out)!r} ({error.strerror}), want a directory to write in"
        ) from error


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; figures stand on the right. Where the words of a row do not fit side by side, a line for each row."""
    from rich.table import Table

    grid, screen, least = Table(title=one_line(title), title_justify="left"), console(), 1
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else one_line(str(cell)) for cell in row]
        for row in rows
    ]
    for i, column in enumerate(map(one_line, columns)):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
        texts = [column, *(row[i] for row in cells)]
        least += 3 + max(
            len(word) for text in texts for word in ([text] if numeric else text.split() or [""])
        )
    if least > screen.width:
        say(one_line(title))
        for row in cells:
            named = [
                (one_line(column), cell) for column, cell in zip(columns, row, strict=True) if cell
            ]
            say("; ".join(f"{column}: {cell}" if column else cell for column, cell in named))
        return
    for row in cells:
        grid.add_row(*row)
    if speaks():
        with written(sys.stdout):
            screen.print(grid)


@contextmanager
def progress() -> Iterator[tuple[Advance, Callable[[str], None]]]:
    """(advance, say), on the error stream: a bar with the time left on a terminal, a line a tenth of a stage elsewhere.

    What a verb was asked for goes to the standard output, by `say`, `table` and `emit`.
    """
    if sys.stderr.isatty() and speaks():
        from rich import progress as bars

        columns = (
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
        )
        name = bars.TextColumn("{task.description:<20}", markup=False)
        # A bar takes the standard output over where both are one terminal, never a file's or a pipe's.
        both = sys.stdout.isatty()
        with bars.Progress(
            name, *columns, console=console(stderr=True), redirect_stdout=both
        ) as bar:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(one_line(stage), total=total)
                bar.update(tasks[stage], completed=done, total=total)

            yield advance, lambda line: bar.console.print(visible(line))
        return

    tenths: dict[str, int] = {}

    def plain(stage: str, done: int, total: int) -> None:
        if done and done * 10 // total > tenths.get(stage, 0):
            tenths[stage] = done * 10 // total
            remark(f"{stage}: {done}/{total}")

    yield plain, remark


@dataclass(frozen=True)
class Progress:
    """Where it is: `done` of `total` of a stage, a line worth keeping, and at the very end the report."""

    stage: str
    done: int
    total: int
    line: str | None = None
    report: Mapping[str, Any] | None = None


def follow(events: Iterable[Progress]) -> Mapping[str, Any] | None:
    """Show where a long job is, to its end; the report of its last event, None where it was stopped before."""
    report = None
    with progress() as (advance, note):
        for event in events:
            advance(event.stage, event.done, event.total)
            if event.line is not None:
                note(event.line)
            report = event.report
    return report
