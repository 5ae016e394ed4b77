"""The N-step bound on the likelihood of text under a sampler of N steps.

Masked diffusion. The levels u of a text decide before the first call which tokens a step unmasks.
Given u, a sampler of N steps is a chain of independent draws, so its likelihood is exact:

    log q_N(x | u) = sum_i log p(x_i | z_{k(i)}),     k(i) the step that unmasks token i,

where z_k holds the tokens of x with a level below alpha_k, and MASKs elsewhere. By Jensen's
inequality -E_u log q_N(x | u) is at least -log q_N(x). For independent levels it is the
discrete-time bound of MDLM (arXiv 2406.07524, Eq. 8) at T = N. At one token a call it is the
any-order likelihood.

Uniform noise. There is no order. The discrete-time bound at T = N is

    KL(q(z_1 | x) || noise) + sum_k E KL(q(z_s | z_t, x) || p(z_s | z_t)),

with the posterior of Duo (arXiv 2506.10892, Eq. 3). For N -> infinity it is `Process.nelbo`.

Both bounds are proper scores: no loss of diversity lowers them, and no temperature lowers the score
of a perfect denoiser. Given u, the score is a sum of cross-entropies of single tokens, and each is
least at the true conditional. So no student with independent tokens has a lower score than a
perfect teacher. A student with an order, a joint head or a noise input can have a lower one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.packing import check_rows
from unmask.diffusion.processes import Process
from unmask.diffusion.trajectory import Trajectory
from unmask.rng import uniform
from unmask.samplers.categorical import check_finite, iter_log_probs
from unmask.samplers.latent import INITIAL_NOISE, Latent, draw_latent
from unmask.samplers.orders import LevelOrder
from unmask.types import Denoiser, PerToken, Tokens


@torch.no_grad()
def step_bound_batches(
    denoiser: Denoiser,
    process: Process,
    x0: Tokens,
    alphas: Tensor,
    order: LevelOrder,
    *,
    temperature: float = 1.0,
    passes: int = 1,
    batch_size: int = 8,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield the contribution of each network call to the N-step bound of each row.

    The sum over all calls is the bound, in nats. Rows and passes have their own levels, which do
    not depend on `batch_size`.

    Args:
        denoiser: the network.
        process: its noise process.
        x0: held-out ids [n, L].
        alphas: the grid of the sampler, float64 [N + 1], from alpha(1) to 1.
        order: the order of unmasking; ignored for uniform noise, which has no order.
        temperature: divides log p, as in sampling.
        passes: sets of levels per row.
        batch_size: rows per network call.
        seed: seed of the levels and of the noise.

    Yields:
        Nats [n], float64, of one call; there are at most N ceil(n / batch_size) calls per pass.

    Raises:
        ValueError: for ids outside the vocabulary, and a MASK among the ids.
    """
    check_rows(x0, process.vocab_size, process.mask_id)
    n, length = x0.shape
    for number in range(passes):
        latent = draw_latent(n, length, seed, first=number * n, device=x0.device)
        path = corruption(process, x0, alphas, latent, order)
        for rows in torch.arange(n, device=x0.device).split(batch_size):
            part = Trajectory(path.x0[rows], path.noise[rows], path.u[rows])
            for nats in step_nats(denoiser, process, part, alphas.to(x0.device), temperature):
                total = torch.zeros(n, dtype=torch.float64)
                total[rows.cpu()] = nats.double().sum(dim=1).cpu() / passes
                yield total


def corruption(
    process: Process, x0: Tokens, alphas: Tensor, latent: Latent, order: LevelOrder
) -> Trajectory:
    """The trajectory of x0 [n, L] whose reverse is the sampler with this latent.

    In masked diffusion the sampler starts from MASKs only. So a token of level u becomes visible at
    alpha_0 + (1 - alpha_0) u, as in `samplers.unmasking`.
    """
    noise = process.prior_from(uniform(latent.address(latent.everywhere, INITIAL_NOISE)))
    if process.mask_id is None:
        return Trajectory(x0, noise, latent.u)
    levels = order.of(latent, torch.ones_like(x0, dtype=torch.bool))
    return Trajectory(x0, noise, alphas[0] + (1 - alphas[0]) * levels)


def step_nats(
    denoiser: Denoiser,
    process: Process,
    path: Trajectory,
    alphas: Tensor,
    temperature: float = 1.0,
) -> Iterator[PerToken]:
    """Yield the nats [B, L] of each network call.

    With uniform noise, the first call includes the nats of the prior.
    """
    masked, x0 = process.mask_id is not None, path.x0
    prior: PerToken | float = 0.0 if masked else _prior_nats(process.vocab_size, alphas[0])
    for alpha_t, alpha_s in pairwise(alphas):
        a_t, a_s = alpha_t.expand(len(x0)), alpha_s.expand(len(x0))
        z_t, z_s = path.at(a_t), path.at(a_s)
        where = z_t != z_s if masked else torch.ones_like(x0, dtype=torch.bool)
        if not bool(where.any()):
            continue  # the sampler makes no call either
        prediction, (samples, columns) = denoiser(z_t, a_t), where.nonzero(as_tuple=True)
        nats = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
        broken = torch.zeros((), dtype=torch.bool, device=x0.device)
        rows = prediction.rows(where)
        for place, log_p in iter_log_probs(
            prediction, rows, (samples, columns), temperature, process.mask_id, broken
        ):
            if masked:
                value = -log_p.gather(-1, x0[place][:, None])[:, 0].double()
            else:
                value = _posterior_kl(process, log_p, x0[place], z_t[place], alpha_t, alpha_s)
            nats.index_put_(place, value)
        check_finite(broken)
        yield nats + prior
        prior = 0.0


def _posterior_kl(
    process: Process, log_p: Tensor, x0: Tokens, z_t: Tokens, alpha_t: Tensor, alpha_s: Tensor
) -> Tensor:
    """KL(q(z_s | z_t, x0) || q(z_s | z_t, p)) of m tokens with log p [m, V]: nats [m], float64."""
    levels = z_t[None], alpha_t[None], alpha_s[None]
    p = process.posterior(log_p.double().exp()[None], *levels)
    q = process.posterior(F.one_hot(x0, process.vocab_size).double()[None], *levels)
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)[0]


def _prior_nats(vocab_size: int, alpha: Tensor) -> Tensor:
    """KL(alpha x0 + (1 - alpha) / K || uniform noise) of one token at `alpha`, in nats."""
    stays = alpha + (1 - alpha) / vocab_size
    other = (1 - alpha) / vocab_size
    terms = torch.xlogy(stays, stays) + (vocab_size - 1) * torch.xlogy(other, other)
    return terms + torch.log(torch.tensor(float(vocab_size), dtype=torch.float64))
