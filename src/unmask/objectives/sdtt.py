"""Self-Distillation Through Time: one step of the student imitates several steps of the teacher.

Deschenaux and Gulcehre 2024, arXiv 2410.21035, Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.schedules import NoiseSchedule
from unmask.diffusion.trajectory import trajectory
from unmask.diffusion.vocabulary_losses import (
    Divergence,
    forward_kl,
    reverse_kl,
    squared_error,
    total_variation,
)
from unmask.limits import check_choice, check_range
from unmask.objectives.base import Loss, no_networks, reset_teacher, student_turn, teacher_network
from unmask.objectives.rounds import Rounds
from unmask.rng import stratified
from unmask.types import Denoiser, Tokens

Distance = Literal["reverse", "forward", "mse", "tvd"]
TimeGrid = Literal["paper", "released"]

DIVERGENCES: Mapping[Distance, Divergence] = MappingProxyType(
    {"reverse": reverse_kl, "forward": forward_kl, "mse": squared_error, "tvd": total_variation}
)


@dataclass(frozen=True)
class Sdtt:
    """The distance between the student at z_t and several steps of its teacher from z_t.

    The teacher takes k = `teacher_steps` ancestral steps of length `rounds.delta`. The target of a
    token is the teacher's prediction in the step that unmasks it. For a token that stays masked, it
    is the last prediction. The u of the trajectory that made z_t fixes the step that unmasks each
    token, so only the tokens are drawn.

    The loss is a mean over the MASKs of z_t. t ~ U[t_min, 1), stratified.

    The time grid "paper" takes step j from t - j delta to t - (j + 1) delta. The grid "released" is
    that of the published code. There step j unmasks the share delta / t_j, with

        t_j = t a_j + (1 - t)(t - k delta),  a_j falls evenly from 1 to 0 over the k steps.

    For k = 2 its first step unmasks about delta / (t (2 - t)) of the MASKs instead of delta / t.
    These are half as many near t = 0, and as many at t = 1. The published code also computes "mse"
    and "tvd" of log-probabilities. This option does not.

    Attributes:
        process: masked noise
        schedule: maps t to the share of text left
        teacher: a denoiser
        rounds: delta and the hard resets; all temperatures are 1
        teacher_steps: k, steps of the teacher for one step of the student, >= 1
        divergence: "reverse" KL(student || teacher), "forward" KL(teacher || student), "mse" (the
            squared distance of the probabilities) or "tvd" (their total variation)
        time_grid: "paper" or "released"
        t_min: the smallest t
    """

    process: MaskedProcess
    schedule: NoiseSchedule
    teacher: nn.Module
    rounds: Rounds
    teacher_steps: int = 2
    divergence: Distance = "reverse"
    time_grid: TimeGrid = "paper"
    t_min: float = 1e-5

    networks = no_networks
    frozen = teacher_network
    turn = student_turn
    prepare = reset_teacher

    def __post_init__(self) -> None:
        check_range("teacher_steps", self.teacher_steps, self.teacher_steps >= 1, "at least 1")
        reach = self.teacher_steps * self.rounds.delta(self.rounds.total)
        want = "less than 1, the whole time; give a smaller delta0, fewer rounds or teacher_steps"
        check_range("teacher_steps x delta", f"{reach:g} in the last round", reach < 1, want)
        temperatures = self.rounds.temperatures
        want = "1 in each round, because SDTT does not sharpen its teacher"
        check_range("temperatures", temperatures, {*temperatures} == {1.0}, want)
        check_choice("divergence", self.divergence, tuple(DIVERGENCES))
        check_choice("time_grid", self.time_grid, get_args(TimeGrid))

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
        # The u of a MASK is uniform on [alpha_t, 1). The level is uniform on [0, 1).
        level = (path.u - alpha_t[:, None]) / (1 - alpha_t)[:, None]
        # Share of the MASKs of z_t that is unmasked by the end of each step, [k, B].
        unmasked = 1 - (1 - self._shares(t, self.rounds.delta(step))).cumprod(0)
        z, left, per_token = z_t, masked, torch.zeros_like(path.u, dtype=torch.float32)
        for j in range(self.teacher_steps):
            with torch.no_grad():
                target = self.teacher(z, self._alpha(t, j, step))
            last = j == self.teacher_steps - 1
            due = left if last else left & (level < unmasked[j][:, None])
            per_token = per_token + scatter_rows(distance(student, target, due), due)
            if not last:
                tokens = target.sample(due, 1, generator)[0]
                z, left = z.masked_scatter(due, tokens), left & ~due
        round_ = torch.tensor(float(self.rounds.round(step)), device=t.device)
        return Loss(per_token, masked.to(per_token), {"round": round_})

    def _shares(self, t: Tensor, delta: float) -> Tensor:
        """The share of the remaining MASKs that each teacher step unmasks, float64 [k, B]."""
        steps = torch.arange(self.teacher_steps, dtype=t.dtype, device=t.device)[:, None]
        if self.time_grid == "paper":
            before, after = (
                self.schedule.alpha((t - n * delta).clamp(min=0)) for n in (steps, steps + 1)
            )
            return (after - before) / (1 - before).clamp(min=2**-53)
        a = 1 - steps / max(1, self.teacher_steps - 1)
        start = t * a + (1 - t) * (t - self.teacher_steps * delta)
        return (delta / start).where(start > delta, 1.0)

    def _alpha(self, t: Tensor, j: int, step: int) -> Tensor:
        """The share of text left at the start of teacher step j."""
        return self.schedule.alpha((t - j * self.rounds.delta(step)).clamp(min=0))
