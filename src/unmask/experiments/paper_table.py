"""Rows of each distillation round, the paper's table of them, and the content of table.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, ClassVar

from unmask import __version__
from unmask.cli.console import Progress
from unmask.dataclass_json import to_json
from unmask.evaluation import judge_by_name, sweep
from unmask.evaluation.judges import Judge
from unmask.evaluation.measure import (
    Measure,
    MeasuredRow,
    Row,
    Setting,
    over_seeds,
    protocol_words,
    require_same_protocol,
)
from unmask.evaluation.sample_metrics import draw_and_measure
from unmask.experiments.plan import OpenRun, OpenTeacher, Plan, Run, diffusion, failure
from unmask.experiments.published import Published
from unmask.experiments.rows_file import ROWS, append_new, newest_rows, read_rows
from unmask.models.model import Model, load
from unmask.recipes.data import TrainingData, training_data
from unmask.samplers.sample import sample

PublishedCells = Mapping[tuple[str, int, int], Sequence[Published]]
# Sampler and draw: the exact ones, then those of the codes of MDLM, SDTT and early Duo.
PRECISIONS = (("reveal", "gumbel_max"), ("ancestral", "gumbel_max_float32"))
TOP_P = (1.0, 0.9)


@dataclass(frozen=True)
class RoundRows:
    """A row at each step count for each teacher, and for the student of each round of a run."""

    training: ClassVar[str] = "run"

    def judge(self, name: str, data: TrainingData, device: str) -> Judge:
        """Load a judge of any kind."""
        return judge_by_name.judge(name, data.tokenizer, data.held_out.shape[1], device)

    def teacher_rows(self, teacher: OpenTeacher) -> tuple[int, Iterator[MeasuredRow]]:
        """Rows in each precision at `precision_steps`, then a row at each step count."""
        steps, precise = teacher.context.study.student_steps, teacher.settings.precision_steps
        rows = sweep.measure(teacher.name, teacher.model, teacher.context, steps, (1.0,))
        total = len(PRECISIONS) * len(TOP_P) * len(precise) + len(steps)
        return total, chain(_precision_rows(teacher), rows)

    def keep_round(self, run: OpenRun, student: Model, step: int) -> str | None:
        """Save the student as the model round-N."""
        number = step // run.cell.rounds.round_steps
        student.save(run.place / f"round-{number}", recipe=to_json(run.recipe), steps=step)
        return None

    def measure_run(self, run: OpenRun) -> Iterator[Progress]:
        """Measure the student of every round, including the rounds before a failure."""
        known_rows, steps = read_rows(run.place / ROWS), run.plan.study.student_steps
        context = replace(run.teacher.context, known_rows=known_rows)
        count = run.cell.rounds.count
        for number in range(1, count + 1):
            saved, name = run.place / f"round-{number}", f"round {number}"
            if not saved.exists():
                continue
            student = diffusion(load(saved, device=run.plan.device or "cpu"))
            rows = sweep.measure(name, student, context, steps, (1.0,))
            for i, measured in enumerate(rows, start=(number - 1) * len(steps) + 1):
                line = append_new(measured, known_rows, run.place / ROWS)
                yield Progress("measuring", i, count * len(steps), line)


def _precision_rows(teacher: OpenTeacher) -> Iterator[MeasuredRow]:
    """The teacher in each precision of the draw, with and without top-p.

    Their differences show how much precision alone may change a published value.
    """
    context, model = teacher.context, teacher.model
    grid = product(PRECISIONS, TOP_P, teacher.settings.precision_steps)
    for (sampler, draw), top_p, count in grid:
        study = replace(context.study, sampler=sampler, draw=draw)
        protocol = replace(context, study=study, products=model.precision).protocol
        title = f"{teacher.name}, {protocol.precision}, top-p {top_p:g}"
        setting = replace(sweep.setting_of(model, study), steps=count, top_p=top_p)
        # Rows of earlier versions have the default draw; their protocol has the precision.
        earlier = replace(setting, draw=Setting.draw)
        matches = (
            m
            for m in context.known_rows
            for known in (setting, earlier)
            if sweep.matches(m.row, title, known, protocol)
        )
        measured = next(matches, None)
        if measured is None:
            length = context.real.shape[1]
            draw_texts = partial(sweep.draw_row, model, study, length, count, 1.0, top_p)
            row = draw_and_measure(draw_texts, context.judge, protocol, setting, name=title)
            measured = MeasuredRow(row, shipped=False)
        yield measured


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


def lines_record(plan: Plan, directory: Path, published: PublishedCells) -> dict[str, Any]:
    """Title and lines of table.json, with the published values in each cell."""
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


def table_record(
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
    return lines_record(plan, directory, published) | {
        "methods": {name: cell.teacher for name, cell in plan.cells.items()},
        "doubts": precision_records(plan, directory),
        "seeds": plan.seeds,
        "failed": dict(failed),
        "texts": texts_of_models(plan, directory, steps),
        "shown_steps": steps,
        "protocol": protocol_line(plan, directory),
        "version": __version__,
        "lede": f"Gen PPL at entropy in {steps} steps: {'; '.join(results)}.",
    }


def texts_of_models(plan: Plan, directory: Path, steps: int, n: int = 2) -> dict[str, list[str]]:
    """Draw n texts of each teacher and each method's last round (first seed) at equal latents."""
    models = {name: (teacher.model, name) for name, teacher in plan.teachers.items()}
    for name, cell in plan.cells.items():
        place = plan.place(Run(name, cell.recipe.seed), directory)
        rounds = [place / f"round-{i}" for i in range(1, cell.rounds.count + 1)]
        saved = [path for path in rounds if path.exists()]
        if saved:
            models[f"{name} R{len(saved)}"] = (str(saved[-1]), cell.teacher)
    texts: dict[str, list[str]] = {}
    for title, (path, teacher) in models.items():
        model = diffusion(load(path, device=plan.device or "cpu"))
        if model.tokenizer is None:
            run = next(run for run in plan.runs if plan.cells[run.cell].teacher == teacher)
            model = replace(model, tokenizer=training_data(plan.recipe(run)).tokenizer)
        sampler, device = plan.teachers[teacher].sampler, plan.device or "cpu"
        drawn = sample(
            model, n, model.length, steps, plan.study.seed, sampler=sampler, device=device
        )
        texts[title] = drawn.texts or [" ".join(map(str, row)) for row in drawn.tokens.tolist()]
    return texts
