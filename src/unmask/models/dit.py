"""The network of MDLM, SDTT and Duo: a diffusion transformer over tokens, and its causal form.

Their checkpoints have the same names and shapes of weights, so one class loads all of them.
Sources: Sahoo et al. 2024, arXiv 2406.07524, after Peebles and Xie 2023, arXiv 2212.09748.
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
    Embedding,
    Linear,
    Modulation,
    OutputLayer,
    Rotary,
    SigmaEmbedding,
)
from unmask.types import SoftTokens, Tokens


@dataclass(frozen=True)
class Shape:
    """The sizes of a network. Shape and weights determine it completely.

    Attributes:
        vocab_size: V, MASK included
        length: L, tokens of a training row; rotary positions allow longer rows, of untested quality
        width: D, a multiple of `heads`; the width of a head, D / heads, is even (rotary positions
            turn pairs)
        blocks: number of transformer blocks
        heads: attention heads of a block
        cond_dim: C, width of the noise conditioning; unused in a causal network
        dropout: on the outputs of the two branches of each block, in training
        causal: attend to earlier positions only, without noise conditioning: the autoregressive
            baseline

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
                raise ValueError(f"{name} is too small: got {size}, want at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width does not divide into heads of even width: got {self.width}, "
                f"want a multiple of 2 x heads = {2 * self.heads}; change width or heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout is outside its range: got {self.dropout}, want 0 <= dropout < 1"
            )


def small(vocab_size: int, length: int = 1024) -> Shape:
    """The network of nearly every published result: 12 blocks of width 768.

    It has 169,627,218 weights at V = 50258.
    """
    return Shape(vocab_size, length, width=768, blocks=12, heads=12)


@dataclass(frozen=True)
class Conditioning:
    """The noise conditioning of each block and of the output layer.

    Each entry is the conditioning vector [b, C], or the modulations folded from that vector. It is
    None in a causal network.
    """

    blocks: tuple[Tensor | tuple[Modulation, Modulation] | None, ...]
    output: Tensor | Modulation | None


class DiT(nn.Module):
    """A transformer from tokens [B, L] and noise sigma [B] to raw logits [B, L, V].

    Soft input is a `SoftTokens`, or logits [B, L, V]. `sigma = -log alpha` is in nats.
    Time-agnostic models pass None: the conditioning of sigma = 0, computed once for all rows. A
    causal network takes no sigma, and its logits at position i predict token i + 1.

    Attributes:
        compute_dtype: precision of the matrix products in the blocks (bfloat16 on a GPU); the
            precision of the weights if that is lower (`network.to(torch.bfloat16)`). Weights,
            residual stream, normalisations, hidden states and head keep the precision of the
            weights. It may be set at any time
        checkpointing: keep only the input of each block for the backward pass and recompute the
            rest. The numbers are the same; it saves memory and costs a second forward pass. It may
            be set at any time
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
        """Compute raw logits [B, L, V]: for small vocabularies, tests and foreign callers."""
        logits: Tensor = self.head(self.hidden(tokens, sigma))
        return logits

    def hidden(
        self,
        tokens: Tensor | SoftTokens,
        sigma: Tensor | None = None,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        queries: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """Compute the hidden states for the head: [B, L, D], or [B, W, D] with `queries`.

        Args:
            tokens: Ids [B, L] or soft input.
            sigma: Noise [B] in nats, or None; see the class.
            cache: Keys and values of other positions, to which `tokens` attend. Those of `tokens`
                are appended, or overwrite the cache at `positions`.
            positions: Positions [B, L] of the tokens in the cache, which a bidirectional network
                overwrites.
            queries: Indices [B, W] of the L tokens whose hidden states are needed. None: all.
            conditioning: Folded conditioning, which replaces sigma.
        """
        rows = tokens.shape[0]
        if sigma is not None and tuple(sigma.shape) != (rows,):
            raise ValueError(
                f"sigma has the wrong shape: got {list(sigma.shape)}, want [B] = [{rows}]"
            )
        condition = conditioning or self._unfolded(sigma)
        x = self._stream(tokens, condition, self.shape.blocks, cache, positions, queries)
        return self.output_layer.normalise(x, condition.output)

    def features(self, tokens: Tokens, layer: int) -> Tensor:
        """Compute the residual stream [B, L, D] after the first `layer` blocks, as an `Encoder`.

        Layer 0 is the embeddings. A denoiser gets sigma = 0, the noise of a clean text.
        """
        if not 0 <= layer <= self.shape.blocks:
            raise ValueError(
                f"layer is outside its range: got {layer}, "
                f"want 0 to {self.shape.blocks} (blocks to run)"
            )
        return self._stream(tokens, self._unfolded(), layer)

    def _stream(
        self,
        tokens: Tensor | SoftTokens,
        conditioning: Conditioning,
        layer: int,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        self._check_tokens(tokens)
        if queries is not None and self.shape.causal:
            raise ValueError(
                "queries need a bidirectional network, and this network is causal: leave them out"
            )
        first = 0 if cache is None else cache.length
        if first and positions is None and not self.shape.causal:
            raise ValueError(
                f"cache holds {first} positions, and a bidirectional network cannot append to it: "
                "give positions"
            )
        if positions is None:
            angles = self.rotary_emb(first, tokens.shape[1])
        else:
            self._check_positions(tokens, first, positions)
            angles = self.rotary_emb(0, first).at(positions)
        x: Tensor = self.vocab_embed(tokens)
        dtype = x.dtype if x.dtype.itemsize < self.compute_dtype.itemsize else self.compute_dtype
        recompute = self.checkpointing and cache is None and torch.is_grad_enabled()
        written = first if positions is None else positions
        for index, (block, condition) in enumerate(
            islice(zip(self.blocks, conditioning.blocks, strict=True), layer)
        ):
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            keep = None if cache is None else partial(cache.write, index, written)
            x = run(x, condition, angles, dtype, keep, queries if index == layer - 1 else None)
        return x

    def conditioning(self, sigma: Tensor | None = None) -> Conditioning:
        """Fold the adaLN layers of every block at sigma [B]; None: at sigma = 0 for all rows."""
        vector = self._vector(sigma)
        return Conditioning(
            tuple(block.modulations(vector) for block in self.blocks),
            self.output_layer.modulation(vector),
        )

    def _unfolded(self, sigma: Tensor | None = None) -> Conditioning:
        """The conditioning for a single call: each block folds its adaLN layer itself."""
        vector = self._vector(sigma)
        return Conditioning((vector,) * self.shape.blocks, vector)

    def _vector(self, sigma: Tensor | None) -> Tensor | None:
        """The conditioning vector [b, C] of noise sigma [B]; None: of sigma = 0 for all rows."""
        if self.sigma_map is None:
            if sigma is not None:
                raise ValueError("sigma has no effect on a causal network: leave it out")
            return None
        weight = self.vocab_embed.embedding
        vector: Tensor = self.sigma_map(
            weight.new_zeros(1) if sigma is None else sigma.to(weight.dtype)
        )
        return vector

    def _check_positions(self, tokens: Tensor | SoftTokens, length: int, positions: Tensor) -> None:
        if self.shape.causal:
            raise ValueError(
                "positions need a bidirectional network, and this network is causal: "
                "it appends to its cache"
            )
        if tuple(positions.shape) != tuple(tokens.shape[:2]):
            raise ValueError(
                f"positions have the wrong shape: got {tuple(positions.shape)}, "
                f"want that of tokens, [B, L] = {tuple(tokens.shape[:2])}"
            )
        if positions.device.type == "cpu" and positions.numel():
            low, high = (int(end) for end in torch.aminmax(positions))
            if low < 0 or high >= length:
                raise ValueError(
                    f"positions are not in the cache: got {low} to {high}, "
                    f"want 0 <= position < {length}; "
                    "make a full forward pass first"
                )

    def _check_tokens(self, tokens: Tensor | SoftTokens) -> None:
        vocab_size = self.shape.vocab_size
        if isinstance(tokens, SoftTokens):
            if tokens.tokens.dim() != 3 or tokens.tokens.shape != tokens.weights.shape:
                shapes = f"{tuple(tokens.tokens.shape)} and {tuple(tokens.weights.shape)}"
                raise ValueError(
                    f"soft tokens have the wrong shape: got tokens and weights {shapes}, "
                    "want both [B, L, k]"
                )
            ids = tokens.tokens
        elif tokens.is_floating_point():
            if tokens.dim() != 3 or tokens.shape[2] != vocab_size:
                raise ValueError(
                    f"soft input has the wrong shape: got {tuple(tokens.shape)}, "
                    f"want [B, L, {vocab_size}]"
                )
            return
        else:
            ids = tokens
            if ids.dim() != 2:
                raise ValueError(
                    f"token ids have the wrong shape: got {tuple(ids.shape)}, want [B, L]"
                )
        # On an accelerator, reading the values would wait for the device.
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= vocab_size:
                raise ValueError(
                    f"token ids are outside the vocabulary: got {low} to {high}, "
                    f"want 0 to {vocab_size - 1}; "
                    "was the text encoded with another tokenizer?"
                )
