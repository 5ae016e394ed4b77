"""Bootstrap resamples over the samples of a row."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.int64]

DRAWS = 1000  # resamples


def resamples(n: int, seed: int = 0) -> Index:
    """Bootstrap indices [DRAWS, n]. Equal n and seed give equal indices, which pairs two rows."""
    return np.random.default_rng(seed % 2**64).integers(n, size=(DRAWS, n))


def pooled_mean(total: Floats, count: Floats, index: Index) -> Floats:
    """sum(total) / sum(count) in each resample of `index` [D, n] -> [D]; NaN where count is 0."""
    counted: Floats = count[index].sum(-1)
    mean: Floats = np.divide(
        total[index].sum(-1), counted, out=np.full(counted.shape, np.nan), where=counted > 0
    )
    return mean
