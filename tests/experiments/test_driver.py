"""The driver of plans: each run once, a failed training is a result, a stop begins no other run."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import unmask.experiments.driver as driver
from unmask.cli.console import follow
from unmask.experiments.commands.results import reports_of
from unmask.experiments.driver import run_plan, train
from unmask.experiments.plan import FAILURE, Plan, Run, failure
from unmask.experiments.rows_file import read_rows
from unmask.recipes.schema import Recipe
from unmask.training import TrainingError


def test_a_failed_training_is_a_result(
    frontier_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(recipe: Recipe, directory: Path, **options: object) -> Iterator[None]:
        directory.mkdir(parents=True, exist_ok=True)
        if "bad" in str(directory):
            raise TrainingError("loss is nan")
        (directory / "model").mkdir(exist_ok=True)
        yield from ()

    def measure(*_: object) -> Iterator[driver.Progress]:
        yield driver.Progress("writing", 1, 1, "done")

    cell = frontier_plan.cells["mcd"]
    plan = replace(frontier_plan, cells={"bad": cell, "good": cell})
    monkeypatch.setattr(driver, "run_recipe", explode)
    monkeypatch.setattr(driver, "teacher_rows", lambda *_: iter(()))
    monkeypatch.setattr(type(plan.measurement), "measure_run", measure)
    stages = [event.stage for event in run_plan(plan, tmp_path)]
    assert stages[2:] == ["bad, failed", "bad, writing", "good, writing"]
    assert failure(tmp_path / "bad") == "loss is nan" and failure(tmp_path / "good") is None
    again = [event for event in run_plan(plan, tmp_path) if event.stage.startswith("bad, failed")]
    assert [(event.stage, event.line) for event in again] == [
        ("bad, failed before", "bad: loss is nan")
    ]
    assert (tmp_path / "bad" / FAILURE).exists()


def test_a_stop_begins_no_other_run(
    frontier_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ends without its model was stopped by a signal."""
    monkeypatch.setattr(driver, "run_recipe", lambda *_, **__: iter(()))
    monkeypatch.setattr(driver, "teacher_rows", lambda *_: iter(()))
    events = [*run_plan(frontier_plan, tmp_path)]
    assert [event.stage for event in events] == ["reading", "reading"]
    assert follow(run_plan(frontier_plan, tmp_path)) is False
    first = replace(frontier_plan, prerequisites={"teacher": frontier_plan.cells["mcd"].recipe})
    assert [*run_plan(first, tmp_path)] == []


def test_a_signal_saves_the_state_and_the_plan_continues(
    frontier_plan: Plan, tmp_path: Path
) -> None:
    """The continued run has the numbers of an uninterrupted one."""
    cells = {}
    for name, cell in frontier_plan.cells.items():
        objective = replace(cell.objective, round_steps=2)
        cells[name] = replace(cell, recipe=replace(cell.recipe, objective=objective, steps=4))
    plan, run = replace(frontier_plan, cells=cells), Run("mcd")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for event in run_plan(plan, stopped):
        if event.stage == "mcd, distilling" and event.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
    training = plan.place(run, stopped) / "student"
    assert (training / "state").exists() and not (training / "model").exists()
    assert not plan.place(Run("KL on revealed"), stopped).exists()
    for place in (stopped, whole):
        assert follow(run_plan(plan, place, [run]))
    one, two = (vars(reports_of(plan, place)[run]) for place in (stopped, whole))
    for name in ("teacher", "student", "temperature_student"):
        assert [row.gen_ppl for row in one[name]] == [row.gen_ppl for row in two[name]], name


def test_no_runs_measure_the_teacher_alone(frontier_plan: Plan, tmp_path: Path) -> None:
    assert follow(run_plan(frontier_plan, tmp_path, ()))
    assert len(read_rows(tmp_path / "rows.jsonl")) == 5 and not (tmp_path / "mcd").exists()


def test_an_unavailable_device_is_refused_first(frontier_plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:7' .*--scale tiny"):
        list(run_plan(replace(frontier_plan, device="cuda:7"), tmp_path))
    assert not any(tmp_path.iterdir())


def test_several_processes_are_refused(
    frontier_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = replace(driver.launch(), world=2)
    monkeypatch.setattr(driver, "launch", lambda: engine)
    with pytest.raises(ValueError, match="torchrun"):
        list(run_plan(frontier_plan, tmp_path))


def test_a_prerequisite_that_was_stopped_ends_the_training(
    frontier_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def stopped(recipe: Recipe, directory: Path, **options: object) -> Iterator[None]:
        started.append(directory)
        yield from ()

    monkeypatch.setattr(driver, "run_recipe", stopped)
    recipe = frontier_plan.cells["mcd"].recipe
    assert list(train({"one": recipe, "two": recipe}, tmp_path)) == []
    assert started == [tmp_path / "one"]
