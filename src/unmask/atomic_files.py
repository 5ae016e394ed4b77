"""Files that are there whole or not at all: written under a temporary name, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"  # being written
REPLACED = ".old-"  # being replaced


def backup_path(target: Path) -> Path:
    """Where `replacing` puts the old directory for the moment between its two renames."""
    return target.with_name(REPLACED + target.name)


def temporary_path(target: Path) -> Path:
    """Where `replacing` has the new directory until it is whole."""
    return target.with_name(TEMPORARY + target.name)


@contextmanager
def replacing(target: Path, keep: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """A new empty directory that takes the place of `target` when the block ends well, and vanishes when it fails.

    Files get the mode of the umask, whatever the library that wrote them chose. The new directory gets the owner and
    the mode of the old one. A symbolic link stays, and the directory behind it is replaced.
    ValueError where `target` is no directory.

    keep  names of the old directory that move over, where the new one has none of that name
    """
    target = _place(target, stat.S_ISDIR, "a directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder, old = temporary_path(target), backup_path(target)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        mode = stat.S_IMODE(folder.stat().st_mode)
        yield folder
        for entry in folder.rglob("*"):
            entry.chmod(mode if entry.is_dir() else mode & 0o666)
        if target.exists():
            _as_before(folder, target.stat())
        for entry in (*folder.rglob("*"), folder):
            _sync(entry)
        if target.exists():
            target.rename(
                old
            )  # until the next line only the old name is there: `recover` puts it back after a crash
        folder.rename(target)
        for entry in sorted(old.iterdir()) if old.exists() else ():
            if keep(entry.name) and not (target / entry.name).exists():
                entry.rename(target / entry.name)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `file` when the block ends well, and vanishes when it fails.

    It gets the owner and the mode of the old file, else the mode of the umask. A symbolic link stays, and the file
    behind it is replaced. ValueError where `file` is a directory, a pipe or a device.
    """
    file = _place(file, stat.S_ISREG, "a regular file")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(TEMPORARY + file.name)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()  # with the mode of the umask
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        if file.exists():
            _as_before(temporary, file.stat())
        _sync(temporary)
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file whole."""
    with writing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove a directory: a crash leaves all of it, or a temporary one that `recover` removes."""
    doomed = temporary_path(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    _sync(folder.parent)
    shutil.rmtree(doomed)


def recover(folder: Path) -> None:
    """Finish or undo what a killed process left half done in a directory."""
    for entry in sorted(folder.iterdir()):
        if (
            entry.name.startswith(REPLACED)
            and not (target := folder / entry.name.removeprefix(REPLACED)).exists()
        ):
            entry.rename(target)
        elif entry.name.startswith((TEMPORARY, REPLACED)):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def sha256(file: Path) -> str:
    """The checksum of a file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _place(target: Path, wanted: Callable[[int], bool], kind: str) -> Path:
    """The target, links followed; ValueError where something else than `kind` stands there."""
    target = target.resolve() if target.is_symlink() else target
    if target.exists() and not wanted(target.stat().st_mode):
        raise ValueError(f"{target} is not {kind}, and it is left as it is: give another name")
    return target


def _as_before(new: Path, old: os.stat_result) -> None:
    """Give a new file, or a directory with all that it holds, the owner of the old one; and its mode."""
    if (old.st_uid, old.st_gid) != (new.stat().st_uid, new.stat().st_gid):
        for entry in (*new.rglob("*"), new):
            os.chown(entry, old.st_uid, old.st_gid)
    new.chmod(stat.S_IMODE(old.st_mode))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
