"""The two ways to ruin a text: cover its tokens, or replace them by random ones.

A process is three things: what noise is (`prior`), one exact step back (`posterior`, a mixture of `posterior_mixture`), and the
price of a model's guess (`nelbo`). Both forward processes are `Trajectory`: a token is itself with probability alpha,
else noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.schedules import check_unit
from unmask.diffusion.vocabulary_losses import (
    Rows,
    cross_entropy,
    row_loss,
    scatter_rows,
    softmax_backward,
)
from unmask.prediction import Prediction
from unmask.types import PerSequence, PerToken, Probs, Tokens


class PosteriorMixture(NamedTuple):
    """q(z_s | z_t, x0 ~ p) = keep [z_s = z_t] + predict p + noise noise: weights [B, L] float64 of sum 1.

    Where p_z is part of them, predict and noise fall as it grows.
    """

    keep: Tensor
    predict: Tensor
    noise: Tensor


class Process(Protocol):
    """A forward process over tokens 0 .. vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """Pure noise in the shape of `like` [B, L]."""
        ...

    def is_noised(self, z: Tokens) -> Tensor:
        """Where z [B, L] leaves open what the text is, bool [B, L]: elsewhere a token of z is the text's own."""
        ...

    def forward(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """The law of z at alpha [B], x0 ~ p_x0 [B, L, V]: alpha p_x0 + (1 - alpha) noise, probabilities [B, L, V]."""
        ...

    def noise(self, u: Tensor) -> Tokens:
        """The token of pure noise that a number u of (0, 1) names, in the shape of u."""
        ...

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """The posterior as a mixture: it depends on the law of x0 by p_z = p(x0 = z_t) [B, L] and `PosteriorMixture` alone."""
        ...

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """q(z_s | z_t, x0), alpha_s >= alpha_t, with a guess p_x0 [B, L, V] in place of x0: probabilities [B, L, V]."""
        ...

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """The integrand of the negative evidence lower bound at t, [B, L] nats >= 0; -dalpha_t is multiplied in."""
        ...


@dataclass(frozen=True)
class MaskedProcess:
    """Absorbing-state noise: a token is itself or MASK (MDLM, Sahoo et al. 2024, arXiv 2406.07524).

    vocab_size counts MASK; `mask_id` is one of 0 .. vocab_size - 1.
    """

    vocab_size: int
    mask_id: int

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocab_size)
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"mask_id is a row of the vocabulary: want 0 <= mask_id < {self.vocab_size} = vocab_size, "
                f"got {self.mask_id}"
            )

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """All MASK."""
        return torch.full_like(like, self.mask_id)

    def is_noised(self, z: Tokens) -> Tensor:
        """The MASKs."""
        return z == self.mask_id

    def forward(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """alpha p_x0 + (1 - alpha) [MASK]."""
        mask = F.one_hot(torch.tensor(self.mask_id, device=p_x0.device), self.vocab_size).to(p_x0)
        return _as(alpha, p_x0) * p_x0 + _as(1 - alpha, p_x0) * mask

    def noise(self, u: Tensor) -> Tokens:
        """MASK."""
        return torch.full_like(u, self.mask_id, dtype=torch.int64)

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """A shown token stays; a MASK is revealed at rate (alpha_s - alpha_t) / (1 - alpha_t) (MDLM, Eq. 6)."""
        alpha_t, alpha_s = _levels(alpha_t, alpha_s)
        rate = ((alpha_s - alpha_t) / (1 - alpha_t)).where(alpha_t < 1, 1.0)[:, None]
        predict = rate.where(self.is_noised(z_t), 0.0)
        return PosteriorMixture(1 - predict, predict, torch.zeros_like(predict))

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """The mixture of `posterior_mixture`."""
        p_z = p_x0.gather(-1, z_t[..., None])
        keep, predict, _ = (
            w.to(p_x0)[..., None]
            for w in self.posterior_mixture(z_t, p_z.squeeze(-1), alpha_t, alpha_s)
        )
        return (predict * p_x0).scatter_add(-1, z_t[..., None], keep)

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """-alpha'_t / (1 - alpha_t) * -log p(x0) at every MASK (MDLM, Eq. 10): log-linear, the cross-entropy over t."""
        check_unit(alpha_t, "alpha")
        masked = z_t == self.mask_id
        weight = -dalpha_t.double() / (1 - alpha_t.double())
        return scatter_rows(cross_entropy(prediction, x0, masked, weight), masked)


@dataclass(frozen=True)
class UniformProcess:
    """Uniform-state noise: a token is itself or any token at all (Duo, Sahoo et al. 2025, arXiv 2506.10892).

    Its formulae are exact for the leave-one-out law of x0_i, given the other positions (see `Denoiser`).
    """

    vocab_size: int

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocab_size)

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """Uniform tokens."""
        return torch.randint(
            self.vocab_size, like.shape, generator=generator, dtype=like.dtype, device=like.device
        )

    def is_noised(self, z: Tokens) -> Tensor:
        """Everywhere: any token may be noise."""
        return torch.ones_like(z, dtype=torch.bool)

    def forward(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """alpha p_x0 + (1 - alpha) / K."""
        return _as(alpha, p_x0) * p_x0 + _as(1 - alpha, p_x0) / self.vocab_size

    def noise(self, u: Tensor) -> Tokens:
        """Each token for an equal part of (0, 1)."""
        return (u * self.vocab_size).long()

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """Bayes' rule with r = a_t / a_s and K tokens (Duo, Eq. 3), all over a_t K p_z + 1 - a_t:

        keep a_t K p_z + r - a_t, predict a_s - a_t, noise (1 - r) (1 - a_s)
        """
        alpha_t, alpha_s = (alpha[:, None] for alpha in _levels(alpha_t, alpha_s))
        r = (alpha_t / alpha_s).where(alpha_s > 0, 1.0)
        own = self.vocab_size * alpha_t * p_z.double()
        total = own + (1 - alpha_t)
        moves = total > 0  # else no noise is left, and p excludes what is seen
        return PosteriorMixture(
            keep=((own + (r - alpha_t)) / total).where(moves, 1.0),
            predict=((alpha_s - alpha_t) / total).where(moves, 0.0),
            noise=((1 - r) * (1 - alpha_s) / total).where(moves, 0.0),
        )

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """The mixture of `posterior_mixture`."""
        p_z = p_x0.gather(-1, z_t[..., None])
        keep, predict, noise = (
            w.to(p_x0)[..., None]
            for w in self.posterior_mixture(z_t, p_z.squeeze(-1), alpha_t, alpha_s)
        )
        return (predict * p_x0 + noise / self.vocab_size).scatter_add(-1, z_t[..., None], keep)

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """lim KL(q(z_s | z_t, x0) || p(z_s | z_t)) / dt, Rao-Blackwellised (Duo, Eq. 12), at every position."""
        check_unit(alpha_t, "alpha")
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        inside = alpha_t.double().clamp(
            max=1 - 2**-53
        )  # at 1 the bound has a limit, its formula has 0 / 0
        alpha = inside[:, None].expand(x0.shape).flatten()
        slope = -dalpha_t.double()[:, None].expand(x0.shape).flatten()
        rule = UniformNelbo(x0.flatten(), z_t.flatten(), alpha, slope, self.vocab_size)
        return scatter_rows(row_loss(prediction, rule, prediction.rows(None)), everywhere)


@dataclass(frozen=True)
class UniformNelbo:
    """The row rule of Duo's bound. With y_j = K a p_j + 1 - a and c = -a' / (K a):

    value = c (K/y_z - K/y_z(x0) + A (K log y_z - S) + B [x0 != z] (log y_z - log y_x0) + const), S = sum_j log y_j,
    A = kappa if x0 = z else 1, B = K a / (1 - a), kappa = (1 - a) / (K a + 1 - a); zero where p is x0's point mass.
    What belongs to z and x0 alone nearly cancels and is worked in float64, a number a row. S - K log(1 - a) is summed
    in float64 over log(1 + B p_j), terms in the precision of log p.
    """

    x0: Tensor  # [N]
    z: Tensor  # [N]
    alpha: Tensor  # [N] float64
    slope: Tensor  # [N] float64, -alpha'
    size: int  # K

    def at(self, chunk: Rows) -> UniformNelbo:
        return self

    def _terms(self, log_p: Tensor, rows: Rows) -> _RateTerms:
        """Numbers of a row, float64 [n]."""
        size, alpha, same = self.size, self.alpha[rows], self.x0[rows] == self.z[rows]
        log_p_z, log_p_x = (
            log_p.gather(-1, token[rows, None]).squeeze(-1).double() for token in (self.z, self.x0)
        )
        kappa = (1 - alpha) / (size * alpha + 1 - alpha)
        return _RateTerms(
            same=same,
            p_z=log_p_z.exp(),
            kappa=kappa,
            y_z=size * alpha * log_p_z.exp() + 1 - alpha,
            y_x=size * alpha * log_p_x.exp() + 1 - alpha,
            short=size * alpha * torch.where(same, -torch.expm1(log_p_z), -log_p_z.exp()),
            own=torch.where(same, kappa, 1.0),
            other=torch.where(same, 0.0, size * alpha / (1 - alpha)),
            scale=(self.slope[rows] / (size * alpha)).where(alpha > 0, 0.0),
        )

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return self._value(log_p.exp(), rows, self._terms(log_p, rows)).to(log_p.dtype)

    def _value(self, p: Tensor, rows: Rows, of: _RateTerms) -> Tensor:
        """Of p [n, V], float64."""
        size, alpha = self.size, self.alpha[rows]
        gain = size * alpha / (1 - alpha)
        total = p.mul(gain[:, None].to(p)).log1p_().sum(-1, dtype=torch.float64)
        log_y_z = of.y_z.log()
        constant = torch.where(of.same, (size - 1) * of.kappa, -1 / of.kappa) * of.kappa.log()
        rate = (
            size * of.short / (of.y_z * (of.y_z + of.short))
            + of.own * (size * torch.log1p(gain * of.p_z) - total)
            + of.other * (log_y_z - of.y_x.log())
            + constant
        )
        return (of.scale * rate).clamp(min=0)  # rounding

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        size, of, p, alpha = (
            self.size,
            self._terms(log_p, rows),
            log_p.exp_(),
            self.alpha[rows, None],
        )
        value = self._value(p, rows, of).to(p.dtype)
        unit = of.scale[:, None] * size * alpha  # d y / d p, and the factor in front
        y = (p * (size * alpha).to(p)).add_((1 - alpha).to(p))
        slope = y.reciprocal_().mul_((-of.own[:, None] * unit).to(p))
        at_z = (of.own * size + of.other) / of.y_z - size / of.y_z**2
        slope.scatter_add_(-1, self.z[rows, None], (at_z[:, None] * unit).to(p))
        slope.scatter_add_(-1, self.x0[rows, None], (-(of.other / of.y_x)[:, None] * unit).to(p))
        return value, softmax_backward(p, slope)


class _RateTerms(NamedTuple):
    """What `UniformNelbo` needs of z and x0, [n]; `short` is y_z(x0) - y_z, how far z falls short of the truth."""

    same: Tensor
    p_z: Tensor
    kappa: Tensor
    y_z: Tensor
    y_x: Tensor
    short: Tensor
    own: Tensor
    other: Tensor
    scale: Tensor


def _levels(alpha_t: PerSequence, alpha_s: PerSequence) -> tuple[PerSequence, PerSequence]:
    check_unit(alpha_t, "alpha")
    check_unit(alpha_s, "alpha")
    if alpha_t.device.type == "cpu" and bool((alpha_s < alpha_t).any()):
        raise ValueError(
            f"alpha_s is the share of text left one step back: want alpha_s >= alpha_t, got {alpha_s.tolist()} and "
            f"{alpha_t.tolist()}; are they swapped?"
        )
    return alpha_t.double(), alpha_s.double()


def _as(alpha: PerSequence, table: Probs) -> Tensor:
    return alpha.to(table)[:, None, None]


def _check_vocabulary(vocab_size: int) -> None:
    if vocab_size < 2:
        raise ValueError(
            f"vocab_size counts the tokens, MASK included: want vocab_size >= 2, got {vocab_size}"
        )
