"""`unmask reproduce`: flags without effect are refused; processes share runs and end together."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import unmask
import unmask.experiments.commands.reproduce as reproduce
from unmask.cli.main import main
from unmask.experiments.commands.reproduce import WORKER, end_with_parent
from unmask.experiments.plan import Plan

CHILD = """
import sys, time
from pathlib import Path
from unmask.experiments.commands.reproduce import end_with_parent
from unmask.training import stop_signals
place = Path(sys.argv[0]).parent
with stop_signals() as stop:
    end_with_parent()
    (place / "ready").touch()
    while not stop():
        time.sleep(0.01)
(place / "saved").touch()
"""
PARENT = """
import sys
from types import SimpleNamespace
from unmask.experiments.commands import reproduce
reproduce.sys = SimpleNamespace(executable=sys.argv[1])
reproduce.share_runs(["ablation"], ["a"], 1)
"""


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


def wait_for(file: Path, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return file.exists()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_worker_saves_and_ends_when_its_parent_ends(tmp_path: Path, number: int) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    program = tmp_path / "program"  # takes the place of Python and ignores its arguments
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'child.py'}\n")
    program.chmod(0o755)
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)], env=env, start_new_session=True
    )
    try:
        assert wait_for(tmp_path / "ready")
        parent.send_signal(number)
        assert wait_for(tmp_path / "saved"), "the worker did not stop"
    finally:
        parent.kill()
        parent.wait()


def test_another_process_watches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER, raising=False)
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("reads its standard input"))
    end_with_parent()


def test_a_signal_is_passed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command waits for a process that takes time to save, and reports that it was stopped."""
    program, log = tmp_path / "program", tmp_path / "log"  # `program` takes the place of Python
    program.write_text(
        f"#!/bin/sh\ntrap 'echo stopped >> {log}' TERM\nkill -TERM $PPID\n"
        f"while [ ! -s {log} ]; do sleep 0.02; done\nsleep 0.3\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(reproduce, "sys", SimpleNamespace(executable=str(program)))
    assert reproduce.share_runs(["ablation"], ["a"], 1) is False
    assert log.read_text() == "stopped\n"
