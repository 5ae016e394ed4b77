"""A sharded state on disk: one safetensors file a process, with the rows of each tensor that the process holds.

Any number of processes reads it, sharded or not: each copies the rows that it holds. Nothing in it is a program;
the format of `torch.distributed.checkpoint` has a pickle in it, which runs when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.training.distributed import Engine
from unmask.training.sharding import fill, first_row, is_sharded, local

PICKLED = ".metadata"  # of the parts that version 0.1 wrote
ROWS = "rows"


def write_parts(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> None:
    """Write what this process holds; whole tensors are written by the first one. OSError where any process failed."""
    problem: Exception | None = None
    mine = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor) or engine.main}
    held = {
        name: local(tensor).detach().to("cpu", copy=True).contiguous()
        for name, tensor in mine.items()
    }
    rows = {
        name: [first_row(tensor), len(tensor)]
        for name, tensor in mine.items()
        if is_sharded(tensor)
    }
    try:
        if not folder.parent.is_dir():
            raise FileNotFoundError(
                f"{folder.parent} is on another machine: all must see one run directory"
            )
        folder.mkdir(exist_ok=True)
        save_file(held, folder / f"{engine.rank:05d}.safetensors", {ROWS: json.dumps(rows)})
    except (OSError, SafetensorError) as error:
        problem = error
    engine.all_well(problem, "could not write its parts")


def read_parts(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> None:
    """Read what this process holds, in place. ValueError for other tensors, OSError where any process failed.

    The parts of version 0.1 are refused: their list is a pickle.
    """
    if (folder / PICKLED).exists():
        raise OSError(
            f"{folder / PICKLED} is a pickle, which could run code, and is not read; version 0.1 wrote sharded states "
            "so: finish this run with version 0.1, or start it again in another directory"
        )
    problem: Exception | None = None
    try:
        with ExitStack() as stack:
            _fill(
                tensors,
                [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.iterdir())],
            )
    except (OSError, SafetensorError) as error:
        problem = error
    engine.all_well(problem, "could not read its parts")


def _rows(part: Any) -> Mapping[str, list[int]]:
    """Name -> first row here and rows of the whole, of the tensors of which a part has some rows only."""
    found = json.loads((part.metadata() or {}).get(ROWS, "{}"))
    if not isinstance(found, dict):
        raise ValueError(
            f"{ROWS} of the saved state is no JSON object: got a {type(found).__name__}"
        )
    return found


def _fill(tensors: Mapping[str, Tensor], parts: Sequence[Any]) -> None:
    """Copy the rows that stand in any part into the tensors; ValueError where names, shapes or rows differ."""
    held = [set(part.keys()) for part in parts]
    if wrong := sorted(set().union(*held) ^ set(tensors)):
        raise ValueError(
            f"the saved state has other weights than these: {len(wrong)} differ, first: {wrong[:10]}"
        )
    rows = [_rows(part) for part in parts]
    for name, tensor in tensors.items():
        having = [
            (part, places.get(name))
            for part, names, places in zip(parts, held, rows, strict=True)
            if name in names
        ]
        done, want = (
            sum(_copy(name, tensor, *each) for each in having),
            len(local(tensor)) if tensor.dim() else 1,
        )
        if done != want:
            raise ValueError(f"{name} of the saved state lacks rows: found {done}, want {want}")


def _copy(name: str, tensor: Tensor, part: Any, place: list[int] | None) -> int:
    """Copy the rows of a tensor that a part has and this process holds; returns how many they are.

    place  the first row of the part and the rows of the whole tensor; None: the part has the whole
    """
    saved, into = part.get_slice(name), local(tensor)
    shape: list[int] = saved.get_shape()
    start, whole = place or (0, None)
    if (found := shape if whole is None else [whole, *shape[1:]]) != list(tensor.shape):
        raise ValueError(f"{name} of the saved state has shape {found}, want {list(tensor.shape)}")
    if not shape:  # a number has no rows
        fill(into, part.get_tensor(name))
        return 1
    begin = first_row(tensor)
    first, last = max(start, begin), min(start + shape[0], begin + len(into))
    if first >= last:
        return 0
    fill(into[first - begin : last - begin], saved[first - start : last - start])
    return last - first
