"""Reading and writing of a state: a folder of safetensors files with checksums.

    cursor.json  NETWORK/{model,optimizer,ema}.safetensors  frozen/NETWORK.safetensors
    cursor.json  parts/RANK.safetensors                     sharded: a file a process

Any number of processes can read either form, sharded or not. The file of a process in `parts/`
holds its rows of each tensor.

`cursor.json` holds the step, the SHA-256 of every file, and a digest of itself. These checksums
detect damage: a changed bit, a missing or an extra file, two exchanged folders. They do not prove
the origin of a state, because any program can write such files. So no file of a state may run code.
The format of `torch.distributed.checkpoint` contains a pickle, and is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.atomic_files import sha256
from unmask.dataclass_json import read_json
from unmask.models.modules import check_same_shapes
from unmask.training.distributed import Engine, copies, fill, first_row, is_sharded, local
from unmask.training.state import State

CURSOR = "cursor.json"
LARGEST_CURSOR = 2**24  # bytes; with sharding the cursor lists a file for each process
FORMAT, UNSEALED = 2, 1  # version 0.1 wrote format 1, without a digest of the cursor itself
PARTS, ROWS = "parts", "rows"
PICKLED = ".metadata"  # file in the parts that version 0.1 wrote
Files = dict[str, dict[str, Tensor]]  # file -> name -> tensor


def write_state(state: State, folder: Path, engine: Engine) -> None:
    """Write a state into an empty folder. If the state is sharded, every process must call this."""
    files = _tensors(state)
    if engine.sharded:
        _write_parts(_flat(files), folder / PARTS, engine)
    else:
        for name, tensors in files.items():
            file = folder / f"{name}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(copies(tensors), file)  # copies, because the format refuses shared memory
    if not engine.main:
        return
    averages = {
        name: trained.ema and {"decay": trained.ema.decay, "updates": trained.ema.updates}
        for name, trained in state.trained.items()
    }
    learners = {name: {"ema": average} for name, average in averages.items()}
    seal(folder, state.step, {"learners": learners, "frozen": sorted(state.frozen)})


def read_state(state: State, folder: Path, engine: Engine) -> int:
    """Read a folder into a state of the same networks, and return the format of its cursor.

    Raises:
        ValueError, KeyError or TypeError: the folder has other networks.
        OSError or SafetensorError: a file cannot be read.
    """
    cursor = read_cursor(folder)
    trained, frozen = set(cursor["learners"]), set(cursor["frozen"])
    if trained != set(state.trained) or frozen != set(state.frozen):
        raise ValueError(
            f"the saved state has the networks {sorted(trained)} and frozen {sorted(frozen)}, want "
            f"{sorted(state.trained)} and frozen {sorted(state.frozen)}"
        )
    for name, network in state.trained.items():
        average = cursor["learners"][name]["ema"]
        if (average is None) != (network.ema is None):
            saved, run = ("no", "one") if average is None else ("an", "none (ema_decay=None)")
            raise ValueError(
                f"the saved state has {saved} EMA for {name!r}, but this run has {run}"
            )
        if network.ema is not None:
            network.ema.decay = float(average["decay"])
            network.ema.updates = int(average["updates"])
    files = _tensors(state)
    if (folder / PARTS).is_dir():
        _read_parts(_flat(files), folder / PARTS, engine)
        return int(cursor["format"])
    for name, tensors in files.items():
        values = load_file(folder / f"{name}.safetensors")
        check_same_shapes(values, tensors, f"{name}.safetensors")
        for key, tensor in tensors.items():
            fill(tensor, values[key])
    return int(cursor["format"])


def _tensors(state: State) -> Files:
    """Every tensor of a state, not copied, by the name of its file."""
    files: Files = {}
    for name, trained in state.trained.items():
        files[f"{name}/model"] = trained.network.state_dict()
        files[f"{name}/optimizer"] = {
            f"{parameter}/{key}": moment
            for parameter, value in trained.parameters()
            for key, moment in trained.optimizer.state[value].items()
        }
        if trained.ema is not None:
            files[f"{name}/ema"] = trained.ema.shadow
    frozen = {f"frozen/{name}": network.state_dict() for name, network in state.frozen.items()}
    return files | frozen


def _flat(files: Files) -> dict[str, Tensor]:
    return {
        f"{file}/{name}": tensor for file, some in files.items() for name, tensor in some.items()
    }


# --- parts of a sharded state


def _write_parts(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> None:
    """Write the parts of this process. The first process also writes the whole tensors.

    OSError on every process if any of them fails.
    """
    problem: Exception | None = None
    mine = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor) or engine.main}
    parts = {
        name: local(tensor).detach().to("cpu", copy=True).contiguous()
        for name, tensor in mine.items()
    }
    rows = {name: [first_row(t), len(t)] for name, t in mine.items() if is_sharded(t)}
    try:
        if not folder.parent.is_dir():
            raise FileNotFoundError(
                f"{folder.parent} does not exist on this machine: all processes need the same run "
                "directory"
            )
        folder.mkdir(exist_ok=True)
        save_file(parts, folder / f"{engine.rank:05d}.safetensors", {ROWS: json.dumps(rows)})
    except (OSError, SafetensorError) as error:
        problem = error
    engine.raise_together(problem, "could not write its parts")


def _read_parts(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> None:
    """Read the parts of this process, in place.

    Parts of version 0.1 are refused, because their index is a pickle. ValueError if names or shapes
    differ. OSError on every process if any of them fails.
    """
    if (folder / PICKLED).exists():
        raise OSError(
            f"{folder / PICKLED} is a pickle, which could run code, and is not read. Version 0.1 "
            "wrote such sharded states: finish this run with version 0.1, or start it again in "
            "another directory"
        )
    problem: Exception | None = None
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(f, "pt")) for f in sorted(folder.iterdir())]
            _fill(tensors, files)
    except (OSError, SafetensorError) as error:
        problem = error
    engine.raise_together(problem, "could not read its parts")


def _rows(part: Any) -> Mapping[str, list[int]]:
    """Name -> [first row in this file, rows of the whole tensor], for sharded tensors."""
    rows = json.loads((part.metadata() or {}).get(ROWS, "{}"))
    if not isinstance(rows, dict):
        raise ValueError(
            f"{ROWS} of the saved state is not a JSON object: got a {type(rows).__name__}"
        )
    return rows


def _fill(tensors: Mapping[str, Tensor], parts: Sequence[Any]) -> None:
    """Copy the rows of all parts into the tensors. ValueError if names, shapes or rows differ."""
    names = [set(part.keys()) for part in parts]
    if wrong := sorted(set().union(*names) ^ set(tensors)):
        raise ValueError(
            f"the saved state has other weights than this run: {len(wrong)} differ, first: "
            f"{wrong[:10]}"
        )
    rows = [_rows(part) for part in parts]
    for name, tensor in tensors.items():
        done = sum(
            _copy(name, tensor, part, places.get(name))
            for part, own, places in zip(parts, names, rows, strict=True)
            if name in own
        )
        want = len(local(tensor)) if tensor.dim() else 1
        if done != want:
            raise ValueError(f"{name} of the saved state lacks rows: got {done}, want {want}")


def _copy(name: str, tensor: Tensor, part: Any, place: list[int] | None) -> int:
    """Copy the rows of a part that this process holds, and return their number.

    Args:
        name: name of the tensor.
        tensor: the tensor to fill.
        part: an open file.
        place: [first row of the part, rows of the whole tensor]; None: the part has all rows.
    """
    saved, into = part.get_slice(name), local(tensor)
    shape: list[int] = saved.get_shape()
    start, count = place or (0, None)
    if (got := shape if count is None else [count, *shape[1:]]) != list(tensor.shape):
        raise ValueError(f"{name} of the saved state has shape {got}, want {list(tensor.shape)}")
    if not shape:  # a scalar has no rows
        fill(into, part.get_tensor(name))
        return 1
    begin = first_row(tensor)
    first, last = max(start, begin), min(start + shape[0], begin + len(into))
    if first >= last:
        return 0
    fill(into[first - begin : last - begin], saved[first - start : last - start])
    return last - first


# --- checksums


def seal(folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Write the cursor of a state whose other files are complete."""
    sums = {name: sha256(folder / name) for name in sorted(_files(folder))}
    record = {"format": FORMAT, "step": step, **facts, "files": sums}
    text = json.dumps({**record, "digest": _digest(record)}, indent=1)
    (folder / CURSOR).write_text(text, encoding="utf-8")


def read_cursor(folder: Path) -> dict[str, Any]:
    """The cursor of a state; ValueError if it is damaged."""
    if not (folder / CURSOR).is_file():
        raise ValueError(f"{CURSOR} is missing")
    cursor: Any = read_json(folder / CURSOR, LARGEST_CURSOR)
    match cursor:
        case {"format": 1, "step": int(), "files": dict()}:
            return dict(cursor)
        case {"format": 2, "step": int(), "files": dict(), "digest": str(digest)}:
            if digest != _digest({name: cursor[name] for name in cursor if name != "digest"}):
                raise ValueError(f"{CURSOR} does not match its checksum")
            return dict(cursor)
        case {"format": int(version)}:
            raise ValueError(
                f"{CURSOR} has format {version} or lacks a field; this version reads formats 1 "
                "and 2"
            )
    raise ValueError(f"{CURSOR} is not the cursor of a state")


def damage(folder: Path, step: int) -> str | None:
    """Describe the damage to the saved state of a step, in any file; None if it is intact."""
    try:
        cursor = read_cursor(folder)
    except (OSError, ValueError) as error:
        return f"{CURSOR} cannot be read ({error})"
    if cursor["step"] != step:
        return f"it is the state of step {cursor['step']}"
    files = cursor["files"]
    if extra := sorted(_files(folder) - {*files, CURSOR}):
        return f"{extra[0]} does not belong to it"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} does not match its checksum"
    return None


def _files(folder: Path) -> set[str]:
    """The names of all entries that are not directories: files, links, pipes and devices."""
    return {
        entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()
    }


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
