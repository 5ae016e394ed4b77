"""The parts of the transformer: projections, embedding, noise embedding, rotary angles, attention, block, output layer.

Names of submodules are those of the public MDLM, Duo and SDTT checkpoints, and submodules are registered in the
order of their moving-average lists. The residual stream and every normalisation keep the precision of the
weights; the matrix products run in the precision that the network asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.kv_cache import Keep, at_places
from unmask.types import SoftTokens

SINUSOID_SIZE = 256
ROTARY_BASE = 10000.0


class Linear(nn.Linear):
    """A linear map computed in the precision of its input, whatever the precision its weights are kept in."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def some(self, x: Tensor, outputs: slice) -> Tensor:
        """Only these outputs, of a map without bias."""
        return F.linear(x, self.weight[outputs].to(x.dtype))

    def backward_rows(self, rows: Tensor, slope: Tensor, totals: Sequence[Tensor | None]) -> Tensor:
        """See `prediction.HeadWithBackward`; `totals` is (weight, bias) or (weight,)."""
        weight, *bias = totals
        for total in bias:
            if total is not None:
                total += slope.sum(dim=0)
        slope = slope.to(rows.dtype)
        if weight is not None:
            weight.addmm_(slope.T.to(weight.dtype), rows.to(weight.dtype))
        return slope @ self.weight.to(slope.dtype)


def zero_linear(inputs: int, outputs: int) -> Linear:
    """A linear map that starts as zero, so that a new network starts as the identity and a uniform guess."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Embedding(nn.Module):
    """Token ids [B, L] -> vectors [B, L, D]; a mixture, or logits [B, L, V] under their softmax -> the mean vector."""

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
    """Noise sigma = -log alpha [b] -> conditioning vector [b, C]: cosines, sines, a two-layer network, SiLU."""

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

    def at(self, places: Tensor) -> Angles:
        """Of places [B, L'], a table for each row: cos and sin [B, L', 1, 1, H]."""
        if self.cos.dim() == 4:
            return Angles(self.cos[places], self.sin[places])
        return Angles(at_places(self.cos, places), at_places(self.sin, places))

    def rotate(self, x: Tensor) -> Tensor:
        """Turn the halves (x1, x2) of the last axis of [B, L, ..., heads, 2 H]; rounds to x's precision once."""
        x1, x2 = x.chunk(2, dim=-1)
        turned = torch.cat([x1 * self.cos - x2 * self.sin, x2 * self.cos + x1 * self.sin], dim=-1)
        return turned.to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): position m turns pair j by m 10000^(-2j / head width).

    Only the frequencies belong to the state. The table of angles grows with the longest row seen. Where the network
    is cast to half precision, the angles are those of the exact frequencies, in float32: 8 bits of a position are
    too few.
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
        if stop > self._length:  # twice the room: a row that grows token by token makes few tables
            self._length, self._table = max(stop, 2 * self._length), None
        table, device = self._table, self.inv_freq.device
        dtype = torch.promote_types(self.inv_freq.dtype, torch.float32)
        if table is None or table.cos.device != device or table.cos.dtype != dtype:
            table = self._table = self._angles(dtype)
        return Angles(table.cos[first:stop], table.sin[first:stop])

    # The table outlives the caller's mode, and training could not use one that was made in inference mode.
    @torch.inference_mode(False)
    def _angles(self, dtype: torch.dtype) -> Angles:
        freq = self.inv_freq
        if freq.dtype != dtype:
            freq = _frequencies(len(freq)).to(freq.device)
        position = torch.arange(self._length, device=freq.device, dtype=dtype)
        angle = torch.outer(position, freq)[:, None, None]
        return Angles(angle.cos(), angle.sin())


def _frequencies(pairs: int) -> Tensor:
    """10000^(-j / pairs), j = 0, ..., pairs - 1: the same bits on every device, since they are made on the CPU."""
    exponent = torch.arange(0, 2 * pairs, 2, dtype=torch.float32, device="cpu") / (2 * pairs)
    return (1.0 / ROTARY_BASE**exponent).to(torch.get_default_device())


@dataclass(frozen=True)
class Branch:
    """How a residual branch enters and leaves: x + gate * f(norm(x) * weight + bias).

    weight, bias, gate [D] where all sequences share them, [B, 1, D] where each has its own;
    bias and gate None in a network without conditioning.
    """

    weight: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """Normalise over the last axis and scale."""
        if self.weight.dim() == 1:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        normal = F.layer_norm(x, x.shape[-1:])
        return (
            normal * self.weight
            if self.bias is None
            else torch.addcmul(self.bias, normal, self.weight)
        )

    def leave(self, x: Tensor, out: Tensor) -> Tensor:
        """Add what the branch gave to the stream."""
        return x + out if self.gate is None else torch.addcmul(x, self.gate, out)


class LayerNorm(nn.Module):
    """The weight [D] of a layer normalisation without bias; a `Branch` applies it together with the conditioning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def branch(self, modulation: Sequence[Tensor] = ()) -> Branch:
        """The branch that adaLN's (shift, scale[, gate]) [b, D] make of this norm; b = 1 stands for all sequences."""
        if not modulation:
            return Branch(self.weight)
        shift, scale, *gate = (part[0] if len(part) == 1 else part[:, None] for part in modulation)
        return Branch(self.weight * (1 + scale), shift, *gate)


class Block(nn.Module):
    """Attention and a two-layer network on a residual stream x [B, L, D].

    With `cond_dim` C it is a bidirectional adaLN block (Peebles and Xie 2023, arXiv 2212.09748); with None a plain
    causal one. Dropout acts on what the two branches give, in training only.
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

    def branches(self, condition: Tensor | None) -> tuple[Branch, Branch]:
        """The attention and network branches under a conditioning vector [b, C] (b = B, or 1 for all sequences)."""
        if self.adaLN_modulation is None or condition is None:
            return self.norm1.branch(), self.norm2.branch()
        parts = self.adaLN_modulation(condition).chunk(6, dim=-1)
        return self.norm1.branch(parts[:3]), self.norm2.branch(parts[3:])

    def forward(
        self,
        x: Tensor,
        told: Tensor | tuple[Branch, Branch] | None,
        angles: Angles,
        dtype: torch.dtype,
        keep: Keep | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        """x [B, L, D] -> [B, L, D]; products in `dtype`.

        told   the conditioning vector [b, C], or the `branches` that were folded from it
        keep   takes the keys and values of these positions and gives those of all that are attended to
        asked  [B, W], of the L positions those whose results are wanted, [B, W, D]: of others, keys and values alone
        """
        attention, network = told if isinstance(told, tuple) else self.branches(told)
        out = self.attend(attention.enter(x).to(dtype), angles, keep, asked)
        x = x if asked is None else at_places(x, asked)
        x = attention.leave(x, F.dropout(out, self.dropout, self.training))
        out = self.mlp(network.enter(x).to(dtype))
        return network.leave(x, F.dropout(out, self.dropout, self.training))

    def attend(
        self, h: Tensor, angles: Angles, keep: Keep | None, asked: Tensor | None = None
    ) -> Tensor:
        """Multi-head attention over the row, or over all that `keep` gives, scale 1 / sqrt(head width)."""
        if asked is None:
            queries, keys, values = self._heads(self.attn_qkv(h), angles, 2)
        else:
            width = h.shape[-1]
            keys, values = self._heads(self.attn_qkv.some(h, slice(width, None)), angles, 1)
            (queries,) = self._heads(
                self.attn_qkv.some(at_places(h, asked), slice(0, width)), angles.at(asked), 1
            )
        if keep is not None:
            keys, values = keep(keys, values)
        new, read = queries.shape[2], keys.shape[2]
        causal = self.adaLN_modulation is None and new > 1
        mask = None
        if causal and read > new:
            mask = torch.ones(new, read, dtype=torch.bool, device=h.device).tril(read - new)
        out = attention(queries, keys, values, mask, causal and mask is None)
        joined: Tensor = self.attn_out(out.transpose(1, 2).flatten(2))
        return joined

    def _heads(self, parts: Tensor, angles: Angles, turned: int) -> list[Tensor]:
        """[B, L, k D] -> k tensors [B, heads, L, head width], of which the first `turned` carry the positions."""
        each = parts.view(*parts.shape[:2], -1, self.heads, self.attn_out.in_features // self.heads)
        found = [*angles.rotate(each[:, :, :turned]).unbind(2), *each[:, :, turned:].unbind(2)]
        return [part.transpose(1, 2) for part in found]


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """softmax(q k^T / sqrt(head width)) v over heads [B, H, L, d]; `mask` True: may be read."""
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal)
    # PyTorch's fused kernel for CPUs goes backwards 5 to 8 times slower in bfloat16 than plain products do.
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out: Tensor = scores.softmax(-1) @ values
    return out


class OutputLayer(nn.Module):
    """The last normalisation, and `linear`: the head from width D to the vocabulary. Both start as a uniform guess."""

    def __init__(self, width: int, vocab_size: int, cond_dim: int | None) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = zero_linear(width, vocab_size)
        self.adaLN_modulation = None if cond_dim is None else zero_linear(cond_dim, 2 * width)

    def branch(self, condition: Tensor | None) -> Branch:
        """The last normalisation under a conditioning vector [b, C]."""
        if self.adaLN_modulation is None or condition is None:
            return self.norm_final.branch()
        return self.norm_final.branch(self.adaLN_modulation(condition).chunk(2, dim=-1))

    def enter(self, x: Tensor, told: Tensor | Branch | None) -> Tensor:
        """What `linear` reads; told: the conditioning vector [b, C], or the `branch` that was folded from it."""
        return (told if isinstance(told, Branch) else self.branch(told)).enter(x)
