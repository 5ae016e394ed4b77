"""Where things are kept that are made from text once and read often, and who makes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Log: TypeAlias = Callable[[str], None]


def no_log(line: str) -> None:
    """Says nothing."""


def cache_dir() -> Path:
    """$UNMASK_CACHE, else unmask/ in the user's cache ($XDG_CACHE_HOME or ~/.cache). It may be removed at any time."""
    own, usual = (os.environ.get(name) for name in ("UNMASK_CACHE", "XDG_CACHE_HOME"))
    if own:
        return Path(own).expanduser()
    return (Path(usual) if usual else Path.home() / ".cache") / "unmask"


def fingerprint(*facts: str | int | bool | list[int] | None) -> str:
    """A name for what follows from these facts."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@contextmanager
def file_lock(target: Path, say: Log = no_log) -> Iterator[None]:
    """Only one process at a time is in the block of a `target`; others wait, and `say` gets a line about it.

    The system frees the lock however its process ends. It is waited for here and not in a collective operation, whose
    time-out of minutes would end a training whose first process is still reading text. OSError where the file system
    has no locks.
    """
    import fcntl  # POSIX only, and the library is to be imported anywhere

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".lock-{target.name}").open("a")
    except OSError as error:
        raise OSError(
            f"UNMASK_CACHE cannot be written: what is made from text is kept in {target.parent} ({error}); name a "
            "directory that can be written"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for the process that writes {target}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(
                f"{target.parent} cannot be locked ({error}): name a directory of another file system in UNMASK_CACHE"
            ) from error
        yield
