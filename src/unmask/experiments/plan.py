"""Plans of experiments as values.

A plan names teachers and cells. A cell is a recipe that distils one of the teachers, and a run is
one training of a cell. `unmask.experiments.driver.run_plan` carries a plan out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

from unmask.cli.console import Progress
from unmask.dataclass_json import read_json
from unmask.evaluation.judges import Judge
from unmask.evaluation.measure import MeasuredRow
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import EvalContext
from unmask.models.model import CausalModel, Model, causal_model, diffusion_model
from unmask.objectives.rounds import Rounds
from unmask.recipes.data import TrainingData
from unmask.recipes.objective_settings import DistillationSettings
from unmask.recipes.schema import Recipe

FAILURE = "failure.json"


@dataclass(frozen=True)
class PlanTeacher:
    """A teacher of a plan.

    Attributes:
        model: directory or name of the model
        sampler, draw: sampler and draw of the texts of the teacher and of its students
        folder: directory of its rows and its students, below the plan's directory
        precision_steps: step counts of its rows in other precisions and with top-p
    """

    model: str
    sampler: str = "reveal"
    draw: str = EvalSettings.draw
    folder: str = ""
    precision_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A distillation of one of the plan's teachers, named by `teacher`."""

    teacher: str
    recipe: Recipe

    @property
    def objective(self) -> DistillationSettings:
        """The objective of the recipe; ValueError if it is not a distillation in rounds."""
        return distillation(self.recipe)

    @property
    def rounds(self) -> Rounds:
        """The rounds of the distillation."""
        return self.objective.rounds()


@dataclass(frozen=True)
class Run:
    """One training of a cell. Without a seed, it is the only one and has its recipe's seed."""

    cell: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.cell if self.seed is None else f"{self.cell}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name of the run's directory; empty for a cell without a name."""
        return str(self).replace(",", "").replace(" ", "-")


class Measurement(Protocol):
    """The measurement of a plan's teachers and of each run.

    Attributes:
        training: the name of the directory of a run's training, below the run's directory
    """

    training: ClassVar[str]

    def judge(self, name: str, data: TrainingData, device: str) -> Judge:
        """Load the judge of all texts."""
        ...

    def teacher_rows(self, teacher: OpenTeacher) -> tuple[int, Iterator[MeasuredRow]]:
        """The number of a teacher's rows, and an iterator that measures and yields them."""
        ...

    def keep_round(self, run: OpenRun, student: Model, step: int) -> str | None:
        """Keep the student of a round that ended at update `step`; return a line for a terminal."""
        ...

    def measure_run(self, run: OpenRun) -> Iterator[Progress]:
        """Measure a run whose training ended or failed."""
        ...


@dataclass(frozen=True)
class Plan:
    """A plan: teachers, the cells that distil them, and the measurement.

    Attributes:
        teachers, cells: teachers and cells by name. A single cell may have an empty name; its
            directory is then the plan's
        judge: directory or name of the judge
        study: settings of the evaluation: samples, seed, step counts, temperatures
        measurement: the measurement, which also names the files of its results
        seeds: trainings of each cell; None: one, with the seed of its recipe
        prerequisites: models that are trained first, in directory/NAME
        known_rows: rows of teachers that were measured before
        device: device of everything; None: `launch` chooses it for trainings, the rest uses the CPU
    """

    title: str
    teachers: Mapping[str, PlanTeacher]
    judge: str
    cells: Mapping[str, Cell]
    study: EvalSettings
    measurement: Measurement
    seeds: int | None = None
    prerequisites: Mapping[str, Recipe] = field(default_factory=dict)
    known_rows: Sequence[MeasuredRow] = ()
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
        """The runs of the named cells and the runs with these titles; all runs if none is named."""
        runs = self.runs
        if unknown := sorted({*names} - {*self.cells} - {str(run) for run in runs}):
            raise ValueError(
                f"cells has unknown names: got {', '.join(unknown)}, want some of "
                f"{', '.join(self.cells)}"
            )
        return [run for run in runs if not names or run.cell in names or str(run) in names]

    def recipe(self, run: Run) -> Recipe:
        """The recipe of a run, with its teacher and its seed."""
        cell = self.cells[run.cell]
        if not cell.recipe.traits.distils:
            kind = cell.recipe.objective.kind
            raise ValueError(
                f"recipe {cell.recipe.name!r} is {kind}, which has no teacher: want a "
                "distillation, such as demo-moments"
            )
        objective = replace(cell.recipe.objective, teacher=self.teachers[cell.teacher].model)
        seed = cell.recipe.seed if run.seed is None else run.seed
        return replace(cell.recipe, objective=objective, seed=seed)

    def place(self, run: Run, directory: Path) -> Path:
        """The directory of a run."""
        return directory / self.teachers[self.cells[run.cell].teacher].folder / run.folder


@dataclass(frozen=True)
class OpenTeacher:
    """A loaded teacher, the data of its students, and the context of its rows and theirs."""

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
    def cell(self) -> Cell:
        """The cell of the run."""
        return self.plan.cells[self.run.cell]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.plan.recipe(self.run)

    @property
    def training(self) -> Path:
        """The directory of the training."""
        return self.place / self.plan.measurement.training

    @property
    def ended(self) -> bool:
        """Whether the training is complete or failed; otherwise a signal stopped it."""
        return (self.training / "model").exists() or failure(self.place) is not None


def distillation(recipe: Recipe) -> DistillationSettings:
    """The objective of a recipe; ValueError if it is not a distillation in rounds."""
    if not isinstance(recipe.objective, DistillationSettings):
        raise ValueError(
            f"recipe {recipe.name!r} is {recipe.objective.kind}, which has no rounds: want "
            "consistency or sdtt"
        )
    return recipe.objective


def failure(place: Path) -> str | None:
    """The reason why the training of a run failed; None if it did not fail."""
    file = place / FAILURE
    return str(read_json(file)["message"]) if file.exists() else None


def diffusion(model: object) -> Model:
    """Return the model if it is a diffusion model; ValueError otherwise."""
    fault = f"model is {type(model).__name__}: want a diffusion model, to be distilled"
    return diffusion_model(model, fault)


def causal(model: object) -> CausalModel:
    """Return the model if it is autoregressive; ValueError otherwise."""
    fault = f"judge is {type(model).__name__}: want an autoregressive model"
    return causal_model(model, fault)
