"""The run directory: all files of a training, written so that a crash at any moment is harmless.

    NAME/ recipe.json  start.json  tokenizer/  metrics.jsonl  model/
    NAME/ state/step-00000500/  state/step-00000400/

The last two good states are kept until the model is written. `checkpoint` describes their files.
No generator is saved, because randomness and batches are functions of the step (see `loop`). All
files are safetensors or JSON, and no pickle is read.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError

from unmask.atomic_files import recover, remove, replacing, temporary_path, write_text
from unmask.training.checkpoint import UNSEALED, damage, read_state, write_state
from unmask.training.distributed import Engine
from unmask.training.run_files import (
    LOCK,
    METRICS,
    START,
    RunError,
    cut_lines,
    keep_recipe,
    lock_directory,
    logged_lines,
    read_start,
)
from unmask.training.state import State

KEEP = 2  # good states
DAMAGED = ".damaged"  # suffix of the new name of a damaged state
ONE_PROCESS = Engine(torch.device("cpu"))


@dataclass(frozen=True)
class Restored:
    """The point at which a training continues.

    Attributes:
        step: number of completed steps
        lost: steps that were logged but not saved, and are computed again
        unsealed: version 0.1 wrote the state, whose cursor has no checksum
    """

    step: int
    lost: int = 0
    unsealed: bool = False

    def __str__(self) -> str:
        line = f"resuming at step {self.step}" if self.step else "starting at step 0"
        if self.lost:
            line += f"; {self.lost} steps after the last save were lost and are done again"
        if self.unsealed:
            line += "; version 0.1 wrote this state, and its cursor.json has no checksum to check"
        return line


@dataclass
class RunDir:
    """An open run directory, locked against a second training until `close` or the end of `with`.

    Attributes:
        path: the directory
        engine: the process. Only the first one writes files, except for parts of a sharded state
    """

    path: Path
    engine: Engine = ONE_PROCESS
    _lock: FileLock | None = field(default=None, init=False, repr=False)
    _lock_status: os.stat_result | None = field(default=None, init=False, repr=False)
    _metrics: RawIOBase | None = field(default=None, init=False, repr=False)
    _saved: int | None = field(default=None, init=False, repr=False)  # step of the newest state

    @staticmethod
    def open(
        path: str | Path,
        recipe: Mapping[str, Any],
        *,
        resume: bool = True,
        engine: Engine = ONE_PROCESS,
        update: Callable[[Any], Any] = lambda saved: saved,
    ) -> RunDir:
        """Create the directory, or open one of the same recipe.

        Args:
            path: the directory.
            recipe: the recipe as JSON, written to recipe.json.
            resume: if False, an existing run is refused.
            engine: the process.
            update: brings the content of an existing recipe.json to the form of `recipe`. It adds
                the defaults of new fields.

        Raises:
            RunError: the directory has another recipe (the message lists the fields that differ),
                is not a run directory, or is in use by another process.
        """
        run = RunDir(Path(path), engine)
        if not engine.main:
            return run
        try:
            with _as_run_error(f"{run.path} cannot be a run directory"):
                run.path.mkdir(parents=True, exist_ok=True)
                run._lock = lock_directory(run.path)
                run._lock_status = os.stat(run.path / LOCK)
                keep_recipe(run.path, recipe, update)
                run._check_new(resume)
                for folder in (run.path, run.path / "state"):
                    if folder.exists():
                        recover(folder)
        except BaseException:
            run.close()
            raise
        return run

    @property
    def model(self) -> Path:
        """The directory of the finished model."""
        return self.path / "model"

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._metrics is not None:
            self._metrics.close()
        if self._lock is not None:
            self._lock.release()
        self._metrics = self._lock = self._lock_status = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record with a `step` to metrics.jsonl, unbuffered."""
        if not self.engine.main:
            return
        if "step" not in record:
            raise ValueError(
                "record lacks a step, which a resume needs to cut metrics.jsonl: got "
                f"{dict(record)}"
            )
        self._check_place()
        line = (json.dumps(record) + "\n").encode()
        with _as_run_error("metrics.jsonl was not written", self.kept):
            if self._metrics is None:  # unbuffered, so that `close` has nothing to write
                self._metrics = (self.path / METRICS).open("ab", buffering=0)
            while line:
                line = line[self._metrics.write(line) or 0 :]

    def save(self, state: State) -> None:
        """Write the state of this step, then remove all but the last two states.

        RunError if it cannot be written, as on a full disk. The old states are then kept.
        """
        main, sharded, target = self.engine.main, self.engine.sharded, self._folder(state.step)
        if self._saved == state.step or not (main or sharded):
            return
        self._check_place()
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            with replacing(target) if main else nullcontext(temporary_path(target)) as folder:
                if sharded:
                    self.engine.wait()  # until process 0 has made the folder
                write_state(state, folder, self.engine)
        except Exception as error:
            raise RunError(
                f"the state of step {state.step} was not saved: {error}. {self.kept()}"
            ) from error
        self._saved = state.step
        with _as_run_error(f"an older state than the last {KEEP} was not removed", self.kept):
            for step in self.steps()[:-KEEP] if main else ():
                remove(self._folder(step))

    def restore(self, state: State, *, every: int | None = None) -> Restored:
        """Read the newest good state (step 0 if there is none), and cut metrics.jsonl to it.

        A damaged state is set aside with a warning, and the one before it is read.

        Args:
            state: receives the saved values.
            every: steps between two saves. If metrics.jsonl has more steps than this and there is
                no state, the states were removed.

        Raises:
            RunError: no good state is left, the states were removed, or the state is of other
                networks. Nothing was changed.
        """
        engine = self.engine
        with _as_run_error(f"a damaged state in {self.path} was not set aside"):
            step = engine.broadcast_int(self._newest(every) if engine.main else 0)
        unsealed, folder = False, self._folder(step)
        if step:
            try:
                unsealed = read_state(state, folder, engine) == UNSEALED
            except (ValueError, LookupError, TypeError) as error:
                raise RunError(
                    f"the state in {folder} has other networks: {error}. Choose another run "
                    "directory, or the recipe of this one"
                ) from error
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"the state in {folder} could not be read: {error}. Put a good copy there, or "
                    "start in another directory"
                ) from error
        state.step, self._saved = step, step or None
        with _as_run_error("metrics.jsonl was not cut to the step of the state", self.kept):
            lost = engine.broadcast_int(self._cut(step) if engine.main else 0)
        return Restored(step, lost, unsealed)

    def write_start(self, facts: Mapping[str, Any]) -> None:
        """Write start.json, unless it has this content already."""
        if self.engine.main and read_start(self.path) != facts:
            with _as_run_error(f"{START} was not written, and no step was taken"):
                write_text(self.path / START, json.dumps(facts, indent=1) + "\n")

    def publish(self, name: str, write: Callable[[Path], object]) -> None:
        """Replace the folder `name` atomically by a new one that `write(folder)` fills."""
        if not self.engine.main:
            return
        self._check_place()
        target = self.path / name
        try:
            with replacing(target) as folder:
                write(folder)
        except Exception as error:
            raise RunError(
                f"{target} was not written: {error}. Its old content is kept. {self.kept()}"
            ) from error

    def drop_states(self) -> None:
        """Remove all states. A finished run does not need them."""
        states = self.path / "state"
        if self.engine.main and states.exists():
            with _as_run_error(f"{self.model} holds the model, but {states} was not removed"):
                remove(states)

    def steps(self) -> list[int]:
        """Steps of the saved states, oldest first."""
        names = (entry.name for entry in (self.path / "state").glob("step-" + "[0-9]" * 8))
        return sorted(int(name.removeprefix("step-")) for name in names)

    def kept(self) -> str:
        """A sentence about the newest good state on disk, for error messages."""
        if self.model.exists():
            return f"The finished model is kept in {self.model}."
        steps = self.steps()
        if not steps:
            return f"No state had been saved in {self.path}."
        return f"The last good state, step {steps[-1]}, is kept in {self._folder(steps[-1])}."

    def _folder(self, step: int) -> Path:
        return self.path / "state" / f"step-{step:08d}"

    def _check_place(self) -> None:
        """RunError if the locked directory no longer has its path."""
        if self._lock_status is None:
            return
        file = self.path / LOCK
        if not (file.exists() and os.path.samestat(os.stat(file), self._lock_status)):
            raise RunError(
                f"{self.path} was removed, moved or replaced during its training, so nothing can "
                f"be saved there ({LOCK} is not the file that this process locked). Move it back "
                "and start again by the same command, or choose another directory"
            )

    def _check_new(self, resume: bool) -> None:
        """RunError if the directory already holds a run that must not resume."""
        if not resume and (self.steps() or (self.path / METRICS).exists()):
            raise RunError(
                f"{self.path} already holds a run: resume it, or choose another directory. "
                f"{self.kept()}"
            )

    def _newest(self, every: int | None) -> int:
        """The step of the newest good state, 0 if none was saved. Damaged states are set aside."""
        problems: dict[Path, str] = {}
        for step in reversed(self.steps()):
            problem = damage(self._folder(step), step)
            if problem is None:
                self._set_aside(problems)
                return step
            problems[self._folder(step)] = problem
        aside = sorted((self.path / "state").glob(f"*{DAMAGED}"))
        problems |= dict.fromkeys(aside, "set aside before")
        if problems:
            listed = "; ".join(f"{folder.name}: {problem}" for folder, problem in problems.items())
            raise RunError(
                f"no good state is left in {self.path}, and nothing in it was changed: {listed}. "
                "Put a good copy of a state there, or start in another directory."
            )
        logged = max((at for at, _ in logged_lines(self.path / METRICS)), default=0)
        if every is not None and logged > every:
            raise RunError(
                f"{self.path} has no state, but metrics.jsonl logged {logged} steps, and a state "
                f"was saved every {every} steps: the states were removed. Put them back into "
                f"{self.path / 'state'}, or start in another directory; nothing was changed."
            )
        return 0

    def _cut(self, step: int) -> int:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        return cut_lines(self.path / METRICS, step)

    def _set_aside(self, problems: Mapping[Path, str]) -> None:
        for folder, problem in problems.items():
            aside = folder.with_name(folder.name + DAMAGED)
            if aside.exists():
                remove(aside)
            folder.rename(aside)
            line = f"the state {folder} is damaged ({problem}); it is set aside as {aside.name}"
            warnings.warn(line, RuntimeWarning, stacklevel=4)


@contextmanager
def _as_run_error(failed: str, kept: Callable[[], str] = str) -> Iterator[None]:
    """Raise an OSError, such as a full disk, as a RunError that names the kept state."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{failed}: {error}. {kept()}".strip()) from error
