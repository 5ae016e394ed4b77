"""Tables over reports: a line for each run, means over seeds, methods beside their teachers."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

import unmask.experiments.commands.reproduce as reproduce
from toy_recipes import shrink
from unmask.cli.main import main
from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.sweep import REPORT
from unmask.experiments.commands.results import (
    HEAD,
    METHODS_HEAD,
    means,
    means_by_cell,
    methods_table,
    reports_of,
    summary,
)
from unmask.experiments.plan import Cell, Plan, PlanTeacher, Run
from unmask.experiments.report.comparison_figure import comparison_figure
from unmask.experiments.report.report_schema import read_report
from unmask.recipes.catalog import recipe


def test_a_line_for_each_run(frontier_plan: Plan, frontier_home: Path) -> None:
    table = summary(reports_of(frontier_plan, frontier_home))
    assert [line[0] for line in table] == ["mcd", "KL on revealed"]
    assert all(len(line) == len(HEAD) for line in table)


def test_two_seeds_have_a_mean_and_a_spread(frontier_plan: Plan, frontier_home: Path) -> None:
    first = read_json(frontier_home / "mcd" / REPORT, LARGEST_REPORT)
    second = copy.deepcopy(first)
    second["student"][0]["measures"]["gen_ppl"]["value"] += 3
    for report, gain in ((first, 1.2), (second, 1.4)):
        for entry in report["answers"]["equal_entropy"]:
            entry["gain"] = {"value": gain, "low": None, "high": None}
        report["answers"]["equal_entropy"][2]["gain"] = None
    ppl, entropy = first["student"][0]["gen_ppl"] + 1.5, first["student"][0]["entropy"]
    one, two = read_report(first), read_report(second)
    gains = ["1.3 ± 0.1", "1.3 ± 0.1", "not reached"]
    [line] = means("mcd", [one, two])
    assert line == ["mcd", "2", f"{ppl:.4g} ± 1.5", f"{entropy:.4g} ± 0", *gains]
    [line] = means("mcd", [one])
    assert len(line) == len(HEAD) and "±" not in "".join(line)
    plan = replace(frontier_plan, seeds=2)
    table = means_by_cell(
        plan, {Run("mcd", 1): one, Run("mcd", 2): two, Run("KL on revealed", 1): one}
    )
    assert [line[0] for line in table] == ["mcd", "KL on revealed (1 seed)"]


def test_methods_with_different_teachers_share_a_table_and_a_figure(
    frontier_plan: Plan,
    text: Path,
    masked: Path,
    uniform: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = {"mcd": ("teacher", masked), "dcd": ("duo", uniform), "sdtt": ("teacher", masked)}
    cells = {}
    for name, (teacher, start) in starts.items():
        small = shrink(recipe(f"demo-{name}"), text, start)
        cells[name] = Cell(teacher, replace(small, precision="float32"))
    teachers = {
        "teacher": PlanTeacher(str(masked), folder="masked"),
        "duo": PlanTeacher(str(uniform), "ancestral", folder="uniform"),
    }
    plan = replace(frontier_plan, teachers=teachers, cells=cells)
    monkeypatch.setattr(reproduce, "methods", lambda: plan)
    assert main(["reproduce", "methods", "--work", str(tmp_path)]) == 0
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "uniform" / "dcd" / "report.json").exists()
    reports = {str(run): report for run, report in reports_of(plan, tmp_path).items()}
    assert {row.row.setting.sampler for row in reports["dcd"].student} == {"ancestral"}
    assert reports["dcd"].player == [] and reports["mcd"].player
    order = ("mcd", "sdtt", "dcd")
    table = methods_table({Run(name): reports[name] for name in order})
    names = ["teacher of mcd"] * 2 + ["mcd", "sdtt"] + ["teacher of dcd"] * 2 + ["dcd"]
    assert [line[0] for line in table] == names
    assert all(len(line) == len(METHODS_HEAD) for line in table)
    [axes] = comparison_figure({name: reports[name] for name in order}, 2).axes
    labels = {str(line.get_label()) for line in axes.get_lines()}
    teachers_drawn = {"teacher of mcd, 2 steps", "teacher of dcd, 2 steps"}
    assert teachers_drawn | {"sdtt, 2 steps", "dcd, 2 steps"} <= labels
