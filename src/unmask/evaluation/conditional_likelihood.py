"""How well a model continues a text: the likelihood of a continuation given its context."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess, Process
from unmask.diffusion.trajectory import trajectory
from unmask.evaluation.judges import NextTokenModel, predictor_nats
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
    """Estimates [draws], float64 nats, whose mean is a bound on -log p(x0[target] | the rest of x0).

    x0      one text, ids [L]
    target  bool [L], the M tokens to be told; the others are given: no noise ever touches them

    With MASKs a draw hides k of the M targets, k uniform on 1 .. M and the places too, and weighs their surprise by
    M / k. That is -log p in a random order, each token given those told before it; for a denoiser that knows
    p(x0_i | z) exactly, the likelihood itself. (Hiding each target by itself, as in training, has the same mean and a
    larger spread; Nie et al. 2025, arXiv 2502.09992, measure so too.) With uniform noise a draw is an alpha ~ U(0, 1)
    and the integrand of the bound at the targets; such a network is told one alpha for all tokens and doubts the given
    ones. Over the draws k, and alpha, are stratified. A masked network that sees alpha is told the share of the
    *targets* that are shown, as in sampling behind a prompt.
    """
    if not (
        x0.dim() == 1
        and target.shape == x0.shape
        and target.dtype == torch.bool
        and bool(target.any())
    ):
        raise ValueError(
            f"a continuation is told given its context: want ids [L] and targets, bool [L], at least one of them, got "
            f"{tuple(x0.shape)} and {tuple(target.shape)} with {int(target.sum())}"
        )
    if draws < 1:
        raise ValueError(
            f"draws counts the estimates that are averaged: want draws >= 1, got {draws}"
        )
    rows, u = x0.expand(draws, -1), stratified(draws, generator, x0.device)
    if isinstance(process, MaskedProcess):
        count = int(target.sum())
        hidden = (u * count).long() + 1
        order = (
            torch.rand(rows.shape, generator=generator, device=x0.device)
            .masked_fill(~target, 2.0)
            .argsort(dim=1)
        )
        z = rows.masked_fill(order.argsort(dim=1) < hidden[:, None], process.mask_id)
        alpha, told = (
            1 - hidden.double() / count,
            1 - (hidden - 0.5) / count,
        )  # the network never sees alpha = 0
    else:
        alpha = told = 1 - u
        z = trajectory(process, rows, generator).at(alpha).where(target, rows)
    nats = [
        process.nelbo(
            denoiser(z[part], told[part].double()),
            rows[part],
            z[part],
            alpha[part],
            -torch.ones_like(u[part]),
        )
        for part in torch.arange(draws, device=x0.device).split(batch_size)
    ]
    return torch.cat(nats).double()[:, target].sum(dim=1).cpu()


def conditional_nats(predictor: NextTokenModel, x0: Tokens, count: int) -> float:
    """-log p of the last `count` tokens of a text [L] given those before, under an autoregressive model: exact."""
    if not (x0.dim() == 1 and 1 <= count < len(x0)):
        raise ValueError(
            f"want 1 <= count < L tokens after a context, got {count} of {tuple(x0.shape)}"
        )
    return float(predictor_nats(predictor, x0[None])[0, -count:].double().sum())
