"""Worker processes that share the runs of one command, and end when that command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from unmask.training import stop_signals

WORKER = "UNMASK_WORKER"  # an environment variable that marks a process started by `share_runs`


def share_runs(command: list[str], runs: Sequence[str], jobs: int) -> bool:
    """Distribute runs over processes of this command; return whether all of them are done.

    Each process gets an equal part of the cores. A signal is passed on, so that every process saves
    its state. The standard input of each process is a pipe from this process. If this process is
    killed, the pipe closes, and the others save their state and end.

    Args:
        command: Words of `unmask reproduce` without `--jobs` and `--cells`.
        runs: Titles of the runs.
        jobs: Processes, at most one a run.

    Raises:
        RuntimeError: A process failed although no signal arrived.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    start = [sys.executable, "-m", "unmask", "reproduce", *command, "--jobs", "1", "--cells"]
    with stop_signals() as stop:
        workers = [
            subprocess.Popen(
                [*start, *runs[first::jobs]],
                env=os.environ | {"OMP_NUM_THREADS": threads, WORKER: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal sends Ctrl-C to this process only
            )
            for first in range(min(jobs, len(runs)))
        ]
        stopping = False
        while any(worker.poll() is None for worker in workers):
            if stop() and not stopping:
                stopping = True
                for worker in workers:
                    worker.terminate()
            time.sleep(0.1)
    codes = [worker.returncode for worker in workers]
    if any(codes) and not stopping:
        raise RuntimeError(
            f"processes of {command[0]} ended with exit codes {codes}: see their messages above"
        )
    return not any(codes)


def end_with_parent() -> None:
    """In a process of `share_runs`: send SIGTERM to itself when the parent process ends."""
    if os.environ.pop(WORKER, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
