"""Models as files: `load` reads our own directories and those of MDLM, SDTT and Duo; `Model.save` writes ours.

One architecture serves all of them, so loading is a matter of names: strip the prefixes, take every size from the
shapes of the tensors (public configs are wrong in places), and refuse whatever does not fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from unmask.data.tokenizers import Tokenizer, find_tokenizer
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import NoiseSchedule
from unmask.models.checkpoints.config import (
    AUTOREGRESSIVE,
    MASKED,
    UNIFORM,
    CheckpointConfig,
    card_of,
    names_mask,
    parse_config,
)
from unmask.models.checkpoints.model_files import ModelFiles, locate, opened
from unmask.models.checkpoints.safe_unpickle import CheckpointError
from unmask.models.checkpoints.weights import fill, shape_of
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser, check_mask_id
from unmask.models.digest import weights_digest
from unmask.models.dit import DiT
from unmask.models.saving import save
from unmask.models.vocabulary import Named, beside


@dataclass(frozen=True)
class Model:
    """A denoising model, with all it takes to draw text from it.

    network  the weights: (ids [B, L] or soft input [B, L, V], sigma [B]) -> raw logits; the same as the denoiser's
    card     what is known about the model, as JSON: the recipe and the text of its training, where its files say so
    """

    denoiser: NetworkDenoiser
    process: Process
    schedule: NoiseSchedule
    tokenizer: Tokenizer | None
    network: DiT
    card: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def length(self) -> int:
        """Tokens of a row in training: the length of a text unless another one is given."""
        return self.network.shape.length

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        return self.network.shape.vocab_size

    @property
    def mask_id(self) -> int | None:
        """The id of MASK; None where the vocabulary has none."""
        return self.denoiser.mask_id

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.head.weight.device

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.network.parameters())

    @property
    def digest(self) -> str:
        """A digest of all weights, computed anew at each access."""
        return weights_digest(self.network.state_dict())

    def save(
        self,
        directory: str | Path,
        *,
        raw: DiT | None = None,
        dtype: torch.dtype | None = None,
        **card: object,
    ) -> None:
        """Write config.json, model.safetensors and the tokenizer; `load` gives the model back.

        raw    the weights of which this model is the moving average, kept beside it for `load(weights="raw")`
        dtype  precision of the parameters in the file (bfloat16 halves it); None keeps the model's
        card   what else should be known about the model, as JSON: entries that are added to the model's card

        The directory is new, empty, or holds a model that was saved here. Everything is written to a directory beside
        it first, which then takes its place, with the other files of the old one. Where that fails (OSError), the old
        directory is unchanged. Raw weights in the old directory stay where the averaged ones are the same.
        ValueError for a card that is no JSON, and for a directory or file of something else.
        """
        save(
            Path(directory),
            self.facts(),
            self.network,
            raw,
            self.tokenizer,
            dtype,
            {**self.card, **card},
        )

    def facts(self) -> CheckpointConfig:
        """What has to be known about the model besides its weights."""
        mask_id, shape = self.denoiser.mask_id, self.network.shape
        kind = UNIFORM if mask_id is None else MASKED
        return CheckpointConfig(
            kind, mask_id, self.denoiser.sees_alpha, self.schedule, shape.length, shape.dropout
        )


@dataclass(frozen=True)
class CausalModel:
    """An autoregressive model: `network(ids)` are raw logits of the next tokens, `predictor` their law."""

    network: DiT
    tokenizer: Tokenizer | None
    predictor: CausalPredictor
    card: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def length(self) -> int:
        """Tokens of a row in training: the length of a text unless another one is given."""
        return self.network.shape.length

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        return self.network.shape.vocab_size

    @property
    def mask_id(self) -> int | None:
        """The id of MASK; None where the vocabulary has none."""
        return self.predictor.mask_id

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.head.weight.device

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.network.parameters())

    @property
    def digest(self) -> str:
        """A digest of all weights, computed anew at each access."""
        return weights_digest(self.network.state_dict())

    @staticmethod
    def of(
        network: DiT,
        tokenizer: Tokenizer | None,
        mask_id: int | None,
        card: Mapping[str, object] | None = None,
    ) -> CausalModel:
        """The model in evaluation mode; a MASK that its config or its tokenizer names is never predicted."""
        named = tokenizer.mask_id if mask_id is None and tokenizer is not None else mask_id
        return CausalModel(network, tokenizer, CausalPredictor(network, named).eval(), card or {})

    def save(
        self,
        directory: str | Path,
        *,
        raw: DiT | None = None,
        dtype: torch.dtype | None = None,
        **card: object,
    ) -> None:
        """As `Model.save`."""
        save(
            Path(directory),
            self.facts(),
            self.network,
            raw,
            self.tokenizer,
            dtype,
            {**self.card, **card},
        )

    def facts(self) -> CheckpointConfig:
        """As `Model.facts`."""
        shape = self.network.shape
        return CheckpointConfig(
            AUTOREGRESSIVE, self.predictor.mask_id, False, None, shape.length, shape.dropout
        )


def load(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    tokenizer: Tokenizer | None = None,
) -> Model | CausalModel:
    """Read a model, in float32 and evaluation mode, running no code from any file.

    path_or_hub_id  a directory with config.json and model.safetensors, or its shards with their index (ours, or of
                    MDLM, SDTT, Duo), a Lightning .ckpt file or a directory with one, or else a repository of the
                    Hugging Face hub at `revision`
    weights         "ema", the moving average, or "raw": of a .ckpt file, or of our directories saved with both
    tokenizer       the model's, where its files hold none; it takes the place of one that they hold

    The tokenizer is the one whose files are in the directory, else None. MASK is what the config says, else the
    tokenizer's, else the last token; rows that only pad the vocabulary are cut off (`vocabulary.beside`). The schedule
    is LogLinear(1e-3) where none is named. CheckpointError (a ValueError) where there is no model, where it does not
    fit the architecture name by name, and where a weight is no finite float.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(
            f"weights says which set of them to read: want 'ema' or 'raw', got {weights!r}"
        )
    path = locate(path_or_hub_id, revision)
    with opened(path, weights) as source:
        network, facts = _network(source)
    spoken = tokenizer
    if tokenizer is None and path.is_dir():
        spoken = find_tokenizer(path)
    if spoken is not None:
        named = Named(names_mask(source.said), given=tokenizer is not None)
        network, facts = beside(network, facts, spoken, named, str(path))
    network, card = _on(network, device).eval(), card_of(source.said)
    if facts.schedule is None:
        return CausalModel.of(network, spoken, facts.mask_id, card)
    size = network.shape.vocab_size
    process = UniformProcess(size) if facts.mask_id is None else MaskedProcess(size, facts.mask_id)
    denoiser = NetworkDenoiser(network, facts.mask_id, facts.sees_alpha).eval()
    return Model(denoiser, process, facts.schedule, spoken, network, card)


def _network(source: ModelFiles) -> tuple[DiT, CheckpointConfig]:
    """The network of these files, and what they say about it."""
    shape = shape_of(source.weights, source.where)
    try:
        facts = parse_config(source.said, shape, source.where)
        shape = replace(shape, length=facts.length, dropout=facts.dropout)
        check_mask_id(facts.mask_id, shape.vocab_size)
    except CheckpointError:
        raise
    except ValueError as error:  # a config that contradicts the weights
        raise CheckpointError(f"{source.where}: {error}") from error
    return fill(shape, source.weights, source.averages, source.where), facts


def _on(network: DiT, device: torch.device | str) -> DiT:
    try:
        return network.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"device says where the model runs, and {device} is not to be had here: {error}"
        ) from error
