"""`unmask report`: the page of a report.json, written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.cli.console import parse, say


@dataclass(frozen=True)
class Arguments:
    """Write report.html and its figures beside the report.json of a run.

    run  a directory of `unmask demo`, `eval frontier` or `reproduce study`, or its report.json
    """

    run: Annotated[Path, tyro.conf.Positional]


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    file = asked.run / "report.json" if asked.run.is_dir() else asked.run
    if not file.exists():
        raise ValueError(f"{asked.run} has no report.json: `unmask demo` and `unmask eval frontier` write one")
    try:
        data = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    from unmask.report.page import write_report

    say(str(write_report(data, file.parent)))
    return 0
