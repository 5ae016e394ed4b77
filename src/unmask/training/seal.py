"""The seal of a saved state: `cursor.json` lists every file with its SHA-256, under one digest, for one step.

It finds damage: a changed digit, a lost or a strange file, two folders that changed places. It does not prove where a
state comes from, because any program can write a seal. So no file of a state is a program (`storage`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.atomic_files import sha256
from unmask.dataclass_json import read_json

CURSOR = "cursor.json"
FORMAT = 2
LARGEST_CURSOR = 2**24  # bytes; a sharded state has a file a process
UNSEALED = 1  # version 0.1: no digest over the cursor itself


def seal(folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Write the cursor of a state whose other files are all there."""
    sums = {name: sha256(folder / name) for name in sorted(_files(folder))}
    record = {"format": FORMAT, "step": step, **facts, "files": sums}
    text = json.dumps({**record, "digest": _digest(record)}, indent=1)
    (folder / CURSOR).write_text(text, encoding="utf-8")


def read_cursor(folder: Path) -> dict[str, Any]:
    """The cursor of a state; ValueError where it is no cursor, or is not the one that was written."""
    if not (folder / CURSOR).is_file():
        raise ValueError(f"{CURSOR} is missing")
    cursor: Any = read_json(folder / CURSOR, LARGEST_CURSOR)
    match cursor:
        case {"format": 1, "step": int(), "files": dict()}:
            return dict(cursor)
        case {"format": 2, "step": int(), "files": dict(), "digest": str(digest)}:
            if digest != _digest(
                {name: value for name, value in cursor.items() if name != "digest"}
            ):
                raise ValueError(f"{CURSOR} does not have its checksum")
            return dict(cursor)
        case {"format": int(found)}:
            raise ValueError(
                f"{CURSOR} has format {found} or lacks a field; this version reads formats 1 and 2"
            )
    raise ValueError(f"{CURSOR} is no cursor of a state")


def damage(folder: Path, step: int) -> str | None:
    """The fault of the saved state of a step, in its cursor or in any file; None where it is whole."""
    try:
        cursor = read_cursor(folder)
    except (OSError, ValueError) as error:
        return f"{CURSOR} cannot be read ({error})"
    if cursor["step"] != step:
        return f"it is the state of step {cursor['step']}"
    files = cursor["files"]
    if strange := sorted(_files(folder) - {*files, CURSOR}):
        return f"{strange[0]} does not belong to it"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} does not have its checksum"
    return None


def _files(folder: Path) -> set[str]:
    """Names of all that is no directory, pipes and devices too."""
    return {
        entry.relative_to(folder).as_posix() for entry in folder.rglob("*") if not entry.is_dir()
    }


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
