"""The paper's tables in miniature: each row is measured once, and a stop loses nothing."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unmask.experiments.commands.reproduce as reproduce
import unmask.experiments.commands.results as results
import unmask.experiments.driver as driver
from toy_recipes import shrink
from unmask.cli.console import follow
from unmask.cli.main import main
from unmask.evaluation import sweep
from unmask.evaluation.measure import UnequalProtocols, require_same_protocol
from unmask.evaluation.settings import EvalSettings
from unmask.experiments.driver import run_plan
from unmask.experiments.paper_table import RoundRows, lines_record, precision_rows, table_lines
from unmask.experiments.plan import FAILURE, Cell, Plan, PlanTeacher, Run
from unmask.experiments.published import TABLES
from unmask.experiments.rows_file import ROWS, read_rows
from unmask.models.denoiser import set_compute
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import Recipe, trained_on
from unmask.training import TrainingError

STUDY = EvalSettings(samples=2, student_steps=(2, 4), texts=0, completions=0)


def small(name: str, text: Path, teacher: Path) -> Recipe:
    return replace(shrink(recipe(name), text, teacher), precision="float32")


@pytest.fixture(scope="module")
def toy(text: Path, masked: Path, uniform: Path, causal: Path) -> Plan:
    """Three methods of two rounds, one step each, of two teachers."""
    mcd, sdtt, dcd = (
        small("demo-mcd", text, masked),
        small("demo-sdtt", text, masked),
        small("demo-dcd", text, uniform),
    )
    mcd = replace(mcd, objective=replace(mcd.objective, temperatures=(0.9, 0.8)))
    dcd = replace(dcd, objective=replace(dcd.objective, temperatures=(1.0, 1.0)))
    teachers = {
        "MDLM": PlanTeacher(str(masked), precision_steps=(4,)),
        "Duo": PlanTeacher(str(uniform), "ancestral"),
    }
    cells = {"SDTT": Cell("MDLM", sdtt), "DCD": Cell("Duo", dcd), "MCD": Cell("MDLM", mcd)}
    return Plan("Toy", teachers, str(causal), cells, STUDY, RoundRows(), seeds=2, device="cpu")


@pytest.fixture(scope="module")
def home(toy: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    assert follow(run_plan(toy, place))
    return place


def only(toy: Plan, name: str) -> Plan:
    """The plan with one cell of the masked teacher."""
    teachers = {"MDLM": replace(toy.teachers["MDLM"], precision_steps=())}
    return replace(toy, cells={name: toy.cells[name]}, teachers=teachers)


def test_every_cell_is_there(toy: Plan, home: Path) -> None:
    found = {str(line): line for line in table_lines(toy, home)}
    assert list(found) == [
        "MDLM",
        "Duo",
        *(f"{name} R{i}" for name in ("SDTT", "DCD", "MCD") for i in (1, 2)),
    ]
    for name, line in found.items():
        assert set(line.cells) == {2, 4} and line.failed is None
        for cell in line.cells.values():
            assert (
                cell.seeds == (2 if line.round else 1)
                and cell.gen_ppl.value > 1
                and cell.entropy.value > 0
            ), name
    uniform = found["DCD R1"].cells[4]
    assert uniform.nfe == 4, "uniform noise: a call a step"
    places = [toy.place(run, home) for run in toy.runs]
    rows = [m.row for place in places for m in read_rows(place / ROWS)]
    rows += [m.row for m in read_rows(home / ROWS) if m.row.name in toy.teachers]
    protocol = require_same_protocol(rows)
    assert protocol.precision == "float64" and protocol.texts == 0
    files = ["round-1", "round-2", ROWS, "run"]
    assert all(sorted(path.name for path in place.iterdir()) == files for place in places)
    place = toy.place(Run("MCD", 1), home)
    recipes = [trained_on(str(place / name)) for name in ("round-1", "run/model")]
    assert recipes[0] == recipes[1] is not None, "can be measured alone"


def test_the_teacher_is_drawn_in_other_precisions_too(toy: Plan, home: Path) -> None:
    rows = precision_rows(toy, home)
    assert [(row.protocol.precision, row.setting.top_p, row.setting.sampler) for row in rows] == [
        ("float64", 1.0, "reveal"), ("float64", 0.9, "reveal"),
        ("float32 Gumbel", 1.0, "ancestral"), ("float32 Gumbel", 0.9, "ancestral"),
    ]  # fmt: skip
    assert [row.setting.draw for row in rows] == ["race", "race", *["legacy_gumbel32"] * 2]
    with pytest.raises(UnequalProtocols, match="precision"):
        require_same_protocol(rows)
    plain = next(line for line in table_lines(toy, home) if line.name == "MDLM").cells[4]
    assert rows[0].measures["gen_ppl"].value == pytest.approx(plain.gen_ppl.value), (
        "the same latents, the same draw"
    )


def test_a_row_in_another_precision_states_the_products_of_its_model(
    toy: Plan, tmp_path: Path
) -> None:
    teacher = driver.open_teacher(toy, "MDLM", tmp_path)
    set_compute(teacher.model.module, torch.bfloat16)
    _, rows = RoundRows().teacher_rows(teacher)
    assert next(rows).row.protocol.products == "bfloat16"


def test_measured_rows_are_not_measured_again(
    toy: Plan, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in home.rglob("*.jsonl")}
    assert len(before) == 1 + 2 * 6
    monkeypatch.setattr(sweep, "sample", None)
    list(run_plan(toy, home))
    assert {file: file.read_bytes() for file in home.rglob("*.jsonl")} == before


def test_precision_rows_without_their_draw_are_not_measured_again(
    toy: Plan, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions wrote the default draw into every row of a teacher."""
    place = tmp_path / "home"
    shutil.copytree(home, place)
    lines = [json.loads(line) for line in (place / ROWS).read_text("utf-8").splitlines()]
    for line in lines:
        line["setting"]["draw"] = "race"
    (place / ROWS).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    before = (place / ROWS).read_bytes()
    monkeypatch.setattr(sweep, "sample", None)
    list(run_plan(toy, place, ()))
    assert (place / ROWS).read_bytes() == before


def test_an_interrupted_run_continues(toy: Plan, home: Path, tmp_path: Path) -> None:
    """Stopped after each event in turn, it has the rows of a run that was not, each once."""
    plan = replace(only(toy, "SDTT"), seeds=1)
    for stop in range(1, 30):
        events = run_plan(plan, tmp_path)
        for _ in range(stop):
            if next(events, None) is None:
                break
        events.close()
    [run] = plan.runs
    rows = read_rows(plan.place(run, tmp_path) / ROWS)
    settings = [(m.row.name, m.row.setting.steps) for m in rows]
    assert sorted(settings) == [("round 1", 2), ("round 1", 4), ("round 2", 2), ("round 2", 4)]
    for one, two in zip(rows, read_rows(toy.place(run, home) / ROWS), strict=True):
        assert one.row.measures["gen_ppl"] == two.row.measures["gen_ppl"]


def test_a_failed_training_is_a_line_of_the_table(
    toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(recipe: Recipe, directory: Path, **options: object) -> object:
        directory.mkdir(parents=True)
        raise TrainingError("loss is nan")
        yield

    monkeypatch.setattr(driver, "run_recipe", explode)
    plan = only(toy, "MCD")
    assert follow(run_plan(plan, tmp_path))
    failed = [line for line in table_lines(plan, tmp_path) if line.failed]
    assert [line.failed for line in failed] == ["loss is nan"] * 2 and not failed[0].cells
    assert (tmp_path / "MCD-seed-1" / FAILURE).exists()
    stages = [event.stage for event in run_plan(plan, tmp_path)]
    assert "MCD, seed 1, failed before" in stages


def test_the_command_prints_the_table_and_writes_the_page(
    toy: Plan, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "paper_plan", lambda name, scale, work: toy)
    assert main(["reproduce", "table1", "--work", str(home), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert (
        "MCD R2" in out
        and "float32 Gumbel, top-p 0.9" in out
        and "draws in float64, products in float32" in out
    )
    page = (home / "report.html").read_text("utf-8")
    assert "<h3>MCD R2</h3>" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (home / "table1.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((home / "table.json").read_text("utf-8"))
    assert {line["line"] for line in content["lines"]} >= {"MDLM", "MCD R1"}
    assert all(
        math.isfinite(cell["gen_ppl"])
        for line in content["lines"]
        for cell in line["cells"].values()
    )
    before = (home / "report.html").read_bytes()
    assert main(["reproduce", "figure3", "--work", str(home), "--jobs", "1"]) == 0
    assert (home / "report.html").read_bytes() == before and (home / "figure3.html").exists()
    capsys.readouterr()
    assert main(["reproduce", "table1", "--work", str(home), "--cells", "MDC"]) == 1
    err = capsys.readouterr().err
    assert "cells" in err and "MDC" in err and "SDTT, DCD, MCD" in err


def test_each_source_has_its_own_line(
    toy: Plan, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of fewer seeds names their number."""
    beside = {
        ("SDTT", 2, 4): TABLES["table1"]["SDTT", 5, 32],
        ("SDTT", 2, 2): TABLES["table1"]["SDTT", 5, 16],
    }
    monkeypatch.setattr(results, "TABLES", {"table1": beside})
    results.show_paper_table("table1", replace(toy, seeds=3), home)
    out = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    rows = {line[1].strip(): [cell.strip() for cell in line[2:4]] for line in out if len(line) > 3}
    assert rows["MCD paper"] == ["", "52.16"] and rows["Duo paper"] == [
        "89.17 / 5.53",
        "62.29 / 5.49",
    ]
    assert rows["SDTT R2"][0].endswith("(2 of 3 seeds)") and "of" not in rows["MDLM"][0]


def test_rows_that_were_measured_again_count_once(toy: Plan, home: Path, tmp_path: Path) -> None:
    """By another version, say: the last one stands, and the line keeps its number of seeds."""
    shutil.copytree(home, tmp_path / "home")
    file = tmp_path / "home" / "MCD-seed-1" / ROWS
    old = file.read_text("utf-8")
    stale = [json.loads(line) for line in old.splitlines()]
    for line in stale:
        line["protocol"]["version"] = "0.0.1"
        line["measures"]["gen_ppl"]["value"] = 1e9
    file.write_text("".join(json.dumps(line) + "\n" for line in stale) + old, "utf-8")
    assert lines_record(toy, tmp_path / "home", {}) == lines_record(toy, home, {})


def test_published_values_stand_beside_ours(toy: Plan, home: Path) -> None:
    cells = {
        ("MCD", 2, 4): TABLES["table1"]["MCD", 5, 32],
        ("MDLM", 0, 4): TABLES["table1"]["MDLM", 0, 512],
    }
    found = {
        line["line"]: line["cells"]["4"]["published"]
        for line in lines_record(toy, home, cells)["lines"]
    }
    assert found["MCD R2"] == [{"source": "MCD paper", "value": "39.73"}] and found["SDTT R1"] == []
    assert [cell["source"] for cell in found["MDLM"]] == ["MCD paper", "Duo paper"]
