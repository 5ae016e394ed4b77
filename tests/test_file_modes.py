"""Modes of files that replace others, and targets that are never replaced."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unmask.atomic_files import replacing, write_text, writing


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_are_those_of_the_umask(umask: int, tmp_path: Path) -> None:
    """safetensors writes files of mode 0600."""
    with replacing(tmp_path / "run") as folder:
        (folder / "state" / "student").mkdir(parents=True)
        save_file({"a": torch.ones(1)}, folder / "state" / "student" / "model.safetensors")
        (folder / "cursor.json").write_text("{}")
        (folder / "cursor.json").chmod(0o600)
    with writing(tmp_path / "a.safetensors") as file:
        save_file({"a": torch.ones(1)}, file)
    write_text(tmp_path / "a.txt", "x")
    for path in (
        p
        for folder in ("run", "a.safetensors", "a.txt")
        for p in [tmp_path / folder, *(tmp_path / folder).rglob("*")]
    ):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "a.txt").chmod(0o604)
    write_text(tmp_path / "a.txt", "y")
    assert mode(tmp_path / "a.txt") == 0o604 and (tmp_path / "a.txt").read_text() == "y"


@pytest.mark.parametrize("kind", ["device", "pipe", "directory", "link to a device"])
def test_a_file_replaces_files_only(kind: str, tmp_path: Path) -> None:
    """As root, a report to /dev/null would replace the device."""
    out = tmp_path / "out"
    if kind == "device":
        out = Path("/dev/null")
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "directory":
        out.mkdir()
    else:
        out.symlink_to("/dev/null")
    before = out.stat().st_mode
    with pytest.raises(ValueError, match="is not a regular file and was not replaced"):
        write_text(out, "x")
    assert out.stat().st_mode == before and not any(
        entry.name.startswith(".tmp-") for entry in tmp_path.iterdir()
    )


def test_a_directory_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with (
        pytest.raises(ValueError, match="is not a directory and was not replaced"),
        replacing(tmp_path / "a"),
    ):
        raise AssertionError("nothing is written before the target is known to be free")
    assert (tmp_path / "a").read_text() == "mine" and os.listdir(tmp_path) == ["a"]


def test_links_stay_and_their_targets_are_replaced(tmp_path: Path) -> None:
    for name in ("file", "folder", "new"):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "file", "x")
    write_text(tmp_path / "link-file", "y")
    write_text(tmp_path / "link-new", "z")
    with replacing(tmp_path / "link-folder") as folder:
        (folder / "a").write_text("a")
    assert all((tmp_path / f"link-{name}").is_symlink() for name in ("file", "folder", "new"))
    assert ((tmp_path / "file").read_text(), (tmp_path / "new").read_text()) == ("y", "z")
    assert os.listdir(tmp_path / "folder") == ["a"]
    assert not any(entry.name.startswith(".") for entry in tmp_path.iterdir())
