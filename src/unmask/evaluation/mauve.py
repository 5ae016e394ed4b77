"""MAUVE (Pillutla et al. 2021, arXiv 2102.01454) of drawn texts against real ones, by the package mauve-text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from torch import Tensor

from unmask.evaluation.judges import TextSet
from unmask.evaluation.measure import Measure, over_seeds

Features: TypeAlias = Callable[
    [TextSet], Tensor
]  # texts -> [n, D], as `LanguageModelJudge.features`

LEAST = 20  # texts: two clusters, the fewest that the package makes


def mauve(real: Tensor, drawn: Tensor, seeds: int = 5) -> Measure:
    """Area under the divergence curve of two sets of texts, quantised together: in (0, 1], 1 where they are alike.

    real, drawn  features [n, D] and [m, D], n, m >= 20: the judge's last hidden state at the end of each text
    seeds        of k-means, whose start decides much where texts are few: the value is their mean, the error from their
                 spread, n counts them

    Scaling factor 5 and min(n, m) / 10 clusters, as the package has them. It takes thousands of texts to mean what it
    means in papers, grows with the number of texts, and depends on the features: compare under one protocol only.
    """
    if seeds < 1:
        raise ValueError(f"seeds is how often k-means begins anew: want seeds >= 1, got {seeds}")
    if (
        min(len(real), len(drawn)) < LEAST
        or real.dim() != 2
        or drawn.dim() != 2
        or real.shape[1] != drawn.shape[1]
    ):
        raise ValueError(
            f"MAUVE compares two sets of at least {LEAST} texts by features of one judge, [n, D] and [m, D]: got "
            f"{tuple(real.shape)} and {tuple(drawn.shape)}"
        )
    try:
        from mauve import compute_mauve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"MAUVE is the package mauve-text: pip install 'unmask[mauve]' ({error})"
        ) from error
    p, q = (np.ascontiguousarray(table.detach().cpu().float().numpy()) for table in (real, drawn))
    found = [compute_mauve(p_features=p, q_features=q, seed=seed) for seed in range(seeds)]
    # where both histograms are equal, the package's area falls to 0.75: its curve is one point, split by rounding
    values = [
        1.0 if np.array_equal(each.p_hist, each.q_hist) else min(1.0, float(each.mauve))
        for each in found
    ]
    return over_seeds([Measure(value, f"MAUVE of {len(drawn)} texts", 1) for value in values])


def mauve_against(
    features: Features, real: TextSet, seeds: int = 5
) -> Callable[[TextSet], Measure]:
    """`mauve` against the same real texts each time: texts -> Measure."""
    known = features(real)
    return lambda texts: mauve(known, features(texts), seeds)
