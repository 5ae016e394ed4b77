"""The objective of a diffusion teacher: the negative evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.diffusion.levels import LevelOrder, random_order
from unmask.diffusion.processes import Process
from unmask.diffusion.schedules import NoiseSchedule
from unmask.diffusion.trajectory import trajectory
from unmask.objectives.base import Loss, no_networks, no_preparation, student_turn
from unmask.rng import stratified
from unmask.types import Denoiser, Tokens


@dataclass(frozen=True)
class Nelbo:
    """The bound of the process, a mean over t ~ U[t_min, 1) (MDLM, arXiv 2406.07524, Eq. 10).

    The loss is a mean over all tokens. Each sequence has one t, stratified over the batch.

    Attributes:
        process: the noise
        schedule: maps t to the share of text left
        t_min: the smallest t. MDLM's `sampling_eps` is 1e-3, which bounds the weight 1 / t of the
            log-linear schedule by 1000
        order: the joint law of the levels within a text. The loss is a bound for independent levels
            only
    """

    process: Process
    schedule: NoiseSchedule
    t_min: float = 1e-3
    order: LevelOrder = random_order

    networks = frozen = no_networks
    turn = student_turn
    prepare = no_preparation

    def __call__(
        self, network: Denoiser, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        t = self.t_min + (1 - self.t_min) * stratified(len(x0), generator, x0.device)
        alpha_t = self.schedule.alpha(t)
        z_t = trajectory(self.process, x0, generator, self.order).at(alpha_t)
        nelbo = self.process.nelbo(network(z_t, alpha_t), x0, z_t, alpha_t, self.schedule.dalpha(t))
        return Loss(nelbo, torch.ones_like(nelbo))
