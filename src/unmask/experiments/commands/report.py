"""`unmask report`: write the page of a report.json, or the figure of a bench.json, again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.console import parse, say
from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.sweep import REPORT
from unmask.experiments.bench.bench_results import BENCH, Bench
from unmask.experiments.report.bench_figure import write_figure
from unmask.experiments.report.page import write_report


@dataclass(frozen=True)
class Arguments:
    """Write report.html and its figures beside a report.json, or the figure beside a bench.json.

    Attributes:
        run: a directory of `unmask demo`, `eval frontier`, `reproduce study` or `bench`, or its
            report.json or bench.json
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def main(verb: str, arguments: Sequence[str]) -> int:
    run = parse(Arguments, verb, arguments).run
    candidates = (run / REPORT, run / BENCH) if run.is_dir() else (run,)
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"run has neither {REPORT} nor {BENCH}: got {run}. `unmask demo` and "
            f"`unmask eval frontier` write {REPORT}, `unmask bench` writes {BENCH}"
        )
    if file.name == BENCH:
        for written in write_figure(Bench.read(file), file.parent):
            say(str(written))
        return 0
    data = read_json(file, LARGEST_REPORT)
    say(str(write_report(data, file.parent)))
    return 0
