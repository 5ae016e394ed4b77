"""The run directory: what a training leaves behind, written so that no moment of a crash can spoil it.

    NAME/ recipe.json  metrics.jsonl  model/  state/step-00000500/  state/step-00000400/
    step-N/ cursor.json  NETWORK/{model,optimizer,ema}.safetensors  frozen/NETWORK.safetensors  or, sharded, parts/

The last two good states are kept until the model is there. `cursor.json` holds the step and the SHA-256 of every file
(`seal`). There is no generator to save: randomness and batches are functions of the step (see `loop`). All files are
safetensors and JSON, and no pickle is read.
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
from typing import IO, Any

import torch
from safetensors import SafetensorError

from unmask.atomic_files import TEMPORARY, recover, remove, replacing, temporary_path, write_text
from unmask.dataclass_json import read_json
from unmask.training.checkpoint import read_state, write_state
from unmask.training.distributed import Engine
from unmask.training.metrics_file import cut_lines, logged_lines
from unmask.training.seal import UNSEALED, damage, read_cursor, seal
from unmask.training.state import State

KEEP = 2  # good states
LOCK, METRICS = ".lock", "metrics.jsonl"
DAMAGED = ".damaged"  # behind the name of a state that was set aside
ALONE = Engine(torch.device("cpu"))


class RunError(RuntimeError):
    """A run directory cannot be used or written; the message says why and what to do. Nothing in it was lost."""


@dataclass(frozen=True)
class Restored:
    """The point where a training continues: `step` updates are done, and `lost` logged ones are computed again.

    unsealed  version 0.1 wrote the state: its cursor has no checksum
    """

    step: int
    lost: int = 0
    unsealed: bool = False

    def __str__(self) -> str:
        again = (
            f"; {self.lost} steps after the last save were lost and are done again"
            if self.lost
            else ""
        )
        old = (
            "; version 0.1 wrote this state, and its cursor.json has no checksum to check"
            if self.unsealed
            else ""
        )
        return (
            (f"resuming at step {self.step}" if self.step else "starting at step 0") + again + old
        )


@dataclass
class RunDir:
    """An open run directory; use it in `with`, which locks it against a second training.

    engine  the process that holds it: all but the first write nothing, except their parts of a sharded state
    """

    path: Path
    engine: Engine = ALONE
    _lock: IO[str] | None = field(default=None, init=False, repr=False)
    _metrics: RawIOBase | None = field(default=None, init=False, repr=False)
    _saved: int | None = field(
        default=None, init=False, repr=False
    )  # the step of the state that was written last

    @staticmethod
    def open(
        path: str | Path, recipe: Mapping[str, Any], *, resume: bool = True, engine: Engine = ALONE
    ) -> RunDir:
        """Make the directory, or open one of the same recipe to go on.

        RunError for another recipe (with the fields that differ), for an existing run where `resume` is False, for
        a directory of something else, and where another process is at work in it.
        """
        run = RunDir(Path(path), engine)
        if not engine.main:
            return run
        try:
            with _saying(f"{run.path} cannot be a run directory"):
                run.path.mkdir(parents=True, exist_ok=True)
                run._take_lock()
                run._check(recipe, resume)
                for folder in (run.path, run.path / "state"):
                    if folder.exists():
                        recover(folder)
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
            raise ValueError(
                f"a line of metrics.jsonl needs a step, where a resume cuts the file: got {dict(record)}"
            )
        self._check_place()
        line = (json.dumps(record) + "\n").encode()
        with _saying("metrics.jsonl was not written", self.kept):
            if self._metrics is None:
                self._metrics = (self.path / METRICS).open(
                    "ab", buffering=0
                )  # so `close` has nothing to write
            while line:
                line = line[self._metrics.write(line) or 0 :]

    def save(self, state: State) -> None:
        """Write the state of this step, then drop all but the last two. RunError (disk full): the old ones are kept."""
        main, sharded, target = self.engine.main, self.engine.sharded, self._folder(state.step)
        if self._saved == state.step or not (main or sharded):
            return
        self._check_place()
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
            with replacing(target) if main else nullcontext(temporary_path(target)) as folder:
                if sharded:
                    self.engine.wait()  # until the folder is there
                facts = write_state(state, folder, self.engine)
                if main:
                    seal(folder, state.step, facts)
        except Exception as error:
            raise RunError(
                f"the state of step {state.step} was not saved: {error}. {self.kept()}"
            ) from error
        self._saved = state.step
        with _saying(f"an older state than the last {KEEP} was not removed", self.kept):
            for step in self.steps()[:-KEEP] if main else ():
                remove(self._folder(step))

    def restore(self, state: State, *, every: int | None = None) -> Restored:
        """Bring back the newest good state (step 0 where there is none) and cut metrics.jsonl to it.

        every  updates between two saves: without a state, no more than these can have been logged

        A damaged state is set aside with a warning and the one before is taken. RunError where states were there and
        no good one is left: nothing is changed then.
        """
        engine = self.engine
        with _saying(f"a damaged state in {self.path} was not set aside"):
            step = engine.same(self._newest(every) if engine.main else 0)
        unsealed = False
        if step:
            folder = self._folder(step)
            try:
                cursor = read_cursor(folder)
                read_state(state, folder, cursor, engine)
            except (ValueError, LookupError, TypeError) as error:
                raise RunError(
                    f"the state in {folder} is one of other networks than these: {error}"
                ) from error
            except (OSError, SafetensorError) as error:
                raise RunError(f"the state in {folder} could not be read: {error}") from error
            unsealed = cursor["format"] == UNSEALED
        state.step, self._saved = step, step or None
        with _saying("metrics.jsonl was not cut to the step of the state", self.kept):
            lost = engine.same(self._cut(step) if engine.main else 0)
        return Restored(step, lost, unsealed)

    def publish(self, write: Callable[[Path], object]) -> None:
        """Replace model/ by what `write(directory)` puts into an empty directory."""
        if not self.engine.main:
            return
        self._check_place()
        try:
            with replacing(self.model) as folder:
                write(folder)
        except Exception as error:
            raise RunError(
                f"{self.model} was not written: {error}. What was there is kept. {self.kept()}"
            ) from error

    def drop_states(self) -> None:
        """Remove all states: once the model is published, no command reads them."""
        if self.engine.main and (self.path / "state").exists():
            with _saying(
                f"{self.model} holds the model, but the states in {self.path / 'state'} were not removed"
            ):
                remove(self.path / "state")

    def steps(self) -> list[int]:
        """Steps of the saved states, oldest first."""
        names = (entry.name for entry in (self.path / "state").glob("step-" + "[0-9]" * 8))
        return sorted(int(name.removeprefix("step-")) for name in names)

    def kept(self) -> str:
        """A sentence for error messages: which good state is on disk."""
        if self.model.exists():
            return f"The finished model is kept in {self.model}."
        steps = self.steps()
        if not steps:
            return f"No state had been saved in {self.path}."
        return f"The last good state, step {steps[-1]}, is kept in {self._folder(steps[-1])}."

    def _folder(self, step: int) -> Path:
        return self.path / "state" / f"step-{step:08d}"

    def _take_lock(self) -> None:
        import fcntl  # POSIX only, and the library is to be imported anywhere

        lock = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # freed by the system however the process ends
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunError(
                f"{self.path} is in use by process {holder}: wait, or choose another directory"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _check_place(self) -> None:
        """RunError where the directory that was locked is not the one under this name any more."""
        if self._lock is None:
            return
        try:
            same = os.path.samestat(os.stat(self.path / LOCK), os.fstat(self._lock.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise RunError(
                f"{self.path} was removed, moved or replaced while its training ran ({LOCK} is not the file that this "
                "process locked), and nothing more can be saved in it: put it back where it was, then start again by "
                "the same line; or choose another directory"
            )

    def _check(self, recipe: Mapping[str, Any], resume: bool) -> None:
        file = self.path / "recipe.json"
        wanted = json.loads(json.dumps(recipe))  # as it comes back: tuples are lists
        if not file.exists():
            names = sorted(entry.name for entry in self.path.iterdir())
            strange = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
            if strange:
                raise RunError(
                    f"{self.path} is not a run directory: it holds {strange[:5]} and no recipe.json; choose another"
                )
            write_text(file, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = read_json(file)
        except ValueError as error:
            raise RunError(
                f"{file} is not JSON ({error}): put it right, or choose another directory"
            ) from error
        if changed := differences(found, wanted):
            raise RunError(
                f"{self.path} is a run of another recipe; fields that differ (there -> now):\n  "
                + "\n  ".join(changed)
                + "\nChoose another directory, or the recipe it was started with. Where files were only moved, write "
                f"their new path into {file}."
            )
        if not resume and (self.steps() or (self.path / METRICS).exists()):
            raise RunError(
                f"{self.path} already holds a run: resume it, or choose another directory. {self.kept()}"
            )

    def _newest(self, every: int | None) -> int:
        """The step of the newest whole state, 0 where none was ever saved; damaged ones before it are set aside."""
        problems: dict[Path, str] = {}
        for step in reversed(self.steps()):
            problem = damage(self._folder(step), step)
            if problem is None:
                self._set_aside(problems)
                return step
            problems[self._folder(step)] = problem
        problems |= {
            folder: "set aside before"
            for folder in sorted((self.path / "state").glob(f"*{DAMAGED}"))
        }
        if problems:
            found = "; ".join(f"{folder.name}: {problem}" for folder, problem in problems.items())
            raise RunError(
                f"no good state is left in {self.path}, and nothing in it was changed: {found}. Put a good copy of a "
                "state there, or start in another directory."
            )
        logged = max((at for at, _ in logged_lines(self.path / METRICS)), default=0)
        if every is not None and logged > every:
            raise RunError(
                f"{self.path} has no state, but metrics.jsonl logged {logged} steps, and a state was saved every "
                f"{every}: the states were removed. Put them back into {self.path / 'state'}, or start in another "
                "directory; nothing was changed."
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
            said = f"the state {folder} is damaged ({problem}); it is set aside as {aside.name}"
            warnings.warn(said, RuntimeWarning, stacklevel=4)


@contextmanager
def _saying(what: str, kept: Callable[[], str] = str) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into a RunError that says what was not done and what is kept."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error}. {kept()}".strip()) from error


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
