"""The ablation: the paper's setting of MCD, and students that differ from it in one factor each, with two seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.study import STUDY, consistency
from unmask.objectives.consistency import Coupling, Direction, Revealed
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import DistillationSettings, Recipe

SEEDS = 2
BASE = "mcd"
ROUND_STEPS = 60  # at the tiny scale
STEEPER = 2.0  # exponent on the paper's temperatures: .96 .93 .90 .87 become .92 .86 .81 .76


def cells(base: Recipe) -> dict[str, Recipe]:
    """One factor at a time around `base`, the paper's setting (Latent Shadows, arXiv 2602.00792, section 4.3)."""
    objective = consistency(base)
    steeper = tuple(tau**STEEPER for tau in objective.temperatures)
    factors = {
        BASE: objective,
        "forward KL": replace(objective, direction="forward"),
        "KL on revealed": replace(objective, revealed="divergence"),
        "no revealed term": replace(objective, revealed="none"),
        "revealed x 4": replace(objective, revealed_weight=4.0),
        "independent": replace(objective, coupling="independent"),
        "tau 1": replace(objective, temperatures=(1.0,) * len(steeper)),
        "steeper tau": replace(objective, temperatures=steeper),
        "mean over MASKs": replace(objective, reduction="masked"),
    }
    return {name: replace(base, objective=factor) for name, factor in factors.items()}


def grid(base: Recipe) -> dict[str, Recipe]:
    """Every combination of direction, revealed term, coupling and temperature, and structured couplings."""
    objective = consistency(base)
    steeper = tuple(tau**STEEPER for tau in objective.temperatures)
    heat = {
        "paper's tau": objective.temperatures,
        "tau 1": (1.0,) * len(steeper),
        "steeper tau": steeper,
    }
    found = {}
    for direction, revealed, coupling in product(
        get_args(Direction), get_args(Revealed), get_args(Coupling)
    ):
        for tau, temperatures in heat.items():
            changed = replace(
                objective,
                direction=direction,
                revealed=revealed,
                coupling=coupling,
                temperatures=temperatures,
            )
            name = f"{direction} {revealed.replace('_', ' ')} {coupling} {tau}"
            found[name] = replace(base, objective=changed)
    for structure in ("block:8:0.9", "block:8:1", "span:8"):
        found[structure.replace(":", " ")] = replace(
            base, objective=replace(objective, structure=structure)
        )
    return found


def seeded(plans: dict[str, Recipe], seeds: int = SEEDS) -> dict[str, Recipe]:
    """Each cell with each training seed: "CELL, seed N"."""
    return {
        f"{name}, seed {plan.seed + i}": replace(plan, seed=plan.seed + i)
        for i in range(seeds)
        for name, plan in plans.items()
    }


def shortened(plan: Recipe) -> Recipe:
    """The distillation with rounds of ROUND_STEPS updates."""
    if not isinstance(plan.objective, DistillationSettings):
        raise ValueError(
            f"methods of distillation are compared, {plan.name!r} is {plan.objective.kind}"
        )
    objective = replace(plan.objective, round_steps=ROUND_STEPS)
    return replace(
        plan, objective=objective, steps=objective.rounds().total, save_every=ROUND_STEPS
    )


@dataclass(frozen=True)
class Scale:
    """How large an ablation is: the base recipe, what is measured, and teacher and judge by directory or name."""

    base: Recipe
    study: EvalSettings
    teacher: str
    judge: str


TINY = EvalSettings(
    teacher_steps=(8, 16, 128), student_steps=(8, 16), teacher_temperatures=(0.7, 0.8, 0.9, 1.1),
    student_temperatures=(1.15, 1.3, 1.45, 1.6), round_steps=16, shown=2,
)  # fmt: skip


def scale(name: str) -> Scale:
    """The demo's teacher on two cores with 4 x 60 updates a student ("tiny"), or that of the larger study ("small")."""
    if name == "tiny":
        return Scale(shortened(recipe("demo-mcd")), TINY, "unmask:teacher", "unmask:judge")
    if name == "small":
        return Scale(
            recipe("long-mcd"), STUDY, "runs/study/teacher/model", "runs/study/judge/model"
        )
    raise ValueError(f"scale is 'tiny' or 'small': got {name!r}")
