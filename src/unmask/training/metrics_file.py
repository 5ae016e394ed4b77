"""Lines of a metrics.jsonl, each a JSON object with a `step`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from unmask.atomic_files import write_text


def logged_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Step and text of each line; a line that a kill has torn is left out, and a missing file has none."""
    for line in (
        file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ()
    ):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match record:
            case {"step": int(step)}:
                yield step, line


def cut_lines(file: Path, step: int) -> int:
    """Drop the lines after `step` and torn ones; returns how many steps the former had."""
    lines = [*logged_lines(file)]
    if file.exists():
        write_text(file, "".join(f"{line}\n" for at, line in lines if at <= step))
    return len({at for at, _ in lines if at > step})
