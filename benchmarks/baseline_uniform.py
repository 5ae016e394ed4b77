"""Uniform-state diffusion as Duo's code computes it: K Gaussians a token, and tables [B, L, K].

Reimplements its sampler and DCD (arXiv 2506.10892, Eq. 3 and section 4.2) on the library's network
with plain attention. Both have the distributions of the library's (tests/test_baselines.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from baseline_masked import SCHEDULE, gumbel_draw
from torch import Tensor, nn

from unmask.diffusion.schedules import GaussianArgmax
from unmask.objectives.base import Loss, no_networks, reset_teacher, student_turn, teacher_network
from unmask.objectives.rounds import Rounds
from unmask.rng import stratified


@torch.no_grad()
def sample(
    network: nn.Module, n: int, length: int, steps: int, generator: torch.Generator
) -> Tensor:
    """Duo's ancestral sampler: Gumbel-max over q(z_s | z_t, x0 ~ softmax), float64 [B, L, K]."""
    size = network.shape.vocab_size
    z = torch.randint(size, (n, length), generator=generator, device=generator.device)
    alphas = SCHEDULE.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    for alpha_t, alpha_s in zip(alphas[:-1], [*alphas[1:-1], 1.0], strict=True):
        sigma = -torch.full((n,), alpha_t, dtype=torch.float64, device=z.device).log()
        p_x0 = network(z, sigma).double().softmax(dim=-1)
        r = alpha_t / alpha_s
        at_z = alpha_t * size * p_x0.gather(-1, z[..., None]) + r - alpha_t
        weight = (
            p_x0.mul_(alpha_s - alpha_t)
            .add_((1 - r) * (1 - alpha_s) / size)
            .scatter_add_(-1, z[..., None], at_z)
        )
        z = gumbel_draw(weight, generator)
    return z


@dataclass(frozen=True)
class FullDcd:
    """DCD's loss: KL(student || teacher) at all tokens.

    z_t and z_s are the arg max of one Gaussian path [B, L, K] at two times.
    """

    schedule: GaussianArgmax
    teacher: nn.Module
    rounds: Rounds

    networks, frozen = no_networks, teacher_network
    turn = student_turn
    prepare = reset_teacher

    def __call__(
        self, network, x0: Tensor, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        delta = self.rounds.delta(step)
        t = 1 - (1 - delta) * stratified(len(x0), generator, x0.device)
        times = t, (t - delta).clamp(min=0)
        eps = torch.randn(*x0.shape, network.vocab_size, generator=generator, device=x0.device)
        z_t, z_s = (self._view(x0, eps, time) for time in times)
        sigma_t, sigma_s = (-self.schedule.alpha(time).log() for time in times)
        with torch.no_grad():
            log_q = self.teacher.network(z_s, sigma_s).log_softmax(dim=-1)
        log_p = network.network(z_t, sigma_t).log_softmax(dim=-1)
        per_token = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        return Loss(per_token, torch.ones_like(per_token))

    def _view(self, x0: Tensor, eps: Tensor, time: Tensor) -> Tensor:
        """arg max of alpha~ onehot(x0) + sigma~ eps."""
        root = self.schedule.snr_root(time)
        sigma = 1 / torch.hypot(torch.ones_like(root), root)
        w = eps * sigma.float()[:, None, None]
        own = (root * sigma).float()[:, None, None].expand(-1, x0.shape[1], 1)
        return w.scatter_add(2, x0[..., None], own).argmax(dim=-1)
