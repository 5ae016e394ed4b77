"""Likelihood of a continuation given its context."""

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
    """Estimate a bound on -log p(x0[target] | other tokens of x0); context tokens get no noise.

    Masked diffusion: a draw masks k of the M targets, with k uniform on 1 .. M and random
    positions, and weighs their -log p by M / k. This is -log p in a random order, each token given
    those before it. For a denoiser with the exact p(x0_i | z) it is the likelihood itself.
    Masking each target independently, as in training, has the same mean and more variance (Nie et
    al. 2025, arXiv 2502.09992, use the same estimator). The network input alpha is the visible
    share of the targets, as in sampling after a prompt.

    Uniform noise: a draw is an alpha ~ U(0, 1) and the bound's integrand at the targets. The
    network gets one alpha for all tokens, so it also assumes noise in the context, and the bound
    is loose. Both k and alpha are stratified over the draws.

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
