"""Files of JSON lines: an unfinished last line is skipped, a full disk loses nothing."""

import resource
from pathlib import Path

import pytest

from unmask.experiments.rows_file import append_line, read_lines


def test_an_unfinished_last_line_is_skipped_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"', "utf-8")
    assert read_lines(file) == [{"a": 1}, {"a": 2}]
    append_line(file, {"a": 3})
    assert read_lines(file) == [{"a": 1}, {"a": 2}, {"a": 3}]
    new = tmp_path / "new.jsonl"
    assert read_lines(new) == []
    append_line(new, {"a": 4})
    assert read_lines(new) == [{"a": 4}]


def test_a_line_that_is_not_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\nwords\n', "utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl"):
        read_lines(tmp_path / "rows.jsonl")


def test_a_full_disk_names_the_file_and_keeps_its_lines(tmp_path: Path) -> None:
    """A limit on the size of files takes the place of a full disk."""
    file, before = tmp_path / "rows.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    append_line(file, {"a": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match=r"rows\.jsonl .*lines before it are kept"):
            append_line(file, {"a": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_lines(file) == [{"a": 1}]
    append_line(file, {"a": 2})
    assert read_lines(file) == [{"a": 1}, {"a": 2}]
