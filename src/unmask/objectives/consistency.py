"""Consistency distillation: the student at z_t imitates the teacher at z_s, on one trajectory.

Masked (MCD): Latent Shadows, arXiv 2602.00792, section 3.3 and Algorithm 1. Uniform (DCD): Duo, arXiv 2506.10892,
section 4.2. In code the two differ in the process only. In what they come to they differ more: forward KL at tau = 1
leaves a perfect masked teacher where it is, and sharpens a uniform one (docs/papers.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unmask.diffusion.correlated_masking import Structure
from unmask.diffusion.processes import Process
from unmask.diffusion.schedules import GaussianArgmax, NoiseSchedule
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.vocabulary_losses import cross_entropy, forward_kl, reverse_kl
from unmask.objectives.base import Distillation, Loss
from unmask.objectives.rounds import Rounds
from unmask.prediction import Prediction
from unmask.rng import stratified
from unmask.types import Denoiser, PerToken, Tokens

Direction = Literal["reverse", "forward"]
Revealed = Literal["cross_entropy", "divergence", "none"]
Coupling = Literal["locked", "independent"]
Reduction = Literal["tokens", "masked"]


def distillation_loss(
    student: Prediction,
    teacher: Prediction,
    x0: Tokens,
    mask_t: Tensor,
    mask_s: Tensor,
    *,
    temperature: float = 1.0,
    direction: Direction = "reverse",
    revealed: Revealed = "cross_entropy",
) -> PerToken:
    """Eq. 14: sum_i m_s KL(p(.|z_t) || q(.|z_s; tau)) + (m_t - m_s) (-log p(x0|z_t)), a term a token.

    student, teacher  predictions at z_t and z_s; the teacher is detached
    mask_t, mask_s    bool [B, L], the MASKs of z_t and z_s
    temperature       tau of the teacher only; below 1 it sharpens
    direction         "reverse" KL(student || teacher), as Eq. 14 is written; "forward" KL(teacher || student)
    revealed          the term where only the teacher sees the token: Eq. 14's "cross_entropy"; the same "divergence"
                      as elsewhere (reverse: about 1e6 nats, the teacher's law is a point mass there; forward: equal to
                      the cross-entropy); or "none"

    Returns [B, L] nats >= 0: divergence on mask_t & mask_s, the revealed term on mask_t & ~mask_s, 0 elsewhere.
    """
    for name, mask in (("mask_t", mask_t), ("mask_s", mask_s)):
        if mask.dtype != torch.bool or mask.shape != x0.shape:
            raise ValueError(
                f"{name} marks MASKs, bool [B, L] = {tuple(x0.shape)}: got {mask.dtype} {tuple(mask.shape)}"
            )
    if direction not in ("reverse", "forward"):
        raise ValueError(
            f'direction of the divergence: want "reverse" or "forward", got {direction!r}'
        )
    if revealed not in ("cross_entropy", "divergence", "none"):
        raise ValueError(
            'revealed names the term where only the teacher sees: want "cross_entropy", "divergence" or "none", '
            f"got {revealed!r}"
        )
    divergence = reverse_kl if direction == "reverse" else forward_kl
    both, only_teacher = mask_t & mask_s, mask_t & ~mask_s
    distilled = mask_t if revealed == "divergence" else both
    loss = scatter_rows(divergence(student, teacher, distilled, temperature), distilled)
    if revealed == "cross_entropy":
        loss = loss + scatter_rows(cross_entropy(student, x0, only_teacher), only_teacher)
    return loss


@dataclass(frozen=True)
class Consistency(Distillation):
    """Algorithm 1: t ~ U(delta, 1], s = t - delta, z_t and z_s on one trajectory; teacher: the student of last round.

    process    masked: MCD. Uniform: Duo's DCD (arXiv 2506.10892, section 4.2), the divergence at every token, on the
               path of `GaussianArgmax`, whose coupled pair `Trajectory` draws with two numbers a token instead of K
    schedule   from t to the share of text left; that of the trajectory, which need not be that of the sampler
    coupling   "locked": both views read one u (Theorem 3.3); "independent": z_s has its own
    reduction  the mean is over all B L "tokens", as in Duo's DCD, or over the "masked" ones of z_t; the paper is silent
    revealed_weight  of the tokens that only the teacher sees, against 1 of the divergence; Eq. 14 has 1
    structure  of u along the text; None: independent tokens
    """

    process: Process
    schedule: NoiseSchedule
    teacher: nn.Module
    rounds: Rounds
    direction: Direction = "reverse"
    revealed: Revealed = "cross_entropy"
    coupling: Coupling = "locked"
    reduction: Reduction = "tokens"
    revealed_weight: float = 1.0
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if (
            isinstance(self.schedule, GaussianArgmax)
            and self.schedule.vocab_size != self.process.vocab_size
        ):
            raise ValueError(
                f"the Gaussian path has a coordinate a token: want vocab_size = {self.process.vocab_size}, got "
                f"{self.schedule.vocab_size}"
            )

    def __call__(
        self, network: Denoiser, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        delta = self.rounds.delta(step)
        t = 1 - (1 - delta) * stratified(len(x0), generator, x0.device)  # in (delta, 1]
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha((t - delta).clamp(min=0))
        path = self._path(x0, generator)
        z_t = path.at(alpha_t)
        z_s = (path if self.coupling == "locked" else self._path(x0, generator)).at(alpha_s)
        open_t, open_s = self.process.is_noised(z_t), self.process.is_noised(z_s)
        with torch.no_grad():
            target = self.teacher(z_s, alpha_s)
        per_token = distillation_loss(
            network(z_t, alpha_t),
            target,
            x0,
            open_t,
            open_s,
            temperature=self.rounds.temperature(step),
            direction=self.direction,
            revealed=self.revealed,
        )
        only_teacher = open_t & ~open_s
        if self.revealed_weight != 1:
            per_token = torch.where(only_teacher, self.revealed_weight * per_token, per_token)
        weight = torch.ones_like(per_token) if self.reduction == "tokens" else open_t.to(per_token)
        return Loss(
            per_token, weight, self._metrics(per_token.detach(), only_teacher, weight.sum(), step)
        )

    def _path(self, x0: Tokens, generator: torch.Generator | None) -> Trajectory:
        return trajectory(self.process, x0, generator, self.structure)

    def _metrics(
        self, per_token: Tensor, revealed: Tensor, weight: Tensor, step: int
    ) -> dict[str, Tensor]:
        """The two sums of Eq. 14, and the round, so that a loss that explodes can be explained."""
        reconstruction = (per_token * revealed).sum() / weight.clamp(min=1)
        distillation = (per_token * ~revealed).sum() / weight.clamp(min=1)
        round_ = torch.tensor(float(self.rounds.round(step)), device=weight.device)
        return {"distillation": distillation, "reconstruction": reconstruction, "round": round_}
