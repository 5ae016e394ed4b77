"""Atomic writes of files and directories: a temporary name, fsync, rename.

After a crash the target has its complete old contents or its complete new contents, or `recover`
restores one of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of a file or directory while it is written
REPLACED = ".old-"  # prefix of an old directory until the new one has its name


def backup_path(target: Path) -> Path:
    """The name of the old directory between the two renames of `replacing`."""
    return target.with_name(REPLACED + target.name)


def temporary_path(target: Path) -> Path:
    """The name of a new file or directory until it is complete."""
    return target.with_name(TEMPORARY + target.name)


@contextmanager
def replacing(target: Path, keep: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Replace a directory: yield a new empty one, which is renamed to `target` after the block.

    If the block raises, the new directory is removed. All new files get the mode of the umask, even
    if a library gave them another mode. The new directory gets the owner and the mode of the old
    one. If `target` is a symbolic link, its target directory is replaced.

    Args:
        target: the directory; it need not exist.
        keep: selects, by name, entries of the old directory that move to the new one. An entry of
            the new directory with this name has priority.

    Raises:
        ValueError: `target` exists and is not a directory.
    """
    target = _resolve(target, stat.S_ISDIR, "a directory")
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
            _copy_owner_and_mode(folder, target.stat())
        for entry in (*folder.rglob("*"), folder):
            _sync(entry)
        if target.exists():
            # A crash before the next line leaves only the backup, which `recover` renames back.
            target.rename(old)
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
    """Replace a file: yield a temporary path, which is renamed to `file` after the block.

    If the block raises, the temporary file is removed. The new file gets the owner and the mode of
    the old one, else the mode of the umask. If `file` is a symbolic link, its target file is
    replaced. ValueError if `file` is a directory, a pipe or a device.
    """
    file = _resolve(file, stat.S_ISREG, "a regular file")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(file)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()  # an empty file shows the mode of the umask
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        if file.exists():
            _copy_owner_and_mode(temporary, file.stat())
        _sync(temporary)
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically."""
    with writing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove a directory atomically.

    After a crash it is complete, or it is a temporary directory that `recover` removes.
    """
    renamed = temporary_path(folder)
    shutil.rmtree(renamed, ignore_errors=True)
    folder.rename(renamed)
    _sync(folder.parent)
    shutil.rmtree(renamed)


def recover(folder: Path) -> None:
    """Complete or undo the unfinished writes of a killed process in a directory."""
    for entry in sorted(folder.iterdir()):
        target = folder / entry.name.removeprefix(REPLACED)
        if entry.name.startswith(REPLACED) and not target.exists():
            entry.rename(target)
        elif entry.name.startswith((TEMPORARY, REPLACED)):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def sha256(file: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _resolve(target: Path, is_kind: Callable[[int], bool], kind: str) -> Path:
    """Follow a symbolic link. ValueError if the target exists and is not of this kind."""
    target = target.resolve() if target.is_symlink() else target
    if target.exists() and not is_kind(target.stat().st_mode):
        raise ValueError(f"{target} is not {kind} and was not replaced: give another name")
    return target


def _copy_owner_and_mode(new: Path, old: os.stat_result) -> None:
    """Give a new file or directory the owner and the mode of the old one.

    The contents of a new directory get the owner too.
    """
    if (old.st_uid, old.st_gid) != (new.stat().st_uid, new.stat().st_gid):
        for entry in (*new.rglob("*"), new):
            os.chown(entry, old.st_uid, old.st_gid)
    new.chmod(stat.S_IMODE(old.st_mode))


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
