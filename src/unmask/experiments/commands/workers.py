"""Processes that share the runs of one command, and that end when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from unmask.training import stop_signals

WORKER = "UNMASK_WORKER"  # set in the environment of a process that `shared` starts


def shared(command: list[str], runs: Sequence[str], jobs: int) -> bool:
    """Deal runs out to processes of this command, each with an equal part of the cores; whether all are done.

    A signal is handed on, so that each saves its state. Each holds a pipe from this process as its standard input: when
    this process is killed, the pipe closes, and they save and end too. RuntimeError where one fails by itself.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    start = [sys.executable, "-m", "unmask", "reproduce", *command, "--jobs", "1", "--cells"]
    with stop_signals() as stop:
        started = [
            subprocess.Popen(
                [*start, *runs[first::jobs]],
                env=os.environ | {"OMP_NUM_THREADS": threads, WORKER: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which hands it on
            )
            for first in range(min(jobs, len(runs)))
        ]
        told = False
        while any(process.poll() is None for process in started):
            if stop() and not told:
                told = True
                for process in started:
                    process.terminate()
            time.sleep(0.1)
    codes = [process.returncode for process in started]
    if any(codes) and not told:
        raise RuntimeError(
            f"processes of {command[0]} ended with exit codes {codes}: their messages stand above"
        )
    return not any(codes)


def end_with_parent() -> None:
    """In a process that `shared` started: SIGTERM to itself when the process that started it has ended."""
    if os.environ.pop(WORKER, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
