"""A plan has a run for each cell and seed; a cell is a distillation."""

from dataclasses import replace

import pytest

from unmask.experiments.plan import Cell, Plan, Run
from unmask.recipes.catalog import recipe


def test_each_cell_has_each_seed(frontier_plan: Plan) -> None:
    base = frontier_plan.cells["mcd"]
    plan = replace(frontier_plan, cells={"a": base, "b, c": base}, seeds=2)
    first = base.recipe.seed
    runs = [Run("a", first), Run("b, c", first), Run("a", first + 1), Run("b, c", first + 1)]
    assert plan.runs == runs, "all cells have a seed first"
    assert [str(run) for run in runs[1:3]] == [f"b, c, seed {first}", f"a, seed {first + 1}"]
    assert [plan.recipe(run).seed for run in runs] == [first, first, first + 1, first + 1]
    assert len({run.folder for run in runs}) == 4
    assert plan.select(["b, c", f"a, seed {first}"]) == [runs[0], runs[1], runs[3]]
    assert plan.select([]) == runs
    with pytest.raises(ValueError, match="cells has unknown names: got b, want"):
        plan.select(["b"])


def test_a_cell_distils() -> None:
    with pytest.raises(ValueError, match="'demo-teacher' is nelbo"):
        Cell("teacher", recipe("demo-teacher")).rounds  # noqa: B018
