"""Masked diffusion as the original codes compute it: full tables [B, L, V] at every call.

Reimplements MDLM's and SDTT's codes (arXiv 2406.07524, 2410.21035) on the library's network with
plain attention. The sampler has the distribution of the library's sampler, and the losses equal the
library's losses term by term (tests/test_baselines.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.diffusion.schedules import LogLinear
from unmask.objectives.base import (
    Loss,
    no_networks,
    no_preparation,
    reset_teacher,
    student_turn,
    teacher_network,
)
from unmask.objectives.rounds import Rounds
from unmask.rng import stratified

SCHEDULE = LogLinear()
NEVER = -1e6


def subs(logits: Tensor, z: Tensor, mask_id: int) -> Tensor:
    """Logits [B, L, V] to log p [B, L, V]: MASK has probability 0, visible tokens are copied."""
    logits[:, :, mask_id] += NEVER
    log_p = logits - logits.logsumexp(dim=-1, keepdim=True)
    visible = z != mask_id
    log_p[visible] = NEVER
    log_p[visible, z[visible]] = 0.0
    return log_p


def gumbel_draw(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """arg max_v w_v / -log U_v over [B, L, V], in the precision of the weights."""
    u = torch.rand(weight.shape, dtype=weight.dtype, device=weight.device, generator=generator)
    return (weight / (1e-10 - (u + 1e-10).log())).argmax(dim=-1)


@torch.no_grad()
def sample(
    network: nn.Module, mask_id: int, n: int, length: int, steps: int, generator: torch.Generator
) -> Tensor:
    """MDLM's ancestral sampler with float64 draws. The last step unmasks all remaining tokens."""
    z = torch.full((n, length), mask_id, device=generator.device)
    alphas = SCHEDULE.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    for alpha_t, alpha_s in zip(alphas[:-1], [*alphas[1:-1], 1.0], strict=True):
        p_x0 = subs(network(z), z, mask_id).double().exp()
        weight = p_x0 * (alpha_s - alpha_t)
        weight[:, :, mask_id] = 1 - alpha_s
        z = torch.where(z == mask_id, gumbel_draw(weight, generator), z)
    return z


class FullBound:
    """MDLM's loss: -log p(x0) / t from a table [B, L, V], t >= 1e-3."""

    networks = frozen = no_networks
    turn = student_turn
    prepare = no_preparation

    def __call__(
        self, network, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        t = 1e-3 + (1 - 1e-3) * stratified(len(x0), generator, x0.device)
        u = torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
        alpha = SCHEDULE.alpha(t)
        z_t = x0.where(u < alpha[:, None], network.mask_id)
        log_p = subs(network.network(z_t), z_t, network.mask_id)
        surprise = -log_p.gather(-1, x0[..., None]).squeeze(-1)
        per_token = surprise * (-SCHEDULE.dalpha(t) / (1 - alpha)).to(surprise)[:, None]
        return Loss(per_token, torch.ones_like(per_token))


@dataclass(frozen=True)
class FullMcd:
    """MCD's loss (arXiv 2602.00792, Eq. 14) from two tables [B, L, V]."""

    teacher: nn.Module
    rounds: Rounds

    networks, frozen = no_networks, teacher_network
    turn = student_turn
    prepare = reset_teacher

    def __call__(
        self, network, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        delta, mask_id = self.rounds.delta(step), network.mask_id
        t = 1 - (1 - delta) * stratified(len(x0), generator, x0.device)
        u = torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
        z_t, z_s = (
            x0.where(u < SCHEDULE.alpha(time)[:, None], mask_id)
            for time in (t, (t - delta).clamp(min=0))
        )
        with torch.no_grad():
            log_q = subs(self.teacher.network(z_s) / self.rounds.temperature(step), z_s, mask_id)
        log_p = subs(network.network(z_t), z_t, mask_id)
        divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        reconstruction = -log_p.gather(-1, x0[..., None]).squeeze(-1)
        # A token that is visible in z_t adds -log 1 = 0.
        per_token = torch.where(z_s == mask_id, divergence, reconstruction)
        return Loss(per_token, torch.ones_like(per_token))


@dataclass(frozen=True)
class FullSdtt:
    """SDTT's loss: two passes of the teacher, one of the student, KL on tables [B, L, V]."""

    teacher: nn.Module
    rounds: Rounds

    networks, frozen = no_networks, teacher_network
    turn = student_turn
    prepare = reset_teacher

    def __call__(
        self, network, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        delta, mask_id = self.rounds.delta(step), network.mask_id
        t = 1e-5 + (1 - 1e-5) * stratified(len(x0), generator, x0.device)
        u = torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
        z_t = x0.where(u < SCHEDULE.alpha(t)[:, None], mask_id)
        masked = z_t == mask_id
        with torch.no_grad():
            target, z = None, z_t
            for j in range(2):
                log_q = subs(self.teacher.network(z), z, mask_id)
                target = (
                    log_q
                    if target is None
                    else torch.where((z == mask_id)[..., None], log_q, target)
                )
                alpha_t, alpha_s = (
                    SCHEDULE.alpha((t - k * delta).clamp(min=0))[:, None, None] for k in (j, j + 1)
                )
                weight = log_q.exp() * (alpha_s - alpha_t).float()
                weight[:, :, mask_id] = (1 - alpha_s).float().squeeze(-1)
                z = torch.where(z == mask_id, gumbel_draw(weight, generator), z)
        log_p = subs(network.network(z_t), z_t, mask_id)
        per_token = F.kl_div(target, log_p, log_target=True, reduction="none").sum(dim=-1) * masked
        return Loss(per_token, masked.to(per_token))
