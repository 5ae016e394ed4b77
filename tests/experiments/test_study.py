"""The larger study, shrunk: two cells on one teacher, measured once, and a table of both."""

import copy
import resource
from dataclasses import replace
from pathlib import Path

import pytest

import unmask.experiments.comparison as comparison
from toy_recipes import shrink
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.comparison import HEAD, folder, means, reports_of, summary
from unmask.experiments.experiment import Progress, lines, note, read_rows
from unmask.experiments.study import Larger, cells, larger
from unmask.models.model import load
from unmask.recipes.build import starts_from
from unmask.recipes.catalog import recipe

CELLS = ("mcd", "forward KL")


@pytest.fixture(scope="module")
def settings(text: Path, masked: Path, causal: Path) -> Larger:
    starts = {"teacher": masked, "judge": causal, "mcd": masked}
    plans = {
        name: replace(
            shrink(recipe(f"long-{name}"), text, start, tokens=masked), precision="float32"
        )
        for name, start in starts.items()
    }
    rounds = replace(plans["mcd"].objective, temperatures=(0.9, 0.8))
    study = EvalSettings(
        samples=2, teacher_steps=(2, 16), student_steps=(2,), teacher_temperatures=(0.8,), student_temperatures=(1.2,),
        texts=2, completions=2, shown=1, round_steps=2, player_steps=2,
    )  # fmt: skip
    student = replace(plans["mcd"], objective=rounds)
    return Larger(plans["teacher"], plans["judge"], student, study)


@pytest.fixture(scope="module")
def home(settings: Larger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    *_, last = larger(settings, folder, CELLS)
    assert last.report is not None
    return folder


def reports(home: Path) -> dict[str, dict]:
    return reports_of(CELLS, home)


def test_cells_differ_from_the_base_in_one_factor():
    base = recipe("long-mcd")
    found = cells(base)
    assert found.pop("mcd") == base
    for plan in found.values():
        differing = [name for name in vars(base) if getattr(plan, name) != getattr(base, name)]
        assert differing in (["seed"], ["objective"], ["optim"], ["objective", "steps"])
    assert (
        found["twice the steps"].steps
        == found["twice the steps"].objective.rounds().total
        == 2 * base.steps
    )
    assert {plan.objective.direction for plan in found.values()} == {"reverse", "forward"}
    with pytest.raises(ValueError, match="varies a recipe of consistency distillation"):
        cells(recipe("demo-teacher"))


def test_teacher_and_judge_go_on_from_the_shipped_ones(settings: Larger, home: Path) -> None:
    assert [starts_from(plan) for plan in (Larger().teacher, Larger().judge)] == [
        "unmask:teacher",
        "unmask:judge",
    ]
    for name, plan in (("teacher", settings.teacher), ("judge", settings.judge)):
        shape, started = load(home / name).network.shape, load(starts_from(plan)).network.shape
        assert shape.length == settings.student.network.length and shape.width == started.width


def test_cells_share_the_rows_of_the_teacher(home: Path) -> None:
    shared = [measured.row for measured in read_rows(home / "rows.jsonl")]
    assert len(shared) == 4
    for report in reports(home).values():
        rows = [*report["teacher"], *report["temperature_teacher"]]
        assert sorted(row["gen_ppl"] for row in rows) == sorted(
            row.measures["gen_ppl"].value for row in shared
        )
        assert not any(row["shipped"] for row in rows)
    kept = [line["name"] for name in CELLS for line in lines(home / folder(name) / "rows.jsonl")]
    assert "teacher" not in kept and kept.count("student") == 2 * len(CELLS)


def test_doing_it_again_measures_nothing_again(
    settings: Larger, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.evaluation import sweep as study

    before = reports(home)

    def refuse(*_, **__):
        raise AssertionError("every row is known")

    monkeypatch.setattr(study, "measure_frontier", refuse)
    list(larger(settings, home, CELLS))
    for name, report in reports(home).items():
        assert {k: v for k, v in report.items() if k != "seconds"} == {
            k: v for k, v in before[name].items() if k != "seconds"
        }


def test_a_table_of_all_cells(home: Path) -> None:
    table = summary(reports(home))
    assert [line[0] for line in table] == list(CELLS) and all(
        len(line) == len(HEAD) for line in table
    )


def test_two_seeds_have_a_mean_and_a_spread(home: Path) -> None:
    one = reports(home)["mcd"]
    two = copy.deepcopy(one)
    two["student"][0]["gen_ppl"] += 3
    for report, gain in ((one, 1.2), (two, 1.4)):
        for entry in report["answers"]["equal_entropy"]:
            entry["gain"] = {"value": gain, "low": None, "high": None}
        report["answers"]["equal_entropy"][2]["gain"] = None
    [last] = means("2 seeds", [one, two])
    ppl, entropy = one["student"][0]["gen_ppl"] + 1.5, one["student"][0]["entropy"]
    assert last == [
        "2 seeds",
        "2",
        f"{ppl:.4g} ± 1.5",
        f"{entropy:.4g} ± 0",
        "1.3 ± 0.1",
        "1.3 ± 0.1",
        "not reached",
    ]


def test_a_study_that_is_stopped_begins_no_other_cell(
    settings: Larger, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(plan, directory):
        yield Progress("distilling", 2, 4)

    monkeypatch.setattr(comparison, "experiment", stopped)
    stages = [event.stage for event in larger(settings, home, CELLS) if "distilling" in event.stage]
    assert stages == ["mcd, distilling"]


def test_rounds_of_another_protocol_are_not_shown(settings: Larger, home: Path) -> None:
    one = reports(home)["mcd"]
    assert [line["round"] for line in one["rounds"]] == [1, 2]
    more = replace(settings, study=replace(settings.study, samples=1, texts=1))
    list(larger(more, home, ("mcd",)))
    report = reports(home)["mcd"]
    assert report["rounds"] == [], "they were measured with two samples"
    assert report["protocol"]["samples"] == report["protocol"]["texts"] == 1
    assert {row["protocol"]["samples"] for row in report["student"]} == {1}
    list(larger(settings, home, ("mcd",)))
    assert reports(home)["mcd"]["rounds"] == one["rounds"]


def test_a_cell_that_is_not_there_is_refused(settings: Larger, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none called backward KL"):
        list(larger(settings, tmp_path, ("backward KL",)))


def test_a_line_that_a_kill_cut_off_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"', "utf-8")
    assert lines(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]
    note(tmp_path / "rows.jsonl", {"a": 3})
    assert lines(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert lines(tmp_path / "none.jsonl") == []
    note(tmp_path / "none.jsonl", {"a": 4})
    assert lines(tmp_path / "none.jsonl") == [{"a": 4}]


def test_a_full_disk_names_the_file_and_keeps_its_lines(tmp_path: Path) -> None:
    """The limit of a file's size stands in the place of the disk's end."""
    file, before = tmp_path / "rows.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    note(file, {"a": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"rows\.jsonl did not get its next line .*: the lines before it are kept"
        ):
            note(file, {"a": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lines(file) == [{"a": 1}]
    note(file, {"a": 2})
    assert lines(file) == [{"a": 1}, {"a": 2}]
