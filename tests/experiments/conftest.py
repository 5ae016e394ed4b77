"""A plan in miniature whose runs have a report, carried out once."""

from dataclasses import replace
from pathlib import Path

import pytest

from toy_recipes import shrink
from unmask.cli.console import follow
from unmask.evaluation.settings import EvalSettings
from unmask.experiments.driver import run_plan
from unmask.experiments.frontier_report import FrontierReport
from unmask.experiments.plan import Cell, Plan, PlanTeacher
from unmask.experiments.plans import ablation_recipes
from unmask.recipes.catalog import recipe

STUDY = EvalSettings(
    samples=2, teacher_steps=(2, 16), student_steps=(2,), teacher_temperatures=(0.8,),
    student_temperatures=(1.2,), top_p_temperatures=(1.0,), texts=2, completions=2, shown=1,
    round_steps=2, player_steps=2,
)  # fmt: skip


@pytest.fixture(scope="session")
def frontier_plan(text: Path, masked: Path, causal: Path) -> Plan:
    """Two cells of one teacher: MCD, and MCD with reverse KL on revealed tokens; two rounds."""
    base = replace(shrink(recipe("demo-mcd"), text, masked), precision="float32")
    base = replace(base, objective=replace(base.objective, temperatures=(0.9, 0.8)))
    recipes = ablation_recipes(base)
    cells = {name: Cell("teacher", recipes[name]) for name in ("mcd", "KL on revealed")}
    teachers = {"teacher": PlanTeacher(str(masked))}
    return Plan("Toy", teachers, str(causal), cells, STUDY, FrontierReport())


@pytest.fixture(scope="session")
def frontier_home(frontier_plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the plan, complete."""
    place = tmp_path_factory.mktemp("cells")
    assert follow(run_plan(frontier_plan, place))
    return place
