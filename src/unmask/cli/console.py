"""What all verbs print with: lines, tables, a progress bar where there is a terminal, JSON for machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from unmask.cli.flags import explain
from unmask.plain import dumps, not_finite

if TYPE_CHECKING:
    from rich.console import Console  # rich draws from the global random numbers when it is imported: not at the top

    from unmask.recipes.experiment import Progress

T = TypeVar("T")
LOG_WIDTH = 160  # columns of a table in a file or a pipe
Advance = Callable[[str, int, int], None]  # stage, done, total


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Arguments to a dataclass, with its docstring as help; exits with code 2 on wrong use."""
    explain(kind)
    ask = partial(tyro.cli, kind, prog=f"unmask {verb}", args=list(arguments), config=(tyro.conf.AvoidSubcommands,))
    answer: T = ask() if default is None else ask(default=default)
    return answer


def speaks() -> bool:
    """False on all processes of a `torchrun` but the first: they have nothing of their own to say, errors excepted."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for people."""
    if speaks():
        console().print(line, markup=False, highlight=False)


def remark(line: str) -> None:
    """A line about the work, not its result."""
    if speaks():
        console(stderr=True).print(line, markup=False, highlight=False)


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, soft_wrap=not terminal, width=None if terminal else LOG_WIDTH)


def emit(value: Any) -> None:
    """A JSON value for machines; a number that is not finite is null, with a remark."""
    _write(value, indent=2)


def emit_line(value: Any) -> None:
    """A JSON value on a line of its own; see `emit`."""
    _write(value)


def _write(value: Any, indent: int | None = None) -> None:
    if speaks():
        sys.stdout.write(dumps(value, indent) + "\n")
        sys.stdout.flush()
    if places := not_finite(value):
        remark(f"not finite, written as null: {', '.join(places)}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; figures stand on the right."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        grid.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    if speaks():
        console().print(grid)


@contextmanager
def progress() -> Iterator[tuple[Advance, Callable[[str], None]]]:
    """(advance, say), on the error stream: a bar with the time left on a terminal, a line a tenth of a stage elsewhere.

    What a verb was asked for goes to the standard output, by `say`, `table` and `emit`.
    """
    if sys.stderr.isatty() and speaks():
        from rich import progress as bars

        columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
        with bars.Progress(bars.TextColumn("{task.description:<20}"), *columns, console=console(stderr=True)) as bar:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done, total=total)

            yield advance, lambda line: bar.console.print(line, markup=False, highlight=False)
        return

    tenths: dict[str, int] = {}

    def plain(stage: str, done: int, total: int) -> None:
        if done and done * 10 // total > tenths.get(stage, 0):
            tenths[stage] = done * 10 // total
            remark(f"{stage}: {done}/{total}")

    yield plain, remark


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
