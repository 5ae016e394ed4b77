"""The table of a plan that keeps a model for each round, and the content of its table.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.evaluation.measure import (
    Measure,
    Row,
    over_seeds,
    protocol_words,
    require_same_protocol,
)
from unmask.experiments.plan import Plan, Run, diffusion, failure
from unmask.experiments.published import Published
from unmask.experiments.rows_file import ROWS, newest_rows
from unmask.models.model import load
from unmask.recipes.data import training_data
from unmask.samplers.sample import sample

PublishedCells = Mapping[tuple[str, int, int], Sequence[Published]]


@dataclass(frozen=True)
class TableCell:
    """Gen PPL and entropy over `seeds` trainings; errors over seeds (one seed: over samples)."""

    gen_ppl: Measure
    entropy: Measure
    nfe: float
    seeds: int


@dataclass(frozen=True)
class TableLine:
    """A line of the table: a teacher (round 0), or a method after a round, by step count."""

    name: str
    round: int
    cells: Mapping[int, TableCell]
    failed: str | None = None

    def __str__(self) -> str:
        return f"{self.name} R{self.round}" if self.round else self.name


def table_lines(plan: Plan, directory: Path) -> list[TableLine]:
    """The lines of the table that are measured or failed."""
    measured = newest_rows(directory / ROWS)
    lines = [
        TableLine(name, 0, _by_steps([row for row in measured if row.name == name]))
        for name in plan.teachers
    ]
    for name, cell in plan.cells.items():
        places = [plan.place(run, directory) for run in plan.runs if run.cell == name]
        rows = [row for place in places for row in newest_rows(place / ROWS)]
        reason = next((text for place in places if (text := failure(place)) is not None), None)
        for number in range(1, cell.rounds.count + 1):
            of_round = [row for row in rows if row.name == f"round {number}"]
            lines.append(TableLine(name, number, _by_steps(of_round), reason))
    return [line for line in lines if line.cells or line.failed]


def _by_steps(rows: Sequence[Row]) -> dict[int, TableCell]:
    """Rows, one for each training seed, as a cell for each step count."""
    steps = dict.fromkeys(row.setting.steps for row in rows)
    return {n: _over_seeds([row for row in rows if row.setting.steps == n]) for n in steps}


def _over_seeds(rows: Sequence[Row]) -> TableCell:
    gen_ppl, entropy = ([row.measures[name] for row in rows] for name in ("gen_ppl", "entropy"))
    nfe = sum(row.setting.nfe for row in rows) / len(rows)
    if len(rows) == 1:
        return TableCell(gen_ppl[0], entropy[0], nfe, 1)
    return TableCell(over_seeds(gen_ppl), over_seeds(entropy), nfe, len(rows))


def precision_rows(plan: Plan, directory: Path) -> list[Row]:
    """The measured rows of a teacher in several precisions and with top-p."""
    return [row for row in newest_rows(directory / ROWS) if row.name not in plan.teachers]


def precision_records(plan: Plan, directory: Path) -> list[dict[str, Any]]:
    """The figures of `precision_rows`."""
    return [
        {"name": row.name, "steps": row.setting.steps}
        | {key: row.measures[key].value for key in ("gen_ppl", "entropy")}
        | {"nfe": row.setting.nfe}
        for row in precision_rows(plan, directory)
    ]


def protocol_line(plan: Plan, directory: Path) -> str:
    """The protocol of all rows of the table, in words; `UnequalProtocols` if they differ."""
    rows = [row for row in newest_rows(directory / ROWS) if row.name in plan.teachers]
    rows += [row for run in plan.runs for row in newest_rows(plan.place(run, directory) / ROWS)]
    seeds = {seed for row in rows for seed in row.setting.seeds}
    return protocol_words(require_same_protocol(rows), seeds)


def record(plan: Plan, directory: Path, published: PublishedCells) -> dict[str, Any]:
    """Title and lines of table.json; each cell has the published values beside it."""
    lines = []
    for line in table_lines(plan, directory):
        cells = {}
        for steps, cell in line.cells.items():
            beside = published.get((line.name, line.round, steps), ())
            cells[str(steps)] = {
                "gen_ppl": cell.gen_ppl.value,
                "gen_ppl_sem": cell.gen_ppl.sem,
                "entropy": cell.entropy.value,
                "nfe": cell.nfe,
                "seeds": cell.seeds,
                "published": [{"source": p.source, "value": str(p)} for p in beside],
            }
        lines.append(
            {"line": str(line), "name": line.name, "round": line.round, "failed": line.failed}
            | {"cells": cells}
        )
    return {"title": plan.title, "lines": lines}


def full_record(
    plan: Plan, directory: Path, published: PublishedCells, failed: Mapping[str, str]
) -> dict[str, Any]:
    """The content of table.json: lines, rows in other precisions, texts, and the protocol.

    Args:
        plan: A plan whose runs are all measured or failed.
        directory: The plan's directory.
        published: Published values by line, round and step count.
        failed: Lines that have no number in the paper, with the paper's words.
    """
    steps = plan.study.student_steps[len(plan.study.student_steps) // 3]
    last = {line.name: line for line in table_lines(plan, directory) if steps in line.cells}
    results = [
        f"{line} {cell.gen_ppl.value:.4g} at {cell.entropy.value:.2f} nats"
        for line, cell in ((line, line.cells[steps]) for line in last.values())
    ]
    return record(plan, directory, published) | {
        "methods": {name: cell.teacher for name, cell in plan.cells.items()},
        "doubts": precision_records(plan, directory),
        "seeds": plan.seeds,
        "failed": dict(failed),
        "texts": example_texts(plan, directory, steps),
        "shown_steps": steps,
        "protocol": protocol_line(plan, directory),
        "version": __version__,
        "lede": f"Gen PPL at entropy in {steps} steps: {'; '.join(results)}.",
    }


def example_texts(plan: Plan, directory: Path, steps: int, n: int = 2) -> dict[str, list[str]]:
    """n texts of each teacher and of each method's last round (first seed), equal latents."""
    models = {name: (teacher.model, name) for name, teacher in plan.teachers.items()}
    for name, cell in plan.cells.items():
        place = plan.place(Run(name, cell.recipe.seed), directory)
        rounds = [place / f"round-{i}" for i in range(1, cell.rounds.count + 1)]
        saved = [path for path in rounds if path.exists()]
        if saved:
            models[f"{name} R{len(saved)}"] = (str(saved[-1]), cell.teacher)
    shown: dict[str, list[str]] = {}
    for title, (path, teacher) in models.items():
        model = diffusion(load(path, device=plan.device or "cpu"))
        if model.tokenizer is None:
            run = next(run for run in plan.runs if plan.cells[run.cell].teacher == teacher)
            model = replace(model, tokenizer=training_data(plan.recipe(run)).tokenizer)
        sampler, device = plan.teachers[teacher].sampler, plan.device or "cpu"
        drawn = sample(
            model, n, model.length, steps, plan.study.seed, sampler=sampler, device=device
        )
        shown[title] = drawn.texts or [" ".join(map(str, row)) for row in drawn.tokens.tolist()]
    return shown
