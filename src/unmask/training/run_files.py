"""The small files of a run directory: recipe.json, start.json, metrics.jsonl and its lock.

The lines of metrics.jsonl are JSON objects with a `step`. The lock file holds the number of the
process that trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unmask.atomic_files import TEMPORARY, write_text
from unmask.dataclass_json import read_json

LOCK, METRICS, RECIPE, START = ".lock", "metrics.jsonl", "recipe.json", "start.json"
MACHINE = "machine"  # in start.json: the facts that rounding depends on
TEXT_OF_0_1 = "text"  # in start.json of version 0.1: the digest of a streamed text


class RunError(RuntimeError):
    """A run directory cannot be used or written; no saved state was lost."""


def lock_directory(directory: Path) -> FileLock:
    """Lock a directory. RunError with the number of the process that holds its lock.

    The system frees the lock when the process ends, however it ends.
    """
    file = directory / LOCK
    lock = FileLock(file, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = file.read_text(encoding="utf-8").strip() or "unknown"
        raise RunError(
            f"{directory} is in use by process {holder}: wait, or choose another directory"
        ) from error
    with file.open("w", encoding="utf-8") as handle:
        handle.write(f"{os.getpid()}\n")
    return lock


def keep_recipe(directory: Path, recipe: Mapping[str, Any], update: Callable[[Any], Any]) -> None:
    """Write recipe.json into an empty directory, or compare the recipe with the existing one.

    Args:
        directory: the run directory.
        recipe: the recipe as JSON.
        update: brings the content of an existing recipe.json to the form of `recipe`.

    Raises:
        RunError: the directory has another recipe, or other files and no recipe.
    """
    file = directory / RECIPE
    content = json.loads(json.dumps(recipe))  # tuples become lists
    if not file.exists():
        names = sorted(entry.name for entry in directory.iterdir())
        strange = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
        if strange:
            raise RunError(
                f"{directory} is not a run directory: it holds {strange[:5]} and no {RECIPE}; "
                "choose another"
            )
        write_text(file, json.dumps(content, indent=1) + "\n")
        return
    try:
        saved = read_json(file)
    except ValueError as error:
        raise RunError(
            f"{file} is not JSON ({error}): repair it, or choose another directory"
        ) from error
    if changed := differences(update(saved), content):
        raise RunError(
            f"{directory} is a run of another recipe; fields that differ (there -> now):\n  "
            + "\n  ".join(changed)
            + "\nChoose another directory, or the recipe that it was started with. If files were "
            f"only moved, write their new path into {file}."
        )


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
    """Yield step and text of each complete line; a missing file has no lines."""
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
    """Remove incomplete lines and those after `step`; return the number of removed steps."""
    lines = [*logged_lines(file)]
    if file.exists():
        write_text(file, "".join(f"{line}\n" for at, line in lines if at <= step))
    return len({at for at, _ in lines if at > step})


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """List the fields of two JSON values that differ, with a line for each.

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
