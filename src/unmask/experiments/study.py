"""The larger study: rows of 256 tokens, N/16 calls of a student against N of its teacher, one factor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from unmask.cli.console import Progress
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.comparison import Comparison, compare
from unmask.experiments.demo import train, trained
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import ConsistencySettings, Recipe

STUDY = EvalSettings(
    teacher_steps=(8, 16, 32, 64, 256),
    student_steps=(8, 16, 32),
    teacher_temperatures=(0.8, 0.9, 1.1),
    texts=8,
    completions=4,
    round_steps=16,
)
SEEDS = ("mcd", "seed 2")  # the base, twice


@dataclass(frozen=True)
class Larger:
    """What is trained, distilled and measured."""

    teacher: Recipe = field(default_factory=lambda: recipe("long-teacher"))
    judge: Recipe = field(default_factory=lambda: recipe("long-judge"))
    student: Recipe = field(default_factory=lambda: recipe("long-mcd"))
    study: EvalSettings = field(default_factory=lambda: STUDY)


def cells(base: Recipe) -> dict[str, Recipe]:
    """The base recipe of MCD, the same with another seed, and recipes that differ from it in one factor each."""
    objective = consistency(base)
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


def consistency(base: Recipe) -> ConsistencySettings:
    """The objective of a recipe whose factors are varied."""
    if not isinstance(base.objective, ConsistencySettings):
        raise ValueError(
            f"a study varies a recipe of consistency distillation, {base.name!r} is {base.objective.kind}"
        )
    return base.objective


def larger(settings: Larger, directory: Path, only: tuple[str, ...] = ()) -> Iterator[Progress]:
    """Carry the study out in `directory`, all cells or `only` some: `directory`/CELL holds the report of each."""
    models = {"teacher": settings.teacher, "judge": settings.judge}
    yield from train(models, directory)
    if not trained(models, directory):
        return  # stopped by a signal
    teacher, judge = (str(directory / name / "model") for name in models)
    title = f"Rows of {settings.student.network.length} tokens"
    yield from compare(
        Comparison(title, teacher, judge, cells(settings.student), settings.study),
        directory,
        only or None,
    )
