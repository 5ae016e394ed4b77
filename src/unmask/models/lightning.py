"""Lightning checkpoints: the .ckpt files of MDLM, SDTT and Duo, read without running code.

Such a file is a zip archive of a pickle, NAME/data.pkl, and of the bytes of its tensors, NAME/data/KEY. It is not
opened by `torch.load`, which tries TorchScript, tar and older formats first and ends in Python's unpickler, but by
`zipfile`, which checks each member's checksum, and by `pickles.unpickle`, whose docstring says why that is safer.
Tensors are read only when asked for: an optimizer's moments stay on the disk.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.pickles import CheckpointError, Record, Stored, unpickle


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    weights  `state_dict`: the raw weights, and buffers, by name
    shadow   the moving averages of the parameters, in the module's order, without names; None where none are kept
    config   the hyper-parameters as plain dicts and lists, {} where none are kept
    archive, folder  the zip file and the folder in it
    """

    weights: dict[str, Stored]
    shadow: list[Stored] | None
    config: dict[str, Any]
    archive: zipfile.ZipFile
    folder: str

    def tensor(self, stored: Stored) -> Tensor:
        """Read one tensor; CheckpointError where the archive does not hold all of it."""
        storage = stored.storage
        if storage.dtype is None:
            raise CheckpointError(f"tensor data/{storage.key} is of a kind that no weights have: want a float dtype")
        content = _member(self.archive, f"{self.folder}/data/{storage.key}")
        if len(content) != storage.numel * storage.dtype.itemsize:
            raise CheckpointError(
                f"tensor data/{storage.key} has {len(content)} bytes, want {storage.numel} x {storage.dtype.itemsize}"
            )
        if not content:
            return torch.empty(stored.size, dtype=storage.dtype)
        return torch.frombuffer(bytearray(content), dtype=storage.dtype).as_strided(
            stored.size, stored.stride, stored.offset
        )


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Checkpoint]:
    """Open a .ckpt file for reading; CheckpointError for anything else, and for a file that would run code."""
    path = Path(path)
    with _open_zip(path) as archive:
        folder = _folder(archive)
        root = unpickle(_member(archive, f"{folder}/data.pkl"), str(path))
        if not isinstance(root, dict) or not isinstance(root.get("state_dict"), dict):
            raise CheckpointError(f"{path} is a torch.save file, but no Lightning checkpoint: it has no `state_dict`")
        weights = root["state_dict"]
        if not all(isinstance(name, str) and isinstance(tensor, Stored) for name, tensor in weights.items()):
            raise CheckpointError(f"the `state_dict` of {path} holds something besides named tensors")
        hyper = _plain(root.get("hyper_parameters"), {})
        config = hyper.get("config", hyper) if isinstance(hyper, dict) else {}
        yield Checkpoint(weights, _shadow(root, path), config if isinstance(config, dict) else {}, archive, folder)


def _folder(archive: zipfile.ZipFile) -> str:
    """The one top folder of what torch.save wrote on a machine with this one's byte order."""
    names = set(archive.namelist())
    folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise CheckpointError(f"{archive.filename} is a zip archive, but no checkpoint: want one NAME/data.pkl in it")
    note = f"{folders[0]}/byteorder"
    order = _member(archive, note).decode("ascii", "replace") if note in names else "little"
    if order != sys.byteorder:
        raise CheckpointError(f"{archive.filename} has {order}-endian tensors, this machine is {sys.byteorder}-endian")
    return folders[0]


def _shadow(root: dict[Any, Any], path: Path) -> list[Stored] | None:
    average = root.get("ema")
    if average is None:
        return None
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(tensor, Stored) for tensor in shadow):
        raise CheckpointError(f"the moving average of {path} is no list `ema.shadow_params` of tensors")
    return shadow


LEGACY = (
    "{path} is a bare pickle or tar file, as torch.save wrote before torch 1.6: not opened, for such a file cannot be "
    "read without running it. If you trust whoever made it, turn it into the zip format on a machine with nothing to "
    "lose: `torch.save(torch.load(old, weights_only=False), new)`, and load the new file"
)


def _open_zip(path: Path) -> zipfile.ZipFile:
    with path.open("rb") as file:
        head = file.read(512)
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory of members sends `zipfile` astray in many ways
        if head.startswith(b"PK"):
            raise CheckpointError(f"{path} is cut off or damaged ({error}): copy or download it again") from error
        if head.startswith(b"\x80") or head[257:262] == b"ustar":
            raise CheckpointError(LEGACY.format(path=path)) from error
        raise CheckpointError(f"{path} is no checkpoint: want the zip archive of a Lightning .ckpt") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise CheckpointError(f"{archive.filename} has no member {name}: it is cut off, or no checkpoint")
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # what unfolds could fill the memory
        raise CheckpointError(f"{archive.filename}: {name} is compressed, which torch.save never does: not opened")
    try:
        return archive.read(name)
    except Exception as error:  # as above
        raise CheckpointError(f"{archive.filename}: {name} is damaged ({error}): copy the file again") from error


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Dicts, lists and plain values of a configuration, OmegaConf's nodes unwrapped; None in place of all else.

    What a file shares or nests in itself is shared here too, so that the result is never larger than the file.
    """
    if depth > 100:
        raise CheckpointError("the hyper-parameters are nested more than 100 deep: that is no configuration")
    if isinstance(value, Record) and value.name.startswith("omegaconf.") and isinstance(value.state, Mapping):
        return _plain(value.state.get("_content", value.state.get("_val")), seen, depth + 1)
    if value is None or isinstance(value, str | int | float):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        mapping: dict[str, Any] = seen.setdefault(id(value), {})
        mapping.update((key, _plain(item, seen, depth + 1)) for key, item in value.items() if isinstance(key, str))
        return mapping
    if isinstance(value, list | tuple):
        sequence: list[Any] = seen.setdefault(id(value), [])
        sequence.extend(_plain(item, seen, depth + 1) for item in value)
        return sequence
    return None
