"""The parts of the transformer: embeddings, rotary positions, attention, block, output layer.

Submodules have the names of the public MDLM, Duo and SDTT checkpoints, in the order of their EMA
lists. The residual stream and every normalisation keep the precision of the weights. `DiT` sets the
precision of the matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.kv_cache import Keep, gather_positions
from unmask.types import SoftTokens

SINUSOID_SIZE = 256
ROTARY_BASE = 10000.0


class Linear(nn.Linear):
    """A linear map that computes in the precision of its input, not of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def forward_slice(self, x: Tensor, outputs: slice) -> Tensor:
        """Compute some of the outputs of a map without bias."""
        return F.linear(x, self.weight[outputs].to(x.dtype))

    def backward_rows(self, rows: Tensor, slope: Tensor, totals: Sequence[Tensor | None]) -> Tensor:
        """Propagate a gradient through the map: see `prediction.HeadWithBackward`.

        `totals` is (weight, bias) or (weight,).
        """
        weight, *bias = totals
        for total in bias:
            if total is not None:
                total += slope.sum(dim=0)
        slope = slope.to(rows.dtype)
        if weight is not None:
            weight.addmm_(slope.T.to(weight.dtype), rows.to(weight.dtype))
        return slope @ self.weight.to(slope.dtype)


def zero_linear(inputs: int, outputs: int) -> Linear:
    """A linear map of zeros. So new blocks are the identity, and new heads predict uniformly."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Embedding(nn.Module):
    """Map token ids [B, L] to vectors [B, L, D].

    Soft tokens, and logits [B, L, V], give the mean vector of their tokens.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, tokens: Tensor | SoftTokens) -> Tensor:
        if isinstance(tokens, SoftTokens):
            weights = tokens.weights.flatten(0, 1).to(self.embedding.dtype)
            ids = tokens.tokens.flatten(0, 1)
            mean: Tensor = F.embedding_bag(
                ids, self.embedding, per_sample_weights=weights, mode="sum"
            )
            return mean.view(*tokens.shape, -1)
        if tokens.is_floating_point():
            return torch.softmax(tokens, dim=-1).to(self.embedding.dtype) @ self.embedding
        return F.embedding(tokens, self.embedding)


class SigmaEmbedding(nn.Module):
    """Map noise sigma = -log alpha [b] to a conditioning vector [b, C]."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(SINUSOID_SIZE, cond_dim), nn.SiLU(), Linear(cond_dim, cond_dim)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        half = SINUSOID_SIZE // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=sigma.device))
        angle = sigma[:, None] * frequency.to(sigma.dtype)
        return F.silu(self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1)))


@dataclass(frozen=True)
class Angles:
    """cos and sin [L, 1, 1, H] of the rotary angle of each position, for heads of width 2 H."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Angles:
        """The angles at positions [B, L'] of each row: cos and sin [B, L', 1, 1, H]."""
        if self.cos.dim() == 4:
            return Angles(self.cos[positions], self.sin[positions])
        return Angles(gather_positions(self.cos, positions), gather_positions(self.sin, positions))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the halves of the last axis of [B, L, ..., heads, 2 H], with one rounding."""
        x1, x2 = x.chunk(2, dim=-1)
        turned = torch.cat([x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin], dim=-1)
        return turned.to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864).

    Position m rotates pair j by the angle m 10000^(-2j / head width). Only the frequencies belong
    to the state. The table of angles grows with the longest row. A network in half precision uses
    exact frequencies and angles in float32, because 8 bits are too few for a position.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", _frequencies(head_width // 2))
        self._length = 0
        self._table: Angles | None = None

    def forward(self, first: int, length: int) -> Angles:
        """The angles of positions first, ..., first + length - 1."""
        stop = first + length
        if stop > self._length:
            # Doubling keeps the number of tables small for a row that grows token by token.
            self._length, self._table = max(stop, 2 * self._length), None
        table, device = self._table, self.inv_freq.device
        dtype = torch.promote_types(self.inv_freq.dtype, torch.float32)
        if table is None or table.cos.device != device or table.cos.dtype != dtype:
            table = self._table = self._angles(dtype)
        return Angles(table.cos[first:stop], table.sin[first:stop])

    # Training could not use a table that was created in inference mode.
    @torch.inference_mode(False)
    def _angles(self, dtype: torch.dtype) -> Angles:
        freq = self.inv_freq
        if freq.dtype != dtype:
            freq = _frequencies(len(freq)).to(freq.device)
        position = torch.arange(self._length, device=freq.device, dtype=dtype)
        angle = torch.outer(position, freq)[:, None, None]
        return Angles(angle.cos(), angle.sin())


def _frequencies(pairs: int) -> Tensor:
    """10000^(-j / pairs), j = 0, ..., pairs - 1, made on the CPU for equal bits everywhere."""
    exponent = torch.arange(0, 2 * pairs, 2, dtype=torch.float32, device="cpu") / (2 * pairs)
    return (1.0 / ROTARY_BASE**exponent).to(torch.get_default_device())


@dataclass(frozen=True)
class Modulation:
    """adaLN modulation of a residual branch f: x + gate * f(norm(x) * weight + bias).

    Tensors are [D] if all sequences share them, and [B, 1, D] otherwise. bias and gate are None in
    a network without conditioning.
    """

    weight: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None

    def normalise(self, x: Tensor) -> Tensor:
        """The input of the branch: x normalised over the last axis, scaled and shifted."""
        if self.weight.dim() == 1:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        normal = F.layer_norm(x, x.shape[-1:])
        if self.bias is None:
            return normal * self.weight
        return torch.addcmul(self.bias, normal, self.weight)

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """The residual stream x plus the gated output of the branch."""
        return x + out if self.gate is None else torch.addcmul(x, self.gate, out)


class LayerNorm(nn.Module):
    """The weight [D] of a layer normalisation without bias; `Modulation` applies it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def modulation(self, parts: Sequence[Tensor] = ()) -> Modulation:
        """Fold adaLN's (shift, scale[, gate]) [b, D] into this norm; b = 1 for all sequences."""
        if not parts:
            return Modulation(self.weight)
        shift, scale, *gate = (part[0] if len(part) == 1 else part[:, None] for part in parts)
        return Modulation(self.weight * (1 + scale), shift, *gate)


class Block(nn.Module):
    """Attention and a two-layer network on a residual stream x [B, L, D].

    With `cond_dim` C it is a bidirectional adaLN block (Peebles and Xie 2023, arXiv 2212.09748).
    With None it is a causal block without conditioning. Dropout acts on the outputs of the two
    branches, in training only.
    """

    def __init__(self, width: int, heads: int, cond_dim: int | None, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm1 = LayerNorm(width)
        self.attn_qkv = Linear(width, 3 * width, bias=False)
        self.attn_out = Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            Linear(width, 4 * width), nn.GELU(approximate="tanh"), Linear(4 * width, width)
        )
        self.adaLN_modulation = None if cond_dim is None else zero_linear(cond_dim, 6 * width)

    def modulations(self, condition: Tensor | None) -> tuple[Modulation, Modulation]:
        """Modulations of attention and network under a vector [b, C]; b = 1 for all sequences."""
        if self.adaLN_modulation is None or condition is None:
            return self.norm1.modulation(), self.norm2.modulation()
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        return self.norm1.modulation(parts[:3]), self.norm2.modulation(parts[3:])

    def forward(
        self,
        x: Tensor,
        condition: Tensor | tuple[Modulation, Modulation] | None,
        angles: Angles,
        dtype: torch.dtype,
        keep: Keep | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Map the residual stream x [B, L, D] to [B, L, D], or to [B, W, D] with `queries`.

        Args:
            x: The residual stream.
            condition: The conditioning vector [b, C], or the `modulations` that are folded from it.
            angles: Rotary angles of the L positions.
            dtype: Precision of the matrix products.
            keep: Stores the new keys and values and returns all cached ones.
            queries: Indices [B, W] of the positions to compute. The other positions only give keys
                and values. None: all.
        """
        folded = condition if isinstance(condition, tuple) else self.modulations(condition)
        attention, network = folded
        out = self.attend(attention.normalise(x).to(dtype), angles, keep, queries)
        x = x if queries is None else gather_positions(x, queries)
        x = attention.add(x, F.dropout(out, self.dropout, self.training))
        out = self.mlp(network.normalise(x).to(dtype))
        return network.add(x, F.dropout(out, self.dropout, self.training))

    def attend(
        self, h: Tensor, angles: Angles, keep: Keep | None, queries: Tensor | None = None
    ) -> Tensor:
        """Multi-head attention over the row, or over all keys that `keep` returns."""
        if queries is None:
            query, keys, values = self._heads(self.attn_qkv(h), angles, 2)
        else:
            width = h.shape[-1]
            later = self.attn_qkv.forward_slice(h, slice(width, None))
            keys, values = self._heads(later, angles, 1)
            first = self.attn_qkv.forward_slice(gather_positions(h, queries), slice(0, width))
            (query,) = self._heads(first, angles.at(queries), 1)
        if keep is not None:
            keys, values = keep(keys, values)
        new, read = query.shape[2], keys.shape[2]
        causal = self.adaLN_modulation is None and new > 1
        mask = None
        if causal and read > new:
            mask = torch.ones(new, read, dtype=torch.bool, device=h.device).tril(read - new)
        out = attention(query, keys, values, mask, causal and mask is None)
        joined: Tensor = self.attn_out(out.transpose(1, 2).flatten(2))
        return joined

    def _heads(self, parts: Tensor, angles: Angles, rotated: int) -> list[Tensor]:
        """Split [B, L, k D] into k tensors [B, heads, L, head width], the first ones rotated."""
        head_width = self.attn_out.in_features // self.heads
        heads = parts.view(*parts.shape[:2], -1, self.heads, head_width)
        turned = angles.rotate(heads[:, :, :rotated]).unbind(2)
        return [part.transpose(1, 2) for part in (*turned, *heads[:, :, rotated:].unbind(2))]


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over heads [B, H, L, d]; `mask` is True for keys to attend to."""
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)
    # The backward pass of PyTorch's fused CPU kernel is 5 to 8 times slower in bfloat16 than plain
    # products.
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out: Tensor = scores.softmax(-1) @ values
    return out


class OutputLayer(nn.Module):
    """The last normalisation, and the head `linear` from width D to the vocabulary."""

    def __init__(self, width: int, vocab_size: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = zero_linear(width, vocab_size)
        self.adaLN_modulation = None if cond_dim is None else zero_linear(cond_dim, 2 * width)

    def modulation(self, condition: Tensor | None) -> Modulation:
        """The last normalisation under a conditioning vector [b, C]."""
        if self.adaLN_modulation is None or condition is None:
            return self.norm_final.modulation()
        return self.norm_final.modulation(self.adaLN_modulation(condition).chunk(2, dim=-1))

    def normalise(self, x: Tensor, condition: Tensor | Modulation | None) -> Tensor:
        """The input of `linear`, under a conditioning vector [b, C] or its `modulation`."""
        folded = condition if isinstance(condition, Modulation) else self.modulation(condition)
        return folded.normalise(x)
