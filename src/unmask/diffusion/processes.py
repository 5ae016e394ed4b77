"""The two forward processes: absorbing noise (MASK) and uniform noise.

Both keep a token with probability alpha and replace it by noise otherwise (see `Trajectory`).
A process defines its noise (`prior`), one exact reverse step (`posterior`, as a mixture in
`posterior_mixture`), and its evidence bound (`nelbo`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.row_losses import compute_row_loss, scatter_rows
from unmask.diffusion.schedules import check_unit
from unmask.diffusion.uniform_nelbo import uniform_nelbo
from unmask.diffusion.vocabulary_losses import cross_entropy
from unmask.prediction import Prediction
from unmask.types import PerSequence, PerToken, Probs, Tokens


class PosteriorMixture(NamedTuple):
    """q(z_s | z_t, x0 ~ p) = keep [z_s = z_t] + predict p + noise prior.

    The weights are [B, L] float64 and sum to 1. They depend on p through p(x0 = z_t) only, and
    `predict` and `noise` never increase in it.
    """

    keep: Tensor
    predict: Tensor
    noise: Tensor


class Process(Protocol):
    """A forward process over tokens 0 .. vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def mask_id(self) -> int | None:
        """The id of MASK; None if the noise is made of tokens."""
        ...

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """Draw pure noise in the shape of `like` [B, L]."""
        ...

    def is_noised(self, z: Tokens) -> Tensor:
        """Select the positions where z [B, L] may be noise, bool [B, L]. Elsewhere z equals x0."""
        ...

    def marginal(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """The marginal law of z at alpha [B] for x0 ~ p_x0: alpha p_x0 + (1 - alpha) noise.

        Probabilities [B, L, V].
        """
        ...

    def prior_from(self, u: Tensor) -> Tokens:
        """Turn uniform numbers u in (0, 1) into tokens of pure noise, in the shape of u."""
        ...

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """The posterior q(z_s | z_t, x0) as a mixture.

        Args:
            z_t: noisy tokens [B, L].
            p_z: the probability p(x0 = z_t), [B, L].
            alpha_t: the share of text left in z_t, [B].
            alpha_s: the share of text left in z_s, [B], >= alpha_t.
        """
        ...

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """The reverse posterior q(z_s | z_t, x0) with a prediction p_x0 in place of x0.

        Args:
            p_x0: probabilities [B, L, V].
            z_t: noisy tokens [B, L].
            alpha_t: the share of text left in z_t, [B].
            alpha_s: the share of text left in z_s, [B], >= alpha_t.

        Returns:
            Probabilities of z_s, [B, L, V], in the dtype of `p_x0`.
        """
        ...

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """The integrand at t of the negative evidence lower bound.

        Args:
            prediction: the model's prediction from z_t.
            x0: the text [B, L].
            z_t: noisy tokens [B, L].
            alpha_t: the share of text left in z_t, [B].
            dalpha_t: its derivative with respect to t, [B], <= 0.

        Returns:
            [B, L] nats >= 0. The factor -dalpha_t is included.
        """
        ...


@dataclass(frozen=True)
class MaskedProcess:
    """Absorbing noise: a token is itself or MASK (MDLM, Sahoo et al. 2024, arXiv 2406.07524).

    Attributes:
        vocab_size: V, MASK included
        mask_id: in 0 .. vocab_size - 1
    """

    vocab_size: int
    mask_id: int

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocab_size)
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(
                f"mask_id is out of range: got {self.mask_id}, want 0 <= mask_id < "
                f"{self.vocab_size} (vocab_size)"
            )

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """Return MASK at every position."""
        return torch.full_like(like, self.mask_id)

    def is_noised(self, z: Tokens) -> Tensor:
        """Return True at each MASK."""
        return z == self.mask_id

    def marginal(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """The law of z: alpha p_x0 + (1 - alpha) [z = MASK]."""
        mask = F.one_hot(torch.tensor(self.mask_id, device=p_x0.device), self.vocab_size).to(p_x0)
        return _like(alpha, p_x0) * p_x0 + _like(1 - alpha, p_x0) * mask

    def prior_from(self, u: Tensor) -> Tokens:
        """Return MASK for each number."""
        return torch.full_like(u, self.mask_id, dtype=torch.int64)

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """Keep a visible token; unmask a MASK with probability r (MDLM, Eq. 6).

        r = (alpha_s - alpha_t) / (1 - alpha_t)
        """
        alpha_t, alpha_s = _levels(alpha_t, alpha_s)
        rate = ((alpha_s - alpha_t) / (1 - alpha_t)).where(alpha_t < 1, 1.0)[:, None]
        predict = rate.where(self.is_noised(z_t), 0.0)
        return PosteriorMixture(keep=1 - predict, predict=predict, noise=torch.zeros_like(predict))

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """The law keep [z_s = z_t] + predict p, with the weights of `posterior_mixture`."""
        return _posterior(self, p_x0, z_t, alpha_t, alpha_s)

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """The integrand -alpha'_t / (1 - alpha_t) * -log p(x0) at MASKs, else 0 (MDLM, Eq. 10).

        For the log-linear schedule this is the cross-entropy divided by t.
        """
        check_unit(alpha_t, "alpha")
        masked = self.is_noised(z_t)
        weight = -dalpha_t.double() / (1 - alpha_t.double())
        return scatter_rows(cross_entropy(prediction, x0, masked, weight), masked)


@dataclass(frozen=True)
class UniformProcess:
    """Uniform noise: a token is itself or a uniform one (Duo, Sahoo et al. 2025, arXiv 2506.10892).

    `posterior` and `nelbo` are exact if the prediction is the leave-one-out law (see `Denoiser`).
    """

    vocab_size: int

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocab_size)

    @property
    def mask_id(self) -> None:
        """None: there is no MASK."""
        return None

    def prior(self, like: Tokens, generator: torch.Generator | None = None) -> Tokens:
        """Draw uniform tokens."""
        return torch.randint(
            self.vocab_size, like.shape, generator=generator, dtype=like.dtype, device=like.device
        )

    def is_noised(self, z: Tokens) -> Tensor:
        """Return True at every position, because any token may be noise."""
        return torch.ones_like(z, dtype=torch.bool)

    def marginal(self, p_x0: Probs, alpha: PerSequence) -> Probs:
        """The law of z: alpha p_x0 + (1 - alpha) / K."""
        return _like(alpha, p_x0) * p_x0 + _like(1 - alpha, p_x0) / self.vocab_size

    def prior_from(self, u: Tensor) -> Tokens:
        """Map equal parts of (0, 1) to the tokens."""
        return (u * self.vocab_size).long()

    def posterior_mixture(
        self, z_t: Tokens, p_z: Tensor, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> PosteriorMixture:
        """Bayes' rule with r = a_t / a_s and K tokens (Duo, Eq. 3).

        keep    = (a_t K p_z + r - a_t)  / (a_t K p_z + 1 - a_t)
        predict = (a_s - a_t)            / (a_t K p_z + 1 - a_t)
        noise   = (1 - r) (1 - a_s)      / (a_t K p_z + 1 - a_t)
        """
        alpha_t, alpha_s = (alpha[:, None] for alpha in _levels(alpha_t, alpha_s))
        r = (alpha_t / alpha_s).where(alpha_s > 0, 1.0)
        scaled = self.vocab_size * alpha_t * p_z.double()
        total = scaled + (1 - alpha_t)
        possible = total > 0  # else alpha_t = 1, and p excludes z_t
        return PosteriorMixture(
            keep=((scaled + (r - alpha_t)) / total).where(possible, 1.0),
            predict=((alpha_s - alpha_t) / total).where(possible, 0.0),
            noise=((1 - r) * (1 - alpha_s) / total).where(possible, 0.0),
        )

    def posterior(
        self, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
    ) -> Probs:
        """The law keep [z_s = z_t] + predict p + noise / K, as in `posterior_mixture`."""
        return _posterior(self, p_x0, z_t, alpha_t, alpha_s)

    def nelbo(
        self,
        prediction: Prediction,
        x0: Tokens,
        z_t: Tokens,
        alpha_t: PerSequence,
        dalpha_t: PerSequence,
    ) -> PerToken:
        """The limit of KL(q(z_s | z_t, x0) || p(z_s | z_t)) / dt at every position (Duo, Eq. 12).

        Rao-Blackwellised; see the module `uniform_nelbo` for the formula.
        """
        check_unit(alpha_t, "alpha")
        # At alpha = 1 the bound has a limit but its formula is 0 / 0.
        below_one = alpha_t.double().clamp(max=1 - 2**-53)
        alpha, minus_dalpha = (
            value[:, None].expand(x0.shape).flatten() for value in (below_one, -dalpha_t.double())
        )
        loss = uniform_nelbo(x0.flatten(), z_t.flatten(), alpha, minus_dalpha, self.vocab_size)
        rows = prediction.rows(None)
        return compute_row_loss(prediction, lambda chunk: loss, rows).view(x0.shape)


def noise_process(vocab_size: int, mask_id: int | None) -> Process:
    """Masked diffusion if there is a MASK, else uniform diffusion."""
    return UniformProcess(vocab_size) if mask_id is None else MaskedProcess(vocab_size, mask_id)


def _posterior(
    process: Process, p_x0: Probs, z_t: Tokens, alpha_t: PerSequence, alpha_s: PerSequence
) -> Probs:
    """The law that `posterior_mixture` describes. For masked diffusion the weight `noise` is 0."""
    p_z = p_x0.gather(-1, z_t[..., None])
    keep, predict, noise = (
        weight.to(p_x0)[..., None]
        for weight in process.posterior_mixture(z_t, p_z.squeeze(-1), alpha_t, alpha_s)
    )
    return (predict * p_x0 + noise / process.vocab_size).scatter_add(-1, z_t[..., None], keep)


def _levels(alpha_t: PerSequence, alpha_s: PerSequence) -> tuple[PerSequence, PerSequence]:
    """Check alpha_t and alpha_s, and convert them to float64."""
    check_unit(alpha_t, "alpha")
    check_unit(alpha_s, "alpha")
    # Only on a CPU: elsewhere reading the values would stall the device.
    if alpha_t.device.type == "cpu" and bool((alpha_s < alpha_t).any()):
        raise ValueError(
            f"alpha_s is below alpha_t: got alpha_s = {alpha_s.tolist()} and alpha_t = "
            f"{alpha_t.tolist()}, want alpha_s >= alpha_t; are they swapped?"
        )
    return alpha_t.double(), alpha_s.double()


def _like(alpha: PerSequence, table: Probs) -> Tensor:
    return alpha.to(table)[:, None, None]


def _check_vocabulary(vocab_size: int) -> None:
    if vocab_size < 2:
        raise ValueError(
            f"vocab_size is out of range: got {vocab_size}, want vocab_size >= 2 (MASK included)"
        )
