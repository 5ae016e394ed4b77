"""The cache on disk of rows and tokenizers: its directory, the names of its entries, file locks.

One process writes an entry while the others wait. The directory may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock, Timeout

Log: TypeAlias = Callable[[str], None]


def no_log(line: str) -> None:
    """Discard a line of progress: the default of all arguments `log`."""


def cache_dir() -> Path:
    """The directory $UNMASK_CACHE, else `unmask/` in $XDG_CACHE_HOME or ~/.cache."""
    own, base = (os.environ.get(name) for name in ("UNMASK_CACHE", "XDG_CACHE_HOME"))
    if own:
        return Path(own).expanduser()
    return (Path(base) if base else Path.home() / ".cache") / "unmask"


def fingerprint(*facts: str | int | bool | list[int] | None) -> str:
    """A hash of facts, 32 hexadecimal digits, as the name of a cache entry."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@contextmanager
def file_lock(target: Path, log: Log = no_log) -> Iterator[None]:
    """Run the block in one process at a time; each other process logs one line and waits.

    The operating system frees the lock when its process ends, also after a crash. A collective
    operation cannot replace the lock: it times out after minutes, but a process may read text for
    hours.

    Args:
        target: the file or folder that the block writes. The lock is a file `.lock-NAME` beside it.
        log: receives the line about waiting.

    Raises:
        OSError: the directory cannot be written, or its file system does not support locks.
    """
    lock = FileLock(target.with_name(f".lock-{target.name}"), fallback_to_soft=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log(f"waiting for the process that writes {target}")
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"UNMASK_CACHE cannot be written or locked: got {target.parent} ({error}); set "
            "UNMASK_CACHE to a writable directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


def make_once(target: Path, make: Callable[[], object], log: Log = no_log) -> Path:
    """Call `make` to write `target` if it does not exist, in one process; others wait.

    `make` must write atomically. If its process is killed, the next process calls it again.
    """
    if not target.exists():
        with file_lock(target, log):
            if not target.exists():
                make()
    return target
