"""Posterior samplers: ancestral steps, and steps that also write noise (psi-samplers, ReMDM).

All of them draw from one law, with a weight kappa for each step. Duo's second paper, "Chapter II",
calls this law psi:

    z_s ~ kappa q(z_s | z_t, x0 ~ p) + (1 - kappa) q(z_s | x0 ~ q(x0 | z_t))

where q(x0 | z_t) is the posterior at alpha_s = 1. The first term is the ancestral step. The second
term draws x0 from this posterior, and adds noise again. If z_t ~ q(z_t) and p is exact, each token
has the marginal q(z_s) under both terms. So kappa is free: 1 is `ancestral`, 0 the pure
predictor-corrector. Over several steps this holds for a text of one token only, because tokens that
are drawn together do not follow q.

In masked diffusion, with a = alpha and r = (a_s - a_t) / (1 - a_t), the law is:

    a visible token becomes MASK with probability  sigma = (1 - kappa) (1 - a_s)
    a MASK becomes a token of p with probability   kappa r + (1 - kappa) a_s
                                                   = (a_s - (1 - sigma) a_t) / (1 - a_t)

This is ReMDM (arXiv 2503.00307). A negative kappa is possible: both values are probabilities if
sigma <= min(1, (1 - a_s) / a_t). This bound means kappa >= max(1 - 1/(1 - a_s), 1 - 1/a_t). For
uniform noise over K tokens the limit is kappa >= -a_s (1 - a_t) / (a_t (K - 1 + a_s)), of the order
of 1/K. This library uses kappa >= 0 for uniform noise: sigma <= 1 - a_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.rng import uniform
from unmask.samplers.categorical import EXACT, is_number, iter_blocks
from unmask.samplers.steps import LogProbs, Query, Sampler, SamplingProblem, Step
from unmask.samplers.unmasking import reveal
from unmask.types import Tokens

Kappa: TypeAlias = Callable[[float, float], float]  # (alpha_t, alpha_s) -> kappa of the step
# (alpha_t, alpha_s, greatest allowed sigma) -> sigma of the step
Sigma: TypeAlias = Callable[[float, float, float], float]

_ROUNDING = 1e-9


def ancestral(problem: SamplingProblem) -> Sequence[Step]:
    """Draw z_s ~ q(z_s | z_t, x0 ~ p) at every position, for any process.

    Sources: MDLM, Eq. 6; Duo, arXiv 2506.10892, Eq. 3. A step makes at most one call, and none if
    no token can change. In masked diffusion a step makes one draw over all tokens and MASK. With
    other noise it draws from a mixture (`MixturePosteriorStep`), or from a table if the draw is not
    exact.
    """
    kind = _posterior_step(problem, TablePosteriorStep)
    return [kind(problem, k) for k in range(len(problem.alphas) - 1)]


def greedy_tail(problem: SamplingProblem) -> Sequence[Step]:
    """Make ancestral steps, but write arg max p(x0) in the last one, for any process.

    Source: Duo, arXiv 2506.10892. On the grid "released" this is the column "greedy-tail" of Duo's
    tables, and the sampler of the released codes of MDLM and SDTT. In masked diffusion the other
    steps are those of `reveal`, ancestral in law. The last step writes at MASKs only. Ties go to
    the smaller id. Temperature, top-k and top-p do not change an arg max. The texts do not follow
    the model's law: with fewer steps more tokens are an arg max, and the texts vary less.
    """
    steps = ancestral(problem) if problem.mask_id is None else reveal(problem)
    return [*steps[:-1], _ArgMaxStep(problem)]


def psi(kappa: float | Kappa) -> Sampler:
    """The psi sampler, with one kappa or with a function (alpha_t, alpha_s) -> kappa.

    The docstring of this module has its law. At alpha_s = 1 a step writes no noise and kappa has no
    effect, so a function is not called. In masked diffusion a step queries the MASKs that become
    visible. With uniform noise it queries the tokens that can change, or all if it draws from a
    table. A sample without such a token takes part in no call. A sample does not depend on its
    batch, but it depends on the number of steps.

    Raises:
        ValueError: kappa is not in [0, 1]. In masked diffusion a function may also return less (see
            the module). Its values are checked before the first call.
    """
    if callable(kappa):
        return partial(_psi, kappa=kappa)
    if not (is_number(kappa) and 0 <= kappa <= 1):
        raise ValueError(
            f"kappa is out of range: got {kappa!r}, want 0 <= kappa <= 1 (the weight of the "
            "ancestral step; 1 is ancestral), or a function (alpha_t, alpha_s) -> kappa"
        )
    value = float(kappa)
    return partial(_psi, kappa=lambda alpha_t, alpha_s: value)


def remdm_cap(eta: float) -> Sampler:
    """ReMDM with sigma = min(eta, greatest): a step noises about a share eta of the visible tokens.

    ValueError unless 0 <= eta <= 1.
    """
    return _remdm(eta, lambda alpha_t, alpha_s, greatest: min(eta, greatest))


def remdm_rescale(eta: float) -> Sampler:
    """ReMDM with sigma = eta x greatest: 0 is ancestral, 1 noises as many tokens as possible.

    ValueError unless 0 <= eta <= 1.
    """
    return _remdm(eta, lambda alpha_t, alpha_s, greatest: eta * greatest)


def remdm_loop(eta: float) -> Sampler:
    """ReMDM-loop, for the grid "loop".

    The steps are ancestral where alpha rises. Elsewhere sigma = min(eta, greatest).

    ValueError unless 0 <= eta <= 1.
    """

    def sigma(alpha_t: float, alpha_s: float, greatest: float) -> float:
        return min(eta, greatest) if alpha_s == alpha_t else 0.0

    return _remdm(eta, sigma)


@dataclass(frozen=True)
class MixturePosteriorStep:
    """A psi step as a mixture: keep z_t, draw from p, or write a token of noise.

    Each position has one uniform number c: c < predict draws from p, c < predict + noise writes a
    random token, else z_t stays. Both weights decrease in p(x0 = z_t). So a position whose c
    changes nothing at p(x0 = z_t) = 0 needs no prediction. Only draws from p need Gumbel noise.
    """

    problem: SamplingProblem
    k: int
    kappa: float = 1.0

    def query(self, z: Tokens) -> Query:
        predict, noise = self._weights(z, torch.zeros_like(z, dtype=torch.float64))
        number, random = self._numbers()
        may_change = number < predict + noise.where(random != z, 0.0)
        return Query.of(self.problem.noised(z) & may_change)

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        problem, (number, random) = self.problem, self._numbers()
        _, noise = self._weights(z, torch.ones_like(z, dtype=torch.float64))
        settled = problem.free & ~problem.process.is_noised(z)  # p(x0 = z_t) = 1
        z_t, z = z, random.where(settled & (number < noise), z)
        for at, log_p in log_probs:
            p_z = problem.filters.probability(log_p, z_t[at])
            predict, noise = (w[0] for w in self._weights(z_t[at][None], p_z[None]))
            token = random[at].where(number[at] < predict + noise, z_t[at])
            # On a GPU `nonzero` synchronises, which costs less than Gumbel noise for all rows.
            drawn = (number[at] < predict).nonzero().squeeze(-1)
            samples, columns = at
            place = samples[drawn], columns[drawn]
            token[drawn] = problem.draw_tokens(log_p[drawn], place, self.k)
            z = z.index_put(at, token)
        return z

    def _numbers(self) -> tuple[Tensor, Tensor]:
        """The numbers c and the tokens of noise, [n, L] each.

        No draw uses the address of c. The noise and the draw of a position share an address,
        because a position uses only one of them.
        """
        latent = self.problem.latent
        number, random = (
            uniform(latent.address(latent.everywhere, occasion))
            for occasion in (-1 - self.k, self.k)
        )
        return number, self.problem.process.prior_from(random)

    def _weights(self, z: Tokens, p_z: Tensor) -> tuple[Tensor, Tensor]:
        """The weights `predict` and `noise` at tokens [b, l] with p(x0 = z) [b, l]."""
        mixture = self.problem.process.posterior_mixture
        alpha_t, alpha_s = self.problem.alphas[self.k : self.k + 2].to(z.device).split(1)
        _, predict, noise = mixture(z, p_z, alpha_t, alpha_s)
        if self.kappa == 1:
            return predict, noise
        # Draw x0 first, and then add noise to it.
        _, clean, lost = mixture(z, p_z, alpha_t, torch.ones_like(alpha_t))
        predict = self.kappa * predict + (1 - self.kappa) * (alpha_s * clean)
        return predict, self.kappa * noise + (1 - self.kappa) * (alpha_s * lost + 1 - alpha_s)


@dataclass(frozen=True)
class TablePosteriorStep:
    """A psi step as one draw over all tokens, from a table of probabilities [m, V]."""

    problem: SamplingProblem
    k: int
    kappa: float = 1.0

    def query(self, z: Tokens) -> Query:
        return Query.of(self.problem.noised(z))

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        problem, z_t = self.problem, z
        for (samples, columns), log_p in log_probs:
            for rows, law in iter_blocks(log_p):
                at = samples[rows], columns[rows]
                posterior = self._posterior(problem.filters.apply(law).exp(), z_t[at])
                state = problem.latent.address(at, self.k)
                z = z.index_put(at, problem.draw(posterior.log(), state))
        return z

    def _posterior(self, p_x0: Tensor, z_t: Tensor) -> Tensor:
        """Probabilities [m, V] of z_s from p_x0 [m, V] and tokens z_t [m]."""
        process, p_x0, z_t = self.problem.process, p_x0[None], z_t[None]
        alpha_t, alpha_s = self.problem.alphas[self.k : self.k + 2].to(z_t.device).split(1)
        law = process.posterior(p_x0, z_t, alpha_t, alpha_s)
        if self.kappa != 1:
            clean = process.posterior(p_x0, z_t, alpha_t, torch.ones_like(alpha_t))
            law = self.kappa * law + (1 - self.kappa) * process.marginal(clean, alpha_s)
        return law[0]


@dataclass(frozen=True)
class _ArgMaxStep:
    problem: SamplingProblem

    def query(self, z: Tokens) -> Query:
        return Query.of(self.problem.noised(z))

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        for at, log_p in log_probs:
            z = z.index_put(at, log_p.argmax(dim=-1))
        return z


PosteriorStep: TypeAlias = type[MixturePosteriorStep] | type[TablePosteriorStep]


def _posterior_step(problem: SamplingProblem, masked: PosteriorStep) -> PosteriorStep:
    """Choose the class of the steps: `masked` in masked diffusion, else a mixture.

    A mixture needs an exact draw. A table replaces it for other draws.
    """
    if problem.mask_id is not None:
        return masked
    return MixturePosteriorStep if problem.draw in EXACT else TablePosteriorStep


def _remdm(eta: float, sigma: Sigma) -> Sampler:
    if not (is_number(eta) and 0 <= eta <= 1):
        raise ValueError(
            f"eta is out of range: got {eta!r}, want 0 <= eta <= 1 (share of visible tokens that "
            "become MASK, for rescale relative to its maximum; 0: ancestral)"
        )

    def sampler(problem: SamplingProblem) -> Sequence[Step]:
        def kappa(alpha_t: float, alpha_s: float) -> float:
            greatest = (1 - _least(problem, alpha_t, alpha_s)) * (1 - alpha_s)
            return 1 - sigma(alpha_t, alpha_s, greatest) / (1 - alpha_s)

        return _psi(problem, kappa)

    return sampler


def _psi(problem: SamplingProblem, kappa: Kappa) -> Sequence[Step]:
    kind = _posterior_step(problem, MixturePosteriorStep)
    return [
        kind(problem, k, _checked(problem, kappa, *alphas))
        for k, alphas in enumerate(pairwise(problem.alphas.tolist()))
    ]


def _checked(problem: SamplingProblem, kappa: Kappa, alpha_t: float, alpha_s: float) -> float:
    """The kappa of a step; ValueError if a probability would be negative."""
    if alpha_s == 1:
        return 1.0
    weight, least = kappa(alpha_t, alpha_s), _least(problem, alpha_t, alpha_s)
    if not (is_number(weight) and least - _ROUNDING <= weight <= 1 + _ROUNDING):
        raise ValueError(
            f"kappa is out of range: got {weight!r} from alpha_t = {alpha_t:.6g} to alpha_s = "
            f"{alpha_s:.6g}, want {least:.6g} <= kappa <= 1 (else probabilities are negative); "
            "change the function given to psi"
        )
    return min(max(float(weight), least), 1.0)


def _least(problem: SamplingProblem, alpha_t: float, alpha_s: float) -> float:
    """The smallest kappa of a step: that of sigma = min(1, (1 - alpha_s) / alpha_t) for MASKs.

    With uniform noise it is 0.
    """
    if problem.mask_id is None:
        return 0.0
    return max(1 - 1 / alpha_t if alpha_t > 0 else -math.inf, 1 - 1 / (1 - alpha_s))
