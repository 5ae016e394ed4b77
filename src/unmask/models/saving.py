"""Models written as directories: config.json, safetensors, the tokenizer; and which names may be written to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from unmask import __version__
from unmask.atomic_files import replacing
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import read_json
from unmask.models.checkpoints.config import OURS, CheckpointConfig
from unmask.models.checkpoints.lightning import open_checkpoint
from unmask.models.checkpoints.model_files import CONFIG, MODEL, RAW, safetensors
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.dit import DiT

FILES = (MODEL, RAW, "tokenizer.json", "tokenizer_config.json", CONFIG)


def save(
    directory: Path,
    facts: CheckpointConfig,
    network: DiT,
    raw: DiT | None,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | None,
    card: Mapping[str, object],
) -> None:
    """As `Model.save`."""
    if raw is not None and raw.shape != network.shape:
        raise ValueError(
            f"raw holds the weights that were averaged: want the shape {network.shape}, got {raw.shape}"
        )
    content = {
        "format": OURS,
        "unmask_version": __version__,
        **facts.said(),
        "n_heads": network.shape.heads,
        "card": card,
    }
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card of a model is kept as JSON: {error}") from error
    directory = check_directory(directory)
    stay = {RAW} if raw is None and _holds(directory / MODEL, network) else set()
    try:
        with replacing(directory, keep=lambda name: name not in FILES or name in stay) as folder:
            for name, weights in {MODEL: network, RAW: raw}.items():
                if weights is not None:
                    save_file(_weights(weights, dtype), folder / name)
            if tokenizer is not None:
                tokenizer.save(folder)
            (folder / CONFIG).write_text(text, "utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{directory} could not be written, what was there is unchanged: {error}"
        ) from error


def check_directory(directory: str | Path) -> Path:
    """The directory in full, links followed; ValueError unless it is new, empty, or holds a model saved by unmask."""
    path = Path(directory).expanduser().resolve()
    if not path.exists():
        return path
    if not path.is_dir():
        raise ValueError(
            f"{path} is no directory, and a model is written as one: give the name of a new directory"
        )
    if Path.cwd().is_relative_to(path):
        raise ValueError(
            f"{path} is, or holds, the working directory, and a model takes its place: give another name"
        )
    if not os.access(path, os.W_OK):
        raise ValueError(
            f"{path} may not be written to, and it is left as it is: give another name, or its mode back"
        )
    names = sorted(entry.name for entry in path.iterdir())
    if names and not _ours(path / CONFIG):
        raise ValueError(
            f"{path} holds something else than a model that unmask saved, and it is left as it is: got "
            f"{', '.join(names[:5])}; give the name of a new directory"
        )
    return path


def check_checkpoint(file: str | Path) -> Path:
    """The file in full, links followed; ValueError unless it is new, empty, or a Lightning checkpoint."""
    path = Path(file).expanduser().resolve()
    if path.is_file() and path.stat().st_size:
        try:
            with open_checkpoint(path):
                pass
        except CheckpointError as error:
            raise ValueError(
                f"{path} is no checkpoint, and it is left as it is: give another name ({error})"
            ) from error
    elif path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is a directory, a pipe or a device, and it is left as it is: give a name NAME.ckpt"
        )
    return path


def _ours(file: Path) -> bool:
    """True for the config of a model that unmask saved."""
    try:
        content = read_json(file)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == OURS


def _holds(file: Path, network: DiT) -> bool:
    """True where a file holds exactly the weights of this network: raw weights beside it then belong to it."""
    if not file.exists():
        return False
    own = network.state_dict()
    try:
        with ExitStack() as stack:
            found = safetensors(file, stack)
            return found.keys() == own.keys() and all(
                weight.shape == tuple(own[name].shape)
                and torch.equal(weight.read().to(own[name]), own[name])
                for name, weight in found.items()
            )
    except CheckpointError:
        return False


def _weights(network: DiT, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors to write, the parameters in `dtype`; buffers keep theirs, since rotary angles need all their digits."""
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name: tensor.detach().to("cpu", dtype if name in parameters else None).contiguous()
        for name, tensor in network.state_dict().items()
    }
