"""The demo in miniature: trained from scratch, distilled, measured; and interrupted on the way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unmask.experiments.commands.demo as command
from unmask.cli.console import follow
from unmask.cli.main import main
from unmask.data.tokenizers import train_bpe
from unmask.dataclass_json import LARGEST_REPORT, read_json, to_json
from unmask.evaluation import sweep
from unmask.evaluation.frontier import frontier
from unmask.evaluation.judge_by_name import judge_of
from unmask.evaluation.measure import MeasuredRow, Row
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import REPORT, EvalContext, measure
from unmask.evaluation.verdict import Finding
from unmask.experiments.driver import run_plan, train
from unmask.experiments.plan import Plan
from unmask.experiments.plans import demo
from unmask.experiments.report.report_schema import read_report
from unmask.models.model import load
from unmask.recipes.catalog import recipe
from unmask.recipes.data import training_data
from unmask.recipes.schema import NetworkSettings, Recipe, recipe_of
from unmask.training import RunDir, RunError

ROWS = ("teacher", "student", "temperature_teacher", "temperature_student", "naive")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of the plan besides its directory."""
    corpus = tmp_path_factory.mktemp("corpus")
    for i in range(24):
        (corpus / f"{i:02}.txt").write_text(
            f"Message {i}. " + "Fellow citizens of the Senate and of the House. " * 12
        )
    network = NetworkSettings(length=16, width=16, blocks=1, heads=2, cond_dim=4, dropout=0.0)

    def tiny(name: str, **changes: Any) -> Recipe:
        small = replace(recipe(name), network=network, batch_size=4, save_every=2, steps=4)
        return replace(small, precision="float32", **changes)

    teacher, mcd = recipe("demo-teacher"), recipe("demo-mcd")
    rounds = replace(mcd.objective, round_steps=2, temperatures=(0.9, 0.8))
    return {
        "corpus": str(corpus),
        "teacher": tiny("demo-teacher", data=replace(teacher.data, tokenizer="bpe:270")),
        "judge": tiny("demo-judge"),
        "student": tiny("demo-mcd", objective=rounds),
        "study": EvalSettings(
            samples=3, teacher_steps=(2, 4, 16), student_steps=(2, 4), teacher_temperatures=(0.8,),
            student_temperatures=(1.2,), texts=2, completions=3, shown=2, round_steps=4,
            player_steps=4,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def plan(options: dict[str, Any], home: Path) -> Plan:
    return demo(home, **options)


@pytest.fixture(scope="module")
def finished(plan: Plan, home: Path) -> dict[str, Any]:
    assert follow(run_plan(plan, home))
    return read_json(home / REPORT, LARGEST_REPORT)


def test_a_report_has_a_row_for_each_step_count_and_temperature(finished):
    read_report(finished)
    rows = [*finished["teacher"], *finished["temperature_teacher"]]
    grid = {(steps, tau) for steps in (2, 4, 16) for tau in (1.0, 0.8)}
    assert {(row["steps"], row["temperature"]) for row in rows} == grid and len(rows) == len(grid)
    rows = [*finished["student"], *finished["temperature_student"]]
    grid = {(steps, tau) for steps in (2, 4) for tau in (1.0, 1.2)}
    assert {(row["steps"], row["temperature"]) for row in rows} == grid and len(rows) == len(grid)


def test_every_row_shares_one_protocol_and_counts_calls(finished):
    rows = [row for name in ROWS for row in finished[name]]
    assert all(row["protocol"] == finished["protocol"] for row in rows)
    assert all(row["nfe"] <= min(row["steps"], 16) for row in rows)
    assert not any(row.get("shipped") for row in rows)


def test_rounds_and_curves_cover_the_distillation(finished):
    assert [line["round"] for line in finished["rounds"]] == [1, 2]
    assert finished["rounds"][1]["delta"] == 2 * finished["rounds"][0]["delta"]
    assert finished["training"]["step"] == [1, 2, 3, 4]


def test_players_reveal_every_position_once(finished):
    for film in finished["player"]:
        assert sorted(i for frame in film["frames"] for i in frame) == list(range(16))
        assert len(film["pieces"]) == 16


def test_an_interrupted_demo_continues_with_the_same_results(options, finished, tmp_path):
    plan = demo(tmp_path, **options)
    stages = run_plan(plan, tmp_path)
    for event in stages:
        if event.stage == "distilling" and event.done == 3:
            break
    stages.close()
    assert follow(run_plan(plan, tmp_path))
    report = read_json(tmp_path / REPORT, LARGEST_REPORT)
    for name in ("teacher", "student"):
        gen_ppl = [row["gen_ppl"] for row in report[name]]
        assert gen_ppl == [row["gen_ppl"] for row in finished[name]]
    assert report["rounds"] == finished["rounds"]
    assert report["training"] == finished["training"]


def test_a_finished_training_is_read_while_another_process_reads_it(plan, finished, home):
    """Runs of a plan share prerequisites; another recipe is still refused."""
    teacher = plan.prerequisites["teacher"]
    with RunDir.open(home / "teacher", to_json(recipe_of(home / "teacher"))):
        assert not list(train({"teacher": teacher}, home))
        assert not list(train({"teacher": replace(teacher, precision="fastest")}, home))
        with pytest.raises(RunError, match="in use by process"):
            list(train({"teacher": replace(teacher, steps=3)}, home))
    with pytest.raises(RunError, match="steps"):
        list(train({"teacher": replace(teacher, steps=5)}, home))


def test_known_rows_are_looked_up_only_under_their_own_protocol(plan, finished, home):
    teacher, judge = load(home / "teacher" / "model"), load(home / "judge" / "model")
    known = [MeasuredRow(Row.from_json(row), shipped=True) for row in finished["teacher"]]
    data = training_data(plan.prerequisites["teacher"])
    scene = EvalContext(
        plan.study, judge_of(judge, 16), data.held_out, data.digest, known, read_by_judge=0.0
    )
    found = list(measure("teacher", teacher, scene, plan.study.teacher_steps, (1.0,)))
    assert [m.shipped for m in found] == [True] * 3
    assert [m.row.measures["gen_ppl"].value for m in found] == [
        row["gen_ppl"] for row in finished["teacher"]
    ]
    text, judged = replace(scene, data="another text"), replace(scene, read_by_judge=0.5)
    drawn = replace(scene, study=replace(plan.study, draw="legacy_gumbel32", sampler="ancestral"))
    for other in (text, judged, drawn):
        assert not any(m.shipped for m in measure("teacher", teacher, other, (2,), (1.0,)))


def test_models_of_other_tokenizers_are_not_compared(plan, finished, home):
    teacher, judge = load(home / "teacher" / "model"), load(home / "judge" / "model")
    data = training_data(plan.prerequisites["teacher"])
    scene = EvalContext(plan.study, judge_of(judge, 16), data.held_out, data.digest)
    other = replace(teacher, tokenizer=train_bpe(["zebras graze lazily, zebras doze"] * 9, 265))
    with pytest.raises(ValueError, match=r"tokenizer .*process"):
        next(frontier(teacher, other, scene))
    with pytest.raises(ValueError, match="999"):
        EvalContext(
            replace(plan.study, samples=999), judge_of(judge, 16), data.held_out, data.digest
        )


def test_the_command_prints_the_report_and_writes_the_page(
    plan, finished, home, capsys, monkeypatch
):
    """In the finished directory nothing is trained or measured again."""
    monkeypatch.setattr(command, "demo", lambda *_, **__: plan)
    monkeypatch.setattr(sweep, "draw_and_measure", None)
    assert main(["demo", "--out", str(home)]) == 0
    out = capsys.readouterr().out
    assert all(str(Finding(**finding)) in out for finding in finished["verdict"])
    assert "teacher" in out and "student" in out and str(home / "report.html") in out
    assert (home / "report.html").exists()
    monkeypatch.setattr(command, "run_plan", lambda *_: iter(()))
    assert main(["demo", "--out", str(home)]) == 1, "stopped"
