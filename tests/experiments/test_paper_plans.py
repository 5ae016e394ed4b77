"""The plans of the paper's tables at every scale, and the values that the papers print."""

import json
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.experiments.paper_plans import TITLES, paper_plan
from unmask.experiments.published import FAILED, MCD, TABLES
from unmask.recipes.catalog import recipe
from unmask.recipes.objective_settings import ConsistencySettings, SdttSettings

LAST_STEP = {"tiny": 1 / 8, "small": 1 / 16, "paper": 1 / 32}  # of time, in the fifth round


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("name", list(TITLES))
def test_every_plan_has_its_dry_run(
    name: str, scale: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each training has a cost, and nothing is written."""
    work = tmp_path / "work"
    assert main(["reproduce", name, "--scale", scale, "--work", str(work), "--dry-run"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not work.exists() and answer["rows"] > 0 and answer["published"]
    assert all(run["estimate"]["flops"] > 1e12 for run in answer["runs"].values())


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("name", list(TITLES))
def test_rounds_end_with_the_run(name: str, scale: str, tmp_path: Path) -> None:
    """All methods of table 1 end with equal steps: one of MCD is two of SDTT."""
    plan = paper_plan(name, scale, tmp_path)
    assert {cell.teacher for cell in plan.cells.values()} == set(plan.teachers)
    if name != "figure3":
        assert {line for line, _, _ in TABLES[name]} <= {*plan.teachers, *plan.cells}
    for cell in plan.cells.values():
        objective, rounds, steps = cell.objective, cell.rounds, cell.recipe.steps
        assert rounds.total == steps
        assert rounds.count == (5 if name in ("table1", "figure3") else 1)
        if name == "table1":
            reach = 2 if isinstance(objective, SdttSettings) else 1
            assert rounds.delta(steps - 1) * reach == LAST_STEP[scale]
        if isinstance(objective, ConsistencySettings) and objective.process == "masked":
            assert objective.temperatures[0] == 0.96


def test_the_papers_scale_is_the_papers_recipe(tmp_path: Path) -> None:
    plan = paper_plan("table1", "paper", tmp_path)
    assert plan.cells["MCD"].recipe == recipe("owt-small-mcd")
    assert plan.cells["DCD"].recipe == recipe("owt-duo-dcd")
    assert plan.judge == "gpt2-large" and plan.teachers["MDLM"].model == "kuleshov-group/mdlm-owt"
    large = paper_plan("table3", "paper", tmp_path)
    assert large.judge == "sdtt:meta-llama/Meta-Llama-3-8B" and not large.prerequisites
    assert {cell.recipe.network.width for cell in large.cells.values()} == {1536}


def test_a_cell_lists_both_papers() -> None:
    """MCD's value first; a value without entropy is printed alone."""
    table = TABLES["table1"]
    assert [str(cell) for cell in table["SDTT", 5, 32]] == ["52.16", "62.29 / 5.49"]
    assert [cell.source for cell in table["MDLM", 0, 512]] == ["MCD paper", "Duo paper"]
    assert table["MCD", 5, 8][0].source == MCD and table["Duo", 0, 8][0].entropy == 5.57
    assert {table_ for table_, lines in FAILED.items() for _ in lines} <= set(TABLES)
