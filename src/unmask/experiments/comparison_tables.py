"""Tables over the report.json files of a plan's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.measure import ENTROPIES, Measure, over_seeds
from unmask.evaluation.sweep import REPORT
from unmask.experiments.plan import Plan, Run

Report = Mapping[str, Any]

HEAD = (
    "cell",
    "steps",
    "gen PPL",
    "entropy",
    *(f"gain at equal {name}" for name in ENTROPIES.values()),
)
METHODS_HEAD = (
    "method",
    "steps",
    "calls",
    "gen PPL",
    "entropy",
    "gen PPL at the unigram entropy of real text",
)
NOT_REACHED = "not reached"


def reports_of(plan: Plan, directory: Path) -> dict[Run, Report]:
    """The reports of the runs that are measured."""
    files = {run: plan.place(run, directory) / REPORT for run in plan.runs}
    return {run: _report(file) for run, file in files.items() if file.exists()}


def _report(file: Path) -> Report:
    try:
        report: Report = read_json(file, LARGEST_REPORT)
    except ValueError as error:
        raise ValueError(f"{error}. Move it away to measure again") from error
    return report


def summary(reports: Mapping[Run, Report]) -> list[list[str]]:
    """A line for each run and step count: gen PPL and entropy at temperature 1, and the gains.

    A gain compares at equal steps and equal diversity. It is the gen PPL of the teacher, at the
    temperature that gives this diversity, over the gen PPL of the student. Its 95 % interval is
    over samples.
    """
    table = []
    for run, report in reports.items():
        for row in report["student"]:
            gains = [_gain(gain) for gain in _gains(report, row["steps"])]
            figures = [f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}"]
            table.append([str(run), str(row["steps"]), *figures, *gains])
    return table


def means(name: str, reports: Sequence[Report]) -> list[list[str]]:
    """The lines of `summary` over training seeds of one cell: mean ± standard error over seeds."""
    table = []
    for rows in zip(*(report["student"] for report in reports), strict=True):
        steps = rows[0]["steps"]
        columns: list[list[float]] = [[row[key] for row in rows] for key in ("gen_ppl", "entropy")]
        gains = zip(*(_gains(report, steps) for report in reports), strict=True)
        columns += [[gain["value"] for gain in column if gain is not None] for column in gains]
        table.append([name, str(steps), *(_mean(column, len(reports)) for column in columns)])
    return table


def means_by_cell(plan: Plan, reports: Mapping[Run, Report]) -> list[list[str]]:
    """The lines of `means` for every cell; the name has the number of seeds if some miss."""
    table = []
    for cell in plan.cells:
        of_cell = [report for run, report in reports.items() if run.cell == cell]
        name = cell if len(of_cell) == plan.seeds else f"{cell} ({len(of_cell)} seed)"
        table += means(name, of_cell) if of_cell else []
    return table


def methods_table(reports: Mapping[Run, Report]) -> list[list[str]]:
    """A line for each run and step count; those of a teacher before its first student.

    The last column compares methods with different teachers by their temperature. It is empty
    unless both teacher and student were drawn in these steps.
    """
    table: list[list[str]] = []
    seen: set[str] = set()
    for run, report in reports.items():
        teachers = {row["setting"]["model"] for row in report["teacher"]}
        if not seen & teachers:
            table += _method_lines(f"teacher of {run.cell}", report, "teacher")
        seen |= teachers
        table += _method_lines(str(run), report, "student")
    return table


def _method_lines(name: str, report: Report, role: str) -> list[list[str]]:
    entries = [entry for entry in report["answers"]["equal_entropy"] if entry["at"] == "data"]
    equal = {entry["steps"]: entry[role] for entry in entries if entry["column"] == "entropy"}
    lines = []
    for row in report[role]:
        figures = [f"{row['nfe']:.1f}", f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}"]
        last = _gen_ppl(equal[row["steps"]]) if row["steps"] in equal else ""
        lines.append([name, str(row["steps"]), *figures, last])
    return lines


def _gen_ppl(point: Mapping[str, Any] | None) -> str:
    return NOT_REACHED if point is None else f"{point['gen_ppl']['value']:.1f}"


def _mean(values: Sequence[float], seeds: int) -> str:
    if len(values) < seeds:
        return NOT_REACHED
    mean = over_seeds([Measure(value, "", 1) for value in values])
    return f"{mean.value:.4g}" + ("" if mean.sem is None else f" ± {mean.sem:.2g}")


def _gains(report: Report, steps: int) -> list[Mapping[str, Any] | None]:
    """The gains at the teacher's diversity, one for each measure of diversity."""
    entries = report["answers"]["equal_entropy"]
    at = entries[0]["at"] if entries else None
    return [entry["gain"] for entry in entries if entry["at"] == at and entry["steps"] == steps]


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return NOT_REACHED
    interval = "?" if gain["low"] is None else f"{gain['low']:.2f}, {gain['high']:.2f}"
    return f"{gain['value']:.2f} [{interval}]"
