"""Models, ready to draw text: `load` reads them, `Model.save` writes them.

MDLM, SDTT, Duo and this library share one architecture, so `load` only has to translate names. It
strips prefixes and infers every size from the shapes of the tensors, because public configs are
partly wrong. A checkpoint that does not fit exactly is refused. A foreign network is wrapped as a
`DenoiserModule`: see `models.foreign`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from unmask.data.hub import PACKAGE_PREFIX, package_models
from unmask.data.tokenizers import Tokenizer, find_tokenizer
from unmask.diffusion.processes import Process, noise_process
from unmask.diffusion.schedules import NoiseSchedule
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import (
    CheckpointConfig,
    card_of,
    foreign_network,
    names_mask,
    parse_config,
)
from unmask.models.checkpoints.model_files import (
    ModelFiles,
    check_weights_set,
    locate,
    open_files,
)
from unmask.models.checkpoints.vocabulary import fit_vocabulary
from unmask.models.checkpoints.weights import build_network, infer_shape
from unmask.models.denoiser import (
    AUTOREGRESSIVE,
    MASKED,
    UNIFORM,
    CausalPredictor,
    DenoiserModule,
    NetworkDenoiser,
    PredictorModule,
    check_mask_id,
    compute_precision,
)
from unmask.models.dit import DiT
from unmask.models.modules import weights_digest
from unmask.models.saving import save_model


class LanguageModel(ABC):
    """A model of text: the common interface of `Model` and `CausalModel`.

    Attributes:
        schedule: noise schedule of the training; None for an autoregressive model
        tokenizer: None if its files are unknown
        card: facts about the model, as JSON: the recipe and the data of its training, if its files
            name them
    """

    schedule: NoiseSchedule | None
    tokenizer: Tokenizer | None
    card: Mapping[str, object]

    @property
    @abstractmethod
    def module(self) -> DenoiserModule | PredictorModule:
        """The denoiser or predictor, as a module to call, train or copy."""

    @property
    def network(self) -> nn.Module:
        """The raw network. A `DiT` maps ids [B, L] (and sigma [B]) to raw logits [B, L, V]."""
        return self.module.network

    def checkpoint_config(self) -> CheckpointConfig:
        """The config that `save` writes: kind, MASK, noise and row length."""
        module, network = self.module, self.network
        dropout = network.shape.dropout if isinstance(network, DiT) else 0.0
        return CheckpointConfig(
            module.kind, module.mask_id, module.sees_alpha, self.schedule, module.length, dropout
        )

    @property
    def kind(self) -> str:
        """The kind of the model: "masked", "uniform" or "autoregressive"."""
        return self.module.kind

    @property
    def draws_in_steps(self) -> bool:
        """Whether a sampler draws texts in a chosen number of steps.

        An autoregressive model makes one network call for each token instead.
        """
        return self.kind != AUTOREGRESSIVE

    @property
    def completes_texts(self) -> bool:
        """Whether the model completes half-masked texts: only masked diffusion does.

        A denoiser of uniform noise gets one alpha for all tokens. So sampling may also replace the
        given tokens.
        """
        return self.kind == MASKED

    @property
    def length(self) -> int:
        """Tokens of a training row: the default length of a text."""
        return self.module.length

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        return self.module.vocab_size

    @property
    def mask_id(self) -> int | None:
        """The id of MASK; None if the vocabulary has no MASK."""
        return self.module.mask_id

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    @property
    def precision(self) -> str:
        """The precision of the matrix products: "float32", "bfloat16"."""
        return compute_precision(self.module)

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.module.parameters())

    @property
    def digest(self) -> str:
        """A digest of all weights, computed at each access."""
        return weights_digest(self.network.state_dict())

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device, in place, as `nn.Module.to` does; returns the model."""
        _move(self.module, device)
        return self

    def save(
        self,
        directory: str | Path,
        *,
        raw: nn.Module | None = None,
        dtype: torch.dtype | None = None,
        **card: object,
    ) -> None:
        """Write config.json, model.safetensors and the tokenizer; `load` reads the model back.

        The files are first written to a temporary directory, which then replaces `directory`. Other
        files in `directory` are kept. Raw weights in `directory` are kept if the EMA weights do not
        change. After an OSError the old directory is unchanged.

        Args:
            directory: A new or empty directory, or one with a model that unmask saved.
            raw: The raw network whose EMA this model holds, saved beside it for
                `load(weights="raw")`.
            dtype: Precision of the parameters in the file. bfloat16 halves its size. None: that of
                the model.
            **card: Entries to add to the model's card, as JSON.

        Raises:
            ValueError: The card is not JSON, the directory holds other files than a model, or some
                weights are not in `module.network`.
            OSError: The directory could not be written.
        """
        save_model(
            Path(directory),
            self.checkpoint_config(),
            self.module,
            raw,
            self.tokenizer,
            dtype,
            {**self.card, **card},
        )

    def __repr__(self) -> str:
        """Three lines: kind and size, vocabulary and length, origin."""
        names = {MASKED: "masked diffusion", UNIFORM: "uniform-state diffusion"}
        mask = "no MASK" if self.mask_id is None else f"MASK {self.mask_id}"
        tokenizer = "no tokenizer" if self.tokenizer is None else "with tokenizer"
        return (
            f"{type(self).__name__}: {names.get(self.kind, self.kind)}, "
            f"{self.parameters:,} parameters, {self.precision} on {self.device}\n"
            f"  vocabulary: {self.vocab_size:,} tokens, {mask}, {tokenizer}; "
            f"length: {self.length:,} tokens\n"
            f"  origin: {_origin(self.card)}"
        )


def not_a_model(value: object) -> ValueError:
    """The error for an argument `model` that is not a model."""
    got = f"model is not a model: got a {type(value).__name__}"
    if isinstance(value, str | Path):
        name = f"{PACKAGE_PREFIX}{value}" if str(value) in package_models() else str(value)
        return ValueError(f"{got}; load it first: unmask.load({name!r})")
    if isinstance(value, nn.Module):
        return ValueError(
            f"{got}; make it an unmask.DenoiserModule, and that an unmask.Model (docs/extending.md)"
        )
    return ValueError(f"{got}, want a Model or CausalModel, as unmask.load returns it")


@dataclass(frozen=True, repr=False)
class Model(LanguageModel):
    """A diffusion model: denoiser, noise process, schedule and tokenizer."""

    denoiser: DenoiserModule
    process: Process
    schedule: NoiseSchedule
    tokenizer: Tokenizer | None
    card: Mapping[str, object] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def module(self) -> DenoiserModule:
        """The denoiser."""
        return self.denoiser


@dataclass(frozen=True, repr=False)
class CausalModel(LanguageModel):
    """An autoregressive model: predictor and tokenizer."""

    schedule = None  # no noise
    predictor: PredictorModule
    tokenizer: Tokenizer | None
    card: Mapping[str, object] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def module(self) -> PredictorModule:
        """The predictor."""
        return self.predictor

    @staticmethod
    def of(
        predictor: PredictorModule,
        tokenizer: Tokenizer | None,
        card: Mapping[str, object] | None = None,
    ) -> CausalModel:
        """Make a model in evaluation mode, which never predicts the MASK of its tokenizer."""
        if predictor.mask_id is None and tokenizer is not None:
            predictor.mask_id = tokenizer.mask_id
        return CausalModel(predictor.eval(), tokenizer, card=card or {})


def load(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    tokenizer: Tokenizer | None = None,
) -> Model | CausalModel:
    """Read a model in float32 and evaluation mode. No code in any file is run.

    Args:
        path_or_hub_id: A directory of unmask, MDLM, SDTT or Duo: config.json, and model.safetensors
            or its shards with their index. Or a Lightning .ckpt file, or a directory with one. Else
            a repository of the Hugging Face hub.
        revision: Revision on the hub.
        weights: "ema" or "raw". A .ckpt file has both. A directory has "raw" only if unmask saved
            both.
        device: Device of the weights.
        tokenizer: Replaces the tokenizer of the model's files, or supplies a missing one.

    Returns:
        The model. Its tokenizer is that of the directory, else None. MASK is the id in the config,
        else the tokenizer's, else the last token. Rows that only pad the vocabulary are removed
        (`fit_vocabulary`). The schedule is LogLinear(1e-3) if the config names no schedule.

    Raises:
        CheckpointError: A ValueError. There is no model, it does not fit the architecture name by
            name, or a weight is not a finite float.
        ValueError: `weights` or `device` is unknown.
    """
    check_weights_set(weights)
    path = locate(path_or_hub_id, revision)
    with open_files(path, weights) as source:
        network, use = _network(source)
    given = tokenizer is not None
    if tokenizer is None and path.is_dir():
        tokenizer = find_tokenizer(path)
    if tokenizer is not None:
        named = names_mask(source.config_json)
        network, use = fit_vocabulary(
            network, use, tokenizer, str(path), mask_named=named, tokenizer_given=given
        )
    _move(network, device)
    card = card_of(source.config_json)
    if use.schedule is None:
        return CausalModel.of(CausalPredictor(network, use.mask_id), tokenizer, card)
    denoiser = NetworkDenoiser(network, use.mask_id, use.sees_alpha).eval()
    process = noise_process(denoiser.vocab_size, denoiser.mask_id)
    return Model(denoiser, process, use.schedule, tokenizer, card=card)


def diffusion_model(model: object, fault: str) -> Model:
    """The model, if it is a diffusion model; ValueError with the message `fault` otherwise."""
    if not isinstance(model, Model):
        raise ValueError(fault)
    return model


def causal_model(model: object, fault: str) -> CausalModel:
    """The model, if it is autoregressive; ValueError with the message `fault` otherwise."""
    if not isinstance(model, CausalModel):
        raise ValueError(fault)
    return model


def own_network(model: LanguageModel) -> DiT:
    """The network of a model, if it is a `DiT`; ValueError for a foreign network."""
    if not isinstance(model.network, DiT):
        raise ValueError(
            f"model holds a foreign network: got {type(model.network).__name__}, "
            "want a network of this library"
        )
    return model.network


def _network(source: ModelFiles) -> tuple[DiT, CheckpointConfig]:
    """The network and the config in these files."""
    if (name := foreign_network(source.config_json)) is not None:
        raise CheckpointError(
            f"{source.where} holds a foreign network: got {name}, which load cannot build; "
            "use unmask.models.foreign.load_into"
        )
    shape = infer_shape(source.weights, source.where)
    try:
        use = parse_config(source.config_json, shape, source.where)
        shape = replace(shape, length=use.length, dropout=use.dropout)
        check_mask_id(use.mask_id, shape.vocab_size)
    except CheckpointError:
        raise
    except ValueError as error:  # the config contradicts the weights
        raise CheckpointError(f"{source.where}: {error}") from error
    return build_network(shape, source.weights, source.averages, source.where), use


def _move(module: nn.Module, device: torch.device | str) -> None:
    try:
        module.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device is not available: got {device}; {error}") from error


def _origin(card: Mapping[str, object]) -> str:
    """The recipe and the steps that a card names."""
    match card:
        case {"recipe": {"name": str(name)}, "steps": steps}:
            return f"recipe {name!r}, {steps} steps"
        case {"source": source}:
            return str(source)
    return "unknown (no card)"
