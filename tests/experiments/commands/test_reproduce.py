"""`unmask reproduce`: flags without effect are refused, and runs are shared out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unmask.experiments.commands.reproduce as reproduce
from unmask.cli.main import main
from unmask.experiments.plan import Plan


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cells", ["assets", "--cells", "mcd"]),
        ("jobs", ["measures", "--jobs", "2"]),
        ("scale", ["study", "--scale", "small"]),
        ("dry_run", ["methods", "--dry-run"]),
        ("full", ["table1", "--full"]),
        ("out", ["ablation", "--out", "here"]),
        ("jobs", ["table1", "--jobs", "0"]),
        ("jobs", ["table1", "--scale", "small", "--jobs", "2"]),
    ],
)
def test_a_flag_without_effect_is_refused(
    name: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 1
    assert name in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_command_shares_its_runs_out(
    frontier_plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process gets every other run; prerequisites and teacher rows are computed before."""
    cell = frontier_plan.cells["mcd"]
    plan = replace(frontier_plan, cells={"a": cell, "b": cell}, seeds=2)
    monkeypatch.setattr(reproduce, "ablation", lambda scale, full: plan)
    calls: list[tuple[list[str], str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            assert (tmp_path / "rows.jsonl").exists()
            calls.append((command[command.index("--cells") + 1 :], env["OMP_NUM_THREADS"]))

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(reproduce.subprocess, "Popen", Process)
    command = ["reproduce", "ablation", "--work", str(tmp_path)]
    assert main([*command, "--jobs", "2"]) == 0
    (first, threads), (second, _) = calls
    assert (first, second) == (["a, seed 1", "a, seed 2"], ["b, seed 1", "b, seed 2"])
    assert int(threads) >= 1
    assert main([*command, "--cells", "forward", "--jobs", "2"]) != 0
    Process.returncode = 1
    with pytest.raises(RuntimeError, match=r"\[1, 1\]"):
        reproduce.share_runs(["ablation"], ["a", "b"], 2)
