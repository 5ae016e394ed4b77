"""Exact enumeration of a small source: masked texts, texts, coupled pairs, sampled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from unmask.diffusion.schedules import NoiseSchedule
from unmask.experiments.exact.oracle import masked_model
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.objectives.consistency import Coupling
from unmask.types import Tokens

MOST_CANVASES = 4096


@dataclass(frozen=True)
class EnumeratedSource:
    """All canvases (partially masked texts) and all texts of a source.

    Attributes:
        canvases: [C, L], C = (V + 1)^L, MASK = V; row n holds the digits of n
        texts: [X, L], X = V^L
        log_p: [X] log p(x) of the texts, nats
        teacher: [C, L, V] the exact log p(x0_i | z), nats; undefined at visible positions
    """

    source: SyntheticSource
    canvases: Tokens
    texts: Tokens
    log_p: Tensor
    teacher: Tensor

    @property
    def length(self) -> int:
        return self.texts.shape[1]

    @property
    def mask_id(self) -> int:
        return self.source.vocab_size

    def number(self, z: Tokens) -> Tensor:
        """The row numbers [..] of canvases [.., L]."""
        return number(z, self.source.vocab_size + 1)


def number(z: Tokens, size: int) -> Tensor:
    """The number [..] with digits [.., L] in base `size`, the highest digit first."""
    return (z * size ** torch.arange(z.shape[-1] - 1, -1, -1)).sum(-1)


def enumerate_source(source: SyntheticSource, length: int) -> EnumeratedSource:
    """Enumerate a source; ValueError for more than MOST_CANVASES canvases."""
    size = source.vocab_size
    if (size + 1) ** length > MOST_CANVASES:
        raise ValueError(
            f"(V + 1)^L is too large: got {(size + 1) ** length} canvases, want at most "
            f"{MOST_CANVASES}; use a smaller vocabulary or length"
        )
    canvases = torch.tensor([*product(range(size + 1), repeat=length)])
    texts = torch.tensor([*product(range(size), repeat=length)])
    alpha = torch.ones(len(canvases), dtype=torch.float64)
    hidden = masked_model(source).denoiser(canvases, alpha).hidden[..., :size]
    return EnumeratedSource(source, canvases, texts, source.log_prob(texts), hidden.log_softmax(-1))


@dataclass(frozen=True)
class Pairs:
    """The joint distribution of (x0, z_t, z_s) as K outcomes of positive probability.

    Attributes:
        weight: [K] probabilities, sum 1
        t, s: [K] row numbers of the canvases z_t and z_s
        x0: [K, L] texts
        masked_t, masked_s: [K, L] masks of z_t and z_s
    """

    weight: Tensor
    t: Tensor
    s: Tensor
    x0: Tokens
    masked_t: Tensor
    masked_s: Tensor


def coupled_pairs(
    source: EnumeratedSource, schedule: NoiseSchedule, delta: float, coupling: Coupling
) -> Pairs:
    """P(x0) P(masks of z_t and z_s), averaged over t ~ U(delta, 1] with s = t - delta.

    Locked: a token is masked in both with probability 1 - alpha_s, and in z_t only with probability
    alpha_s - alpha_t. Independent: the probabilities are products. The quadrature over t is exact
    if alpha is linear in t.
    """
    nodes, shares = np.polynomial.legendre.leggauss(source.length + 1)
    t = torch.from_numpy(delta + (1 - delta) * (nodes + 1) / 2)
    a_t, a_s = schedule.alpha(t), schedule.alpha((t - delta).clamp(min=0))
    # The cases of a token: masked in neither, in z_s, in z_t, in both.
    if coupling == "locked":
        cases = [a_t, torch.zeros_like(t), a_s - a_t, 1 - a_s]
    else:
        cases = [a_t * a_s, a_t * (1 - a_s), (1 - a_t) * a_s, (1 - a_t) * (1 - a_s)]
    chances = torch.stack(cases, -1)
    kinds = torch.tensor([*product(range(4), repeat=source.length)])  # [4^L, L]
    chance = torch.from_numpy(shares / 2) @ chances[:, kinds].prod(-1)
    weight = (source.log_p.exp()[:, None] * chance).flatten()
    kept = weight > 0
    texts = source.texts.repeat_interleave(len(kinds), dim=0)[kept]
    masks = kinds.repeat(len(source.texts), 1)[kept]
    masked_t, masked_s = masks >= 2, masks % 2 == 1
    t_number, s_number = (
        source.number(texts.masked_fill(mask, source.mask_id)) for mask in (masked_t, masked_s)
    )
    return Pairs(weight[kept], t_number, s_number, texts, masked_t, masked_s)


def sampled_distribution(
    source: EnumeratedSource, log_p: Tensor, alphas: Sequence[float] | Tensor
) -> Tensor:
    """The exact distribution [X] of texts that ancestral sampling draws.

    Between two levels a masked token is unmasked with probability (alpha_s - alpha_t) / (1 -
    alpha_t) (MDLM, Eq. 6).

    Args:
        source: The enumerated source.
        log_p: Predictions log p(x0_i | z) [C, L, V].
        alphas: The grid.
    """
    z, mask = source.canvases, source.mask_id
    masked = z == mask
    drawn = torch.where(
        masked[:, None], log_p.exp()[:, torch.arange(z.shape[1]), z.clamp(max=mask - 1)], 0.0
    )
    same = (z[:, None] == z[None]).double()
    state = torch.zeros(len(z), dtype=torch.float64)
    state[-1] = 1.0  # the canvas of MASKs
    levels = torch.as_tensor(alphas, dtype=torch.float64).tolist()
    for low, high in pairwise(levels):
        r = (high - low) / (1 - low)
        opened = torch.where(masked[None], 1 - r, r * drawn)
        state = state @ torch.where(masked[:, None], opened, same).prod(-1)
    return state[source.number(source.texts)]
