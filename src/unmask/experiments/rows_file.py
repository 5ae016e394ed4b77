"""Files of JSON lines that grow by one line at a time, and the measured rows that they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.dataclass_json import dumps
from unmask.evaluation.measure import MeasuredRow, Row

ROWS = "rows.jsonl"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the JSON lines of a file; a missing file has none.

    A last line without its end is skipped: a killed process left it unfinished.
    """
    try:
        whole, _, _ = file.read_text("utf-8").rpartition("\n") if file.exists() else ("", "", "")
        return [json.loads(line) for line in whole.split("\n") if line]
    except ValueError as error:
        raise ValueError(
            f"{file} holds a line that is not JSON: {error}. Move the file away to measure again"
        ) from error


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Append a JSON line; it replaces a last line that a killed process left unfinished.

    Raises:
        OSError: The line could not be written; the message names the file.
    """
    try:
        with file.open("a+b") as out:
            out.seek(0)
            out.truncate(out.read().rfind(b"\n") + 1)
            out.write(dumps(line).encode() + b"\n")
    except OSError as error:
        raise OSError(
            f"{file} did not get its next line ({error.strerror}). The lines before it are kept: "
            "free some space and run the same command again"
        ) from error


def read_rows(file: Path, shipped: bool = False) -> list[MeasuredRow]:
    """Read the measured rows of a file; a missing file has none."""
    return [MeasuredRow(Row.from_json(line), shipped) for line in read_lines(file)]


def newest_rows(file: Path) -> list[Row]:
    """Read the rows of a file, the last one for each name and step count.

    A row is measured again when the version or the model changes; the newer one counts.
    """
    return list({(m.row.name, m.steps): m.row for m in read_rows(file)}.values())


def append_new(measured: MeasuredRow, known_rows: Sequence[MeasuredRow], file: Path) -> str | None:
    """Append a row unless it is shipped or one of `known_rows`; return its line for a terminal."""
    if measured.shipped or measured in known_rows:
        return None
    append_line(file, measured.to_json())
    return row_line(measured.row.name, measured)


def row_line(name: str, measured: MeasuredRow) -> str:
    """One line of text about a row, for a terminal."""
    title = f"{name.replace('_', ' ')}, {measured.steps} steps"
    figures = f"gen PPL {measured.gen_ppl.value:.1f}, entropy {measured.entropy.value:.2f} nats"
    return (
        f"{title}, temperature {measured.temperature:g}: {figures}, "
        f"{measured.row.setting.nfe:.1f} calls" + (" (shipped)" if measured.shipped else "")
    )
