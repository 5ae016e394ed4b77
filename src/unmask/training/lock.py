"""A lock file that keeps a second training out of a run directory.

The system releases the lock when the process ends, however it ends. The file holds the number of
the process, which a refusal names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from unmask.training.run_files import RunError

LOCK = ".lock"


@dataclass(frozen=True)
class DirectoryLock:
    """A held lock on a directory."""

    path: Path
    handle: IO[str]

    @staticmethod
    def acquire(directory: Path) -> DirectoryLock:
        """Lock a directory. RunError with the number of the process that holds it."""
        import fcntl  # POSIX only, and the library must be importable on every system

        path = directory / LOCK
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise RunError(
                f"{directory} is in use by process {holder}: wait, or choose another directory"
            ) from error
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        return DirectoryLock(path, handle)

    def is_in_place(self) -> bool:
        """False if the directory was removed, moved or replaced since."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.handle.fileno()))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Unlock the directory."""
        self.handle.close()
