"""The files of a model, opened for reading: our directories, those of the hub in one file or in shards, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unmask.atomic_files import backup_path
from unmask.data.hub import TOKENIZER_FILES, local_or_hub
from unmask.dataclass_json import check_regular, read_json
from unmask.models.checkpoints.lightning import Checkpoint, open_checkpoint
from unmask.models.checkpoints.safe_unpickle import CheckpointError, Stored
from unmask.models.checkpoints.weights import Weight, bare

CONFIG, MODEL, RAW = "config.json", "model.safetensors", "raw.safetensors"
INDEX = "model.safetensors.index.json"  # which of several files holds which tensor
LARGEST_HEADER = (
    2**24
)  # bytes of names and sizes before the tensors of a safetensors file; a real one has 100 a tensor
LARGEST_TOKENIZER = 2**27  # bytes of one of its files
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
_KINDS = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}  # as safetensors spells them


@dataclass(frozen=True)
class ModelFiles:
    """The contents of the files of a model: weights by bare name, moving averages without names, the config."""

    where: str
    weights: dict[str, Weight]
    averages: list[Weight] | None
    said: Mapping[str, Any]


def locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """The directory or checkpoint of a model, fetched from the hub where it is no path; CheckpointError."""
    try:
        files = (CONFIG, MODEL, RAW, INDEX, "model-*.safetensors", *TOKENIZER_FILES)
        return local_or_hub(path_or_hub_id, files, revision)
    except ValueError as error:
        old = backup_path(Path(path_or_hub_id).expanduser())
        left = (
            f"; a save that was killed left {old} behind: rename it to {Path(path_or_hub_id).name}"
        )
        raise CheckpointError(str(error) + (left if old.exists() else "")) from error


@contextmanager
def opened(path: Path, weights: str) -> Iterator[ModelFiles]:
    """Open the files of a model: the averaged weights ("ema") or those that were averaged ("raw"). CheckpointError."""
    if path.is_dir() and any((path / name).exists() for name in (MODEL, INDEX)):
        with _directory(path, weights) as source:
            yield source
        return
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} holds weights only: name its directory, where {CONFIG} says what they are"
        )
    with open_checkpoint(_only_checkpoint(path)) as checkpoint:
        yield _lightning(checkpoint, str(_only_checkpoint(path)), weights)


def _only_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        return path
    checkpoints = sorted(path.glob("*.ckpt"))
    if len(checkpoints) != 1:
        names = sorted(file.name for file in path.iterdir())
        raise CheckpointError(
            f"{path} holds no model: want {CONFIG} with {MODEL}, or exactly one .ckpt file (name one where there are "
            f"several); it holds {', '.join(names[:10]) or 'nothing'}"
        )
    return checkpoints[0]


def _lightning(checkpoint: Checkpoint, where: str, weights: str) -> ModelFiles:
    if weights == "ema" and checkpoint.shadow is None:
        raise CheckpointError(
            f"{where} keeps no moving average of the weights: ask for weights='raw'"
        )

    def weight(stored: Stored) -> Weight:
        kind = str(stored.storage.dtype).removeprefix("torch.")
        return Weight(stored.size, kind, partial(checkpoint.tensor, stored), stored.storage.key)

    shadow = checkpoint.shadow if weights == "ema" and checkpoint.shadow is not None else None
    averages = None if shadow is None else [weight(stored) for stored in shadow]
    named = bare({name: weight(stored) for name, stored in checkpoint.weights.items()}, where)
    return ModelFiles(where, named, averages, checkpoint.config)


@contextmanager
def _directory(path: Path, weights: str) -> Iterator[ModelFiles]:
    try:
        said = read_json(path / CONFIG)
        for name in _TOKENIZER:
            if (path / name).exists():
                check_regular(path / name, LARGEST_TOKENIZER)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} has no {CONFIG}, which says what the weights in {MODEL} are"
        ) from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path / CONFIG} is no JSON object but a {type(said).__name__}")
    if weights == "raw" and not (path / RAW).exists():
        raise CheckpointError(
            f"{path} keeps one set of weights only, no {RAW}: ask for weights='ema'"
        )
    found: dict[str, Weight] = {}
    with ExitStack() as stack:
        for file, mapped in _files(path, weights).items():
            found |= (held := safetensors(file, stack))
            if mapped is not None and held.keys() != mapped:
                odd = sorted(held.keys() ^ mapped)
                raise CheckpointError(
                    f"{path / INDEX} and {file.name} differ in {len(odd)} tensors, first: {', '.join(odd[:5])}; "
                    "download both again"
                )
        yield ModelFiles(str(path), bare(found, str(path)), None, said)


def _files(path: Path, weights: str) -> dict[Path, set[str] | None]:
    """The files of one set of weights, and which tensors an index says each of them holds."""
    single = path / (RAW if weights == "raw" else MODEL)
    if single.exists():
        return {single: None}
    try:
        index = read_json(path / INDEX)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    mapped = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(mapped, dict)
        or not mapped
        or not all(isinstance(file, str) for file in mapped.values())
    ):
        raise CheckpointError(
            f"{path / INDEX} has no `weight_map` of tensors and the files that hold them"
        )
    shards: dict[Path, set[str] | None] = {}
    tensors: dict[str, set[str]] = {}
    for tensor, name in mapped.items():
        tensors.setdefault(name, set()).add(tensor)
    for name, held in sorted(tensors.items()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX} names {name!r}: want the name of a .safetensors file beside it"
            )
        if not (path / name).exists():
            raise CheckpointError(
                f"{path} has no {name}, which {INDEX} names: download the missing shards"
            )
        shards[path / name] = held
    return shards


def safetensors(file: Path, stack: ExitStack) -> dict[str, Weight]:
    """The tensors of a file, which stays open until the stack is closed."""
    try:
        check_regular(file)
        with file.open("rb") as head:
            header = int.from_bytes(head.read(8), "little")
        if header > LARGEST_HEADER:
            raise CheckpointError(
                f"{file} is cut off or damaged: its header has {header} bytes, want at most {LARGEST_HEADER}"
            )
        opened = stack.enter_context(safe_open(file, framework="pt"))
        found = {}
        for name in opened.keys():
            part = opened.get_slice(name)
            kind = part.get_dtype()
            found[name] = Weight(
                tuple(part.get_shape()), _KINDS.get(kind, kind), partial(opened.get_tensor, name)
            )
        return found
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is cut off or damaged ({error}): copy or download it again"
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error
