"""Train a uniform-state teacher as Duo does: softened Gaussian input first, the plain bound afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmask.diffusion.gaussian_input import check_sparse_input, sparse_input
from unmask.diffusion.processes import UniformProcess
from unmask.diffusion.schedules import GaussianArgmax, NoiseSchedule
from unmask.models.denoiser import NetworkDenoiser
from unmask.objectives.base import Loss, SingleNetwork
from unmask.objectives.nelbo import Nelbo
from unmask.rng import stratified
from unmask.types import Tokens


@dataclass(frozen=True)
class Curriculum(SingleNetwork):
    """The bound of uniform-state diffusion, on softened input before step `soft_steps` (Duo, arXiv 2506.10892, Eq. 18).

    While it is soft: t ~ U[t_min, 1), w_t = alpha~ x0 + sigma~ eps at `path`'s snr_root(t); the network reads
    softmax(w_t / temperature) and alpha_t, and the loss is the bound at z_t = arg max w_t. Afterwards: `Nelbo` on
    `schedule`.

    path         gamma range of the Gaussian: shorter than the schedule, where learning happens; the operator T
    temperature  tau of the softmax; 1e-3 in Duo's published runs
    top_k        rivals of x0 that the input keeps (see `sparse_input`)
    """

    process: UniformProcess
    schedule: NoiseSchedule
    path: GaussianArgmax
    soft_steps: int
    temperature: float = 1e-3
    top_k: int = 8
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_sparse_input(self.temperature, self.top_k, self.process.vocab_size)
        if self.path.vocab_size != self.process.vocab_size:
            raise ValueError(
                f"path is a Gaussian over the tokens of the process: want vocab_size = {self.process.vocab_size} of "
                f"both, got {self.path.vocab_size}"
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
            return Nelbo(self.process, self.schedule, self.t_min)(
                network, x0, step=step, generator=generator
            )
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
        nelbo = self.process.nelbo(network(soft, alpha_t), x0, z_t, alpha_t, self.path.dalpha(t))
        return Loss(nelbo, torch.ones_like(nelbo))
