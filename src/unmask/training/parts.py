"""A sharded state on disk: one safetensors file a process, with the rows of each tensor that the process holds.

Any number of processes reads it, sharded or not: each copies the rows that it holds. Nothing in it is a program;
the format of `torch.distributed.checkpoint` has a pickle in it, which runs when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.training.engine import Engine
from unmask.training.sharding import fill, first_row, is_sharded, local

PICKLED = ".metadata"  # of the parts that version 0.1 wrote
ROWS = "rows"


def write_parts(tensors: Mapping[str, Tensor], folder: Path, engine: Engine) -> None:
    """Write what this process holds; whole tensors are written by the first one. OSError where any process failed."""
    problem: Exception | None = None
    mine = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor) or engine.main}
    held = {name: local(tensor).detach().to("cpu", copy=True).contiguous() for name, tensor in mine.items()}
    rows = {name: [first_row(tensor), len(tensor)] for name, tensor in mine.items() if is_sharded(tensor)}
    try:
        if not folder.parent.is_dir():
            raise FileNotFoundError(f"{folder.parent} is on another machine: all must see one run directory")
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
            files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.iterdir())]
            _fill(tensors, [(file, json.loads((file.metadata() or {}).get(ROWS, "{}"))) for file in files])
    except (OSError, SafetensorError) as error:
        problem = error
    engine.all_well(problem, "could not read its parts")


def _fill(tensors: Mapping[str, Tensor], parts: list[tuple[Any, Mapping[str, list[int]]]]) -> None:
    """Copy the rows that stand in any part into the tensors; ValueError where names, shapes or rows differ."""
    held = [set(part.keys()) for part, _ in parts]
    if wrong := sorted(set().union(*held) ^ set(tensors)):
        raise ValueError(f"the saved state has other weights than these: {len(wrong)} differ, first: {wrong[:10]}")
    for name, tensor in tensors.items():
        done = 0
        for (part, rows), names in zip(parts, held, strict=True):
            if name in names:
                saved = part.get_slice(name)
                start, whole = rows.get(name, (0, None))
                shape = list(saved.get_shape())
                shape[:1] = shape[:1] if whole is None else [whole]
                if shape != list(tensor.shape):
                    raise ValueError(f"{name} of the saved state has shape {shape}, want {list(tensor.shape)}")
                done += (
                    _copy(local(tensor), first_row(tensor), saved, start) if shape else _copy_one(tensor, part, name)
                )
        if done != (len(local(tensor)) if tensor.dim() else 1):
            raise ValueError(f"{name} of the saved state lacks rows: found {done}, want {len(local(tensor))}")


def _copy(into: Tensor, begin: int, saved: Any, start: int) -> int:
    """Copy the rows that two parts of one tensor have in common; returns how many they are."""
    count: int = saved.get_shape()[0]
    first, last = max(start, begin), min(start + count, begin + len(into))
    if first >= last:
        return 0
    fill(into[first - begin : last - begin], saved[first - start : last - start])
    return last - first


def _copy_one(into: Tensor, part: Any, name: str) -> int:
    """Copy a tensor without dimensions, which has no slices."""
    fill(into, part.get_tensor(name))
    return 1
