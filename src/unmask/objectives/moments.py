"""Moment matching: distil by the difference between a critic of the student and the teacher.

Let p be the teacher, q the student and psi the critic. From the text x0 the objective draws

    z_t       noise at the level alpha_t ~ U(0, 1)
    x^        z_t with its noise replaced by draws from q(. | z_t)
    z_s       x^ with noise again, at the level alpha_s (`Renoising`)

and trains in turns

    critic    - sum_v [(1 - w) q_i(v | z_t) + w p_i(v | z_s)] log psi_i(v | z_s)
    student   sum_v q_i(v | z_t) [log psi_i(v | z_s) - log p_i(v | z_s)]
              + anchor KL(q_i(. | z_t) || p_i(. | z_t))

The bracket is a constant. For w = 0 the best critic is psi_i(. | z_s) = E[q_i(. | z_t) | z_s], the
prediction of the student as a function of z_s. The teacher predicts from z_s too, which contains
tokens of the student. So the student raises the tokens whose probability under p exceeds psi.

Sources: D-MMD (discrete moment matching, arXiv 2603.20155) and IDLM (inverse distillation, arXiv
2602.19066). The page docs/methods/moments.md names the choices of this library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unmask.diffusion.levels import LevelOrder, random_order
from unmask.diffusion.processes import Process
from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.trajectory import Trajectory, trajectory
from unmask.diffusion.vocabulary_losses import (
    cross_entropy,
    expected_log_ratio,
    forward_kl,
    leave_one_out,
    reverse_kl,
)
from unmask.limits import check_choice, check_range
from unmask.objectives.base import STUDENT, Loss, no_preparation
from unmask.prediction import Prediction
from unmask.rng import stratified
from unmask.types import Denoiser, PerSequence, Tokens

Renoising = Literal["bridge", "fresh", "mixed"]
Reward = Literal["soft", "leave-one-out"]
CRITIC = "critic"


@dataclass(frozen=True)
class Moments:
    """Moment matching of a diffusion model: the module has the formulas.

    Both losses are means over positions. That of the critic is over the noise of z_s, that of the
    student over positions that are noise in z_t and in z_s. At a visible token of z_t, the critic's
    target is that token in place of q.

    Attributes:
        process: the noise, masked or uniform
        teacher: a denoiser, p
        critic: a denoiser, psi, which starts as the teacher
        critic_start: first steps, in which only the critic is trained
        critic_steps: steps of the critic for each later step of the student
        reach: alpha_s - alpha_t ~ U(0, reach) for a bridge, with alpha_s at most 1
        renoising: "bridge": z_s ~ q(z_s | z_t, x^), so z_s keeps the tokens of z_t. "fresh": new
            noise on x^ at alpha_s ~ U(0, 1). "mixed": each half of the rows has one of them
        anchor: weight of the divergence from the teacher at z_t, >= 0
        teacher_share: w, the teacher's share of the critic's target, in [0, 1)
        reward: "soft": the sum over v. "leave-one-out": REINFORCE with `draws` tokens
            (`vocabulary_losses.leave_one_out`), whose gradient has the same mean
        draws: tokens of "leave-one-out", >= 2
        order: the joint law of the levels within a text
    """

    process: Process
    teacher: nn.Module
    critic: nn.Module
    critic_start: int = 40
    critic_steps: int = 1
    reach: float = 0.25
    renoising: Renoising = "bridge"
    anchor: float = 0.1
    teacher_share: float = 0.5
    reward: Reward = "soft"
    draws: int = 2
    order: LevelOrder = random_order

    prepare = no_preparation

    def __post_init__(self) -> None:
        check_range("critic_start", self.critic_start, self.critic_start >= 0, "at least 0")
        check_range("critic_steps", self.critic_steps, self.critic_steps >= 1, "at least 1")
        check_range("reach", self.reach, 0 < self.reach <= 1, "0 < reach <= 1")
        check_range("anchor", self.anchor, self.anchor >= 0, "anchor >= 0")
        share = self.teacher_share
        check_range("teacher_share", share, 0 <= share < 1, "0 <= teacher_share < 1")
        check_range("draws", self.draws, self.draws >= 2, "at least 2")
        check_choice("renoising", self.renoising, get_args(Renoising))
        check_choice("reward", self.reward, get_args(Reward))

    def networks(self) -> dict[str, nn.Module]:
        return {CRITIC: self.critic}

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def turn(self, step: int) -> str:
        """Critic only before `critic_start`; then `critic_steps` times the critic, the student."""
        later = step - self.critic_start
        alone = later < 0 or later % (self.critic_steps + 1) < self.critic_steps
        return CRITIC if alone else STUDENT

    def __call__(
        self, network: Denoiser, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        alpha_t = stratified(len(x0), generator, x0.device)
        path = trajectory(self.process, x0, generator, self.order)
        z_t = path.at(alpha_t)
        critics_turn = self.turn(step) == CRITIC
        with torch.set_grad_enabled(torch.is_grad_enabled() and not critics_turn):
            q = network(z_t, alpha_t)
        noised = self.process.is_noised(z_t)
        x_hat = z_t.masked_scatter(noised, q.sample(noised, 1, generator)[0])
        z_s, alpha_s = self._renoised(path, z_t, x_hat, alpha_t, generator)
        with torch.no_grad():
            p = self.teacher(z_s, alpha_s)
        if critics_turn:
            psi = self.critic(z_s, alpha_s)
            return self._critic_loss(psi, p, q, x_hat, noised, self.process.is_noised(z_s))
        with torch.no_grad():
            psi = self.critic(z_s, alpha_s)
            at_z_t = self.teacher(z_t, alpha_t) if self.anchor else None
        both = noised & self.process.is_noised(z_s)
        return self._student_loss(q, psi, p, at_z_t, both, generator)

    def _critic_loss(
        self, psi: Prediction, p: Prediction, q: Prediction, x_hat: Tokens, noised: Tensor,
        where: Tensor,
    ) -> Loss:  # fmt: skip
        """KL of the target's two parts from psi: the gradient is that of the cross-entropy."""
        both, shown = where & noised, where & ~noised
        per_token = (1 - self.teacher_share) * (
            scatter_rows(forward_kl(psi, q, both), both)
            + scatter_rows(cross_entropy(psi, x_hat, shown), shown)
        )
        if self.teacher_share:
            toward_p = scatter_rows(forward_kl(psi, p, where), where)
            per_token = per_token + self.teacher_share * toward_p
        return Loss(per_token, where.to(per_token))

    def _student_loss(
        self, q: Prediction, psi: Prediction, p: Prediction, at_z_t: Prediction | None,
        both: Tensor, generator: torch.Generator | None,
    ) -> Loss:  # fmt: skip
        if self.reward == "soft":
            reward = expected_log_ratio(q, psi, p, both)
        else:
            tokens = q.sample(both, self.draws, generator)
            reward = leave_one_out(q, psi, p, both, tokens)
        per_token = scatter_rows(reward, both)
        metrics = {"reward": reward.detach().sum() / both.sum()}
        if at_z_t is not None:
            distance = scatter_rows(reverse_kl(q, at_z_t, both), both)
            per_token = per_token + self.anchor * distance
            metrics["distance"] = distance.detach().sum() / both.sum()
        return Loss(per_token, both.to(per_token), metrics)

    def _renoised(
        self,
        path: Trajectory,
        z_t: Tokens,
        x_hat: Tokens,
        alpha_t: PerSequence,
        generator: torch.Generator | None,
    ) -> tuple[Tokens, PerSequence]:
        """z_s [B, L] and alpha_s [B]."""
        u = torch.rand(len(x_hat), generator=generator, dtype=torch.float64, device=x_hat.device)
        nearer = (alpha_t + self.reach * u).clamp(max=1)
        if self.renoising == "bridge":
            return bridge(self.process, path, z_t, x_hat, alpha_t, nearer, generator), nearer
        fresh = trajectory(self.process, x_hat, generator, self.order)
        if self.renoising == "fresh":
            return fresh.at(u), u
        first = torch.arange(len(u), device=u.device) < len(u) / 2
        kept = bridge(self.process, path, z_t, x_hat, alpha_t, nearer, generator)
        return kept.where(first[:, None], fresh.at(u)), nearer.where(first, u)


def bridge(
    process: Process,
    path: Trajectory,
    z_t: Tokens,
    x_hat: Tokens,
    alpha_t: PerSequence,
    alpha_s: PerSequence,
    generator: torch.Generator | None = None,
) -> Tokens:
    """Draw z_s ~ q(z_s | z_t, x^), the posterior of the process, at alpha_s >= alpha_t.

    In masked diffusion the levels of the path decide: the MASKs with alpha_t <= u < alpha_s become
    their token of x^. So the order of the path holds for z_s too. With uniform noise z_t alone does
    not determine which tokens are noise, so the posterior is drawn.

    Args:
        process: the noise.
        path: the trajectory of z_t.
        z_t: noisy tokens [B, L].
        x_hat: predicted tokens [B, L]; equal to z_t where z_t is not noise.
        alpha_t: the level of z_t, [B].
        alpha_s: the level of z_s, [B].
        generator: the source of randomness; None: torch's global generator.
    """
    if process.mask_id is not None:
        return Trajectory(x_hat, path.noise, path.u).at(alpha_s)
    agrees = (x_hat == z_t).double()
    keep, predict, _ = process.posterior_mixture(z_t, agrees, alpha_t, alpha_s)
    u = torch.rand(z_t.shape, generator=generator, dtype=torch.float64, device=z_t.device)
    noise = process.prior(z_t, generator)
    return z_t.where(u < keep, x_hat.where(u < keep + predict, noise))
