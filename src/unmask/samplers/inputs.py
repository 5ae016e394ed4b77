"""What a sampler starts from, and what it shows after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.types import Tokens

FREE = -1  # at a position that is to be drawn


class TextDecoder(Protocol):
    """Text to ids and back."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


Prompt: TypeAlias = str | Sequence[int] | Tensor


@dataclass(frozen=True)
class Frame:
    """A moment of a run: the canvas after `step` moves.

    step     moves made; 0 is the canvas before the first
    alpha    share of text at this moment
    z        [n, L] ids; -1 where an autoregressive model has not written yet
    changed  bool [n, L]: what the last move changed
    rows     [b] the samples of the network call that the last move cost; empty: it cost none
    """

    step: int
    alpha: float
    z: Tokens
    changed: Tensor
    rows: Tensor


def pin(
    n: int,
    length: int,
    vocab_size: int,
    mask_id: int | None,
    tokenizer: TextDecoder | None = None,
    prompt: Prompt | None = None,
    pinned: Tensor | None = None,
) -> Tokens:
    """The tokens that are given: int64 [n, L], -1 (FREE) where one is to be drawn.

    `prompt` (text, or ids [P]) stands at the start of every sample, `pinned` [n, L] anywhere. ValueError for
    tokens that are none of the vocabulary's, are MASK, do not fit, or contradict each other.
    """
    pins = torch.full((n, length), FREE)
    if pinned is not None:
        check_pinned(pinned, n, length)
        pins = pinned.to("cpu", torch.int64)
        _check_tokens("pinned", pins[pins != FREE], vocab_size, mask_id)
    if prompt is not None:
        ids = _prompt_ids(prompt, tokenizer)
        _check_tokens("the prompt", ids, vocab_size, mask_id)
        if len(ids) > length:
            raise ValueError(
                f"the prompt is part of the length: want at most length = {length} tokens, got {len(ids)}; "
                "shorten it or raise length"
            )
        head = pins[:, : len(ids)]
        if bool(((head != FREE) & (head != ids)).any()):
            raise ValueError(
                "pinned and prompt name different tokens at one position: leave -1 under the prompt"
            )
        pins = torch.cat([ids.expand(n, -1), pins[:, len(ids) :]], dim=1)
    return pins


def check_pinned(pinned: Tensor, n: int, length: int) -> None:
    """ValueError unless `pinned` is an integer tensor [n, length]."""
    if not isinstance(pinned, Tensor) or not _whole(pinned):
        kind = pinned.dtype if isinstance(pinned, Tensor) else type(pinned).__name__
        raise ValueError(
            f"pinned holds token ids, -1 where free: want an integer tensor, got {kind}"
        )
    if tuple(pinned.shape) != (n, length):
        raise ValueError(
            f"pinned has a row for each sample: want shape {(n, length)}, got {tuple(pinned.shape)}"
        )


def _whole(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _prompt_ids(prompt: Prompt, tokenizer: TextDecoder | None) -> Tensor:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                "a prompt in words needs the model's tokenizer, and it has none: give token ids"
            )
        prompt = tokenizer.encode(prompt)
    try:
        ids = torch.as_tensor(prompt, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"a prompt is text or integer ids [P], the same for every sample: got {prompt!r}"
        ) from error
    if ids.dim() != 1 or (len(ids) and not _whole(ids)):
        raise ValueError(
            f"a prompt is text or integer ids [P], the same for every sample: got {ids.dtype} of shape "
            f"{tuple(ids.shape)}; use pinned where samples differ"
        )
    return ids.to(torch.int64)


def _check_tokens(name: str, ids: Tensor, vocab_size: int, mask_id: int | None) -> None:
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise ValueError(
            f"{name} holds token ids: want 0 <= id < vocab_size = {vocab_size}, got {int(outside[0])}"
        )
    if mask_id is not None and bool((ids == mask_id).any()):
        raise ValueError(
            f"{name} holds MASK (id {mask_id}), which is no text: leave the position free instead"
        )
