"""Cells side by side: those of the ablation differ in one factor, a failed training is a result, methods compare."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import unmask.experiments.comparison as comparison
from toy_recipes import shrink
from unmask.cli.main import main
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.ablation import BASE, Scale, cells, grid, scale, seeded
from unmask.experiments.comparison import (
    FAILURE,
    HEAD,
    Comparison,
    compare,
    failure,
    folder,
    means,
    reports_of,
)
from unmask.experiments.experiment import Progress, read_rows
from unmask.experiments.methods import HEAD as METHODS_HEAD
from unmask.experiments.methods import MASKED, UNIFORM, Methods, shortened
from unmask.experiments.methods import summary as methods_summary
from unmask.experiments.report.figures import comparison_figure
from unmask.experiments.report.report_schema import read_report
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import Recipe, SdttSettings
from unmask.training import TrainingError

STUDY = EvalSettings(
    samples=2, teacher_steps=(2, 4), student_steps=(2,), teacher_temperatures=(0.8,), student_temperatures=(1.2,),
    texts=2, completions=2, shown=1, round_steps=2, player_steps=2,
)  # fmt: skip


def small(name: str, text: Path, teacher: Path) -> Recipe:
    return replace(shrink(recipe(name), text, teacher), precision="float32")


@pytest.fixture(scope="module")
def base(text: Path, masked: Path) -> Recipe:
    plan = small("demo-mcd", text, masked)
    return replace(plan, objective=replace(plan.objective, temperatures=(0.9, 0.8)))


def test_the_ablation_changes_one_factor_at_a_time() -> None:
    plan = scale("tiny").base
    found = cells(plan)
    assert found[BASE] == plan and len(found) <= 9
    for name, cell in found.items():
        assert replace(cell, objective=plan.objective) == plan, name
        changed = [
            key for key, value in vars(cell.objective).items() if value != vars(plan.objective)[key]
        ]
        assert len(changed) == (name != BASE), (name, changed)
    factors = {"direction", "revealed", "revealed_weight", "coupling", "temperatures", "reduction"}
    first = vars(plan.objective)
    assert {
        key for cell in found.values() for key in first if vars(cell.objective)[key] != first[key]
    } == factors
    steeper = found["steeper tau"].objective.temperatures
    assert all(a < b < 1 for a, b in zip(steeper, plan.objective.temperatures, strict=True))


def test_the_grid_is_every_combination_and_structures() -> None:
    plan = scale("tiny").base
    found = [cell.objective for cell in grid(plan).values()]
    combined = [cell for cell in found if not cell.structure]
    assert (
        len({(c.direction, c.revealed, c.coupling, c.temperatures) for c in combined})
        == len(combined)
        == 36
    )
    assert [cell.structure for cell in found if cell.structure] == [
        "block:8:0.9",
        "block:8:1",
        "span:8",
    ]


def test_each_cell_has_each_seed() -> None:
    plan = recipe("demo-mcd")
    runs = seeded({"a": plan, "b, c": plan})
    assert list(runs) == ["a, seed 1", "b, c, seed 1", "a, seed 2", "b, c, seed 2"], (
        "all cells have a seed first"
    )
    assert [run.seed for run in runs.values()] == [1, 1, 2, 2]
    assert len({folder(name) for name in runs}) == 4


def test_scales() -> None:
    assert isinstance(scale("small"), Scale) and scale("small").base == recipe("long-mcd")
    with pytest.raises(ValueError, match="scale is 'tiny' or 'small': got 'paper'"):
        scale("paper")
    with pytest.raises(
        ValueError, match="varies a recipe of consistency distillation, 'demo-sdtt' is sdtt"
    ):
        cells(recipe("demo-sdtt"))


@pytest.fixture(scope="module")
def home(
    base: Recipe, masked: Path, causal: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("cells")
    plans = {name: cells(base)[name] for name in (BASE, "KL on revealed")}
    last = list(compare(Comparison("T", str(masked), str(causal), plans, STUDY), place))[-1]
    assert last.stage == "all cells" and last.report is not None
    return place


def test_reverse_kl_on_revealed_tokens_is_a_number_like_any_other(home: Path) -> None:
    """About 1e6 nats a revealed token where the teacher's law is a point mass: finite, and in the metrics."""
    terms = {}
    for name in (BASE, "KL on revealed"):
        file = home / folder(name) / "student" / "metrics.jsonl"
        terms[name] = [
            json.loads(line)["reconstruction"] for line in file.read_text("utf-8").splitlines()
        ]
    assert max(terms[BASE]) < 10 and max(terms["KL on revealed"]) > 1e4


def test_a_training_that_its_guard_stops_is_a_result(
    base: Recipe, masked: Path, causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Comparison(
        "T",
        str(masked),
        str(causal),
        {"bad": base, "good": base},
        replace(STUDY, teacher_steps=(2,)),
    )

    def explode(cell, directory):
        directory.mkdir(parents=True, exist_ok=True)
        if "bad" in str(directory):
            raise TrainingError("loss is nan")
        yield Progress("writing", 1, 1, report={"x": 1})

    monkeypatch.setattr(comparison, "experiment", explode)
    stages = [event.stage for event in compare(plan, tmp_path)]
    assert stages[-3:] == ["bad, failed", "good, writing", "all cells"]
    assert failure(tmp_path / "bad") == "loss is nan" and failure(tmp_path / "good") is None
    again = [event for event in compare(plan, tmp_path) if "bad" in event.stage]
    assert [(event.stage, event.line) for event in again] == [
        ("bad, failed before", "bad: loss is nan")
    ]
    assert (tmp_path / "bad" / FAILURE).exists()


def test_none_of_the_cells_measures_the_teacher_only(
    base: Recipe, masked: Path, causal: Path, tmp_path: Path
) -> None:
    plan = Comparison("T", str(masked), str(causal), {"a": base}, STUDY)
    assert list(compare(plan, tmp_path, ()))[-1].stage == "all cells"
    assert len(read_rows(tmp_path / "rows.jsonl")) == 4 and not (tmp_path / "a").exists()


def test_shipped_rows_are_timed_once(
    home: Path, base: Recipe, masked: Path, causal: Path, tmp_path: Path
) -> None:
    """A shipped row gets the seconds of this machine in the first cell, not again in each; it stays shipped."""
    known = read_rows(home / "rows.jsonl", shipped=True)
    plan = Comparison("T", str(masked), str(causal), {"a": base, "b": base}, STUDY, known)
    list(compare(plan, tmp_path))
    seconds = []
    for name, report in reports_of(["a", "b"], tmp_path).items():
        assert all(row["shipped"] for row in report["teacher"]), name
        seconds.append([row["seconds"] for row in report["teacher"]])
    assert seconds[0] == seconds[1] != [row.row.measures["seconds"].value for row in known[::2]]
    assert not (tmp_path / "rows.jsonl").exists() or not read_rows(tmp_path / "rows.jsonl")


def test_means_over_one_seed_have_no_spread(home: Path) -> None:
    report = reports_of([BASE], home)[BASE]
    [line] = means("mcd", [report])
    assert len(line) == len(HEAD) and line[0] == "mcd" and "±" not in "".join(line)


def test_the_command_shares_its_runs_out(
    base: Recipe, masked: Path, causal: Path, tmp_path: Path, monkeypatch
) -> None:
    """Each process gets every other run, and the table is printed by the one that started them."""
    import unmask.experiments.commands.reproduce as reproduce
    import unmask.experiments.commands.workers as workers

    monkeypatch.setattr(
        reproduce, "scale", lambda name: Scale(base, STUDY, str(masked), str(causal))
    )
    calls = []

    class Process:
        returncode = 0

        def __init__(self, command, env, stdin, stdout, start_new_session):
            calls.append((command[command.index("--cells") + 1 :], env["OMP_NUM_THREADS"]))

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(workers.subprocess, "Popen", Process)
    assert main(["reproduce", "ablation", "--work", str(tmp_path), "--jobs", "2"]) == 0
    (first, threads), (second, _) = calls
    assert len(first) == len(second) == 9 and not {*first} & {*second} and int(threads) >= 1
    assert (
        main(
            ["reproduce", "ablation", "--work", str(tmp_path), "--cells", "forward", "--jobs", "2"]
        )
        != 0
    )
    assert main(["reproduce", "ablation", "--work", str(tmp_path), "--jobs", "0"]) != 0
    Process.returncode = 1
    with pytest.raises(
        RuntimeError, match=r"ended with exit codes \[1, 1\]: their messages stand above"
    ):
        workers.shared(["ablation"], ["a", "b"], 2)


def test_a_signal_is_handed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which one takes its time to save: the command waits for it, and says that it was stopped."""
    import unmask.experiments.commands.workers as workers

    class Process:
        def __init__(self, command, **options):
            self.told, self.polls, self.returncode = 0, 0, None

        def poll(self) -> int | None:
            self.polls += 1
            if self.polls == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.told and self.polls > 6:
                self.returncode = 1
            return self.returncode

        def terminate(self) -> None:
            self.told += 1
            assert self.told == 1

    monkeypatch.setattr(workers.subprocess, "Popen", Process)
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: None)
    assert workers.shared(["ablation"], ["a"], 1) is False


def test_methods_with_different_teachers_share_a_table_and_a_picture(
    text: Path,
    masked: Path,
    causal: Path,
    uniform: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import unmask.experiments.commands.reproduce as reproduce

    two = {"mcd": small("demo-mcd", text, masked), "sdtt": small("demo-sdtt", text, masked)}
    dcd = {"dcd": small("demo-dcd", text, uniform)}
    settings = Methods(two, dcd, STUDY, str(masked), str(uniform), str(causal))
    monkeypatch.setattr(reproduce, "Methods", lambda: settings)
    assert main(["reproduce", "methods", "--work", str(tmp_path)]) == 0
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    reports = reports_of(["mcd", "sdtt"], tmp_path / MASKED) | reports_of(
        ["dcd"], tmp_path / UNIFORM
    )
    assert {row["setting"]["sampler"] for row in reports["dcd"]["student"]} == {"ancestral"}
    table = methods_summary(reports)
    assert [line[0] for line in table] == ["teacher of mcd"] * 2 + ["mcd", "sdtt"] + [
        "teacher of dcd"
    ] * 2 + ["dcd"]
    assert all(len(line) == len(METHODS_HEAD) for line in table)
    [axes] = comparison_figure(
        {name: read_report(report) for name, report in reports.items()}, 2
    ).axes
    labels = [line.get_label() for line in axes.get_lines()]
    assert {
        "teacher of mcd, 4 steps",
        "teacher of dcd, 4 steps",
        "sdtt, 2 steps",
        "dcd, 2 steps",
    } <= {*labels}
    assert reports["dcd"]["player"] == [] and reports["mcd"]["player"]


def test_methods_have_as_many_updates() -> None:
    settings = Methods()
    plans = {**settings.masked, **settings.uniform}
    assert {plan.steps for plan in plans.values()} == {240}
    assert {plan.objective.rounds().delta(plan.steps) * (2 if isinstance(plan.objective, SdttSettings) else 1)
            for plan in plans.values()} == {1 / 8}, "all reach the same step"  # fmt: skip
    with pytest.raises(
        ValueError, match="methods of distillation are compared, 'demo-duo' is curriculum"
    ):
        shortened(recipe("demo-duo"))
