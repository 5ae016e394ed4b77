"""The JSON files of a run directory: recipe.json, start.json and metrics.jsonl.

The lines of metrics.jsonl are JSON objects with a `step`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.atomic_files import write_text
from unmask.dataclass_json import read_json

METRICS, RECIPE, START = "metrics.jsonl", "recipe.json", "start.json"
MACHINE = "machine"  # in start.json: the facts that rounding depends on
TEXT_OF_0_1 = "text"  # in start.json of version 0.1: the digest of a streamed text


class RunError(RuntimeError):
    """A run directory cannot be used or written; no saved state was lost."""


def read_start(directory: Path) -> dict[str, Any]:
    """The content of start.json, {} if it does not exist. RunError if it is damaged."""
    file = directory / START
    if not file.exists():
        return {}
    advice = "restore it, or remove it to resume without checking its facts"
    try:
        saved = read_json(file)
    except ValueError as error:
        raise RunError(f"{error}; {advice}") from error
    if not isinstance(saved, dict):
        raise RunError(f"{file} is not a JSON object: got {saved!r}; {advice}")
    for name, value in saved.items():
        if not isinstance(value, dict if name == MACHINE else str):
            raise RunError(f"{file} has a value of a wrong type: got {name} = {value!r}; {advice}")
    if TEXT_OF_0_1 in saved:
        saved.setdefault("text_digest", saved.pop(TEXT_OF_0_1))
    return saved


def logged_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Step and text of each line. Incomplete lines are omitted; a missing file has no lines."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match record:
            case {"step": int(step)}:
                yield step, line


def cut_lines(file: Path, step: int) -> int:
    """Remove incomplete lines and the lines after `step`; returns the number of steps removed."""
    lines = [*logged_lines(file)]
    if file.exists():
        write_text(file, "".join(f"{line}\n" for at, line in lines if at <= step))
    return len({at for at, _ in lines if at > step})


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
            was, now = (json.dumps(side[key]) if key in side else "absent" for side in (old, new))
            lines.append(f"{inner}: {was} -> {now}")
    return lines
