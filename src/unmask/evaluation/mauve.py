"""MAUVE (Pillutla et al. 2021, arXiv 2102.01454) of drawn texts, by the package mauve-text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from unmask.evaluation.judges import TextSet
from unmask.evaluation.measure import Measure, over_seeds
from unmask.extras import needs_extra

MIN_MAUVE_TEXTS = 20  # mauve-text makes at least two clusters, of ten texts each


def mauve(real: Tensor, drawn: Tensor, seeds: int = 5) -> Measure:
    """Area under the divergence curve of two quantised sets of texts: in (0, 1], 1 for equal sets.

    The scaling factor is 5 and there are min(n, m) / 10 clusters, by default in the package.
    Published values use thousands of texts. The value grows with the number of texts and depends on
    the features, so compare it only under one protocol.

    Args:
        real: features [n, D], n >= 20: the judge's last hidden state at the end of each text.
        drawn: features [m, D], m >= 20.
        seeds: runs of k-means with different starts, which matter if texts are few. The value
            is their mean, the error comes from their spread, and n counts them.
    """
    if seeds < 1:
        raise ValueError(f"seeds is too small: got {seeds}, want seeds >= 1 runs of k-means")
    shapes = tuple(real.shape), tuple(drawn.shape)
    matrices = real.dim() == drawn.dim() == 2 and real.shape[1] == drawn.shape[1]
    if not matrices or min(len(real), len(drawn)) < MIN_MAUVE_TEXTS:
        raise ValueError(
            f"real or drawn has a wrong shape: got {shapes[0]} and {shapes[1]}, want features "
            f"[n, D] and [m, D] with n and m >= {MIN_MAUVE_TEXTS} texts"
        )
    with needs_extra("mauve"):
        from mauve import compute_mauve
    p, q = (np.ascontiguousarray(table.detach().cpu().float().numpy()) for table in (real, drawn))
    results = [compute_mauve(p_features=p, q_features=q, seed=seed) for seed in range(seeds)]
    # Equal histograms give a curve of one point. Rounding splits it, and the area becomes 0.75.
    values = [
        1.0 if np.array_equal(result.p_hist, result.q_hist) else min(1.0, float(result.mauve))
        for result in results
    ]
    return over_seeds([Measure(value, f"MAUVE of {len(drawn)} texts", 1) for value in values])


def mauve_against(
    features: Callable[[TextSet], Tensor], real: TextSet, seeds: int = 5
) -> Callable[[TextSet], Measure]:
    """A function that maps texts to their `mauve` against real texts.

    The features of the real texts are computed once.

    Args:
        features: texts -> features [n, D], such as `Judge.features`.
        real: the real texts.
        seeds: see `mauve`.
    """
    real_features = features(real)
    return lambda texts: mauve(real_features, features(texts), seeds)
