"""Consistency distillation: the student at z_t imitates the teacher at z_s, on one trajectory.

With masked noise this is MCD: Latent Shadows, arXiv 2602.00792, section 3.3 and Algorithm 1. With
uniform noise it is DCD: Duo, arXiv 2506.10892, section 4.2. In the code only the process differs.
The optima differ too: forward KL at tau = 1 leaves a perfect masked teacher unchanged, but sharpens
a perfect uniform-state teacher (docs/papers.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unmask.diffusion.levels import LevelOrder, random_order
from unmask.diffusion.processes import Process
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.schedules import GaussianArgmax, NoiseSchedule
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.diffusion.vocabulary_losses import cross_entropy, forward_kl, reverse_kl
from unmask.limits import check_choice
from unmask.objectives.base import Loss, no_networks, reset_teacher, student_turn, teacher_network
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
    """The loss of MCD (Latent Shadows, arXiv 2602.00792, Eq. 14), a term for each token.

        m_s KL(p(.|z_t) || q(.|z_s; tau)) + (m_t - m_s) (-log p(x0|z_t))

    Args:
        student: p, the prediction at z_t.
        teacher: q, the prediction at z_s; it is detached.
        x0: token ids [B, L].
        mask_t: m_t, bool [B, L], the MASKs of z_t.
        mask_s: m_s, bool [B, L], the MASKs of z_s.
        temperature: tau, of the teacher only; a value below 1 sharpens its prediction.
        direction: "reverse" is KL(student || teacher) as in Eq. 14, "forward" is
            KL(teacher || student).
        revealed: the term of a token that is visible to the teacher only. "cross_entropy" is that
            of Eq. 14. "divergence" is the divergence of the other tokens. The teacher's prediction
            of a visible token is a point mass, so reverse KL is about 1e6 nats, and forward KL
            equals the cross-entropy. "none" is 0.

    Returns:
        [B, L] nats >= 0: the divergence on mask_t & mask_s, the `revealed` term on
        mask_t & ~mask_s, 0 elsewhere.
    """
    for name, mask in (("mask_t", mask_t), ("mask_s", mask_s)):
        if mask.dtype != torch.bool or mask.shape != x0.shape:
            raise ValueError(
                f"{name} has the wrong type or shape: got {mask.dtype} {tuple(mask.shape)}, want "
                f"bool [B, L] = {tuple(x0.shape)} (the MASKs)"
            )
    check_choice("direction", direction, get_args(Direction))
    check_choice("revealed", revealed, get_args(Revealed))
    divergence = reverse_kl if direction == "reverse" else forward_kl
    only_teacher = mask_t & ~mask_s
    distilled = mask_t if revealed == "divergence" else mask_t & mask_s
    loss = scatter_rows(divergence(student, teacher, distilled, temperature), distilled)
    if revealed == "cross_entropy":
        loss = loss + scatter_rows(cross_entropy(student, x0, only_teacher), only_teacher)
    return loss


@dataclass(frozen=True)
class Consistency:
    """Algorithm 1 of MCD: t ~ U(delta, 1], s = t - delta, z_t and z_s on one trajectory.

    The teacher has the student's weights from the start of the round.

    Attributes:
        process: the noise: masked for MCD, uniform for Duo's DCD. DCD has the divergence at every
            token, on the path of `GaussianArgmax`. `Trajectory` draws its coupled pair with two
            numbers a token instead of K
        schedule: maps t to the share of text left; the sampler may use another
        teacher: a denoiser
        rounds: delta, the teacher's temperature and the hard resets
        direction: see `distillation_loss`
        revealed: see `distillation_loss`
        coupling: "locked": z_t and z_s share one u (Theorem 3.3). "independent": each has its own
        reduction: "tokens": the mean over all B L tokens, as in Duo's DCD. "masked": the mean over
            the noised tokens of z_t. The paper does not specify the reduction
        revealed_weight: factor of the tokens that are visible to the teacher only; 1 in Eq. 14
        order: the joint law of the levels u within a text
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
    order: LevelOrder = random_order

    networks = no_networks
    frozen = teacher_network
    turn = student_turn
    prepare = reset_teacher

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, get_args(Direction))
        check_choice("revealed", self.revealed, get_args(Revealed))
        check_choice("coupling", self.coupling, get_args(Coupling))
        check_choice("reduction", self.reduction, get_args(Reduction))
        size = self.process.vocab_size
        if isinstance(self.schedule, GaussianArgmax) and self.schedule.vocab_size != size:
            raise ValueError(
                f"schedule has the wrong vocabulary: got vocab_size = {self.schedule.vocab_size}, "
                f"want {size} (that of process)"
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
        mask_t, mask_s = self.process.is_noised(z_t), self.process.is_noised(z_s)
        with torch.no_grad():
            target = self.teacher(z_s, alpha_s)
        per_token = distillation_loss(
            network(z_t, alpha_t),
            target,
            x0,
            mask_t,
            mask_s,
            temperature=self.rounds.temperature(step),
            direction=self.direction,
            revealed=self.revealed,
        )
        only_teacher = mask_t & ~mask_s
        if self.revealed_weight != 1:
            per_token = torch.where(only_teacher, self.revealed_weight * per_token, per_token)
        weight = torch.ones_like(per_token) if self.reduction == "tokens" else mask_t.to(per_token)
        metrics = self._metrics(per_token.detach(), only_teacher, weight.sum(), step)
        return Loss(per_token, weight, metrics)

    def _path(self, x0: Tokens, generator: torch.Generator | None) -> Trajectory:
        return trajectory(self.process, x0, generator, self.order)

    def _metrics(
        self, per_token: Tensor, revealed: Tensor, weight: Tensor, step: int
    ) -> dict[str, Tensor]:
        """The round and the two sums of Eq. 14, which help to diagnose a diverging loss."""
        reconstruction = (per_token * revealed).sum() / weight.clamp(min=1)
        distillation = (per_token * ~revealed).sum() / weight.clamp(min=1)
        round_ = torch.tensor(float(self.rounds.round(step)), device=weight.device)
        return {"distillation": distillation, "reconstruction": reconstruction, "round": round_}
