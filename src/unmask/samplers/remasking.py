"""Samplers that also write noise, so that a token once shown can still change: psi-samplers and ReMDM.

All of them are one law, for any kappa of each step (Duo's second paper, "Chapter II", calls it psi):

    z_s ~ kappa q(z_s | z_t, x0 ~ p) + (1 - kappa) q(z_s | x0 ~ q(x0 | z_t)),     q(x0 | z_t) = posterior at alpha = 1

The first term is the ancestral step, the second forgets z_t but for what it says about x0, and noises anew. From z_t ~
q(z_t) and with an exact p both have each token's marginal q(z_s), so kappa is free: 1 is `ancestral`, 0 the pure
predictor-corrector. Over several steps this holds for a text of one token; tokens that are drawn together leave q.

In masked diffusion, r = (a_s - a_t) / (1 - a_t), it says

    a shown token becomes MASK   with probability sigma = (1 - kappa) (1 - a_s)
    a MASK becomes a token of p  with probability kappa r + (1 - kappa) a_s = (a_s - (1 - sigma) a_t) / (1 - a_t)

which is ReMDM (Wang et al. 2025, arXiv 2503.00307). kappa may be negative: both are probabilities for sigma <= min(1,
(1 - a_s) / a_t), that is for kappa >= max(1 - 1/(1 - a_s), 1 - 1/a_t). For uniform noise over K tokens the limit is
kappa >= -a_s (1 - a_t) / (a_t (K - 1 + a_s)), of the order of 1/K, and we stop at 0: sigma <= 1 - a_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeAlias

from unmask.samplers.categorical import EXACT, is_number
from unmask.samplers.steps import MixturePosteriorStep, Sampler, Step, TablePosteriorStep, Task

Kappa: TypeAlias = Callable[[float, float], float]  # (alpha_t, alpha_s) -> kappa of that step
Sigma: TypeAlias = Callable[
    [float, float, float], float
]  # (alpha_t, alpha_s, greatest allowed) -> sigma of that step

_ROUNDING = 1e-9


def psi(kappa: float | Kappa) -> Sampler:
    """The law above with one kappa, or with a function (alpha_t, alpha_s) -> kappa; see the module.

    Where alpha_s = 1 there is no noise to write and kappa plays no part: a function is not asked there. In masked
    diffusion only the MASKs that are about to be shown are read, elsewhere the tokens that a coin may move (by a table:
    all), and a sample without one takes part in no call. The same sample in any batch, another at other step counts.

    ValueError unless 0 <= kappa <= 1; a function may go lower in masked diffusion (see the module), and is checked
    before the first call.
    """
    if callable(kappa):
        return partial(_psi, kappa=kappa)
    if not (is_number(kappa) and 0 <= kappa <= 1):
        raise ValueError(
            "kappa is the weight of the ancestral step against noising anew: want 0 <= kappa <= 1 (1 is ancestral), or "
            f"a function (alpha_t, alpha_s) -> kappa, got {kappa!r}"
        )
    value = float(kappa)
    return partial(_psi, kappa=lambda alpha_t, alpha_s: value)


def remdm_cap(eta: float) -> Sampler:
    """ReMDM with sigma = min(eta, greatest): about a share eta of the shown tokens is noised in each step.

    ValueError unless 0 <= eta <= 1.
    """
    _check_eta(eta)
    return partial(_remdm, sigma=lambda alpha_t, alpha_s, greatest: min(eta, greatest))


def remdm_rescale(eta: float) -> Sampler:
    """ReMDM with sigma = eta x greatest: 0 is ancestral, 1 noises as many tokens as the marginals allow.

    ValueError unless 0 <= eta <= 1.
    """
    _check_eta(eta)
    return partial(_remdm, sigma=lambda alpha_t, alpha_s, greatest: eta * greatest)


def remdm_loop(eta: float) -> Sampler:
    """ReMDM-loop: ancestral where the grid rises, sigma = min(eta, greatest) where it stands; for the grid "loop".

    ValueError unless 0 <= eta <= 1.
    """
    _check_eta(eta)
    return partial(
        _remdm,
        sigma=lambda alpha_t, alpha_s, greatest: min(eta, greatest) if alpha_s == alpha_t else 0.0,
    )


def _remdm(task: Task, sigma: Sigma) -> Sequence[Step]:
    def kappa(alpha_t: float, alpha_s: float) -> float:
        greatest = (1 - _least(task, alpha_t, alpha_s)) * (1 - alpha_s)
        return 1 - sigma(alpha_t, alpha_s, greatest) / (1 - alpha_s)

    return _psi(task, kappa)


def _psi(task: Task, kappa: Kappa) -> Sequence[Step]:
    move = (
        TablePosteriorStep
        if task.mask_id is None and task.draw not in EXACT
        else MixturePosteriorStep
    )
    return [
        move(task, k, _weight(task, kappa, *levels))
        for k, levels in enumerate(pairwise(task.alphas.tolist()))
    ]


def _weight(task: Task, kappa: Kappa, alpha_t: float, alpha_s: float) -> float:
    """kappa of a step; ValueError where the law would have negative probabilities."""
    if alpha_s == 1:
        return 1.0
    weight, least = kappa(alpha_t, alpha_s), _least(task, alpha_t, alpha_s)
    if not (is_number(weight) and least - _ROUNDING <= weight <= 1 + _ROUNDING):
        raise ValueError(
            f"kappa is the weight of the ancestral step against noising anew: from alpha_t = {alpha_t:.6g} to alpha_s "
            f"= {alpha_s:.6g} want {least:.6g} <= kappa <= 1, or probabilities are negative, got {weight!r}; change "
            "the function given to psi"
        )
    return min(max(float(weight), least), 1.0)


def _check_eta(eta: float) -> None:
    if not (is_number(eta) and 0 <= eta <= 1):
        raise ValueError(
            "eta is the share of shown tokens that a step noises (cap, loop), or of the greatest such share (rescale): "
            f"want 0 <= eta <= 1 (0 is ancestral), got {eta!r}"
        )


def _least(task: Task, alpha_t: float, alpha_s: float) -> float:
    """The smallest kappa of a step: that of sigma = min(1, (1 - alpha_s) / alpha_t) for MASKs, else 0."""
    if task.mask_id is None:
        return 0.0
    return max(1 - 1 / alpha_t if alpha_t > 0 else -math.inf, 1 - 1 / (1 - alpha_s))
