"""The paper's tables in miniature: every cell is measured once, a stop loses nothing, published values stand beside."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import unmask.experiments.commands.paper_tables as command
import unmask.experiments.paper_tables as tables
from toy_recipes import shrink
from unmask.cli.main import main
from unmask.evaluation.measure import UnequalProtocols, require_same_protocol
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.comparison import FAILURE, folder
from unmask.experiments.experiment import ROWS, read_rows
from unmask.experiments.paper_plans import TITLES, plan
from unmask.experiments.paper_tables import (
    RUN,
    Method,
    Plan,
    PlanTeacher,
    carry,
    doubts,
    lines,
    record,
)
from unmask.experiments.published import FAILED, MCD, TABLES
from unmask.recipes.build import trained_on
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import ConsistencySettings, DistillationSettings, Recipe, SdttSettings
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
    return Plan(
        "Toy",
        {"MDLM": PlanTeacher(str(masked)), "Duo": PlanTeacher(str(uniform), "ancestral")},
        {"SDTT": Method("MDLM", sdtt), "DCD": Method("Duo", dcd), "MCD": Method("MDLM", mcd)},
        str(causal),
        STUDY,
        seeds=2,
        doubts=(4,),
    )


@pytest.fixture(scope="module")
def home(toy: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    assert list(carry(toy, place))[-1].stage == "all cells"
    return place


def test_every_cell_is_there(toy: Plan, home: Path) -> None:
    found = {str(line): line for line in lines(toy, home)}
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
    runs = toy.runs()
    places = [home / folder(run) / ROWS for run in runs]
    protocol = require_same_protocol([m.row for place in [home / ROWS, *places] for m in read_rows(place)
                                      if "top-p" not in m.row.name])  # fmt: skip
    assert protocol.precision == "float64" and protocol.texts == 0
    for run in runs:
        assert sorted(path.name for path in (home / folder(run)).iterdir()) == [
            "round-1",
            "round-2",
            ROWS,
            RUN,
        ]
    kept = home / folder("MCD, seed 1")
    assert trained_on(str(kept / "round-1")) == trained_on(str(kept / RUN / "model")) is not None, (
        "can be measured alone"
    )


def test_the_teacher_is_drawn_in_other_precisions_too(toy: Plan, home: Path) -> None:
    rows = doubts(toy, home)
    assert [(row.protocol.precision, row.setting.top_p, row.setting.sampler) for row in rows] == [
        ("float64", 1.0, "reveal"), ("float64", 0.9, "reveal"),
        ("float32 Gumbel", 1.0, "ancestral"), ("float32 Gumbel", 0.9, "ancestral"),
    ]  # fmt: skip
    with pytest.raises(UnequalProtocols, match="precision"):
        require_same_protocol(rows)
    plain = next(line for line in lines(toy, home) if line.name == "MDLM").cells[4]
    assert rows[0].measures["gen_ppl"].value == pytest.approx(plain.gen_ppl.value), (
        "the same latents, the same draw"
    )


def test_what_is_there_is_not_done_again(
    toy: Plan, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in home.rglob("*.jsonl")}
    assert len(before) == 1 + 2 * 6
    monkeypatch.setattr(tables, "sample", None)
    monkeypatch.setattr(tables.studies, "sample", None)
    list(carry(toy, home))
    assert {file: file.read_bytes() for file in home.rglob("*.jsonl")} == before


def test_an_interrupted_cell_goes_on_where_it_was(toy: Plan, home: Path, tmp_path: Path) -> None:
    """Stopped after each event in turn: the rows are those of a run that was not, each of them once."""
    wanted = {str(line): line for line in lines(toy, home) if line.name == "SDTT"}
    only = replace(
        toy, methods={"SDTT": toy.methods["SDTT"]}, teachers={"MDLM": toy.teachers["MDLM"]}, seeds=1
    )
    for stop in range(1, 30):
        events = carry(only, tmp_path)
        for _ in range(stop):
            if next(events, None) is None:
                break
        events.close()
    file = tmp_path / folder("SDTT, seed 1") / ROWS
    settings = [(m.row.name, m.row.setting.steps) for m in read_rows(file)]
    assert sorted(settings) == [("round 1", 2), ("round 1", 4), ("round 2", 2), ("round 2", 4)]
    first = read_rows(home / folder("SDTT, seed 1") / ROWS)
    for one, two in zip(read_rows(file), first, strict=True):
        assert one.row.measures["gen_ppl"] == two.row.measures["gen_ppl"]
    assert set(wanted) == {"SDTT R1", "SDTT R2"}


def test_a_training_that_fails_is_a_line_that_says_so(
    toy: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(recipe: Recipe, directory: Path, **options: object) -> object:
        directory.mkdir(parents=True)
        raise TrainingError("loss is nan")
        yield

    monkeypatch.setattr(tables, "run", explode)
    plan_ = replace(
        toy, methods={"MCD": toy.methods["MCD"]}, teachers={"MDLM": toy.teachers["MDLM"]}, doubts=()
    )
    assert list(carry(plan_, tmp_path))[-1].stage == "all cells"
    failed = [line for line in lines(plan_, tmp_path) if line.failed]
    assert [line.failed for line in failed] == ["loss is nan"] * 2 and not failed[0].cells
    assert (tmp_path / "MCD-seed-1" / FAILURE).exists()
    stages = [event.stage for event in carry(plan_, tmp_path)]
    assert "MCD, seed 1, failed before" in stages


def test_the_command_prints_the_table_and_writes_the_page(
    toy: Plan, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "plan", lambda name, scale, work: toy)
    assert main(["reproduce", "table1", "--work", str(home), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert (
        "MCD R2" in out
        and "float32 Gumbel, top-p 0.9" in out
        and "draws in float64, products in float32" in out
    )
    page = (home / "report.html").read_text("utf-8")
    assert "<h3>MCD R2</h3>" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert (home / "table1.png").stat().st_size > 10_000
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
    assert "the cells are SDTT, DCD, MCD: there is none called MDC" in capsys.readouterr().err


def test_each_source_has_its_own_line(
    toy: Plan, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a cell of one seed says so."""
    beside = {
        ("SDTT", 2, 4): TABLES["table1"]["SDTT", 5, 32],
        ("SDTT", 2, 2): TABLES["table1"]["SDTT", 5, 16],
    }
    monkeypatch.setattr(command, "TABLES", {"table1": beside})
    command.show("table1", replace(toy, seeds=3), home)
    out = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    rows = {line[1].strip(): [cell.strip() for cell in line[2:4]] for line in out if len(line) > 3}
    assert rows["MCD paper"] == ["", "52.16"] and rows["Duo paper"] == [
        "89.17 / 5.53",
        "62.29 / 5.49",
    ]
    assert rows["SDTT R2"][0].endswith("(2 of 3 seeds)") and "of" not in rows["MDLM"][0]


def test_rows_that_were_measured_again_count_once(toy: Plan, home: Path, tmp_path: Path) -> None:
    """By another version, say: the last one stands, and the line keeps its number of seeds."""
    import shutil

    shutil.copytree(home, tmp_path / "home")
    file = tmp_path / "home" / folder("MCD, seed 1") / ROWS
    old = file.read_text("utf-8")
    stale = [json.loads(line) for line in old.splitlines()]
    for line in stale:
        line["protocol"]["version"] = "0.0.1"
        line["measures"]["gen_ppl"]["value"] = 1e9
    file.write_text("".join(json.dumps(line) + "\n" for line in stale) + old, "utf-8")
    assert record(toy, tmp_path / "home", {}) == record(toy, home, {})


def test_a_device_that_is_not_there_is_said_before_anything_is_trained(
    toy: Plan, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"this plan runs on cuda:7, which is not to be had here.*--scale tiny"
    ):
        list(carry(replace(toy, device="cuda:7"), tmp_path))
    assert not any(tmp_path.iterdir())


def test_published_values_stand_beside_ours(toy: Plan, home: Path) -> None:
    cells = {
        ("MCD", 2, 4): TABLES["table1"]["MCD", 5, 32],
        ("MDLM", 0, 4): TABLES["table1"]["MDLM", 0, 512],
    }
    found = {
        line["line"]: line["cells"]["4"]["published"] for line in record(toy, home, cells)["lines"]
    }
    assert found["MCD R2"] == [{"source": "MCD paper", "value": "39.73"}] and found["SDTT R1"] == []
    assert [each["source"] for each in found["MDLM"]] == ["MCD paper", "Duo paper"]


def test_published_tables_are_those_of_the_papers() -> None:
    table = TABLES["table1"]
    assert [str(cell) for cell in table["SDTT", 5, 32]] == ["52.16", "62.29 / 5.49"]
    assert [str(cell) for cell in table["DCD", 4, 8]] == ["114.8"] and [
        str(c) for c in table["DCD", 1, 512]
    ] == ["67.37"]
    assert table["MCD", 5, 8][0].source == MCD and table["Duo", 0, 8][0].entropy == 5.57
    assert {name for name, _, _ in TABLES["table3"]} == {"MDLM large", "SDTT", "MCD"}
    assert TABLES["table2"]["hybrid", 1, 32][0].gen_ppl == 94.97 and ("table2", "KL-Bwd") in FAILED


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("name", list(TITLES))
def test_every_plan_has_its_dry_run(
    name: str, scale: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Recipes that hold, rounds as the paper has them, a cost of each training, and nothing written."""
    work = tmp_path / "work"
    assert main(["reproduce", name, "--scale", scale, "--work", str(work), "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not work.exists() and told["rows"] > 0 and told["published"]
    assert all(run["estimate"]["flops"] > 1e12 for run in told["runs"].values())
    made = plan(name, scale, work)
    assert {method.teacher for method in made.methods.values()} == set(made.teachers)
    for line, _, _ in TABLES[name]:
        assert line in {*made.teachers, *made.methods} or name == "figure3"
    for method in made.methods.values():
        objective = method.recipe.objective
        assert (
            isinstance(objective, DistillationSettings)
            and method.rounds.total == method.recipe.steps
        )
        assert method.rounds.count == (5 if name in ("table1", "figure3") else 1)
        if (
            name == "table1"
        ):  # what a student steps over in the last round: two of SDTT's steps, one of MCD's
            reach = 2 if isinstance(objective, SdttSettings) else 1
            assert method.rounds.delta(method.recipe.steps - 1) * reach == {
                "tiny": 1 / 8,
                "small": 1 / 16,
            }.get(scale, 1 / 32)
        if isinstance(objective, ConsistencySettings) and objective.process == "masked":
            assert objective.temperatures[0] == 0.96


def test_the_papers_scale_is_the_papers_recipe(tmp_path: Path) -> None:
    made = plan("table1", "paper", tmp_path)
    assert made.methods["MCD"].recipe == recipe("owt-small-mcd")
    assert made.methods["DCD"].recipe == recipe("owt-duo-dcd")
    assert made.judge == "gpt2-large" and made.teachers["MDLM"].model == "kuleshov-group/mdlm-owt"
    large = plan("table3", "paper", tmp_path)
    assert large.judge == "sdtt:meta-llama/Meta-Llama-3-8B" and not large.train
    assert (
        large.methods["MCD"].recipe.network.width
        == 1536
        == large.methods["SDTT"].recipe.network.width
    )


def test_a_method_distils(toy: Plan) -> None:
    with pytest.raises(
        ValueError, match="a method distils, and the recipe 'demo-teacher' is nelbo"
    ):
        Method("MDLM", recipe("demo-teacher")).rounds  # noqa: B018
    with pytest.raises(ValueError, match="there is none called DCD, seed 9"):
        list(carry(toy, Path("nowhere"), ["DCD, seed 9"]))
