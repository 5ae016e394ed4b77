"""The objective of Duo's teacher: the bound on soft Gaussian input, later the plain bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.diffusion.gaussian_input import check_sparse_input, sparse_input
from unmask.diffusion.processes import UniformProcess
from unmask.diffusion.schedules import GaussianArgmax, NoiseSchedule
from unmask.models.denoiser import NetworkDenoiser
from unmask.objectives.base import Loss, no_networks, no_preparation, student_turn
from unmask.objectives.nelbo import Nelbo
from unmask.rng import stratified
from unmask.types import Tokens


@dataclass(frozen=True)
class Curriculum:
    """The bound of uniform-state diffusion with Duo's curriculum (arXiv 2506.10892, Eq. 18).

    Before step `soft_steps`: t ~ U[t_min, 1) and w_t = alpha~ x0 + sigma~ eps at the snr_root(t) of
    `path`. The network reads softmax(w_t / temperature) and alpha_t, and the loss is the bound at
    z_t = arg max w_t. From step `soft_steps` on: `Nelbo` on `schedule`.

    Attributes:
        process: uniform noise
        schedule: noise schedule of the plain bound
        path: the Gaussian path. Its range of gamma is shorter than that of the schedule, and covers
            the levels at which a network learns most
        soft_steps: training steps with soft input
        temperature: tau of the softmax; 1e-3 in Duo's published runs
        top_k: number of tokens that the input keeps in addition to x0, see `sparse_input`
        t_min: the smallest t
    """

    process: UniformProcess
    schedule: NoiseSchedule
    path: GaussianArgmax
    soft_steps: int
    temperature: float = 1e-3
    top_k: int = 8
    t_min: float = 1e-3

    networks = frozen = no_networks
    turn = student_turn
    prepare = no_preparation

    def __post_init__(self) -> None:
        check_sparse_input(self.temperature, self.top_k, self.process.vocab_size)
        if self.path.vocab_size != self.process.vocab_size:
            raise ValueError(
                f"path has the wrong vocabulary: got vocab_size = {self.path.vocab_size}, want "
                f"{self.process.vocab_size} (that of process)"
            )

    def __call__(
        self,
        network: NetworkDenoiser,
        x0: Tokens,
        *,
        step: int,
        generator: torch.Generator | None = None,
    ) -> Loss:
        if step >= self.soft_steps:
            nelbo = Nelbo(self.process, self.schedule, self.t_min)
            return nelbo(network, x0, step=step, generator=generator)
        t = self.t_min + (1 - self.t_min) * stratified(len(x0), generator, x0.device)
        alpha_t = self.path.alpha(t)
        z_t, soft = sparse_input(
            x0,
            self.path.snr_root(t),
            self.process.vocab_size,
            self.temperature,
            self.top_k,
            generator,
        )
        per_token = self.process.nelbo(
            network(soft, alpha_t), x0, z_t, alpha_t, self.path.dalpha(t)
        )
        return Loss(per_token, torch.ones_like(per_token))
