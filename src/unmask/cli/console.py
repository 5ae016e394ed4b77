"""Output of all verbs: lines, tables, progress bars on a terminal, JSON for machines."""

from __future__ import annotations

import codecs
import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from unmask.cli import streams
from unmask.cli.streams import one_line, visible, written
from unmask.dataclass_json import dumps, not_finite

if TYPE_CHECKING:
    # Not at run time: the import of rich advances the global random number generator.
    from rich.console import Console

T = TypeVar("T")
LOG_WIDTH = 160  # columns of a table in a file or a pipe
Advance = Callable[[str, int, int], None]  # stage, done, total


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Parse arguments into a dataclass; exits with code 2 on wrong use.

    Args:
        kind: the dataclass; its docstring is the help text.
        verb: the words after `unmask`, for the usage line.
        arguments: the words after the verb.
        default: defaults of the flags; None: those of the dataclass.
    """
    if flag := empty_flag(kind, arguments):
        streams.remark(
            f"unmask {verb}: {flag} is empty: got '', want a value; leave it out for its default"
        )
        raise SystemExit(2)
    call = partial(
        tyro.cli,
        kind,
        prog=f"unmask {verb}",
        args=list(arguments),
        config=(tyro.conf.AvoidSubcommands,),
    )
    with written(sys.stdout):  # --help
        try:
            options: T = call() if default is None else call(default=default)
        finally:
            sys.stdout.flush()
    return options


def empty_flag(kind: type, arguments: Sequence[str]) -> str | None:
    """Find the flag of the first empty argument; None if there is none.

    An empty argument is usually an unset variable of a shell script. As a path it would mean the
    working directory. Only a field whose default is empty accepts it.
    """
    free = {
        f.name for part in dataclasses_of(kind) for f in dataclasses.fields(part) if f.default == ""
    }
    flag = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        flag = name if word.startswith("--") else flag
        empty = not word or (word.startswith("--") and equals and not value)
        if empty and flag.rpartition(".")[2].lstrip("-").replace("-", "_") not in free:
            return flag or "an argument"
    return None


def dataclasses_of(kind: object) -> Iterator[type]:
    """Yield the dataclasses of a type: itself, those of its fields, those of a union."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind, include_extras=False).values():
            yield from dataclasses_of(hint)
    for argument in typing.get_args(kind):
        yield from dataclasses_of(argument)


def is_main_process() -> bool:
    """True if this process prints results. Other processes of `torchrun` print only errors."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str, flush: bool = False) -> None:
    """Print a line of the result. `flush` writes it at once, if the next line takes time."""
    if is_main_process():
        streams.put(sys.stdout, line, flush)


def remark(line: str) -> None:
    """Print a line about the work to stderr."""
    if is_main_process():
        streams.remark(line)


def show_usage(verb: str, usage: str, arguments: Sequence[str]) -> int:
    """Print the usage of a verb and return the exit code: 0 on --help, else 2, on stderr."""
    if arguments and arguments[0] in ("-h", "--help"):
        say(usage)
        return 0
    remark(usage)
    if arguments:
        remark(
            f"unmask {verb}: the first argument is wrong: got {arguments[0]!r}, want one of the "
            "usage above"
        )
    return 2


def console(stderr: bool = False) -> Console:
    """A console for tables and bars, without markup, emoji or highlighting."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        soft_wrap=not terminal,
        width=None if terminal else LOG_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )


def emit(value: Any, indent: int | None = 2) -> None:
    """Print a JSON value, on one line if `indent` is None.

    A number that is not finite becomes null, and a line on stderr names it.
    """
    if is_main_process():
        ascii_only = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
        streams.put(sys.stdout, dumps(value, indent, ascii_only), flush=True)
    if places := not_finite(value):
        remark(f"not finite, written as null: {', '.join(places)}")


def result_folder(out: Path) -> Path:
    """Create the directory of a result and test it; ValueError if no file can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(
            f"out is not writable: got {str(out)!r} ({error.strerror}), want a writable directory"
        ) from error


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; if the terminal is too narrow, print a line for each row."""
    from rich.table import Table

    grid, screen = Table(title=one_line(title), title_justify="left"), console()
    heads = list(map(one_line, columns))
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else one_line(str(cell)) for cell in row]
        for row in rows
    ]
    min_width = 1
    for i, head in enumerate(heads):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        grid.add_column(
            head, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
        texts = [head, *(row[i] for row in cells)]
        words = [word for text in texts for word in ([text] if numeric else text.split() or [""])]
        min_width += 3 + max(map(len, words))
    if min_width > screen.width:
        say(one_line(title))
        for row in cells:
            pairs = [(head, cell) for head, cell in zip(heads, row, strict=True) if cell]
            say("; ".join(f"{head}: {cell}" if head else cell for head, cell in pairs))
        return
    for row in cells:
        grid.add_row(*row)
    if is_main_process():
        with written(sys.stdout):
            screen.print(grid)


@contextmanager
def progress() -> Iterator[tuple[Advance, Callable[[str], None]]]:
    """Show progress on stderr; yields the functions (advance, note).

    On a terminal each stage has a bar with the remaining time. Other streams get a line for each
    tenth of a stage. Results go to stdout by `say`, `table` and `emit`.
    """
    if sys.stderr.isatty() and is_main_process():
        from rich import progress as bars

        bar = bars.Progress(
            bars.TextColumn("{task.description:<20}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=console(stderr=True),
            # Only if stdout is a terminal too: lines for a file or a pipe must not go to the bar.
            redirect_stdout=sys.stdout.isatty(),
        )
        with bar:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(one_line(stage), total=total)
                bar.update(tasks[stage], completed=done, total=total)

            yield advance, lambda line: bar.console.print(visible(line))
        return

    tenths: dict[str, int] = {}

    def advance_line(stage: str, done: int, total: int) -> None:
        if done and done * 10 // total > tenths.get(stage, 0):
            tenths[stage] = done * 10 // total
            remark(f"{stage}: {done}/{total}")

    yield advance_line, remark


@dataclass(frozen=True)
class Progress:
    """An event of a long job: the progress of a stage, and perhaps a line to print.

    Attributes:
        stage: name of the stage
        done: number of completed parts of the stage
        total: number of all parts
        line: a line to print; None: no line
    """

    stage: str
    done: int
    total: int
    line: str | None = None


def follow(job: Generator[Progress, None, T]) -> T:
    """Show the progress of a job on stderr, and return what its generator returns."""
    with progress() as (advance, note):
        while True:
            try:
                event = next(job)
            except StopIteration as end:
                result: T = end.value
                return result
            advance(event.stage, event.done, event.total)
            if event.line is not None:
                note(event.line)
