"""Plans of experiments as values, and one driver that trains and measures every run of a plan.

A plan names teachers and cells. A cell is a recipe that distils one of the teachers, and a run is
one training of a cell. `run_plan` yields `Progress`; all results are files in the plan's directory,
so an interrupted plan continues where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

import torch

from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.dataclass_json import read_json
from unmask.evaluation.judges import Judge
from unmask.evaluation.sweep import EvalContext, EvalSettings, MeasuredRow
from unmask.experiments.rows_file import ROWS, append_new, read_rows, row_line
from unmask.models.model import CausalModel, Model, load
from unmask.objectives.rounds import Rounds
from unmask.recipes.contamination import share_read
from unmask.recipes.data import TrainingData, texts
from unmask.recipes.run import finished
from unmask.recipes.run import run as run_recipe
from unmask.recipes.schema import DistillationSettings, Recipe
from unmask.training import TrainingError, launch

FAILURE = "failure.json"


@dataclass(frozen=True)
class PlanTeacher:
    """A model that is distilled.

    model            a directory or a name
    sampler, draw    of its texts, and of the texts of its students
    folder           where its rows and its students are, below the plan's directory
    precision_steps  step counts of its rows in other precisions and with top-p
    """

    model: str
    sampler: str = "reveal"
    draw: str = "race"
    folder: str = ""
    precision_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A distillation of one of the plan's teachers, named by `teacher`."""

    teacher: str
    recipe: Recipe

    @property
    def objective(self) -> DistillationSettings:
        """The objective of the recipe; ValueError if it is not a distillation."""
        if not isinstance(self.recipe.objective, DistillationSettings):
            raise ValueError(
                f"recipe {self.recipe.name!r} of a cell is {self.recipe.objective.kind}: want a "
                "distillation"
            )
        return self.recipe.objective

    @property
    def rounds(self) -> Rounds:
        """The rounds of the distillation."""
        return self.objective.rounds()


@dataclass(frozen=True)
class Run:
    """One training of a cell; without a seed it is the only one, with the seed of its recipe."""

    cell: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.cell if self.seed is None else f"{self.cell}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name of the run's directory; empty for a cell without a name."""
        return str(self).replace(",", "").replace(" ", "-")


class Measurement(Protocol):
    """What a plan measures of its teachers and of each run.

    training  the name of the directory of a run's training, below the run's directory
    """

    training: ClassVar[str]

    def judge(self, name: str, data: TrainingData, device: str) -> Judge:
        """Load the judge of all texts."""
        ...

    def teacher_rows(self, teacher: OpenTeacher) -> tuple[int, Iterator[MeasuredRow]]:
        """The number of a teacher's rows, and an iterator that measures them."""
        ...

    def keep_round(self, run: OpenRun, student: Model, step: int) -> str | None:
        """Keep the student of a round that ended at update `step`; return a line for a terminal."""
        ...

    def measure(self, run: OpenRun) -> Iterator[Progress]:
        """Measure a run whose training ended or failed."""
        ...


@dataclass(frozen=True)
class Plan:
    """Teachers, the cells that distil them, and what is measured.

    teachers, cells  by name. A single cell may have an empty name: the plan's directory is its own
    judge            a directory or a name
    study            samples, seed, step counts, temperatures
    measured         what is measured, and the files that it is kept in
    seeds            trainings of each cell; None: one, with the seed of its recipe
    prerequisites    models that are trained first, in directory/NAME
    known            rows of teachers that were measured before
    device           where everything runs; None: trainings where `launch` decides, the rest on CPU
    """

    title: str
    teachers: Mapping[str, PlanTeacher]
    judge: str
    cells: Mapping[str, Cell]
    study: EvalSettings
    measured: Measurement
    seeds: int | None = None
    prerequisites: Mapping[str, Recipe] = field(default_factory=dict)
    known: Sequence[MeasuredRow] = ()
    device: str | None = None

    @property
    def runs(self) -> list[Run]:
        """All runs: every cell with its first seed, then every cell with its second, and so on."""
        if self.seeds is None:
            return [Run(name) for name in self.cells]
        return [
            Run(name, cell.recipe.seed + i)
            for i in range(self.seeds)
            for name, cell in self.cells.items()
        ]

    def select(self, names: Sequence[str]) -> list[Run]:
        """The runs of the named cells, and the runs with these titles; all runs without a name."""
        runs = self.runs
        if unknown := sorted({*names} - {*self.cells} - {str(run) for run in runs}):
            raise ValueError(
                f"cells: there is none called {', '.join(unknown)}; the cells are "
                f"{', '.join(self.cells)}"
            )
        return [run for run in runs if not names or run.cell in names or str(run) in names]

    def recipe(self, run: Run) -> Recipe:
        """The recipe of a run, with its teacher and its seed."""
        cell = self.cells[run.cell]
        objective = replace(cell.objective, teacher=self.teachers[cell.teacher].model)
        seed = cell.recipe.seed if run.seed is None else run.seed
        return replace(cell.recipe, objective=objective, seed=seed)

    def place(self, run: Run, directory: Path) -> Path:
        """The directory of a run."""
        return directory / self.teachers[self.cells[run.cell].teacher].folder / run.folder


@dataclass(frozen=True)
class OpenTeacher:
    """A loaded teacher, the data of its students, and what its rows and theirs share."""

    name: str
    settings: PlanTeacher
    model: Model
    data: TrainingData
    context: EvalContext


@dataclass(frozen=True)
class OpenRun:
    """A run of a plan with its teacher, its directory, and its start by `time.perf_counter`."""

    plan: Plan
    run: Run
    teacher: OpenTeacher
    place: Path
    started: float

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.plan.recipe(self.run)

    @property
    def training(self) -> Path:
        """The directory of the training."""
        return self.place / self.plan.measured.training

    @property
    def ended(self) -> bool:
        """Whether the training is complete or failed; otherwise a signal stopped it."""
        return (self.training / "model").exists() or failure(self.place) is not None


def run_plan(plan: Plan, directory: Path, only: Sequence[Run] | None = None) -> Iterator[Progress]:
    """Train, distil and measure all runs of a plan in `directory`, or `only` some.

    Results that exist are not computed again. A failed training is a result: its directory gets a
    failure.json, and the next run begins. A signal ends the plan with the state saved. The last
    event of a plan that was not interrupted has a `report`.

    Args:
        plan: What is trained and measured.
        directory: The plan's directory.
        only: The runs; none: the prerequisites and the teachers' rows alone.

    Raises:
        ValueError: The device is unavailable, or the command was started by `torchrun` with
            several processes.
    """
    if launch().world > 1:
        raise ValueError(
            "a plan measures in one process: train by `torchrun`, then run this command without it"
        )
    started = time.perf_counter()
    _check_device(plan.device or "cpu")
    yield from train(plan.prerequisites, directory, plan.device)
    if not trained(plan.prerequisites, directory):
        return  # stopped by a signal
    directory.mkdir(parents=True, exist_ok=True)
    teachers: dict[str, OpenTeacher] = {}
    for name in plan.teachers:
        yield Progress("reading", 0, 1)
        teacher = open_teacher(plan, name, directory)
        yield Progress("reading", 1, 1, _text_line(plan, teacher))
        if len(plan.runs) > 1:  # rows that several runs share
            known: list[MeasuredRow] = []
            for progress, measured in teacher_rows(plan, teacher, directory):
                known.append(measured)
                yield progress
            teacher = replace(teacher, context=replace(teacher.context, known=known))
            started = time.perf_counter()
        teachers[name] = teacher
    for run in plan.runs if only is None else only:
        teacher = teachers[plan.cells[run.cell].teacher]
        one = OpenRun(plan, run, teacher, plan.place(run, directory), started)
        yield from _titled(run, _carry_out(one))
        if not one.ended:
            return  # stopped by a signal
        started = time.perf_counter()
    yield Progress("all runs", 1, 1, report={})


def open_teacher(plan: Plan, name: str, directory: Path) -> OpenTeacher:
    """Load a teacher of a plan, the judge, and the data of the teacher's first cell."""
    settings, device = plan.teachers[name], plan.device or "cpu"
    recipe = next(plan.recipe(run) for run in plan.runs if plan.cells[run.cell].teacher == name)
    data = texts(recipe)
    model = diffusion(load(settings.model, device=device))
    if model.tokenizer is None:
        model = replace(model, tokenizer=data.tokenizer)
    context = EvalContext(
        replace(plan.study, sampler=settings.sampler, draw=settings.draw),
        plan.measured.judge(plan.judge, data, device),
        data.held_out,
        data.digest,
        known=[*plan.known, *read_rows(directory / settings.folder / ROWS)],
        wrap=data.wrap,
        read_by_judge=share_read(plan.judge, recipe.data),
    )
    return OpenTeacher(name, settings, model, data, context)


def teacher_rows(
    plan: Plan, teacher: OpenTeacher, directory: Path
) -> Iterator[tuple[Progress, MeasuredRow]]:
    """Measure the rows of a teacher, and keep the new ones in its file of rows."""
    file = directory / teacher.settings.folder / ROWS
    file.parent.mkdir(parents=True, exist_ok=True)
    total, rows = plan.measured.teacher_rows(teacher)
    for done, measured in enumerate(rows, start=1):
        is_new = append_new(measured, teacher.context.known, file)
        line = row_line(measured.row.name, measured) if is_new else None
        yield Progress(f"measuring {teacher.name}", done, total, line), measured


def _carry_out(run: OpenRun) -> Iterator[Progress]:
    """Train and measure one run."""
    if (reason := failure(run.place)) is not None:
        yield Progress("failed before", 1, 1, reason)
    else:
        try:
            yield from _distil(run)
        except TrainingError as error:
            write_text(run.place / FAILURE, json.dumps({"message": str(error)}) + "\n")
            yield Progress("failed", 1, 1, str(error))
    if run.ended:
        yield from run.plan.measured.measure(run)


def _distil(run: OpenRun) -> Iterator[Progress]:
    """Train the student of a run, and keep the student of each round."""
    recipe, device, lines = run.recipe, run.plan.device, list[str]()
    data = run.teacher.data
    for update in run_recipe(recipe, run.training, data=data, say=lines.append, device=device):
        line = lines.pop(0) if lines else None
        if update.student is not None:
            student = diffusion(update.student)
            line = run.plan.measured.keep_round(run, student, update.step) or line
        yield Progress("distilling", update.step, recipe.steps, line)


def _titled(run: Run, events: Iterable[Progress]) -> Iterator[Progress]:
    """The events with the title of the run before their stages and lines."""
    for event in events:
        line = event.line and f"{run}: {event.line}"
        titled = replace(event, stage=f"{run}, {event.stage}", line=line)
        yield titled if str(run) else event


def _text_line(plan: Plan, teacher: OpenTeacher) -> str:
    data, cells = teacher.data, plan.cells.values()
    corpus = next(cell.recipe.data.corpus for cell in cells if cell.teacher == teacher.name)
    rows = "a stream of" if data.train_rows is None else data.train_rows
    return f"{corpus}: {rows} rows of {data.held_out.shape[1]} tokens to learn from"


def _check_device(device: str) -> None:
    """Raise ValueError if tensors cannot be made on the device."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device {device!r} of this plan is unavailable: {error}. Use --scale tiny, or "
            "--dry-run to see what the plan would do"
        ) from error


def train(
    recipes: Mapping[str, Recipe], directory: Path, device: str | None = None
) -> Iterator[Progress]:
    """Train each recipe in `directory`/NAME, one after the other; a signal ends them all.

    A complete training is only read, so several processes may call this at a time.
    """
    for name, recipe in recipes.items():
        if finished(recipe, directory / name):
            continue
        lines: list[str] = []
        for update in run_recipe(recipe, directory / name, say=lines.append, device=device):
            line = f"{update.loss:.3f} nats a token" if update.step % 100 == 0 else None
            line = lines.pop(0) if lines else line
            event = Progress(f"training the {name}", update.step, recipe.steps)
            yield replace(event, line=line and f"{name}: {line}")
        if not trained([name], directory):
            return


def trained(names: Iterable[str], directory: Path) -> bool:
    """Whether all these trainings of `directory` are complete; otherwise a signal stopped them."""
    return all((directory / name / "model").exists() for name in names)


def failure(place: Path) -> str | None:
    """Why the training of a run failed; None if it did not."""
    file = place / FAILURE
    return str(read_json(file)["message"]) if file.exists() else None


def diffusion(model: object) -> Model:
    """The model; ValueError if it is not a diffusion model."""
    if not isinstance(model, Model):
        raise ValueError(
            f"model is {type(model).__name__}: want a diffusion model, to be distilled"
        )
    return model


def causal(model: object) -> CausalModel:
    """The model; ValueError if it is not autoregressive."""
    if not isinstance(model, CausalModel):
        raise ValueError(f"judge is {type(model).__name__}: want an autoregressive model")
    return model
