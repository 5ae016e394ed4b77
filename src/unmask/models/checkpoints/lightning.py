"""Lightning checkpoints: the .ckpt files of MDLM, SDTT and Duo, read without running code.

Such a file is a zip archive of a pickle, NAME/data.pkl, and of the bytes of its tensors, NAME/data/KEY. It is not
opened by `torch.load`, which tries TorchScript, tar and older formats first and ends in Python's unpickler, but by
`zipfile`, which checks each member's checksum, and by `pickles.unpickle`, whose docstring says why that is safer.
Tensors are read only when asked for: an optimizer's moments stay on the disk.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.dataclass_json import check_regular
from unmask.models.checkpoints.safe_unpickle import (
    CheckpointError,
    Record,
    Storage,
    Stored,
    unpickle,
)

SHARED = 4  # bytes of tensors for each byte of the storages that they are views of


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    weights  `state_dict`: the raw weights, and buffers, by name
    shadow   the moving averages of the parameters, in the module's order, without names; None where none are kept
    config   the hyper-parameters as plain dicts and lists, {} where none are kept
    content  reads the bytes of a storage; those of the last one are kept, for all its views
    """

    weights: dict[str, Stored]
    shadow: list[Stored] | None
    config: dict[str, Any]
    content: Callable[[Storage], bytearray]

    def tensor(self, stored: Stored) -> Tensor:
        """Read one tensor, a view; CheckpointError where the archive does not hold all of it."""
        storage = stored.storage
        content = self.content(storage)
        if not content or storage.dtype is None:  # of no bytes, hence of no elements
            return torch.empty(stored.size, dtype=storage.dtype)
        return torch.frombuffer(content, dtype=storage.dtype).as_strided(
            stored.size, stored.stride, stored.offset
        )


def _content(archive: zipfile.ZipFile, folder: str, storage: Storage) -> bytearray:
    content = bytearray(_member(archive, f"{folder}/data/{storage.key}"))
    _check_bytes(storage, len(content))
    return content


def _check_bytes(storage: Storage, found: int) -> None:
    if storage.dtype is None:
        raise CheckpointError(
            f"tensor data/{storage.key} is of a kind that no weights have: want a float dtype"
        )
    if found != storage.numel * storage.dtype.itemsize:
        raise CheckpointError(
            f"tensor data/{storage.key} has {found} bytes, want {storage.numel} x {storage.dtype.itemsize}"
        )


def _check_views(
    archive: zipfile.ZipFile, folder: str, tensors: Iterable[Stored], path: Path
) -> None:
    """CheckpointError where the tensors, each with memory of its own, take over 4 times the bytes of their storages.

    A student, its teacher and an average may share theirs; thousands of views would fill memory from a small file.
    """
    held: dict[str, int] = {}
    taken = 0
    for stored in tensors:
        storage = stored.storage
        found = _info(archive, f"{folder}/data/{storage.key}").file_size
        _check_bytes(storage, found)
        held[storage.key] = found
        taken += found * prod(stored.size) // max(1, storage.numel)
    if taken > SHARED * sum(held.values()):
        raise CheckpointError(
            f"{path} is not opened: its tensors are views of the same bytes, got {taken} bytes of tensors in "
            f"{sum(held.values())} bytes of storages, want at most {SHARED} times as many"
        )


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Checkpoint]:
    """Open a .ckpt file for reading; CheckpointError for anything else, and for a file that would run code."""
    path = Path(path)
    with _open_zip(path) as archive:
        folder = _folder(archive)
        root = unpickle(_member(archive, f"{folder}/data.pkl"), str(path))
        if not isinstance(root, dict) or not isinstance(root.get("state_dict"), dict):
            raise CheckpointError(
                f"{path} is a torch.save file, but no Lightning checkpoint: it has no `state_dict`"
            )
        weights = root["state_dict"]
        if not all(
            isinstance(name, str) and isinstance(tensor, Stored) for name, tensor in weights.items()
        ):
            raise CheckpointError(
                f"the `state_dict` of {path} holds something besides named tensors"
            )
        shadow = _shadow(root, path)
        for tensors in (weights.values(), shadow or ()):
            _check_views(archive, folder, tensors, path)
        hyper = _plain(root.get("hyper_parameters"), {})
        config = hyper.get("config", hyper) if isinstance(hyper, dict) else {}
        content = lru_cache(maxsize=1)(partial(_content, archive, folder))
        yield Checkpoint(weights, shadow, config if isinstance(config, dict) else {}, content)


def _folder(archive: zipfile.ZipFile) -> str:
    """The one top folder of what torch.save wrote on a machine with this one's byte order."""
    names = set(archive.namelist())
    folders = [
        name.removesuffix("/data.pkl")
        for name in names
        if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(folders) != 1:
        raise CheckpointError(
            f"{archive.filename} is a zip archive, but no checkpoint: want one NAME/data.pkl in it"
        )
    note = f"{folders[0]}/byteorder"
    order = _member(archive, note).decode("ascii", "replace") if note in names else "little"
    if order != sys.byteorder:
        raise CheckpointError(
            f"{archive.filename} has {order}-endian tensors, this machine is {sys.byteorder}-endian"
        )
    return folders[0]


def _shadow(root: dict[Any, Any], path: Path) -> list[Stored] | None:
    average = root.get("ema")
    if average is None:
        return None
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(tensor, Stored) for tensor in shadow):
        raise CheckpointError(
            f"the moving average of {path} is no list `ema.shadow_params` of tensors"
        )
    return shadow


LEGACY = (
    "{path} is a bare pickle or tar file, as torch.save wrote before torch 1.6: not opened, for such a file cannot be "
    "read without running it. If you trust whoever made it, turn it into the zip format on a machine with nothing to "
    "lose: `torch.save(torch.load(old, weights_only=False), new)`, and load the new file"
)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        check_regular(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    with path.open("rb") as file:
        head = file.read(512)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory of members sends `zipfile` astray in many ways
        if head.startswith(b"PK"):
            raise CheckpointError(
                f"{path} is cut off or damaged ({error}): copy or download it again"
            ) from error
        if head.startswith(b"\x80") or head[257:262] == b"ustar":
            raise CheckpointError(LEGACY.format(path=path)) from error
        raise CheckpointError(
            f"{path} is no checkpoint: want the zip archive of a Lightning .ckpt"
        ) from error
    held = sum(info.compress_size for info in archive.infolist())
    if held > path.stat().st_size:  # members that share their bytes
        archive.close()
        raise CheckpointError(
            f"{path} is not opened: its members have {held} bytes, more than the file"
        )
    return archive


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        found = archive.getinfo(name)
    except KeyError as error:
        raise CheckpointError(
            f"{archive.filename} has no member {name}: it is cut off, or no checkpoint"
        ) from error
    if found.compress_type != zipfile.ZIP_STORED:  # what unfolds could fill the memory
        raise CheckpointError(
            f"{archive.filename}: {name} is compressed, which torch.save never does: not opened"
        )
    return found


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    _info(archive, name)
    try:
        return archive.read(name)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{archive.filename}: {name} is damaged ({error}): copy the file again"
        ) from error


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Dicts, lists and plain values of a configuration, OmegaConf's nodes unwrapped; None in place of all else.

    What a file shares or nests in itself is shared here too, so that the result is never larger than the file.
    """
    if depth > 100:
        raise CheckpointError(
            "the hyper-parameters are nested more than 100 deep: that is no configuration"
        )
    if (
        isinstance(value, Record)
        and value.name.startswith("omegaconf.")
        and isinstance(value.state, Mapping)
    ):
        return _plain(value.state.get("_content", value.state.get("_val")), seen, depth + 1)
    if value is None or isinstance(value, str | int | float):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        mapping: dict[str, Any] = seen.setdefault(id(value), {})
        mapping.update(
            (key, _plain(item, seen, depth + 1))
            for key, item in value.items()
            if isinstance(key, str)
        )
        return mapping
    if isinstance(value, list | tuple):
        sequence: list[Any] = seen.setdefault(id(value), [])
        sequence.extend(_plain(item, seen, depth + 1) for item in value)
        return sequence
    return None
