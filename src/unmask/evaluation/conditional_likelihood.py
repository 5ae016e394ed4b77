"""Likelihood of a continuation given its context."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess, Process
from unmask.diffusion.trajectory import trajectory
from unmask.evaluation.judges import NextTokenModel, predictor_nats
from unmask.models.model import CausalModel, Model
from unmask.rng import generator as seeded
from unmask.rng import stratified
from unmask.types import Denoiser, Tokens


@torch.no_grad()
def conditional_nelbo(
    denoiser: Denoiser,
    process: Process,
    x0: Tokens,
    target: Tensor,
    *,
    draws: int = 32,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate a bound on -log p(x0[target] | other tokens of x0); context tokens get no noise.

    Masked diffusion: a draw masks k of the M targets, with k uniform on 1 .. M and random
    positions, and weighs their -log p by M / k. The mean is -log p of the targets in a random
    order, each given the earlier ones. For a denoiser with the exact p(x0_i | z) the mean is the
    exact -log p. Nie et al. 2025 (arXiv 2502.09992) use the same estimator. Independent masks, as
    in training, have the same mean and more variance. The network input alpha is the visible share
    of the targets, as in sampling after a prompt.

    Uniform noise: a draw is an alpha ~ U(0, 1) and the bound's integrand at the targets. The
    network gets one alpha for all tokens, so it also assumes noise in the context. The bound is
    therefore loose. Both k and alpha are stratified over the draws.

    Args:
        denoiser: the network.
        process: its noise process.
        x0: one text, ids [L].
        target: bool [L], True at the M continuation tokens.
        draws: number of estimates.
        batch_size: draws per network call.
        generator: source of the noise.

    Returns:
        Estimates [draws], float64 nats; the bound is their mean.
    """
    if not (
        x0.dim() == 1
        and target.shape == x0.shape
        and target.dtype == torch.bool
        and bool(target.any())
    ):
        raise ValueError(
            f"x0 or target is wrong: got {tuple(x0.shape)} and {tuple(target.shape)} with "
            f"{int(target.sum())} targets, want ids [L] and targets, bool [L], at least one"
        )
    if draws < 1:
        raise ValueError(f"draws is too small: got {draws}, want draws >= 1 estimates")
    rows, u = x0.expand(draws, -1), stratified(draws, generator, x0.device)
    if isinstance(process, MaskedProcess):
        count = int(target.sum())
        hidden = (u * count).long() + 1
        noise = torch.rand(rows.shape, generator=generator, device=x0.device)
        order = noise.masked_fill(~target, 2.0).argsort(dim=1)
        z = rows.masked_fill(order.argsort(dim=1) < hidden[:, None], process.mask_id)
        alpha = 1 - hidden.double() / count
        alpha_input = 1 - (hidden - 0.5) / count  # the network never gets alpha = 0
    else:
        alpha = alpha_input = 1 - u
        z = trajectory(process, rows, generator).at(alpha).where(target, rows)
    slope = -torch.ones_like(u)
    nats = [
        process.nelbo(
            denoiser(z[part], alpha_input[part].double()),
            rows[part],
            z[part],
            alpha[part],
            slope[part],
        )
        for part in torch.arange(draws, device=x0.device).split(batch_size)
    ]
    return torch.cat(nats).double()[:, target].sum(dim=1).cpu()


def conditional_nats(predictor: NextTokenModel, x0: Tokens, count: int) -> float:
    """-log p of the last `count` tokens of x0 [L] given the earlier ones: exact, autoregressive."""
    if not (x0.dim() == 1 and 1 <= count < len(x0)):
        raise ValueError(
            f"count is out of range: got {count} tokens of a text of shape {tuple(x0.shape)}, want "
            "1 <= count < L"
        )
    return float(predictor_nats(predictor, x0[None])[0, -count:].double().sum())


@dataclass(frozen=True)
class BoundContinuations:
    """A scorer of continuations under a diffusion model, by a bound.

    Attributes:
        draws: noise levels per text
        batch_size: draws per network call
        seed: seed of the noise, which is a function of the seed and the text
    """

    model: Model
    draws: int
    batch_size: int
    seed: int

    def nats(self, ids: list[int], count: int) -> float:
        """A bound on -log p of the last `count` tokens given the earlier ones."""
        x0 = torch.tensor(ids, device=self.model.device)
        target = torch.arange(len(ids), device=x0.device) >= len(ids) - count
        text = json.dumps([self.seed, count, ids]).encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
        estimates = conditional_nelbo(
            self.model.denoiser,
            self.model.process,
            x0,
            target,
            draws=self.draws,
            batch_size=self.batch_size,
            generator=seeded(seed, device=x0.device),
        )
        return float(estimates.mean())

    @torch.no_grad()
    def is_greedy(self, ids: list[int], count: int) -> bool:
        """Whether arg max decoding gives the last `count` tokens, one network call per token.

        Masked diffusion unmasks the most probable token first. Uniform diffusion starts from random
        tokens and has no greedy continuation.
        """
        x0, mask_id = torch.tensor([ids], device=self.model.device), self.model.mask_id
        if mask_id is None:
            return False
        z = x0.clone()
        z[:, -count:] = mask_id
        for masked in range(count, 0, -1):
            alpha = 1 - (masked - 0.5) / count
            alphas = torch.full((1,), alpha, dtype=torch.float64, device=x0.device)
            positions = (z[0] == mask_id).nonzero().squeeze(-1)
            log_p, token = self.model.denoiser(z, alphas).log_p(positions).max(-1)
            best = log_p.argmax()
            position = positions[best]
            if token[best] != x0[0, position]:
                return False
            z[0, position] = x0[0, position]
        return True


@dataclass(frozen=True)
class ExactContinuations:
    """A scorer of continuations under an autoregressive model; its scores are exact."""

    model: CausalModel

    def nats(self, ids: list[int], count: int) -> float:
        """-log p of the last `count` tokens given the earlier ones."""
        x0 = torch.tensor(ids, device=self.model.device)
        return conditional_nats(self.model.predictor, x0, count)

    @torch.no_grad()
    def is_greedy(self, ids: list[int], count: int) -> bool:
        """Whether arg max decoding gives the last `count` tokens."""
        x0 = torch.tensor([ids], device=self.model.device)
        prediction = self.model.predictor(x0[:, :-1])
        last = torch.arange(x0.shape[1] - 1 - count, x0.shape[1] - 1, device=x0.device)
        return bool((prediction.log_p(last).argmax(-1) == x0[0, -count:]).all())


Continuations: TypeAlias = BoundContinuations | ExactContinuations


def continuations(
    model: Model | CausalModel, *, draws: int = 32, batch_size: int = 32, seed: int = 0
) -> Continuations:
    """The scorer of continuations under a model; the options apply to a diffusion model only.

    Args:
        model: the model.
        draws: noise levels per text.
        batch_size: draws per network call.
        seed: seed of the noise.
    """
    if isinstance(model, Model):
        return BoundContinuations(model, draws, batch_size, seed)
    return ExactContinuations(model)
