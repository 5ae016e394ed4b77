"""Inputs of a sampling run: the roles of a model, prompts, given tokens, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from unmask.data.tokenizers import TextDecoder
from unmask.diffusion.processes import Process
from unmask.diffusion.schedules import NoiseSchedule
from unmask.limits import check_memory, whole
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.kv_cache import Cache
from unmask.models.model import not_a_model
from unmask.prediction import Prediction
from unmask.types import Denoiser, Tokens

# Bytes of a drawn token: two int64 ids (in its batch, in the result), and an int in a Python list.
DRAWN_BYTES = 48
FREE = -1  # marks a position to be drawn


class Predictor(Protocol):
    """A next-token predictor: ids [B, l] -> log p of the token after each position.

    With a cache, ids continue the cached tokens.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def mask_id(self) -> int | None: ...

    def __call__(self, ids: Tokens, cache: Cache | None = None, /) -> Prediction: ...


@runtime_checkable
class DiffusionModel(Protocol):
    """The parts of a diffusion model that sampling needs."""

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def process(self) -> Process: ...

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def tokenizer(self) -> TextDecoder | None: ...


@runtime_checkable
class AutoregressiveModel(Protocol):
    """The parts of an autoregressive model that sampling needs."""

    @property
    def predictor(self) -> Predictor: ...

    @property
    def tokenizer(self) -> TextDecoder | None: ...


@runtime_checkable
class HasLength(Protocol):
    """A model with a default length."""

    @property
    def length(self) -> int:
        """Tokens of a training row."""
        ...


TextModel: TypeAlias = DiffusionModel | AutoregressiveModel
Prompt: TypeAlias = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class Frame:
    """The text after one step of a sampling run.

    Attributes:
        step: Number of steps made; 0 before the first.
        alpha: Noise level of the text: the alpha of the grid, or the mean level of the samples.
        z: Token ids, int64 [n, L]; -1 where an autoregressive model has not written yet.
        changed: The tokens that the last step changed, bool [n, L].
        rows: The samples in the network call of the last step, int64 [b]; empty: no call was made.
    """

    step: int
    alpha: float
    z: Tokens
    changed: Tensor
    rows: Tensor


def network_of(model: TextModel) -> Denoiser | Predictor:
    """The denoiser or predictor of a model."""
    return model.predictor if isinstance(model, AutoregressiveModel) else model.denoiser


def check_model(model: TextModel) -> None:
    """Raise ValueError for a value that is not a model, such as the path of one."""
    if not isinstance(model, DiffusionModel | AutoregressiveModel):
        raise not_a_model(model)


def length_of(model: TextModel, length: int | None) -> int:
    """The tokens of a sample: `length`, or the model's length. ValueError if both are missing."""
    if length is not None:
        return whole("length", length, "the tokens of a sample, prompt included")
    if not isinstance(model, HasLength):
        raise ValueError(
            f"length is missing: {type(model).__name__} has no attribute length; give length, the "
            "tokens of a sample"
        )
    return model.length


def given_tokens(
    model: TextModel,
    n: int,
    length: int,
    prompt: Prompt | None,
    pinned: Tensor | None,
    device: torch.device | str,
) -> Tokens:
    """Return the given tokens of n samples: int64 [n, length], -1 (FREE) at positions to be drawn.

    Args:
        model: The model; it needs a tokenizer if the prompt is text.
        n: Number of samples.
        length: Tokens of a sample.
        prompt: Text, or ids [P], at the start of every sample.
        pinned: ids [n, length], -1 where free.
        device: Device of the result.

    Raises:
        ValueError: A token is MASK or outside the vocabulary. A tensor has the wrong shape or type.
            Prompt and pinned contradict each other. The memory of the device is too small.
    """
    check_device_memory(n, length, call_bytes(network_of(model)), device)
    vocabulary = model.predictor if isinstance(model, AutoregressiveModel) else model.process
    pins = torch.full((n, length), FREE)
    if pinned is not None:
        check_pinned(pinned, n, length)
        pins = pinned.to("cpu", torch.int64)
        _check_tokens("pinned", pins[pins != FREE], vocabulary)
    if prompt is not None:
        ids = _prompt_ids(prompt, model.tokenizer)
        _check_tokens("prompt", ids, vocabulary)
        if len(ids) > length:
            raise ValueError(
                f"prompt is too long: got {len(ids)} tokens, want at most length = {length}, which "
                "counts the prompt; shorten it or raise length"
            )
        head = pins[:, : len(ids)]
        if bool(((head != FREE) & (head != ids)).any()):
            raise ValueError(
                "pinned and prompt give different tokens for one position: set pinned to -1 at the "
                "positions of the prompt"
            )
        pins = torch.cat([ids.expand(n, -1), pins[:, len(ids) :]], dim=1)
    return pins.to(device)


def check_pinned(pinned: Tensor, n: int, length: int) -> None:
    """Raise ValueError unless `pinned` is an integer tensor [n, length]."""
    if not isinstance(pinned, Tensor) or not _is_integer(pinned):
        kind = pinned.dtype if isinstance(pinned, Tensor) else type(pinned).__name__
        raise ValueError(
            f"pinned has the wrong type: got {kind}, want an integer tensor of token ids, -1 where "
            "free"
        )
    if tuple(pinned.shape) != (n, length):
        raise ValueError(
            f"pinned has the wrong shape: got {tuple(pinned.shape)}, want {(n, length)}, a row for "
            "each sample"
        )


def check_device(network: object, device: torch.device | str) -> None:
    """Raise ValueError unless `device` exists and holds the network's weights, if it has any."""
    try:
        kind = torch.empty(0, device=device).device.type
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {str(device)!r} is not available: {error}") from error
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weight is not None and weight.device.type != kind:
        raise ValueError(
            f"device is not that of the model: got {str(device)!r}, want {weight.device.type!r}; "
            "give sample the device that load was given"
        )


def check_device_memory(n: int, length: int, token_bytes: int, device: torch.device | str) -> None:
    """Raise ValueError if n texts of `length` tokens exceed the memory of the device.

    `token_bytes` is a lower bound of the memory of a token.
    """
    gpu = torch.device(device).type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if gpu else None
    got, advice = f"{n} x {length} tokens", "give a smaller batch_size, n or length"
    check_memory("n x length", got, n * length * token_bytes, advice, available)


def call_bytes(network: object) -> int:
    """A lower bound of the memory of a token in a call: its latent, and six hidden states."""
    return DRAWN_BYTES + (
        24 * network.network.shape.width if isinstance(network, NetworkDenoiser) else 0
    )


def _is_integer(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _prompt_ids(prompt: Prompt, tokenizer: TextDecoder | None) -> Tensor:
    want = "want text, or integer ids [P] for all samples"
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompt is text, and the model has no tokenizer: give token ids")
        prompt = tokenizer.encode(prompt)
    try:
        ids = torch.as_tensor(prompt, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"prompt has the wrong type: got {prompt!r}, {want}") from error
    if ids.dim() != 1 or (len(ids) and not _is_integer(ids)):
        raise ValueError(
            f"prompt has the wrong type: got {ids.dtype} of shape {tuple(ids.shape)}, {want}; use "
            "pinned if samples differ"
        )
    return ids.to(torch.int64)


def _check_tokens(name: str, ids: Tensor, vocabulary: Process | Predictor) -> None:
    outside = ids[(ids < 0) | (ids >= vocabulary.vocab_size)]
    if len(outside):
        raise ValueError(
            f"{name} has a token outside the vocabulary: got id {int(outside[0])}, want 0 <= id < "
            f"{vocabulary.vocab_size} = vocab_size"
        )
    mask_id = vocabulary.mask_id
    if mask_id is not None and bool((ids == mask_id).any()):
        raise ValueError(f"{name} contains MASK (id {mask_id}): leave the position free instead")
