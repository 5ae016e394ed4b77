"""Runs with a report: they share the teacher's rows, and nothing is measured twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation import sweep
from unmask.evaluation.sweep import REPORT
from unmask.experiments.driver import run_plan
from unmask.experiments.plan import Plan, Run
from unmask.experiments.rows_file import read_lines, read_rows


def named_reports(plan: Plan, home: Path) -> dict[str, dict]:
    files = {str(run): plan.place(run, home) / REPORT for run in plan.runs}
    return {name: read_json(f, LARGEST_REPORT) for name, f in files.items() if f.exists()}


def test_runs_share_the_rows_of_the_teacher(frontier_plan: Plan, frontier_home: Path) -> None:
    shared = [measured.row for measured in read_rows(frontier_home / "rows.jsonl")]
    assert len(shared) == 5 and [row.setting.top_p for row in shared].count(0.9) == 1
    for name, report in named_reports(frontier_plan, frontier_home).items():
        lists = "teacher", "temperature_teacher", "top_p_teacher"
        rows = [row for name in lists for row in report[name]]
        assert sorted(row["gen_ppl"] for row in rows) == sorted(
            row.measures["gen_ppl"].value for row in shared
        )
        assert not any(row["shipped"] for row in rows)
        assert report["title"] == f"Toy: {name}"
    files = [frontier_plan.place(run, frontier_home) / "rows.jsonl" for run in frontier_plan.runs]
    kept = [line["name"] for file in files for line in read_lines(file)]
    assert "teacher" not in kept and kept.count("student") == 2 * len(files)


def test_nothing_is_measured_twice(
    frontier_plan: Plan, frontier_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a known row is measured")

    before = named_reports(frontier_plan, frontier_home)
    monkeypatch.setattr(sweep, "draw_and_measure", refuse)
    list(run_plan(frontier_plan, frontier_home))
    for name, report in named_reports(frontier_plan, frontier_home).items():
        del report["seconds"], before[name]["seconds"]
        assert report == before[name]


def test_rounds_of_another_protocol_are_left_out(frontier_plan: Plan, frontier_home: Path) -> None:
    first = named_reports(frontier_plan, frontier_home)["mcd"]
    assert [line["round"] for line in first["rounds"]] == [1, 2]
    fewer = replace(frontier_plan, study=replace(frontier_plan.study, samples=1, texts=1))
    list(run_plan(fewer, frontier_home, [Run("mcd")]))
    report = named_reports(frontier_plan, frontier_home)["mcd"]
    assert report["rounds"] == [], "they were measured with two samples"
    assert report["protocol"]["samples"] == report["protocol"]["texts"] == 1
    assert {row["protocol"]["samples"] for row in report["student"]} == {1}
    list(run_plan(frontier_plan, frontier_home, [Run("mcd")]))
    assert named_reports(frontier_plan, frontier_home)["mcd"]["rounds"] == first["rounds"]


def test_reverse_kl_on_revealed_tokens_is_finite(frontier_plan: Plan, frontier_home: Path) -> None:
    """About 1e6 nats a token where the teacher's prediction is a point mass."""
    terms = {}
    for run in frontier_plan.runs:
        file = frontier_plan.place(run, frontier_home) / "student" / "metrics.jsonl"
        lines = file.read_text("utf-8").splitlines()
        terms[run.cell] = [json.loads(line)["reconstruction"] for line in lines]
    assert max(terms["mcd"]) < 10 and max(terms["KL on revealed"]) > 1e4


def test_shipped_rows_are_timed_once(
    frontier_plan: Plan, frontier_home: Path, tmp_path: Path
) -> None:
    """A shipped row gets the seconds of this machine once for all runs; it stays shipped."""
    known = read_rows(frontier_home / "rows.jsonl", shipped=True)
    cell = frontier_plan.cells["mcd"]
    plan = replace(frontier_plan, cells={"a": cell, "b": cell}, known_rows=known)
    list(run_plan(plan, tmp_path))
    seconds = []
    for name, report in named_reports(plan, tmp_path).items():
        assert all(row["shipped"] for row in report["teacher"]), name
        seconds.append([row["seconds"] for row in report["teacher"]])
    assert seconds[0] == seconds[1] != [row.row.measures["seconds"].value for row in known[::2]]
    assert not read_rows(tmp_path / "rows.jsonl")
