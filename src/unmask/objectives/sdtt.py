"""Self-Distillation Through Time: one step of the student imitates several steps of its teacher.

Deschenaux and Gulcehre 2024, arXiv 2410.21035, Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import NoiseSchedule
from unmask.diffusion.trajectory import trajectory
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.vocabulary_losses import (
    Divergence,
    forward_kl,
    reverse_kl,
    squared_error,
    total_variation,
)
from unmask.objectives.base import Distillation, Loss
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction
from unmask.rng import stratified
from unmask.types import Denoiser, Tokens

Distance = Literal["reverse", "forward", "mse", "tvd"]
Faithful = Literal["paper", "released"]

DIVERGENCES: Mapping[Distance, Divergence] = MappingProxyType(
    {"reverse": reverse_kl, "forward": forward_kl, "mse": squared_error, "tvd": total_variation}
)


@dataclass(frozen=True)
class Sdtt(Distillation):
    """At the MASKs of z_t, the distance of the student's law from what `teacher_steps` steps of the teacher end in.

    The teacher walks from z_t in ancestral steps of `rounds.delta`; a token's target is the law that it was drawn from
    where the walk revealed it, and the last law of the walk where it did not. When a token is revealed follows from the
    u of the trajectory that made z_t: the randomness is locked, and no second draw decides it.

    divergence  "reverse" KL(student || teacher) or "forward"; "mse", the squared distance of the two rows of
                probabilities; "tvd", their total variation
    faithful    "paper": step j goes from t - j delta to t - (j + 1) delta.
                "released": the published code's slip in its grid of times. It starts step j at
                t_j = t a_j + (1 - t)(t - k delta), a_j falling evenly from 1 to 0 over the k steps, and reveals the
                share delta / t_j. For k = 2 the first step so reveals about delta / (t (2 - t)) of the MASKs in place
                of delta / t: half as many near t = 0, as many at t = 1. Nothing else differs, but that the published
                code takes "mse" and "tvd" of log-probabilities

    The mean is over the MASKs of z_t. t ~ U[t_min, 1), stratified.
    """

    process: MaskedProcess
    schedule: NoiseSchedule
    teacher: nn.Module
    rounds: Rounds
    teacher_steps: int = 2
    divergence: Distance = "reverse"
    faithful: Faithful = "paper"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if self.teacher_steps < 1:
            raise ValueError(
                f"teacher_steps is the length of the teacher's walk: want >= 1, got {self.teacher_steps}"
            )
        reach = self.teacher_steps * self.rounds.delta(self.rounds.total)
        if not reach < 1:
            raise ValueError(
                f"the teacher walks teacher_steps x delta through time, which ends at 1: want a product below 1, got "
                f"{reach:g} in the last round; take a smaller delta0, fewer rounds or fewer teacher_steps"
            )
        if {*self.rounds.temperatures} != {1.0}:
            raise ValueError(
                f"SDTT does not sharpen its teacher: want temperatures of 1, got {self.rounds.temperatures}"
            )
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"divergence is one of {', '.join(map(repr, DIVERGENCES))}: got {self.divergence!r}"
            )
        if self.faithful not in ("paper", "released"):
            raise ValueError(
                f"faithful says to what: want 'paper' or 'released', got {self.faithful!r}"
            )

    def __call__(
        self, network: Denoiser, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        t = self.t_min + (1 - self.t_min) * stratified(len(x0), generator, x0.device)
        alpha_t = self.schedule.alpha(t)
        path = trajectory(self.process, x0, generator)
        z_t = path.at(alpha_t)
        masked = self.process.is_noised(z_t)
        student = network(z_t, alpha_t)
        distance = DIVERGENCES[self.divergence]
        level = (path.u - alpha_t[:, None]) / (1 - alpha_t)[:, None]  # of a MASK: U[0, 1) again
        revealed = 1 - (1 - self._shares(t, self.rounds.delta(step))).cumprod(
            0
        )  # [k, B], of the MASKs of z_t
        z, left, per_token = z_t, masked, torch.zeros_like(path.u, dtype=torch.float32)
        for j in range(self.teacher_steps):
            with torch.no_grad():
                target = self.teacher(z, self._alpha(t, j, step))
            last = j == self.teacher_steps - 1
            due = left if last else left & (level < revealed[j][:, None])
            per_token = per_token + scatter_rows(distance(student, target, due), due)
            if not last:
                z, left = self._walk(z, target, due, generator), left & ~due
        round_ = torch.tensor(float(self.rounds.round(step)), device=t.device)
        return Loss(per_token, masked.to(per_token), {"round": round_})

    def _shares(self, t: Tensor, delta: float) -> Tensor:
        """The share of the MASKs at hand that each step of the walk reveals: float64 [k, B]."""
        steps = torch.arange(self.teacher_steps, dtype=t.dtype, device=t.device)[:, None]
        if self.faithful == "paper":
            before, after = (
                self.schedule.alpha((t - n * delta).clamp(min=0)) for n in (steps, steps + 1)
            )
            return (after - before) / (1 - before).clamp(min=2**-53)
        falling = 1 - steps / max(1, self.teacher_steps - 1)
        start = t * falling + (1 - t) * (t - self.teacher_steps * delta)
        return (delta / start).where(start > delta, 1.0)

    def _alpha(self, t: Tensor, j: int, step: int) -> Tensor:
        return self.schedule.alpha((t - j * self.rounds.delta(step)).clamp(min=0))

    @staticmethod
    def _walk(z: Tokens, law: Prediction, due: Tensor, generator: torch.Generator | None) -> Tokens:
        return z.masked_scatter(due, law.sample(due, 1, generator)[0])
