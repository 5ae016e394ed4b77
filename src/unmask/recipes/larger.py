"""The larger study: rows of 256 tokens, N/16 calls of a student against N of its teacher, one factor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unmask.evaluation.measure import ENTROPIES, Measure, over_seeds
from unmask.recipes.book import recipe
from unmask.recipes.demo import train, trained
from unmask.recipes.experiment import ROWS, Experiment, Progress, experiment, teacher_rows
from unmask.recipes.schema import Consistency, Recipe
from unmask.recipes.study import Measured, Study

STUDY = Study(
    teacher_steps=(8, 16, 32, 64, 256),
    student_steps=(8, 16, 32),
    teacher_temperatures=(0.8, 0.9, 1.1),
    texts=8,
    completions=4,
    round_steps=16,
)


@dataclass(frozen=True)
class Larger:
    """What is trained, distilled and measured."""

    teacher: Recipe = field(default_factory=lambda: recipe("long-teacher"))
    judge: Recipe = field(default_factory=lambda: recipe("long-judge"))
    student: Recipe = field(default_factory=lambda: recipe("long-mcd"))
    study: Study = field(default_factory=lambda: STUDY)


def cells(base: Recipe) -> dict[str, Recipe]:
    """The base recipe of MCD, the same with another seed, and recipes that differ from it in one factor each."""
    objective = base.objective
    if not isinstance(objective, Consistency):
        raise ValueError(f"a study varies a recipe of consistency distillation, {base.name!r} is {objective.kind}")
    rounds = objective.rounds()
    longer = replace(objective, round_steps=2 * objective.round_steps)
    return {
        "mcd": base,
        "seed 2": replace(base, seed=base.seed + 1),
        "tau 1": replace(base, objective=replace(objective, temperatures=(1.0,) * rounds.count)),
        "forward KL": replace(base, objective=replace(objective, direction="forward")),
        "rate x 3": replace(base, optim=replace(base.optim, lr=3 * base.optim.lr)),
        "twice the steps": replace(base, objective=longer, steps=longer.rounds().total),
    }


def folder(cell: str) -> str:
    """The directory of a cell."""
    return cell.replace(" ", "-")


def larger(settings: Larger, directory: Path, only: tuple[str, ...] = ()) -> Iterator[Progress]:
    """Carry the study out in `directory`, all cells or `only` some: `directory`/CELL holds the report of each.

    What is there already is not done again.
    """
    plans = cells(settings.student)
    if unknown := sorted({*only} - {*plans}):
        raise ValueError(f"the cells of the study are {', '.join(plans)}: there is none called {', '.join(unknown)}")
    models = {"teacher": settings.teacher, "judge": settings.judge}
    yield from train(models, directory)
    if not trained(models, directory):
        return  # stopped by a signal
    teacher, judge = (str(directory / name / "model") for name in models)
    known: list[Measured] = []
    for progress, measured in teacher_rows(teacher, judge, settings.student, settings.study, directory / ROWS):
        known.append(measured)
        yield progress
    for name in only or plans:
        title = f"Rows of {settings.student.network.length} tokens: {name}"
        plan = Experiment(title, plans[name], teacher, judge, settings.study, known=known)
        report = None
        for event in experiment(plan, directory / folder(name)):
            report = event.report
            yield replace(event, stage=f"{name}, {event.stage}", line=event.line and f"{name}: {event.line}")
        if report is None:
            return  # stopped by a signal


SEEDS = ("mcd", "seed 2")
HEAD = ("cell", "steps", "gen PPL", "entropy", *(f"gain at equal {name}" for name in ENTROPIES.values()))


def summary(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line for each cell and step count: gen PPL and entropy at temperature 1, and three gains at equal diversity.

    A gain is gen PPL of the teacher, its temperature scaled to the same diversity, over that of the student, at equal
    steps, with a 95 % interval over samples. Lines of both seeds of the base stand last: means, ± standard errors over
    seeds.
    """
    table, seeds = [], [reports[cell] for cell in SEEDS if cell in reports]
    for cell, report in reports.items():
        for row in report["student"]:
            line = [cell, str(row["steps"]), f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}"]
            table.append(line + [_gain(gain) for gain in _gains(report, row["steps"])])
    for rows in zip(*(report["student"] for report in seeds), strict=True) if len(seeds) > 1 else ():
        columns = [[row[name] for row in rows] for name in ("gen_ppl", "entropy")]
        gains = zip(*(_gains(report, rows[0]["steps"]) for report in seeds), strict=True)
        columns += [[gain["value"] for gain in column if gain is not None] for column in gains]
        found = [over_seeds([Measure(value, "", 1) for value in column]) if column else None for column in columns]
        cells = ["not reached" if m is None or m.sem is None else f"{m.value:.4g} ± {m.sem:.2g}" for m in found]
        table.append([f"{len(seeds)} seeds", str(rows[0]["steps"]), *cells])
    return table


def _gains(report: Mapping[str, Any], steps: int) -> list[Mapping[str, Any] | None]:
    """The gains at the teacher's diversity, a column each."""
    entries = report["answers"]["equal_entropy"]
    return [entry["gain"] for entry in entries if entry["at"] == entries[0]["at"] and entry["steps"] == steps]


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "not reached"
    return f"{gain['value']:.2f} " + ("[?]" if gain["low"] is None else f"[{gain['low']:.2f}, {gain['high']:.2f}]")
