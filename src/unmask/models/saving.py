"""Write models as directories, and check the paths before a write."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask import __version__
from unmask.atomic_files import replacing
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import read_json
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import OURS, CheckpointConfig
from unmask.models.checkpoints.lightning import open_checkpoint
from unmask.models.checkpoints.model_files import CONFIG, MODEL, RAW, open_safetensors
from unmask.models.denoiser import DenoiserModule, PredictorModule
from unmask.models.dit import DiT
from unmask.models.modules import check_same_shapes, distinct_weights

FILES = (MODEL, RAW, "tokenizer.json", "tokenizer_config.json", CONFIG)


def save_model(
    directory: Path,
    use: CheckpointConfig,
    module: DenoiserModule | PredictorModule,
    raw: nn.Module | None,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | None,
    card: Mapping[str, object],
) -> None:
    """Write a model. `Model.save` describes the arguments and the errors."""
    network = module.network
    if raw is not None:
        check_same_shapes(raw.state_dict(), network.state_dict(), "raw")
    inside = {id(weight) for weight in network.parameters()}
    outside = [name for name, weight in module.named_parameters() if id(weight) not in inside]
    if outside:
        raise ValueError(
            f"network does not hold all weights of the {type(module).__name__}: "
            f"{', '.join(outside[:5])} would be lost; make them part of its network"
        )
    content = {
        "format": OURS,
        "unmask_version": __version__,
        **use.to_json(),
        **_network_entry(network),
        "card": card,
    }
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"card is not JSON: {error}") from error
    directory = check_directory(directory)
    stay = {RAW} if raw is None and _holds(directory / MODEL, network) else set()
    try:
        with replacing(directory, keep=lambda name: name not in FILES or name in stay) as folder:
            for name, source in {MODEL: network, RAW: raw}.items():
                if source is not None:
                    save_file(_tensors(source, dtype), folder / name)
            if tokenizer is not None:
                tokenizer.save(folder)
            (folder / CONFIG).write_text(text, "utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{directory} could not be written; its old contents are unchanged: {error}"
        ) from error


def check_directory(directory: str | Path) -> Path:
    """Resolve the path of a model; ValueError unless it is new, empty, or a model of unmask."""
    path = Path(directory).expanduser().resolve()
    if not path.exists():
        return path
    if not path.is_dir():
        raise ValueError(
            f"{path} is not a directory, and a model is saved as a directory: "
            "give the name of a new directory"
        )
    if Path.cwd().is_relative_to(path):
        raise ValueError(
            f"{path} is or contains the working directory, which a model would replace: "
            "give another name"
        )
    if not os.access(path, os.W_OK):
        raise ValueError(
            f"{path} is not writable, and it is left unchanged: give another name, "
            "or make it writable"
        )
    names = sorted(entry.name for entry in path.iterdir())
    if names and not _is_own_model(path / CONFIG):
        raise ValueError(
            f"{path} does not hold a model that unmask saved, and it is left unchanged: got "
            f"{', '.join(names[:5])}; give the name of a new directory"
        )
    return path


def check_checkpoint(file: str | Path) -> Path:
    """Resolve the path of a .ckpt file; ValueError unless it is new, empty, or a checkpoint."""
    path = Path(file).expanduser().resolve()
    if path.is_file() and path.stat().st_size:
        try:
            with open_checkpoint(path):
                pass
        except CheckpointError as error:
            raise ValueError(
                f"{path} is not a checkpoint, and it is left unchanged: give another name ({error})"
            ) from error
    elif path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is a directory, a pipe or a device, and it is left unchanged: "
            "give a name NAME.ckpt"
        )
    return path


def _network_entry(network: nn.Module) -> dict[str, object]:
    """The config entries that rebuild a `DiT`, or name the class of a foreign network."""
    if isinstance(network, DiT):
        return {"n_heads": network.shape.heads}
    return {"network": type(network).__name__}


def _is_own_model(file: Path) -> bool:
    """True for the config of a model that unmask saved."""
    try:
        content = read_json(file)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == OURS


def _holds(file: Path, network: nn.Module) -> bool:
    """True if a file holds exactly these weights. Then the raw weights beside it stay valid."""
    if not file.exists():
        return False
    own = distinct_weights(network)
    try:
        with ExitStack() as stack:
            saved = open_safetensors(file, stack)
            return saved.keys() == own.keys() and all(
                weight.shape == tuple(own[name].shape)
                and torch.equal(weight.read().to(own[name]), own[name])
                for name, weight in saved.items()
            )
    except CheckpointError:
        return False


def _tensors(network: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors to write: parameters in `dtype`, buffers (rotary frequencies) unchanged."""
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name: tensor.to("cpu", dtype if name in parameters else None).contiguous()
        for name, tensor in distinct_weights(network).items()
    }
