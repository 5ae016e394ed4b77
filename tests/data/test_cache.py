"""The cache: its directory, fingerprints, locks that a process waits for, entries written once."""

import fcntl
import threading
from pathlib import Path

import pytest

from unmask.data.cache import cache_dir, file_lock, fingerprint, make_once


def test_environment_variables_name_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", "~/here")
    assert cache_dir() == Path.home() / "here"
    monkeypatch.delenv("UNMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "unmask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "unmask"


def test_a_fingerprint_depends_on_every_fact() -> None:
    assert (
        len(
            {
                fingerprint(),
                fingerprint(1),
                fingerprint("1"),
                fingerprint(None),
                fingerprint([1]),
                fingerprint(1, 2),
                fingerprint("1 2"),
                fingerprint(12),
            }
        )
        == 8
    )
    assert fingerprint("a", 1, None, [2]) == fingerprint("a", 1, None, [2])


def test_a_lock_is_released_after_its_block(tmp_path: Path) -> None:
    lines: list[str] = []
    for _ in range(2):
        with file_lock(tmp_path / "a" / "thing", lines.append):
            pass
    assert lines == []


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(OSError, match=r"UNMASK_CACHE cannot be .* locked: .*No locks"),
        file_lock(tmp_path / "a"),
    ):
        pass


def test_a_second_holder_waits_and_logs_it_once(tmp_path: Path) -> None:
    target, order, lines = tmp_path / "thing", [], []
    waiting = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        waiting.set()

    def second() -> None:
        with file_lock(target, log):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(target):
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert lines == [f"waiting for the process that writes {target}"]


def test_an_entry_is_made_once_and_again_after_an_error(tmp_path: Path) -> None:
    target, calls = tmp_path / "new" / "entry", []

    def make() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise RuntimeError("stopped")
        target.write_text("whole")

    with pytest.raises(RuntimeError, match="stopped"):
        make_once(target, make)
    assert [make_once(target, make).read_text() for _ in range(2)] == ["whole", "whole"]
    assert calls == [0, 1]
