"""The run directory: what a training leaves behind, written so that no moment of a crash can spoil it.

    NAME/ recipe.json  metrics.jsonl  model/  state/step-00000500/  state/step-00000400/
    step-N/ cursor.json  NETWORK/{model,optimizer,ema}.safetensors  frozen/NETWORK.safetensors  or, sharded, parts/

The last two good states are kept. `cursor.json` holds the step and the SHA-256 of every file. There is no generator
to save: randomness and batches are functions of the step (see `loop`). Models are safetensors and JSON, never pickles.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from unmask.files import TEMPORARY, being_written, replacing, sha256, tidy, write_text
from unmask.training.engine import Engine
from unmask.training.state import State
from unmask.training.storage import read_state, write_state

FORMAT = 1
KEEP = 2  # good states
ALONE = Engine(torch.device("cpu"))


class RunError(RuntimeError):
    """A run directory cannot be used or written; the message says why and what to do. Nothing in it was lost."""


@dataclass(frozen=True)
class Restored:
    """Where a training goes on: `step` updates are done, and `lost` logged ones must be done again."""

    step: int
    lost: int = 0

    def __str__(self) -> str:
        again = f"; {self.lost} steps after the last save were lost and are done again" if self.lost else ""
        return (f"resuming at step {self.step}" if self.step else "starting at step 0") + again


@dataclass
class RunDir:
    """An open run directory; use it in `with`, which locks it against a second training.

    engine  the process that holds it: all but the first write nothing, except their parts of a sharded state
    """

    path: Path
    engine: Engine = ALONE
    _lock: IO[str] | None = field(default=None, init=False, repr=False)
    _metrics: IO[str] | None = field(default=None, init=False, repr=False)
    _saved: int | None = field(default=None, init=False, repr=False)  # the step of the state that was written last

    @staticmethod
    def open(path: str | Path, recipe: Mapping[str, Any], *, resume: bool = True, engine: Engine = ALONE) -> RunDir:
        """Make the directory, or open one of the same recipe to go on.

        RunError for another recipe (with the fields that differ), for an existing run where `resume` is False, for
        a directory of something else, and where another process is at work in it.
        """
        run = RunDir(Path(path), engine)
        if not engine.main:
            return run
        run.path.mkdir(parents=True, exist_ok=True)
        run._take_lock()
        try:
            run._check(recipe, resume)
            (run.path / "state").mkdir(exist_ok=True)
            tidy(run.path)
            tidy(run.path / "state")
        except BaseException:
            run.close()
            raise
        return run

    @property
    def model(self) -> Path:
        """Where the finished model lies (`publish`)."""
        return self.path / "model"

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back."""
        for handle in (self._metrics, self._lock):
            if handle is not None:
                handle.close()
        self._metrics = self._lock = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; it has a `step` and reaches the operating system at once."""
        if not self.engine.main:
            return
        if "step" not in record:
            raise ValueError(f"a line of metrics.jsonl needs a step, where a resume cuts the file: got {dict(record)}")
        try:
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise RunError(f"metrics.jsonl was not written: {error}. {self.kept()}") from error

    def save(self, state: State) -> None:
        """Write the state of this step, then drop all but the last two. RunError (disk full): the old ones are kept."""
        main, sharded, target = self.engine.main, self.engine.sharded, self._folder(state.step)
        if self._saved == state.step or not (main or sharded):
            return
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            with replacing(target) if main else nullcontext(being_written(target)) as folder:
                if sharded:
                    self.engine.wait()  # until the folder is there
                    if not folder.is_dir():
                        raise FileNotFoundError(f"{folder} is on another machine: all must see one run directory")
                facts = write_state(state, folder, sharded)
                if main:
                    files = sorted(file for file in folder.rglob("*") if file.is_file())
                    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
                    cursor = {"format": FORMAT, "step": state.step, **facts, "files": sums}
                    (folder / "cursor.json").write_text(json.dumps(cursor, indent=1), encoding="utf-8")
        except Exception as error:
            raise RunError(f"the state of step {state.step} was not saved: {error}. {self.kept()}") from error
        self._saved = state.step
        for step in self.steps()[:-KEEP] if main else ():
            shutil.rmtree(self._folder(step))

    def restore(self, state: State) -> Restored:
        """Bring back the newest good state (step 0 where there is none) and cut metrics.jsonl to it.

        A damaged state is set aside with a warning and the one before is taken; RunError where no good one is left.
        """
        engine = self.engine
        step = engine.same(self._newest() if engine.main else 0)
        if step:
            folder = self._folder(step)
            try:
                read_state(state, folder, json.loads((folder / "cursor.json").read_text(encoding="utf-8")))
            except (ValueError, KeyError) as error:
                raise RunError(f"the state in {folder} is one of other networks than these: {error}") from error
            except OSError as error:
                raise RunError(f"the state in {folder} could not be read: {error}") from error
        state.step, self._saved = step, step or None
        return Restored(step, engine.same(self._cut_metrics(step) if engine.main else 0))

    def publish(self, write: Callable[[Path], object]) -> None:
        """Replace model/ by what `write(directory)` puts into an empty directory."""
        if not self.engine.main:
            return
        try:
            with replacing(self.model) as folder:
                write(folder)
        except Exception as error:
            raise RunError(f"{self.model} was not written: {error}. What was there is kept. {self.kept()}") from error

    def steps(self) -> list[int]:
        """Steps of the saved states, oldest first."""
        names = (entry.name for entry in (self.path / "state").glob("step-" + "[0-9]" * 8))
        return sorted(int(name.removeprefix("step-")) for name in names)

    def kept(self) -> str:
        """A sentence for error messages: which good state is on disk."""
        steps = self.steps()
        if not steps:
            return f"No state had been saved in {self.path}."
        return f"The last good state, step {steps[-1]}, is kept in {self._folder(steps[-1])}."

    def _folder(self, step: int) -> Path:
        return self.path / "state" / f"step-{step:08d}"

    def _take_lock(self) -> None:
        import fcntl  # POSIX only, and the library is to be imported anywhere

        lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system however the process ends
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunError(f"{self.path} is in use by process {holder}: wait, or choose another directory") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _check(self, recipe: Mapping[str, Any], resume: bool) -> None:
        file = self.path / "recipe.json"
        wanted = json.loads(json.dumps(recipe))  # as it comes back: tuples are lists
        if not file.exists():
            names = sorted(entry.name for entry in self.path.iterdir())
            strange = [name for name in names if name != ".lock" and not name.startswith(TEMPORARY)]
            if strange:
                raise RunError(
                    f"{self.path} is not a run directory: it holds {strange[:5]} and no recipe.json; choose another"
                )
            write_text(file, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{file} is not JSON ({error}): put it right, or choose another directory") from error
        if changed := differences(found, wanted):
            raise RunError(
                f"{self.path} is a run of another recipe; fields that differ (there -> now):\n  "
                + "\n  ".join(changed)
                + "\nChoose another directory, or the recipe it was started with."
            )
        if not resume and (self.steps() or (self.path / "metrics.jsonl").exists()):
            raise RunError(f"{self.path} already holds a run: resume it, or choose another directory. {self.kept()}")

    def _newest(self) -> int:
        """The step of the newest whole state, 0 where none was ever saved; damaged ones are set aside."""
        problems = []
        for step in reversed(self.steps()):
            folder = self._folder(step)
            problem = damage(folder)
            if problem is None:
                return step
            problems.append(f"{folder.name}: {problem}")
            aside = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            said = f"the state {folder} is damaged ({problem}); it is set aside as {aside.name}"
            warnings.warn(said, RuntimeWarning, stacklevel=3)
        if problems:
            raise RunError(f"no good state is left in {self.path}: {'; '.join(problems)}. Start in another directory.")
        return 0

    def _cut_metrics(self, step: int) -> int:
        """Drop the lines after `step` and a torn last line; returns how many steps they had."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return 0
        keep, lost = [], set()
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                at = json.loads(line)["step"]
            except ValueError:  # torn by a kill
                continue
            if at <= step:
                keep.append(line)
            else:
                lost.add(at)
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        write_text(file, "".join(keep))
        return len(lost)


def damage(folder: Path) -> str | None:
    """What is wrong with a saved state: a missing or changed file, an unreadable cursor; None where it is whole."""
    try:
        cursor = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
        files = dict(cursor["files"])
        if cursor["format"] != FORMAT:
            return f"format {cursor['format']}, this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cursor.json cannot be read ({error})"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} does not have its checksum"
    return None


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Fields of two JSON values that differ, one line each.

    >>> differences({"optim": {"lr": 0.1}, "seed": 1}, {"optim": {"lr": 0.2}})
    ['optim.lr: 0.1 -> 0.2', 'seed: 1 -> absent']
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]
    lines = []
    for key in {**old, **new}:
        inner = f"{where}.{key}" if where else key
        if key in old and key in new:
            lines += differences(old[key], new[key], inner)
        else:
            there, now = (json.dumps(side[key]) if key in side else "absent" for side in (old, new))
            lines.append(f"{inner}: {there} -> {now}")
    return lines
