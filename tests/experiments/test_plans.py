"""Plans as data: cells differ from their base in one factor, seeds and directories are distinct."""

from pathlib import Path

import pytest

from unmask.experiments import plans
from unmask.experiments.plan import Run
from unmask.recipes.catalog import recipe
from unmask.recipes.objective_settings import SdttSettings
from unmask.recipes.schema import Recipe

HERE = Path("here")


def changed(one: Recipe, other: Recipe) -> dict[str, set[str]]:
    """Field of the recipe -> the fields below it that differ."""
    names = {name for name in vars(one) if vars(one)[name] != vars(other)[name]}
    ours, theirs = vars(one.objective), vars(other.objective)
    factors = {key for key in ours if ours[key] != theirs[key]}
    return {name: factors if name == "objective" else set() for name in names}


def test_a_cell_of_the_study_changes_one_factor() -> None:
    cells = {name: cell.recipe for name, cell in plans.study(HERE).cells.items()}
    base = cells.pop("mcd")
    assert {name: changed(cell, base) for name, cell in cells.items()} == {
        "seed 2": {"seed": set()},
        "tau 1": {"objective": {"temperatures"}},
        "forward KL": {"objective": {"direction"}},
        "rate x 3": {"optim": set()},
        "twice the steps": {"objective": {"round_steps"}, "steps": set()},
    }
    longer = cells["twice the steps"]
    assert longer.steps == longer.objective.rounds().total == 2 * base.steps


def test_teacher_and_judge_of_the_study_start_from_the_shipped_ones() -> None:
    prerequisites = plans.study(HERE).prerequisites
    starts = {name: one.traits.start for name, one in prerequisites.items()}
    assert starts == {"teacher": "unmask:teacher", "judge": "unmask:judge"}


def test_the_ablation_changes_one_factor_at_a_time() -> None:
    cells = {name: cell.recipe for name, cell in plans.ablation("tiny").cells.items()}
    base = cells.pop(plans.BASE)
    factors = [changed(cell, base) for cell in cells.values()]
    assert all(set(factor) == {"objective"} and len(factor["objective"]) == 1 for factor in factors)
    assert {key for factor in factors for key in factor["objective"]} == {
        "direction",
        "revealed",
        "revealed_weight",
        "coupling",
        "temperatures",
        "reduction",
    }
    steeper = cells["steeper tau"].objective.temperatures
    assert all(a < b < 1 for a, b in zip(steeper, base.objective.temperatures, strict=True))


def test_the_grid_has_every_combination_and_spread_masks() -> None:
    cells = [cell.objective for cell in plans.ablation("tiny", full=True).cells.values()]
    combined = [cell for cell in cells if cell.order == "random"]
    factors = {(c.direction, c.revealed, c.coupling, c.temperatures) for c in combined}
    assert len(factors) == len(combined) == 36
    assert [cell.order for cell in cells if cell not in combined] == ["spread"]


def test_scales() -> None:
    small = plans.ablation("small")
    assert {cell.recipe.name for cell in small.cells.values()} == {
        "long-mcd"
    } and not small.known_rows
    with pytest.raises(ValueError, match=r"scale .*'paper'.*'tiny' or 'small'"):
        plans.ablation("paper")
    with pytest.raises(ValueError, match="'demo-sdtt' is sdtt"):
        plans.ablation_recipes(recipe("demo-sdtt"))
    with pytest.raises(ValueError, match="'demo-teacher' is nelbo"):
        plans.study_recipes(recipe("demo-teacher"))


def test_methods_have_as_many_updates_and_reach_the_same_step() -> None:
    plan = plans.methods()
    assert {cell.recipe.steps for cell in plan.cells.values()} == {240}
    ends = set()
    for cell in plan.cells.values():
        reach = 2 if isinstance(cell.objective, SdttSettings) else 1
        ends.add(cell.rounds.delta(cell.recipe.steps) * reach)
    assert ends == {1 / 8}
    with pytest.raises(ValueError, match="'demo-duo' is curriculum"):
        plans.shortened(recipe("demo-duo"))


def test_directories_are_those_of_earlier_versions() -> None:
    """Runs of earlier versions continue: the names of their directories do not change."""
    ablation, methods = plans.ablation("tiny"), plans.methods()
    assert ablation.place(Run("KL on revealed", 1), HERE) == HERE / "KL-on-revealed-seed-1"
    assert methods.place(Run("mcd", 2), HERE) == HERE / "masked" / "mcd-seed-2"
    assert methods.place(Run("dcd", 1), HERE) == HERE / "uniform" / "dcd-seed-1"
    assert plans.study(HERE).place(Run("seed 2"), HERE) == HERE / "seed-2"
    assert plans.demo(HERE).place(Run(""), HERE) == HERE
    for plan in (ablation, methods, plans.study(HERE), plans.ablation("tiny", full=True)):
        assert len({plan.place(run, HERE) for run in plan.runs}) == len(plan.runs)


def test_the_demo_trains_its_models_unless_they_are_shipped() -> None:
    shipped, other = plans.demo(HERE), plans.demo(HERE, "pydocs")
    assert not shipped.prerequisites and all(row.shipped for row in shipped.known_rows)
    assert [*other.prerequisites] == ["teacher", "judge"] and not other.known_rows
    assert [*plans.demo(HERE, from_scratch=True).prerequisites] == ["teacher", "judge"]
    recipes = [*other.prerequisites.values(), other.recipe(Run(""))]
    assert {one.data.corpus for one in recipes} == {"pydocs"}
    teacher = str(HERE / "teacher" / "model")
    assert recipes[1].data.tokenizer == recipes[2].data.tokenizer == teacher
