"""Students of one teacher side by side: one experiment a cell, the teacher measured once, a table of them all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.measure import ENTROPIES, Measure, over_seeds
from unmask.evaluation.sweep import REPORT, EvalSettings, MeasuredRow
from unmask.experiments.experiment import ROWS, Experiment, experiment, teacher_rows
from unmask.recipes.schema import Recipe
from unmask.training import TrainingError

FAILURE = "failure.json"
HEAD = (
    "cell",
    "steps",
    "gen PPL",
    "entropy",
    *(f"gain at equal {name}" for name in ENTROPIES.values()),
)


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    title          of each report, before the name of the cell
    teacher, judge directories or names of models
    cells          name -> the recipe of a distillation
    known          rows of the teacher that were measured before
    """

    title: str
    teacher: str
    judge: str
    cells: Mapping[str, Recipe]
    study: EvalSettings
    known: Sequence[MeasuredRow] = ()


def folder(cell: str) -> str:
    """The directory of a cell."""
    return cell.replace(",", "").replace(" ", "-")


def compare(
    plan: Comparison, directory: Path, only: Sequence[str] | None = None
) -> Iterator[Progress]:
    """Distil and measure all cells, or `only` some (none: the teacher's rows): `directory`/CELL holds each report.

    What is there already is not done again. A training that its guard stops is a result: CELL/failure.json says why,
    and the next cell begins. A signal ends them all.
    """
    cells = list(plan.cells) if only is None else only
    if unknown := sorted({*cells} - {*plan.cells}):
        raise ValueError(
            f"the cells are {', '.join(plan.cells)}: there is none called {', '.join(unknown)}"
        )
    known: list[MeasuredRow] = []
    anyone = next(iter(plan.cells.values()))
    rows = teacher_rows(plan.teacher, plan.judge, anyone, plan.study, directory / ROWS, plan.known)
    for progress, measured in rows:
        known.append(measured)
        yield progress
    for name in cells:
        place = directory / folder(name)
        if (place / FAILURE).exists():
            yield Progress(f"{name}, failed before", 1, 1, f"{name}: {failure(place)}")
            continue
        cell = Experiment(
            f"{plan.title}: {name}",
            plan.cells[name],
            plan.teacher,
            plan.judge,
            plan.study,
            known=known,
        )
        report = None
        try:
            for event in experiment(cell, place):
                report = event.report
                yield replace(
                    event,
                    stage=f"{name}, {event.stage}",
                    line=event.line and f"{name}: {event.line}",
                )
        except TrainingError as error:
            fail(place, error)
            yield Progress(f"{name}, failed", 1, 1, f"{name}: {error}")
            continue
        if report is None:
            return  # stopped by a signal
    yield Progress("all cells", 1, 1, report={})


def fail(place: Path, error: TrainingError) -> None:
    """Write down that the guard of a training stopped it, and why."""
    write_text(place / FAILURE, json.dumps({"message": str(error)}) + "\n")


def failure(place: Path) -> str | None:
    """Why the training of a cell was stopped by its guard; None where it was not."""
    file = place / FAILURE
    return read_json(file)["message"] if file.exists() else None


def reports_of(names: Sequence[str], directory: Path) -> dict[str, dict[str, Any]]:
    """The reports of the cells that are measured."""
    files = {name: directory / folder(name) / REPORT for name in names}
    return {name: _report(file) for name, file in files.items() if file.exists()}


def _report(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(file, LARGEST_REPORT)
    except ValueError as error:
        raise ValueError(f"{error}. Move it away to measure again") from error
    return found


def summary(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line for each cell and step count: gen PPL and entropy at temperature 1, and three gains at equal diversity.

    A gain is gen PPL of the teacher, its temperature scaled to the same diversity, over that of the student, at equal
    steps, with a 95 % interval over samples.
    """
    return [
        [cell, str(row["steps"]), f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}",
         *map(_gain, _gains(report, row["steps"]))]
        for cell, report in reports.items()
        for row in report["student"]
    ]  # fmt: skip


def means(name: str, reports: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The lines of `summary` over training seeds of one cell: means, ± standard errors over seeds."""
    table = []
    for rows in zip(*(report["student"] for report in reports), strict=True):
        columns: list[list[float]] = [[row[key] for row in rows] for key in ("gen_ppl", "entropy")]
        gains = zip(*(_gains(report, rows[0]["steps"]) for report in reports), strict=True)
        columns += [[gain["value"] for gain in column if gain is not None] for column in gains]
        table.append(
            [name, str(rows[0]["steps"]), *(_mean(column, len(reports)) for column in columns)]
        )
    return table


def _mean(values: Sequence[float], seeds: int) -> str:
    if len(values) < seeds:
        return "not reached"
    found = over_seeds([Measure(value, "", 1) for value in values])
    return f"{found.value:.4g}" + ("" if found.sem is None else f" ± {found.sem:.2g}")


def _gains(report: Mapping[str, Any], steps: int) -> list[Mapping[str, Any] | None]:
    """The gains at the teacher's diversity, a column each."""
    entries = report["answers"]["equal_entropy"]
    return [
        entry["gain"]
        for entry in entries
        if entry["at"] == entries[0]["at"] and entry["steps"] == steps
    ]


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "not reached"
    return f"{gain['value']:.2f} " + (
        "[?]" if gain["low"] is None else f"[{gain['low']:.2f}, {gain['high']:.2f}]"
    )
