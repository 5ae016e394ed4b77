"""Open the files of a model: a directory of unmask or the hub, or a Lightning checkpoint."""

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
from unmask.models.checkpoints import CheckpointError, checkpoint_errors
from unmask.models.checkpoints.lightning import Checkpoint, open_checkpoint
from unmask.models.checkpoints.weights import Weight, strip_prefixes

CONFIG, MODEL, RAW = "config.json", "model.safetensors", "raw.safetensors"
INDEX = "model.safetensors.index.json"  # tensor -> shard
# Bytes of the header of a safetensors file: names and sizes, about 100 bytes for each tensor.
LARGEST_HEADER = 2**24
LARGEST_TOKENIZER = 2**27  # bytes of a file
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class ModelFiles:
    """The contents of a model's files.

    Attributes:
        where: name of the files in errors
        weights: weights by name, wrappers stripped
        averages: EMA weights without names, in the network's order, which replace the parameters;
            None if `weights` are the requested set
        config_json: content of the config
    """

    where: str
    weights: dict[str, Weight]
    averages: list[Weight] | None
    config_json: Mapping[str, Any]


def check_weights_set(weights: str) -> None:
    """ValueError unless `weights` is "ema" or "raw"."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights is unknown: got {weights!r}, want 'ema' or 'raw'")


def locate(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """The path of a model's directory or checkpoint; CheckpointError if there is none.

    A name that is not a path is downloaded from the hub.
    """
    try:
        files = (CONFIG, MODEL, RAW, INDEX, "model-*.safetensors", *TOKENIZER_FILES)
        return local_or_hub(path_or_hub_id, files, revision)
    except ValueError as error:
        old = backup_path(Path(path_or_hub_id).expanduser())
        hint = f"; an interrupted save left {old}: rename it to {Path(path_or_hub_id).name}"
        raise CheckpointError(str(error) + (hint if old.exists() else "")) from error


@contextmanager
def open_files(path: Path, weights: str) -> Iterator[ModelFiles]:
    """Open a directory or checkpoint.

    Args:
        path: The directory or checkpoint.
        weights: The set of weights, "ema" or "raw".

    Raises:
        CheckpointError: The path holds no model, or not this set of weights.
    """
    if path.is_dir() and any((path / name).exists() for name in (MODEL, INDEX)):
        with _open_directory(path, weights) as source:
            yield source
        return
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path} holds weights without a config: give its directory, with {CONFIG} in it"
        )
    file = _only_checkpoint(path)
    with open_checkpoint(file) as checkpoint:
        yield _lightning_files(checkpoint, str(file), weights)


def _only_checkpoint(path: Path) -> Path:
    """The path itself, or the only .ckpt file in a directory."""
    if not path.is_dir():
        return path
    checkpoints = sorted(path.glob("*.ckpt"))
    if len(checkpoints) != 1:
        names = sorted(file.name for file in path.iterdir())
        raise CheckpointError(
            f"{path} holds no model: got {', '.join(names[:10]) or 'nothing'}, "
            f"want {CONFIG} with {MODEL}, or exactly one .ckpt file (name one if there are several)"
        )
    return checkpoints[0]


def _lightning_files(checkpoint: Checkpoint, where: str, weights: str) -> ModelFiles:
    if weights == "ema" and checkpoint.shadow is None:
        raise CheckpointError(f"{where} has no EMA weights: load with weights='raw'")
    averages = checkpoint.shadow if weights == "ema" else None
    return ModelFiles(where, strip_prefixes(checkpoint.weights, where), averages, checkpoint.config)


@contextmanager
def _open_directory(path: Path, weights: str) -> Iterator[ModelFiles]:
    if not (path / CONFIG).exists():
        raise CheckpointError(f"{path} has no {CONFIG}, which describes {MODEL}")
    with checkpoint_errors():
        config_json = read_json(path / CONFIG)
        for name in _TOKENIZER:
            if (path / name).exists():
                check_regular(path / name, LARGEST_TOKENIZER)
    if not isinstance(config_json, dict):
        raise CheckpointError(
            f"{path / CONFIG} has the wrong type: got {type(config_json).__name__}, "
            "want a JSON object"
        )
    if weights == "raw" and not (path / RAW).exists():
        raise CheckpointError(f"{path} has no {RAW}: load with weights='ema'")
    tensors: dict[str, Weight] = {}
    with ExitStack() as stack:
        for file, indexed in _weight_files(path, weights).items():
            held = open_safetensors(file, stack)
            tensors |= held
            if indexed is not None and held.keys() != indexed:
                differing = sorted(held.keys() ^ indexed)
                raise CheckpointError(
                    f"{path / INDEX} and {file.name} differ in {len(differing)} tensors, first: "
                    f"{', '.join(differing[:5])}; download both again"
                )
        yield ModelFiles(str(path), strip_prefixes(tensors, str(path)), None, config_json)


def _weight_files(path: Path, weights: str) -> dict[Path, set[str] | None]:
    """The files of a set of weights -> the tensors that the index lists (None: no index)."""
    single = path / (RAW if weights == "raw" else MODEL)
    if single.exists():
        return {single: None}
    with checkpoint_errors():
        index = read_json(path / INDEX)
    mapped = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(mapped, dict)
        or not mapped
        or not all(isinstance(file, str) for file in mapped.values())
    ):
        raise CheckpointError(f"{path / INDEX} has no `weight_map` from tensors to files")
    tensors: dict[str, set[str]] = {}
    for tensor, name in mapped.items():
        tensors.setdefault(name, set()).add(tensor)
    shards: dict[Path, set[str] | None] = {}
    for name, held in sorted(tensors.items()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path / INDEX} has a bad file name: got {name!r}, "
                "want a .safetensors file in the same directory"
            )
        if not (path / name).exists():
            raise CheckpointError(
                f"{path} has no {name}, which {INDEX} lists: download the missing shards"
            )
        shards[path / name] = held
    return shards


def open_safetensors(file: Path, stack: ExitStack) -> dict[str, Weight]:
    """The tensors of a file, which stays open until the stack is closed."""
    with checkpoint_errors():
        check_regular(file)
    with file.open("rb") as head:
        header = int.from_bytes(head.read(8), "little")
    if header > LARGEST_HEADER:
        raise CheckpointError(
            f"{file} is truncated or damaged: its header has {header} bytes, "
            f"want at most {LARGEST_HEADER}"
        )
    try:
        archive = stack.enter_context(safe_open(file, framework="pt"))
        tensors = {}
        for name in archive.keys():
            part = archive.get_slice(name)
            dtype = part.get_dtype()
            kind, read = _DTYPES.get(dtype, dtype), partial(archive.get_tensor, name)
            tensors[name] = Weight(tuple(part.get_shape()), kind, read)
        return tensors
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file} is truncated or damaged ({error}): copy or download it again"
        ) from error
