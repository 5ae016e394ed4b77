"""Carry out a plan: train, distil and measure every run.

The driver yields `Progress`. All results are files in the plan's directory, so an interrupted plan
continues where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.evaluation.measure import MeasuredRow
from unmask.evaluation.sweep import EvalContext
from unmask.experiments.plan import FAILURE, OpenRun, OpenTeacher, Plan, Run, diffusion, failure
from unmask.experiments.rows_file import ROWS, append_new, read_rows
from unmask.models.model import load
from unmask.recipes.contamination import share_read
from unmask.recipes.data import training_data
from unmask.recipes.run import finished
from unmask.recipes.run import run as run_recipe
from unmask.recipes.schema import Recipe
from unmask.training import TrainingError, launch


def run_plan(
    plan: Plan, directory: Path, only: Sequence[Run] | None = None
) -> Generator[Progress, None, bool]:
    """Train, distil and measure all runs of a plan in `directory`, or `only` some.

    Results that exist are not computed again. A failed training is a result: its directory gets a
    failure.json, and the next run begins. A signal stops the plan after the state is saved.

    Args:
        plan: The plan.
        directory: The plan's directory.
        only: The runs to train. An empty list: the prerequisites and the teachers' rows only.

    Yields:
        The progress.

    Returns:
        True if everything is done, False if a signal stopped it.

    Raises:
        ValueError: The device is unavailable, or the command was started by `torchrun` with
            several processes.
    """
    if (processes := launch().world) > 1:
        raise ValueError(
            f"torchrun started too many processes: got {processes}, and a plan measures in 1. "
            "Train by `torchrun`, then run this command without it"
        )
    started = time.perf_counter()
    _check_device(plan.device or "cpu")
    if not (yield from train(plan.prerequisites, directory, plan.device)):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    teachers: dict[str, OpenTeacher] = {}
    for name in plan.teachers:
        yield Progress("reading", 0, 1)
        teacher = open_teacher(plan, name, directory)
        yield Progress("reading", 1, 1, _text_line(plan, teacher))
        if len(plan.runs) > 1:  # several runs share these rows
            shared: list[MeasuredRow] = []
            for progress, measured in teacher_rows(plan, teacher, directory):
                shared.append(measured)
                yield progress
            teacher = replace(teacher, context=replace(teacher.context, known_rows=shared))
            started = time.perf_counter()
        teachers[name] = teacher
    for run in plan.runs if only is None else only:
        teacher = teachers[plan.cells[run.cell].teacher]
        one = OpenRun(plan, run, teacher, plan.place(run, directory), started)
        yield from _titled(run, _carry_out(one))
        if not one.ended:
            return False
        started = time.perf_counter()
    return True


def open_teacher(plan: Plan, name: str, directory: Path) -> OpenTeacher:
    """Load a teacher of a plan, the judge, and the data of the teacher's first cell."""
    settings, device = plan.teachers[name], plan.device or "cpu"
    recipe = next(plan.recipe(run) for run in plan.runs if plan.cells[run.cell].teacher == name)
    data = training_data(recipe)
    model = diffusion(load(settings.model, device=device))
    if model.tokenizer is None:
        model = replace(model, tokenizer=data.tokenizer)
    context = EvalContext(
        replace(plan.study, sampler=settings.sampler, draw=settings.draw),
        plan.measurement.judge(plan.judge, data, device),
        data.held_out,
        data.digest,
        known_rows=[*plan.known_rows, *read_rows(directory / settings.folder / ROWS)],
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
    total, rows = plan.measurement.teacher_rows(teacher)
    for done, measured in enumerate(rows, start=1):
        line = append_new(measured, teacher.context.known_rows, file)
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
        yield from run.plan.measurement.measure_run(run)


def _distil(run: OpenRun) -> Iterator[Progress]:
    """Train the student of a run, and keep the student of each round."""
    recipe, device, lines = run.recipe, run.plan.device, list[str]()
    data = run.teacher.data
    for update in run_recipe(recipe, run.training, data=data, say=lines.append, device=device):
        line = lines.pop(0) if lines else None
        if update.student is not None:
            student = diffusion(update.student)
            line = run.plan.measurement.keep_round(run, student, update.step) or line
        yield Progress("distilling", update.step, recipe.steps, line)


def _titled(run: Run, events: Iterable[Progress]) -> Iterator[Progress]:
    """Put the title of the run before the stages and lines of its events."""
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
            "--dry-run to print the plan"
        ) from error


def train(
    recipes: Mapping[str, Recipe], directory: Path, device: str | None = None
) -> Generator[Progress, None, bool]:
    """Train each recipe in `directory`/NAME, one after the other; a signal stops them all.

    A complete training is only read, so several processes may call this at the same time.

    Returns:
        True if all trainings are complete, False if a signal stopped one.
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
        if not (directory / name / "model").exists():
            return False
    return True
