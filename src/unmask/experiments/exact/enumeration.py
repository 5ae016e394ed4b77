"""A source small enough to list: every canvas, every text, every coupled pair, and the law of drawn texts."""

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

MOST_CANVASES = 4096  # of an enumeration


@dataclass(frozen=True)
class EnumeratedSource:
    """All canvases and texts of a source.

    canvases  [C, L], C = (V + 1)^L, MASK = V; a canvas is the digits of its number
    texts     [X, L], X = V^L, and log_p [X] of them
    teacher   [C, L, V] log p(x0_i | z) nats, of the perfect teacher; anything at shown places
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
        """Canvases [.., L] -> their numbers [..]."""
        return number(z, self.source.vocab_size + 1)


def number(z: Tokens, size: int) -> Tensor:
    """Digits [.., L] in base `size`, the first the highest -> [..]."""
    return (z * size ** torch.arange(z.shape[-1] - 1, -1, -1)).sum(-1)


def enumerate_world(source: SyntheticSource, length: int) -> EnumeratedSource:
    """Every canvas and every text; ValueError where there are too many."""
    size = source.vocab_size
    if (size + 1) ** length > MOST_CANVASES:
        raise ValueError(
            f"fixed points are enumerated over (V + 1)^L canvases: want at most {MOST_CANVASES}, got "
            f"{(size + 1) ** length}; take a smaller vocabulary or length"
        )
    canvases = torch.tensor([*product(range(size + 1), repeat=length)])
    texts = torch.tensor([*product(range(size), repeat=length)])
    alpha = torch.ones(len(canvases), dtype=torch.float64)
    hidden = masked_model(source).denoiser(canvases, alpha).hidden[..., :size]
    return EnumeratedSource(source, canvases, texts, source.log_prob(texts), hidden.log_softmax(-1))


@dataclass(frozen=True)
class Pairs:
    """The law of (x0, z_t, z_s), a term a row, K terms of weight > 0.

    weight [K], sum 1; t, s [K] numbers of the canvases; x0, masked_t, masked_s [K, L]
    """

    weight: Tensor
    t: Tensor
    s: Tensor
    x0: Tokens
    masked_t: Tensor
    masked_s: Tensor


def coupled_pairs(
    world: EnumeratedSource, schedule: NoiseSchedule, delta: float, coupling: Coupling
) -> Pairs:
    """P(x0) P(masks of z_t and z_s), t ~ U(delta, 1], s = t - delta: exact quadrature, where alpha is linear in t.

    Locked, each token is masked in both with 1 - alpha_s, in z_t only with alpha_s - alpha_t. Apart, with the products.
    """
    nodes, shares = np.polynomial.legendre.leggauss(world.length + 1)
    t = torch.from_numpy(delta + (1 - delta) * (nodes + 1) / 2)
    a_t, a_s = schedule.alpha(t), schedule.alpha((t - delta).clamp(min=0))
    if coupling == "locked":
        chances = torch.stack(
            [a_t, torch.zeros_like(t), a_s - a_t, 1 - a_s], -1
        )  # masked in: none, s, t, both
    else:
        chances = torch.stack(
            [a_t * a_s, a_t * (1 - a_s), (1 - a_t) * a_s, (1 - a_t) * (1 - a_s)], -1
        )
    kinds = torch.tensor([*product(range(4), repeat=world.length)])  # [4^L, L]
    chance = torch.from_numpy(shares / 2) @ chances[:, kinds].prod(-1)
    weight = (world.log_p.exp()[:, None] * chance).flatten()
    kept = weight > 0
    texts = world.texts.repeat_interleave(len(kinds), dim=0)[kept]
    masks = kinds.repeat(len(world.texts), 1)[kept]
    masked_t, masked_s = masks >= 2, masks % 2 == 1
    t_number, s_number = (
        world.number(texts.masked_fill(mask, world.mask_id)) for mask in (masked_t, masked_s)
    )
    return Pairs(weight[kept], t_number, s_number, texts, masked_t, masked_s)


def drawn_law(world: EnumeratedSource, log_p: Tensor, alphas: Sequence[float] | Tensor) -> Tensor:
    """The law [X] of texts that the ancestral sampler draws with laws log_p [C, L, V] on a grid of alphas, exactly.

    Between two levels each masked token is revealed with (alpha_s - alpha_t) / (1 - alpha_t) (MDLM, Eq. 6).
    """
    z, mask = world.canvases, world.mask_id
    masked = z == mask
    told = torch.where(
        masked[:, None], log_p.exp()[:, torch.arange(z.shape[1]), z.clamp(max=mask - 1)], 0.0
    )
    same = (z[:, None] == z[None]).double()
    state = torch.zeros(len(z), dtype=torch.float64)
    state[-1] = 1.0  # all MASK
    levels = torch.as_tensor(alphas, dtype=torch.float64).tolist()
    for low, high in pairwise(levels):
        r = (high - low) / (1 - low)
        opened = torch.where(masked[None], 1 - r, r * told)
        state = state @ torch.where(masked[:, None], opened, same).prod(-1)
    return state[world.number(world.texts)]
