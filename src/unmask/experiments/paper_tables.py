"""The tables of the MCD paper (arXiv 2602.00792), run again: methods by round and by steps, a cell at a time.

A table is a `Plan`: teachers, and methods that distil them. Every student at the end of a round is kept as a model, and
every row that is measured is kept as a line of JSON, so that whoever stops it loses one cell at most.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.cli.console import Progress
from unmask.dataclass_json import to_json
from unmask.evaluation import sweep as studies
from unmask.evaluation.judge_by_name import judge_named
from unmask.evaluation.measure import Measure, Row, Setting, over_seeds
from unmask.evaluation.sample_metrics import measure_frontier
from unmask.evaluation.sweep import EvalContext, EvalSettings, MeasuredRow
from unmask.experiments.ablation import seeded
from unmask.experiments.comparison import FAILURE, fail, failure, folder
from unmask.experiments.demo import train, trained
from unmask.experiments.experiment import ROWS, diffusion, keep, read_rows, row_line
from unmask.models.model import Model, load
from unmask.objectives.rounds import Rounds
from unmask.recipes.contamination import share_read
from unmask.recipes.data import TrainingData, texts
from unmask.recipes.run import run
from unmask.recipes.schema import DistillationSettings, Recipe
from unmask.samplers.sample import sample
from unmask.training import TrainingError

RUN = "run"  # the training of a cell
DRAWN = (
    ("reveal", "race"),
    ("ancestral", "legacy_gumbel32"),
)  # exact; as MDLM's, SDTT's and early Duo's codes draw
TOP_P = (1.0, 0.9)


@dataclass(frozen=True)
class PlanTeacher:
    """A model that is distilled, by directory or name, and the sampler and draw of its texts and its students'."""

    model: str
    sampler: str = "reveal"
    draw: str = "race"


@dataclass(frozen=True)
class Method:
    """A distillation of one of the teachers."""

    teacher: str
    recipe: Recipe

    @property
    def objective(self) -> DistillationSettings:
        if not isinstance(self.recipe.objective, DistillationSettings):
            raise ValueError(
                f"a method distils, and the recipe {self.recipe.name!r} is {self.recipe.objective.kind}"
            )
        return self.recipe.objective

    @property
    def rounds(self) -> Rounds:
        return self.objective.rounds()


@dataclass(frozen=True)
class Plan:
    """A table.

    teachers, methods  its lines, by name; a method has a line for each round
    judge    by name or directory
    study    samples, seed, batch size; `student_steps` are the columns
    train    models that are trained first, in directory/NAME
    seeds    trainings of each method
    doubts   steps at which the first teacher is also drawn in other precisions and with top-p
    device   where all runs
    """

    title: str
    teachers: Mapping[str, PlanTeacher]
    methods: Mapping[str, Method]
    judge: str
    study: EvalSettings
    train: Mapping[str, Recipe] = field(default_factory=dict)
    seeds: int = 2
    doubts: tuple[int, ...] = ()
    device: str = "cpu"

    def runs(self) -> dict[str, Method]:
        """Every training: "METHOD, seed N"."""
        recipes = seeded({name: method.recipe for name, method in self.methods.items()}, self.seeds)
        return {
            run: replace(self.methods[run.rpartition(",")[0]], recipe=recipe)
            for run, recipe in recipes.items()
        }

    def recipe(self, method: Method) -> Recipe:
        """The recipe of a method with the teacher of the plan."""
        objective = replace(method.objective, teacher=self.teachers[method.teacher].model)
        return replace(method.recipe, objective=objective)


@dataclass(frozen=True)
class Cell:
    """Gen PPL and entropy of a line at a step count over `seeds` trainings; errors are over seeds, or over samples."""

    gen_ppl: Measure
    entropy: Measure
    nfe: float
    seeds: int


@dataclass(frozen=True)
class TableLine:
    """A line of the table: a teacher (round 0), or a method after a round; why it failed where it did."""

    name: str
    round: int
    cells: Mapping[int, Cell]
    failed: str | None = None

    def __str__(self) -> str:
        return f"{self.name} R{self.round}" if self.round else self.name


def carry(plan: Plan, directory: Path, only: Sequence[str] | None = None) -> Iterator[Progress]:
    """Train, distil and measure all runs of a plan in `directory`, or `only` some (none: teachers only).

    What is there already is not done again; a signal ends it with the state saved. The last event has a report.
    """
    runs = plan.runs()
    if unknown := sorted({*(only or ())} - {*runs}):
        raise ValueError(
            f"the runs are {', '.join(runs)}: there is none called {', '.join(unknown)}"
        )
    _check_device(plan.device)
    yield from train(plan.train, directory, plan.device)
    if not trained(plan.train, directory):
        return  # stopped by a signal
    directory.mkdir(parents=True, exist_ok=True)
    seen: dict[str, TrainingData] = {}
    for number, name in enumerate(plan.teachers):
        known = read_rows(directory / ROWS)
        model, scene = _scene(plan, name, _texts(plan, name, seen), known)
        rows = [studies.measure(name, model, scene, plan.study.student_steps, (1.0,))]
        if number == 0:
            rows.insert(0, _doubts(name, model, scene, plan.doubts))
        for measured in chain(*rows):
            new = keep(measured, known, directory / ROWS)
            yield Progress(
                f"measuring {name}", 1, 1, row_line(measured.row.name, measured) if new else None
            )
    for name in runs if only is None else only:
        method = runs[name]
        if not (
            yield from _cell(
                plan, name, method, _texts(plan, method.teacher, seen), directory / folder(name)
            )
        ):
            return  # stopped by a signal
    yield Progress("all cells", 1, 1, report={})


def _check_device(device: str) -> None:
    """Before anything is trained."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"this plan runs on {device}, which is not to be had here: {error}. Use --scale tiny, or --dry-run to see "
            "what it would do"
        ) from error


def _texts(plan: Plan, teacher: str, seen: dict[str, TrainingData]) -> TrainingData:
    """The text of the methods of a teacher, read once."""
    if teacher not in seen:
        recipe = next(
            plan.recipe(method) for method in plan.methods.values() if method.teacher == teacher
        )
        seen[teacher] = texts(recipe)
    return seen[teacher]


def _scene(
    plan: Plan, teacher: str, data: TrainingData, known: Sequence[MeasuredRow]
) -> tuple[Model, EvalContext]:
    """A teacher with the tokenizer of its text, and what its rows share."""
    told = plan.teachers[teacher]
    model = diffusion(load(told.model, device=plan.device))
    model = model if model.tokenizer is not None else replace(model, tokenizer=data.tokenizer)
    judge = judge_named(plan.judge, data.tokenizer, data.held_out.shape[1], plan.device)
    study = replace(plan.study, sampler=told.sampler, draw=told.draw)
    text = next(method.recipe.data for method in plan.methods.values() if method.teacher == teacher)
    share = share_read(plan.judge, text)
    return model, EvalContext(
        study, judge, data.held_out, data.digest, known, wrap=data.wrap, read_by_judge=share
    )


def _cell(
    plan: Plan, name: str, method: Method, data: TrainingData, place: Path
) -> Generator[Progress, None, bool]:
    """One run: distil, keep the student of each round, measure each at each step count; False if it was stopped."""
    recipe = plan.recipe(method)
    count, every = method.rounds.count, method.rounds.steps
    if (place / FAILURE).exists():
        yield Progress(f"{name}, failed before", 1, 1, f"{name}: {failure(place)}")
    else:
        try:
            for update in run(recipe, place / RUN, data=data, device=plan.device):
                if update.student is not None:
                    card = {"recipe": to_json(recipe), "steps": update.step}
                    update.student.save(place / f"round-{update.step // every}", **card)
                yield Progress(f"{name}, distilling", update.step, recipe.steps)
        except TrainingError as error:
            fail(place, error)
            yield Progress(f"{name}, failed", 1, 1, f"{name}: {error}")
        if not ((place / RUN / "model").exists() or (place / FAILURE).exists()):
            return False
    known, steps = read_rows(place / ROWS), plan.study.student_steps
    _, scene = _scene(plan, method.teacher, data, known)
    for number in range(1, count + 1):
        saved = place / f"round-{number}"
        if saved.exists():
            student = diffusion(load(saved, device=plan.device))
            for i, measured in enumerate(
                studies.measure(f"round {number}", student, scene, steps, (1.0,)), start=1
            ):
                new = keep(measured, known, place / ROWS)
                line = f"{name}: {row_line(measured.row.name, measured)}" if new else None
                yield Progress(
                    f"{name}, measuring", (number - 1) * len(steps) + i, count * len(steps), line
                )
    return True


def _doubts(
    name: str, model: Model, scene: EvalContext, steps: Sequence[int]
) -> Iterator[MeasuredRow]:
    """The teacher in each precision of the draw with and without top-p: how far a published value may lie for that."""
    length, digest = scene.real.shape[1], model.digest
    for (sampler, draw), top_p, count in product(DRAWN, TOP_P, steps):
        study = replace(scene.study, sampler=sampler, draw=draw)
        protocol = replace(scene, study=study).protocol
        title = f"{name}, {protocol.precision}, top-p {top_p:g}"
        setting = Setting(digest, sampler, steps=count, nfe=0.0, top_p=top_p, seeds=(study.seed,))
        if any(studies.answers(m.row, title, setting, protocol) for m in scene.known):
            continue
        drawing = partial(studies.draw_row, model, study, length, top_p=top_p)
        rows = measure_frontier(
            drawing,
            scene.judge,
            protocol,
            setting,
            name=title,
            steps=[count],
            temperatures=[1.0],
            warmup=0,
        )
        yield MeasuredRow(next(iter(rows)), shipped=False)


def doubts(plan: Plan, directory: Path) -> list[Row]:
    """The rows of the first teacher under each precision and top-p, as far as they are measured."""
    return [row for row in newest(directory / ROWS) if "top-p" in row.name]


def newest(file: Path) -> list[Row]:
    """The rows of a file; of those measured again (by another version, of another model) the last one only."""
    return list({(m.row.name, m.row.setting.steps): m.row for m in read_rows(file)}.values())


def lines(plan: Plan, directory: Path) -> list[TableLine]:
    """The table, as far as it is measured."""
    measured = newest(directory / ROWS)
    found = [
        TableLine(
            name, 0, {row.setting.steps: _summed([row]) for row in measured if row.name == name}
        )
        for name in plan.teachers
    ]
    runs = plan.runs()
    for name, method in plan.methods.items():
        places = [directory / folder(run) for run in runs if run.rpartition(",")[0] == name]
        rows = [row for place in places for row in newest(place / ROWS)]
        why = next((said for place in places if (said := failure(place)) is not None), None)
        for number in range(1, method.rounds.count + 1):
            of_round = [row for row in rows if row.name == f"round {number}"]
            steps = sorted({row.setting.steps for row in of_round})
            cells = {
                count: _summed([row for row in of_round if row.setting.steps == count])
                for count in steps
            }
            found.append(TableLine(name, number, cells, why))
    return [line for line in found if line.cells or line.failed]


def _summed(rows: Sequence[Row]) -> Cell:
    gen_ppl, entropy = ([row.measures[name] for row in rows] for name in ("gen_ppl", "entropy"))
    nfe = sum(row.setting.nfe for row in rows) / len(rows)
    if len(rows) == 1:
        return Cell(gen_ppl[0], entropy[0], nfe, 1)
    return Cell(over_seeds(gen_ppl), over_seeds(entropy), nfe, len(rows))


def shown(plan: Plan, directory: Path, steps: int, n: int = 2) -> dict[str, list[str]]:
    """n texts of each teacher and of each method's last round, first seed, at the same latents."""
    found: dict[str, list[str]] = {}
    models = {name: (teacher.model, teacher.sampler) for name, teacher in plan.teachers.items()}
    seen: dict[str, TrainingData] = {}
    for name, method in plan.methods.items():
        place = directory / folder(f"{name}, seed {method.recipe.seed}")
        kept = sorted(place.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-")))
        if kept:
            models[f"{name} R{len(kept)}"] = (str(kept[-1]), plan.teachers[method.teacher].sampler)
    for name, (path, sampler) in models.items():
        model = diffusion(load(path, device=plan.device))
        length = model.length
        if model.tokenizer is None:
            model = replace(model, tokenizer=_texts(plan, name, seen).tokenizer)
        drawn = sample(
            model, n, length, steps, plan.study.seed, sampler=sampler, device=plan.device
        )
        found[name] = drawn.texts or [_numbers(row) for row in drawn.tokens]
    return found


def _numbers(row: Tensor) -> str:
    return " ".join(map(str, row.tolist()))


def record(plan: Plan, directory: Path, published: Mapping[Any, Sequence[Any]]) -> dict[str, Any]:
    """What table.json holds: lines and cells, published values beside them."""
    return {
        "title": plan.title,
        "lines": [
            {
                "line": str(line),
                "name": line.name,
                "round": line.round,
                "failed": line.failed,
                "cells": {
                    str(steps): {
                        "gen_ppl": cell.gen_ppl.value, "gen_ppl_sem": cell.gen_ppl.sem, "entropy": cell.entropy.value,
                        "nfe": cell.nfe, "seeds": cell.seeds,
                        "published": [
                            {"source": p.source, "value": str(p)}
                            for p in published.get((line.name, line.round, steps), ())
                        ],
                    }
                    for steps, cell in line.cells.items()
                },
            }
            for line in lines(plan, directory)
        ],
    }  # fmt: skip
