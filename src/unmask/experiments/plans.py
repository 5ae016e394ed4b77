"""The plans of this project on the demo's text: demo, study, ablation and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

from unmask.data.hub import PACKAGE_PREFIX, shipped
from unmask.evaluation.measure import MeasuredRow
from unmask.evaluation.settings import EvalSettings
from unmask.experiments.frontier_report import FrontierReport
from unmask.experiments.plan import Cell, Plan, PlanTeacher, distillation
from unmask.experiments.rows_file import ROWS, read_rows
from unmask.objectives.consistency import Coupling, Direction, Revealed
from unmask.recipes.catalog import recipe
from unmask.recipes.objective_settings import ConsistencySettings
from unmask.recipes.schema import Recipe

SHIPPED = "sotu"  # the corpus of the shipped teacher and judge
BASE = "mcd"  # the cell of the paper's setting
STUDY_SEEDS = (BASE, "seed 2")  # cells of the study that differ in the seed only
ROUND_STEPS = 60  # updates a round at the tiny scale
STEEPER = 2.0  # exponent on the paper's temperatures: .96 .93 .90 .87 become .92 .86 .81 .76

DEMO = EvalSettings(
    teacher_steps=(2, 4, 8, 16, 32, 128),
    student_steps=(2, 4, 8, 16),
    teacher_temperatures=(0.8, 0.9, 1.1),
    student_temperatures=(0.9, 1.15, 1.3),
    texts=32,
)
STUDY = EvalSettings(
    teacher_steps=(8, 16, 32, 64, 256),
    student_steps=(8, 16, 32),
    teacher_temperatures=(0.8, 0.9, 1.1),
    texts=8,
    completions=4,
    round_steps=16,
)
ABLATION = EvalSettings(
    teacher_steps=(8, 16, 128),
    student_steps=(8, 16),
    teacher_temperatures=(0.7, 0.8, 0.9, 1.1),
    student_temperatures=(1.15, 1.3, 1.45, 1.6),
    round_steps=16,
    shown=2,
)
METHODS = EvalSettings(
    teacher_steps=(8, 16, 32, 128),
    student_steps=(8, 16, 32),
    teacher_temperatures=(0.7, 0.8, 0.9, 1.1),
    student_temperatures=(0.85, 1.15, 1.3),
    round_steps=16,
    shown=2,
)


def demo(
    directory: Path,
    corpus: str = SHIPPED,
    from_scratch: bool = False,
    *,
    student: Recipe | None = None,
    teacher: Recipe | None = None,
    judge: Recipe | None = None,
    study: EvalSettings | None = None,
) -> Plan:
    """The plan of one student on one corpus; its run is in the plan's directory itself.

    Args:
        directory: The plan's directory.
        corpus: "sotu", "pydocs", a file or a folder. Other corpora than "sotu" train everything.
        from_scratch: Train teacher and judge although they are shipped.
        student: Recipe of the distillation; the catalogue's `demo-moments` by default.
        teacher: Recipe of the teacher; `demo-teacher` by default.
        judge: Recipe of the judge; `demo-judge` by default.
        study: Size and settings of the evaluation; `DEMO` by default.
    """
    student, study = student or recipe("demo-moments"), study or DEMO
    is_shipped = corpus == SHIPPED and not from_scratch
    own = teacher_and_judge(directory, corpus, teacher, judge)
    models = {n: PACKAGE_PREFIX + n if is_shipped else str(directory / n / "model") for n in own}
    student = replace(student, data=replace(student.data, corpus=corpus))
    return Plan(
        title=f"Text in a few network calls: {student.name} on {corpus}",
        teachers={"teacher": PlanTeacher(models["teacher"], study.sampler, study.draw)},
        judge=models["judge"],
        cells=_cells(models["teacher"], {"": student}),
        study=study,
        measurement=FrontierReport("shipped" if is_shipped else "trained here"),
        prerequisites={} if is_shipped else own,
        known_rows=shipped_rows() if is_shipped else (),
    )


def shipped_rows() -> list[MeasuredRow]:
    """The rows of the shipped masked teacher."""
    return read_rows(shipped() / ROWS, shipped=True)


def teacher_and_judge(
    directory: Path, corpus: str, teacher: Recipe | None = None, judge: Recipe | None = None
) -> dict[str, Recipe]:
    """The recipes of the demo's teacher and judge, trained on the halves of a corpus."""
    teacher, judge = teacher or recipe("demo-teacher"), judge or recipe("demo-judge")
    judge = with_tokenizer(judge, str(directory / "teacher" / "model"))
    both = {"teacher": teacher, "judge": judge}
    return {name: replace(r, data=replace(r.data, corpus=corpus)) for name, r in both.items()}


def study(directory: Path) -> Plan:
    """MCD on rows of 256 tokens: N/16 calls of a student against N calls of its teacher.

    Teacher and judge are trained in `directory` first.
    """
    student = recipe("long-mcd")
    prerequisites = {name: recipe(f"long-{name}") for name in ("teacher", "judge")}
    models = {name: str(directory / name / "model") for name in prerequisites}
    return Plan(
        title=f"Rows of {student.network.length} tokens",
        teachers={"teacher": PlanTeacher(models["teacher"])},
        judge=models["judge"],
        cells=_cells(models["teacher"], study_recipes(student)),
        study=STUDY,
        measurement=FrontierReport(),
        prerequisites=prerequisites,
    )


def study_recipes(base: Recipe) -> dict[str, Recipe]:
    """The base, the base with another seed, and recipes that change one factor each."""
    objective = consistency(base)
    longer = replace(objective, round_steps=2 * objective.round_steps)
    constant = (1.0,) * objective.rounds().count
    return {
        BASE: base,
        "seed 2": replace(base, seed=base.seed + 1),
        "tau 1": replace(base, objective=replace(objective, temperatures=constant)),
        "forward KL": replace(base, objective=replace(objective, direction="forward")),
        "rate x 3": replace(base, optim=replace(base.optim, lr=3 * base.optim.lr)),
        "twice the steps": replace(base, objective=longer, steps=longer.rounds().total),
    }


def ablation(scale: str, full: bool = False) -> Plan:
    """The paper's setting of MCD and changes of one factor each, with two training seeds.

    Args:
        scale: "tiny": the demo's teacher, short rounds. "small": the teacher of the study.
        full: All combinations of the factors instead of one change at a time.
    """
    if scale == "tiny":
        base, settings, known_rows = shortened(recipe("demo-mcd")), ABLATION, shipped_rows()
        teacher, judge = PACKAGE_PREFIX + "teacher", PACKAGE_PREFIX + "judge"
    elif scale == "small":
        base, settings, known_rows = recipe("long-mcd"), STUDY, []
        teacher, judge = "runs/study/teacher/model", "runs/study/judge/model"
    else:
        raise ValueError(f"scale of an ablation is {scale!r}: want 'tiny' or 'small'")
    return Plan(
        title=f"Ablation of {base.name}",
        teachers={"teacher": PlanTeacher(teacher)},
        judge=judge,
        cells=_cells(teacher, grid_recipes(base) if full else ablation_recipes(base)),
        study=settings,
        measurement=FrontierReport(),
        seeds=2,
        known_rows=known_rows,
    )


def ablation_recipes(base: Recipe) -> dict[str, Recipe]:
    """One factor at a time around the paper's setting (Latent Shadows, arXiv 2602.00792, 4.3)."""
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


def grid_recipes(base: Recipe) -> dict[str, Recipe]:
    """All combinations of direction, revealed term, coupling and temperatures; spread masks."""
    objective = consistency(base)
    schedules = {
        "paper's tau": objective.temperatures,
        "tau 1": (1.0,) * len(objective.temperatures),
        "steeper tau": tuple(tau**STEEPER for tau in objective.temperatures),
    }
    factors: dict[str, ConsistencySettings] = {}
    options = product(get_args(Direction), get_args(Revealed), get_args(Coupling))
    for (direction, revealed, coupling), (name, tau) in product(options, schedules.items()):
        title = f"{direction} {revealed.replace('_', ' ')} {coupling} {name}"
        changed = replace(objective, direction=direction, revealed=revealed, coupling=coupling)
        factors[title] = replace(changed, temperatures=tau)
    factors["spread"] = replace(objective, order="spread")
    return {name: replace(base, objective=factor) for name, factor in factors.items()}


def methods() -> Plan:
    """MCD and SDTT of the masked teacher, DCD of the uniform-state one, with two training seeds."""
    masked, uniform = PACKAGE_PREFIX + "teacher", PACKAGE_PREFIX + "duo"
    students = {"mcd": recipe("demo-mcd"), "sdtt": recipe("demo-sdtt")}
    short = {name: shortened(student) for name, student in students.items()}
    dcd = {"dcd": shortened(recipe("demo-dcd"))}
    return Plan(
        title="Methods",
        teachers={
            "teacher": PlanTeacher(masked, folder="masked"),
            "duo": PlanTeacher(uniform, "ancestral", folder="uniform"),
        },
        judge=PACKAGE_PREFIX + "judge",
        cells=_cells(masked, short) | _cells(uniform, dcd, "duo"),
        study=METHODS,
        measurement=FrontierReport(),
        seeds=2,
        known_rows=shipped_rows(),
    )


def consistency(base: Recipe) -> ConsistencySettings:
    """The objective of a recipe whose factors are varied; ValueError if it is another method."""
    if not isinstance(base.objective, ConsistencySettings):
        raise ValueError(
            f"recipe {base.name!r} is {base.objective.kind}: want a consistency distillation, "
            "whose factors are varied"
        )
    return base.objective


def shortened(base: Recipe) -> Recipe:
    """The distillation with rounds of ROUND_STEPS updates."""
    objective = replace(distillation(base), round_steps=ROUND_STEPS)
    steps = objective.rounds().total
    return replace(base, objective=objective, steps=steps, save_every=ROUND_STEPS)


def _cells(model: str, recipes: Mapping[str, Recipe], teacher: str = "teacher") -> dict[str, Cell]:
    """A cell for each recipe, with the tokenizer of its teacher."""
    return {name: Cell(teacher, with_tokenizer(r, model)) for name, r in recipes.items()}


def with_tokenizer(base: Recipe, model: str) -> Recipe:
    """The recipe with the tokenizer of a model, which is a directory or a name."""
    return replace(base, data=replace(base.data, tokenizer=model))
