"""Processes that share the runs of a command end with it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unmask
from unmask.experiments.commands.workers import WORKER, end_with_parent

CHILD = """
import sys, time
from pathlib import Path
from unmask.experiments.commands.workers import end_with_parent
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
from unmask.experiments.commands import workers
workers.sys = SimpleNamespace(executable=sys.argv[1])
workers.shared(["ablation"], ["a"], 1)
"""


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
    program = (
        tmp_path / "program"
    )  # stands in the place of Python, and has no use for the arguments
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'child.py'}\n")
    program.chmod(0o755)
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)], env=env, start_new_session=True
    )
    try:
        assert wait_for(tmp_path / "ready")
        parent.send_signal(number)
        assert wait_for(tmp_path / "saved"), "the worker lives on unseen"
    finally:
        parent.kill()
        parent.wait()


def test_another_process_watches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER, raising=False)
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("reads its standard input"))
    end_with_parent()
