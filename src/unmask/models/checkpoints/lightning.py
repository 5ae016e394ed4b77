"""Read Lightning checkpoints, the .ckpt files of MDLM, SDTT and Duo, without running code.

Such a file is a zip archive of a pickle, NAME/data.pkl, and of the bytes of its tensors,
NAME/data/KEY. `zipfile` reads the archive and checks the checksum of each member, because
`torch.load` accepts damaged tensors. `safe_unpickle.unpickle` reads the pickle. Tensors are read on
demand, so an optimizer's moments stay on the disk.
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
from unmask.models.checkpoints import CheckpointError, checkpoint_errors
from unmask.models.checkpoints.safe_unpickle import Record, Storage, StoredTensor, unpickle
from unmask.models.checkpoints.weights import Weight

LARGEST_SHARING = 4  # bytes of tensors for each byte of the storages that hold them


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        weights: `state_dict`: the raw weights and the buffers by name.
        shadow: EMA of the parameters, in the module's order and without names; None if absent.
        config: The hyper-parameters as plain dicts and lists; {} if absent.
    """

    weights: dict[str, Weight]
    shadow: list[Weight] | None
    config: dict[str, Any]


def _content(archive: zipfile.ZipFile, folder: str, storage: Storage) -> bytearray:
    """The bytes of a storage; CheckpointError if the archive does not hold all of them."""
    content = bytearray(_member(archive, f"{folder}/data/{storage.key}"))
    _check_bytes(storage, len(content))
    return content


def _weight(stored: StoredTensor, content: Callable[[Storage], bytearray]) -> Weight:
    storage = stored.storage

    def read() -> Tensor:
        data = content(storage)
        if not data or storage.dtype is None:
            return torch.empty(stored.size, dtype=storage.dtype)
        return torch.frombuffer(data, dtype=storage.dtype).as_strided(
            stored.size, stored.stride, stored.offset
        )

    kind = str(storage.dtype).removeprefix("torch.")
    return Weight(stored.size, kind, read, storage.key)


def _check_bytes(storage: Storage, size: int) -> None:
    """CheckpointError unless a storage of `size` bytes holds its elements."""
    if storage.dtype is None:
        raise CheckpointError(
            f"tensor data/{storage.key} has a dtype that weights cannot have: want a float dtype"
        )
    if size != storage.numel * storage.dtype.itemsize:
        raise CheckpointError(
            f"tensor data/{storage.key} has the wrong size: got {size} bytes, "
            f"want {storage.numel} x {storage.dtype.itemsize}"
        )


def _check_views(
    archive: zipfile.ZipFile, folder: str, tensors: Iterable[StoredTensor], path: Path
) -> None:
    """CheckpointError if copies of the tensors take over 4 times the bytes of their storages.

    A student, its teacher and an EMA may share storages. But the copies of thousands of views of a
    small file would fill memory.
    """
    sizes: dict[str, int] = {}
    tensor_bytes = 0
    for stored in tensors:
        storage = stored.storage
        size = _info(archive, f"{folder}/data/{storage.key}").file_size
        _check_bytes(storage, size)
        sizes[storage.key] = size
        tensor_bytes += size * prod(stored.size) // max(1, storage.numel)
    if tensor_bytes > LARGEST_SHARING * sum(sizes.values()):
        raise CheckpointError(
            f"{path} has too many views of the same bytes, got {tensor_bytes} bytes of tensors in "
            f"{sum(sizes.values())} bytes of storages, want a ratio of at most {LARGEST_SHARING}"
        )


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Checkpoint]:
    """Open a .ckpt file for reading; CheckpointError for other files, and for files with code."""
    path = Path(path)
    with _open_zip(path) as archive:
        folder = _folder(archive)
        root = unpickle(_member(archive, f"{folder}/data.pkl"), str(path))
        if not isinstance(root, dict) or not isinstance(root.get("state_dict"), dict):
            raise CheckpointError(
                f"{path} is not a Lightning checkpoint: "
                "it is a torch.save file without a `state_dict`"
            )
        named = root["state_dict"]
        if not all(
            isinstance(name, str) and isinstance(tensor, StoredTensor)
            for name, tensor in named.items()
        ):
            raise CheckpointError(
                f"the `state_dict` of {path} holds something other than named tensors"
            )
        averages = _shadow(root, path)
        for tensors in (named.values(), averages or ()):
            _check_views(archive, folder, tensors, path)
        hyper = _plain(root.get("hyper_parameters"), {})
        config = hyper.get("config", hyper) if isinstance(hyper, dict) else {}
        # One storage is kept, because its views are read one after the other.
        content = lru_cache(maxsize=1)(partial(_content, archive, folder))
        yield Checkpoint(
            {name: _weight(stored, content) for name, stored in named.items()},
            None if averages is None else [_weight(stored, content) for stored in averages],
            config if isinstance(config, dict) else {},
        )


def _folder(archive: zipfile.ZipFile) -> str:
    """The top folder of a torch.save archive; CheckpointError for another byte order."""
    names = set(archive.namelist())
    folders = [
        name.removesuffix("/data.pkl")
        for name in names
        if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(folders) != 1:
        raise CheckpointError(
            f"{archive.filename} is not a checkpoint: it is a zip archive with {len(folders)} "
            "files NAME/data.pkl, want 1"
        )
    note = f"{folders[0]}/byteorder"
    order = _member(archive, note).decode("ascii", "replace") if note in names else "little"
    if order != sys.byteorder:
        raise CheckpointError(
            f"{archive.filename} has the wrong byte order: got {order}-endian tensors, "
            f"want {sys.byteorder}-endian"
        )
    return folders[0]


def _shadow(root: dict[Any, Any], path: Path) -> list[StoredTensor] | None:
    average = root.get("ema")
    if average is None:
        return None
    shadow = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadow, list) or not all(
        isinstance(tensor, StoredTensor) for tensor in shadow
    ):
        raise CheckpointError(
            f"the EMA of {path} has the wrong type: want a list `ema.shadow_params` of tensors"
        )
    return shadow


LEGACY = (
    "{path} is not opened: it is a bare pickle or tar file of torch before 1.6, and reading it can "
    "run code. If you trust its author, convert it on an isolated machine by "
    "`torch.save(torch.load(old, weights_only=False), new)`, and load the new file"
)


def _open_zip(path: Path) -> zipfile.ZipFile:
    with checkpoint_errors():
        check_regular(path)
    with path.open("rb") as file:
        head = file.read(512)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds of errors for a damaged member directory
        if head.startswith(b"PK"):
            raise CheckpointError(
                f"{path} is truncated or damaged ({error}): copy or download it again"
            ) from error
        if head.startswith(b"\x80") or head[257:262] == b"ustar":
            raise CheckpointError(LEGACY.format(path=path)) from error
        raise CheckpointError(
            f"{path} is not a checkpoint: want the zip archive of a Lightning .ckpt"
        ) from error
    member_bytes = sum(info.compress_size for info in archive.infolist())
    if member_bytes > path.stat().st_size:  # several members are the same bytes
        archive.close()
        raise CheckpointError(
            f"{path} is not opened: its members have {member_bytes} bytes, more than the file"
        )
    return archive


def _info(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise CheckpointError(
            f"{archive.filename} has no member {name}: it is truncated, or not a checkpoint"
        ) from error
    if info.compress_type != zipfile.ZIP_STORED:  # decompressed data could fill memory
        raise CheckpointError(
            f"{archive.filename} is not opened: {name} is compressed, which torch.save never does"
        )
    return info


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    _info(archive, name)
    try:
        return archive.read(name)
    except Exception as error:  # zipfile raises many kinds of errors for damaged members
        raise CheckpointError(
            f"{archive.filename}: {name} is damaged ({error}): copy the file again"
        ) from error


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Dicts, lists and plain values of a configuration; None for all else.

    OmegaConf's nodes are unwrapped. Containers that occur twice in the file, or contain themselves,
    do so in the result too. So the result is never larger than the file. `seen` maps ids of
    containers to results.
    """
    if depth > 100:
        raise CheckpointError("the hyper-parameters are nested too deep: got over 100 levels")
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
