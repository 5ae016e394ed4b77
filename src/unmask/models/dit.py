"""The network of MDLM, SDTT and Duo: a diffusion transformer over tokens, and its causal form for the baseline.

One architecture serves them all, with the same names and shapes of weights, so one class loads every public
checkpoint (Sahoo et al. 2024, arXiv 2406.07524, after Peebles and Xie 2023, arXiv 2212.09748).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask.models.kv_cache import Cache
from unmask.models.layers import (
    Block,
    Branch,
    Embedding,
    Linear,
    OutputLayer,
    Rotary,
    SigmaEmbedding,
)
from unmask.types import SoftTokens, Tokens


@dataclass(frozen=True)
class Shape:
    """The sizes of a network; together with the weights they say everything about it.

    vocab_size  V, MASK included
    length      L, tokens of a training row; rotary positions set no limit, but quality beyond L is not promised
    width       D, a multiple of `heads`; each head's width D / heads is even (rotary turns pairs)
    cond_dim    C, width of the noise conditioning; unused in a causal network
    dropout     on the outputs of the two branches of each block, in training
    causal      attend to the past only, without noise conditioning: the autoregressive baseline

    ValueError for sizes that cannot be built.
    """

    vocab_size: int
    length: int
    width: int
    blocks: int
    heads: int
    cond_dim: int = 128
    dropout: float = 0.1
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "width", "blocks", "heads", "cond_dim"):
            size = getattr(self, name)
            if size < 1:
                raise ValueError(f"{name} is a size of the network: want at least 1, got {size}")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width is shared by the heads, an even number of channels each: want a multiple of "
                f"2 x heads = {2 * self.heads}, got width {self.width}; change width or heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is a share of the channels: want 0 <= dropout < 1, got {self.dropout}"
            )


def tiny(vocab_size: int, length: int = 1024) -> Shape:
    """Duo's smallest network: 8 blocks of width 256."""
    return Shape(vocab_size, length, width=256, blocks=8, heads=8)


def small(vocab_size: int, length: int = 1024) -> Shape:
    """The network of nearly every published result: 12 blocks of width 768; 169,627,218 weights at V = 50258."""
    return Shape(vocab_size, length, width=768, blocks=12, heads=12)


def medium(vocab_size: int, length: int = 1024) -> Shape:
    """24 blocks of width 1024; about 424 M weights at V = 50258."""
    return Shape(vocab_size, length, width=1024, blocks=24, heads=16)


def large(vocab_size: int, length: int = 1024) -> Shape:
    """SDTT's largest: 24 blocks of width 1536; about 863 M weights at V = 50258."""
    return Shape(vocab_size, length, width=1536, blocks=24, heads=16)


@dataclass(frozen=True)
class Conditioning:
    """What each block, and the output layer, is told of the noise: the conditioning vector [b, C], None in a causal
    network, or the branches that were folded from it, once for all calls where it never changes.
    """

    blocks: tuple[Tensor | tuple[Branch, Branch] | None, ...]
    output: Tensor | Branch | None


class DiT(nn.Module):
    """Tokens [B, L] (or soft input: a `SoftTokens`, or logits [B, L, V]) and noise sigma [B] -> raw logits [B, L, V].

    `sigma = -log alpha` in nats; None stands for the constant conditioning of sigma = 0 that time-agnostic models
    were trained with, computed once for all rows. A causal network takes no sigma, and its logits at position i
    are about token i + 1.

    `compute_dtype` is the precision of the matrix products in the blocks (bfloat16 on a GPU), or that of the weights
    where it is lower (`network.to(torch.bfloat16)`); weights, residual stream, normalisations, hidden states and head
    keep the precision of the weights. `checkpointing` keeps of each
    block only its input for the way back and computes the rest again: the same numbers from less memory, for a
    second forward pass. Both may be set at any time.
    """

    def __init__(
        self, shape: Shape, compute_dtype: torch.dtype = torch.float32, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.checkpointing = checkpointing
        cond_dim = None if shape.causal else shape.cond_dim
        self.vocab_embed = Embedding(shape.vocab_size, shape.width)
        self.sigma_map = None if cond_dim is None else SigmaEmbedding(cond_dim)
        self.rotary_emb = Rotary(shape.width // shape.heads)
        blocks = [
            Block(shape.width, shape.heads, cond_dim, shape.dropout) for _ in range(shape.blocks)
        ]
        self.blocks = cast(Iterable[Block], nn.ModuleList(blocks))
        self.output_layer = OutputLayer(shape.width, shape.vocab_size, cond_dim)

    @property
    def precision(self) -> str:
        """The name of `compute_dtype`: "float32", "bfloat16"."""
        return str(self.compute_dtype).removeprefix("torch.")

    @property
    def head(self) -> Linear:
        """The map from hidden rows [N, D] to logits [N, V]."""
        return self.output_layer.linear

    def forward(self, tokens: Tensor | SoftTokens, sigma: Tensor | None = None) -> Tensor:
        """Raw logits [B, L, V] at every position: for small vocabularies, tests and foreign callers."""
        logits: Tensor = self.head(self.hidden(tokens, sigma))
        return logits

    def hidden(
        self,
        tokens: Tensor | SoftTokens,
        sigma: Tensor | None = None,
        *,
        cache: Cache | None = None,
        places: Tensor | None = None,
        asked: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """What the head reads: [B, L, D], or [B, W, D] where only `asked` [B, W] of the L tokens are wanted.

        `conditioning`, folded, is read in place of sigma. With a `cache`, `tokens` are the continuation of what it
        holds; or, with `places` [B, L], they stand at these places of it, where a bidirectional network writes them
        anew. Their keys and values are kept, and all that are kept are attended to.
        """
        rows = tokens.shape[0]
        if sigma is not None and tuple(sigma.shape) != (rows,):
            raise ValueError(f"sigma has one value a row, [B] = [{rows}], got {list(sigma.shape)}")
        told = conditioning or self._told(sigma)
        return self.output_layer.enter(
            self._stream(tokens, told, self.shape.blocks, cache, places, asked), told.output
        )

    def features(self, tokens: Tokens, layer: int) -> Tensor:
        """The residual stream [B, L, D] behind the first `layer` blocks (0: embeddings): this network as an `Encoder`.

        Text is read as it is: a denoiser is told that there is no noise, sigma = 0.
        """
        if not 0 <= layer <= self.shape.blocks:
            raise ValueError(
                f"layer counts the blocks that have run: want 0 to {self.shape.blocks}, got {layer}"
            )
        return self._stream(tokens, self._told(), layer)

    def _stream(
        self,
        tokens: Tensor | SoftTokens,
        conditioning: Conditioning,
        layer: int,
        cache: Cache | None = None,
        places: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        self._check(tokens)
        if asked is not None and self.shape.causal:
            raise ValueError(
                "asked leaves out what nobody reads of a bidirectional network: leave it out here"
            )
        first = 0 if cache is None else cache.length
        if first and places is None and not self.shape.causal:
            raise ValueError(
                "this cache holds a row, and only a causal network reads on behind it: say which places"
            )
        if places is None:
            angles = self.rotary_emb(first, tokens.shape[1])
        else:
            self._check_places(tokens, first, places)
            angles = self.rotary_emb(0, first).at(places)
        x: Tensor = self.vocab_embed(tokens)
        dtype = x.dtype if x.dtype.itemsize < self.compute_dtype.itemsize else self.compute_dtype
        again = self.checkpointing and cache is None and torch.is_grad_enabled()
        for index, (block, told) in enumerate(
            islice(zip(self.blocks, conditioning.blocks, strict=True), layer)
        ):
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            keep = (
                None
                if cache is None
                else partial(cache.write, index, first if places is None else places)
            )
            x = run(x, told, angles, dtype, keep, asked if index == layer - 1 else None)
        return x

    def conditioning(self, sigma: Tensor | None = None) -> Conditioning:
        """Fold the adaLN layers of every block at noise sigma [B], or at the constant one (None)."""
        vector = self._vector(sigma)
        return Conditioning(
            tuple(block.branches(vector) for block in self.blocks), self.output_layer.branch(vector)
        )

    def _told(self, sigma: Tensor | None = None) -> Conditioning:
        """As `conditioning`, for a single call: the blocks fold their layers themselves."""
        vector = self._vector(sigma)
        return Conditioning((vector,) * self.shape.blocks, vector)

    def _vector(self, sigma: Tensor | None) -> Tensor | None:
        """The conditioning vector [b, C] of noise sigma [B], or of the constant one (None)."""
        if self.sigma_map is None:
            if sigma is not None:
                raise ValueError(
                    "sigma is the noise that a denoiser is told: leave it out for a causal network"
                )
            return None
        weight = self.vocab_embed.embedding
        vector: Tensor = self.sigma_map(
            weight.new_zeros(1) if sigma is None else sigma.to(weight.dtype)
        )
        return vector

    def _check_places(self, tokens: Tensor | SoftTokens, length: int, places: Tensor) -> None:
        if self.shape.causal:
            raise ValueError(
                "places are those of a window, which a bidirectional network reads; this one appends"
            )
        if tuple(places.shape) != tuple(tokens.shape[:2]):
            raise ValueError(
                f"places stand beside tokens [B, L] = {tuple(tokens.shape[:2])}, got {tuple(places.shape)}"
            )
        if places.device.type == "cpu" and places.numel():
            low, high = (int(end) for end in torch.aminmax(places))
            if low < 0 or high >= length:
                raise ValueError(
                    f"places are positions that the cache holds: want 0 <= place < {length}, got {low} to {high}; "
                    "read the whole row first"
                )

    def _check(self, tokens: Tensor | SoftTokens) -> None:
        vocab_size = self.shape.vocab_size
        if isinstance(tokens, SoftTokens):
            if tokens.tokens.dim() != 3 or tokens.tokens.shape != tokens.weights.shape:
                shapes = f"{tuple(tokens.tokens.shape)} and {tuple(tokens.weights.shape)}"
                raise ValueError(
                    f"a mixture has tokens and weights of one shape [B, L, k], got {shapes}"
                )
            ids = tokens.tokens
        elif tokens.is_floating_point():
            if tokens.dim() != 3 or tokens.shape[2] != vocab_size:
                raise ValueError(
                    f"soft input has shape [B, L, {vocab_size}], got {tuple(tokens.shape)}"
                )
            return
        else:
            ids = tokens
            if ids.dim() != 2:
                raise ValueError(f"token ids have shape [B, L], got {tuple(ids.shape)}")
        if (
            ids.device.type == "cpu" and ids.numel()
        ):  # elsewhere reading the values would stall the device
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"token ids of this network lie in 0, ..., {vocab_size - 1}, got {low} to {high}; "
                    f"was the text encoded with another tokenizer?"
                )
