"""Models as files: `load` reads our own directories and those of MDLM, SDTT and Duo; `Model.save` writes ours.

One architecture serves all of them, so loading is a matter of names: strip the prefixes, take every size from the
shapes of the tensors (public configs are wrong in places), and refuse whatever does not fit exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask import __version__
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import NoiseSchedule
from unmask.files import replaced, replacing
from unmask.models.dit import DiT
from unmask.models.facts import AUTOREGRESSIVE, MASKED, OURS, UNIFORM, Facts, facts_of
from unmask.models.lightning import open_checkpoint
from unmask.models.parameterization import CausalPredictor, NetworkDenoiser, check_mask_id
from unmask.models.pickles import CheckpointError
from unmask.models.weights import bare, clean, fill, shape_of
from unmask.text.hub import TOKENIZER_FILES, local_or_hub
from unmask.text.tokenizers import Tokenizer, check_vocabulary, find_tokenizer

CONFIG, MODEL, RAW = "config.json", "model.safetensors", "raw.safetensors"
FILES = (MODEL, RAW, "tokenizer.json", "tokenizer_config.json", CONFIG)


@dataclass(frozen=True)
class Model:
    """A denoising model, with all it takes to draw text from it.

    network  the weights: (ids [B, L] or soft input [B, L, V], sigma [B]) -> raw logits; the same as the denoiser's
    """

    denoiser: NetworkDenoiser
    process: Process
    schedule: NoiseSchedule
    tokenizer: Tokenizer | None
    network: DiT

    def save(
        self, directory: str | Path, *, raw: DiT | None = None, dtype: torch.dtype | None = None, **card: object
    ) -> None:
        """Write config.json, model.safetensors and the tokenizer; `load` gives the model back.

        raw    the weights of which this model is the moving average, kept beside it for `load(weights="raw")`
        dtype  precision of the parameters in the file (bfloat16 halves it); None keeps the model's
        card   whatever should be known about the model, as JSON

        Everything is written to a directory beside it first, which then takes its place, with what else was in the old
        one: where that fails (OSError), what was there before is unchanged. ValueError for a card that is no JSON.
        """
        _save(Path(directory), self.facts(), self.network, raw, self.tokenizer, dtype, card)

    def facts(self) -> Facts:
        """What has to be known about the model besides its weights."""
        mask_id, shape = self.denoiser.mask_id, self.network.shape
        kind = UNIFORM if mask_id is None else MASKED
        return Facts(kind, mask_id, self.denoiser.sees_alpha, self.schedule, shape.length, shape.dropout)


@dataclass(frozen=True)
class CausalModel:
    """An autoregressive model: `network(ids)` are raw logits of the next tokens, `predictor` their law."""

    network: DiT
    tokenizer: Tokenizer | None
    predictor: CausalPredictor

    @staticmethod
    def of(network: DiT, tokenizer: Tokenizer | None, mask_id: int | None) -> CausalModel:
        """The model in evaluation mode; a MASK that its config or its tokenizer names is never predicted."""
        named = tokenizer.mask_id if mask_id is None and tokenizer is not None else mask_id
        return CausalModel(network, tokenizer, CausalPredictor(network, named).eval())

    def save(
        self, directory: str | Path, *, raw: DiT | None = None, dtype: torch.dtype | None = None, **card: object
    ) -> None:
        """As `Model.save`."""
        _save(Path(directory), self.facts(), self.network, raw, self.tokenizer, dtype, card)

    def facts(self) -> Facts:
        """As `Model.facts`."""
        shape = self.network.shape
        return Facts(AUTOREGRESSIVE, self.predictor.mask_id, False, None, shape.length, shape.dropout)


def load(
    path_or_hub_id: str | Path, revision: str | None = None, weights: str = "ema", device: torch.device | str = "cpu"
) -> Model | CausalModel:
    """Read a model, in float32 and evaluation mode, running no code from any file.

    path_or_hub_id  a directory with config.json and model.safetensors (ours, or of MDLM, SDTT, Duo), a Lightning
                    .ckpt file or a directory with one, or else a repository of the Hugging Face hub at `revision`
    weights         "ema", the moving average, or "raw": of a .ckpt file, or of our directories saved with both

    The tokenizer is the one whose files are in the directory, else None. MASK is what the config says, else the last
    token; the schedule is LogLinear(1e-3) where none is named. CheckpointError (a ValueError) where there is no
    model, where it does not fit the architecture name by name, and where a weight is not finite.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights says which set of them to read: want 'ema' or 'raw', got {weights!r}")
    path = _local(path_or_hub_id, revision)
    files = _read(path, weights)
    shape = shape_of(files.tensors, files.where)
    try:
        facts = facts_of(files.config, shape, files.where)
        shape = replace(shape, length=facts.length, dropout=facts.dropout)
        check_mask_id(facts.mask_id, shape.vocab_size)
    except CheckpointError:
        raise
    except ValueError as error:  # a config that contradicts the weights
        raise CheckpointError(f"{files.where}: {error}") from error
    network = fill(shape, files.tensors, files.averages, files.where)
    tokenizer = find_tokenizer(path) if path.is_dir() else None
    if tokenizer is not None:
        check_vocabulary(tokenizer, network.shape.vocab_size)
        if facts.kind == MASKED and tokenizer.mask_id not in (None, facts.mask_id):
            raise CheckpointError(
                f"MASK is token {facts.mask_id} by the config (or, where it is silent, the last token) and "
                f"{tokenizer.mask_id} by the tokenizer of {path}: set `mask_id` in {CONFIG}"
            )
    network = _on(network, device).eval()
    if facts.schedule is None:
        return CausalModel.of(network, tokenizer, facts.mask_id)
    size = network.shape.vocab_size
    process = UniformProcess(size) if facts.mask_id is None else MaskedProcess(size, facts.mask_id)
    denoiser = NetworkDenoiser(network, facts.mask_id, facts.sees_alpha).eval()
    return Model(denoiser, process, facts.schedule, tokenizer, network)


def _on(network: DiT, device: torch.device | str) -> DiT:
    try:
        return network.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device says where the model runs, and {device} is not to be had here: {error}") from error


# --- finding the files


def _local(path_or_hub_id: str | Path, revision: str | None) -> Path:
    try:
        return local_or_hub(path_or_hub_id, (CONFIG, MODEL, RAW, *TOKENIZER_FILES), revision)
    except ValueError as error:
        old = replaced(Path(path_or_hub_id).expanduser())
        left = f"; a save that was killed left {old} behind: rename it to {Path(path_or_hub_id).name}"
        raise CheckpointError(str(error) + (left if old.exists() else "")) from error


@dataclass(frozen=True)
class Files:
    """What the files of a model say: weights by bare name, moving averages without names, the config."""

    where: str
    tensors: dict[str, Tensor]
    averages: list[Tensor] | None
    config: Mapping[str, Any]


def _read(path: Path, weights: str) -> Files:
    if path.is_dir() and (path / MODEL).exists():
        return _read_directory(path, weights)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} holds weights only: name its directory, where {CONFIG} says what they are")
    checkpoints = [path] if path.is_file() else sorted(path.glob("*.ckpt"))
    if len(checkpoints) != 1:
        names = sorted(file.name for file in path.iterdir())
        raise CheckpointError(
            f"{path} holds no model: want {CONFIG} with {MODEL}, or exactly one .ckpt file (name one where there are "
            f"several); it holds {', '.join(names[:10]) or 'nothing'}"
        )
    with open_checkpoint(checkpoints[0]) as checkpoint:
        where = str(checkpoints[0])
        if weights == "ema" and checkpoint.shadow is None:
            raise CheckpointError(f"{where} keeps no moving average of the weights: ask for weights='raw'")
        shadow = checkpoint.shadow if weights == "ema" else None
        tensors = {name: checkpoint.tensor(stored) for name, stored in checkpoint.weights.items()}
        averages = (
            None if shadow is None else [clean(f"ema {i}", checkpoint.tensor(s), where) for i, s in enumerate(shadow)]
        )
        return Files(where, bare(tensors, where), averages, checkpoint.config)


def _read_directory(path: Path, weights: str) -> Files:
    file = path / (RAW if weights == "raw" else MODEL)
    if not file.exists():
        raise CheckpointError(f"{path} keeps one set of weights only, no {RAW}: ask for weights='ema'")
    try:
        config = json.loads((path / CONFIG).read_text("utf-8"))
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} has no {CONFIG}, which says what the weights in {MODEL} are") from error
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG} is no JSON: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut off or damaged ({error}): copy or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / CONFIG} is no JSON object but a {type(config).__name__}")
    return Files(str(path), bare(tensors, str(path)), None, config)


# --- writing


def _save(
    directory: Path,
    facts: Facts,
    network: DiT,
    raw: DiT | None,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype | None,
    card: Mapping[str, object],
) -> None:
    if raw is not None and raw.shape != network.shape:
        raise ValueError(f"raw holds the weights that were averaged: want the shape {network.shape}, got {raw.shape}")
    config = {
        "format": OURS,
        "unmask_version": __version__,
        **facts.said(),
        "n_heads": network.shape.heads,
        "card": card,
    }
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card of a model is kept as JSON: {error}") from error
    directory = directory.expanduser().resolve()
    try:
        with replacing(directory, keep=lambda name: name not in FILES) as folder:
            for name, weights in {MODEL: network, RAW: raw}.items():
                if weights is not None:
                    save_file(_weights(weights, dtype), folder / name)
            if tokenizer is not None:
                tokenizer.save(folder)
            (folder / CONFIG).write_text(text, "utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(f"{directory} could not be written, what was there is unchanged: {error}") from error


def _weights(network: DiT, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors to write, the parameters in `dtype`; buffers keep theirs, since rotary angles need all their digits."""
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name: tensor.detach().to("cpu", dtype if name in parameters else None).contiguous()
        for name, tensor in network.state_dict().items()
    }
