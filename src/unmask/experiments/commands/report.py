"""`unmask report`: the page of a report.json, or the figure of a bench.json, written again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.console import parse, say
from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.sweep import REPORT
from unmask.experiments.bench.throughput import BENCH, Bench


@dataclass(frozen=True)
class Arguments:
    """Write report.html and its figures beside the report.json of a run; the figure of a bench beside its bench.json.

    run  a directory of `unmask demo`, `eval frontier`, `reproduce study` or `bench`, or its report.json or bench.json
    """

    run: Annotated[Path, tyro.conf.Positional]


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    file = asked.run
    if asked.run.is_dir():
        file = next(
            (asked.run / name for name in (REPORT, BENCH) if (asked.run / name).exists()),
            asked.run / REPORT,
        )
    if not file.is_file():
        raise ValueError(
            f"{asked.run} has no {REPORT}: `unmask demo` and `unmask eval frontier` write one; nor a {BENCH}: "
            "`unmask bench` does"
        )
    if file.name == BENCH:
        from unmask.experiments.bench.figure import write_figure

        for written in write_figure(Bench.read(file), file.parent):
            say(str(written))
        return 0
    data = read_json(file, LARGEST_REPORT)
    from unmask.experiments.report.page import write_report

    say(str(write_report(data, file.parent)))
    return 0
