"""Moving averages without names: whether each stands at the place of the weights that it averages."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.models.checkpoints.safe_unpickle import CheckpointError

ELEMENTS = 2**14  # of a tensor that are compared
BOUND = 0.25


def thinned(tensor: Tensor) -> Tensor:
    """Up to `ELEMENTS` elements, evenly spread, float64."""
    flat = tensor.flatten()
    return flat[:: -(-max(1, len(flat)) // ELEMENTS)].double()


def check_order(raw: Mapping[str, Tensor], averages: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError where averages have changed places; both by name, as `thinned` gives them.

    For two parameters w, v of one size with averages a, b the cosine of a - b and w - v is computed. It is near 1 for
    averages of these weights, and above 0 even for those of the first weights. It is -1 where two averages have
    changed places, and at most -1/2 for some pair of a longer cycle of independent weights. Below -1/4 the order is
    refused, and for n < 256 elements below -4 / sqrt(n), four standard deviations of the cosine of unrelated vectors.
    Pairs of equal weights or equal averages say nothing.
    """
    groups = defaultdict(list)
    for name, tensor in raw.items():
        groups[len(tensor)].append(name)
    for size, names in groups.items():
        cosines = _cosines(
            *(torch.stack([side[name] for name in names]) for side in (raw, averages))
        )
        place = int(cosines.argmin())
        least, (one, two) = float(cosines.min()), divmod(place, len(names))
        if least < -max(BOUND, 4 / math.sqrt(size)):
            raise CheckpointError(
                f"{where}: moving averages stand in another order than the parameters: those of {names[one]} and "
                f"{names[two]} differ against the weights (cosine {least:.2f}, want above {-BOUND}); load weights='raw'"
            )


def _cosines(w: Tensor, a: Tensor) -> Tensor:
    """cos(a_i - a_j, w_i - w_j) of all rows [k, n]: [k, k], 0 where a difference vanishes."""
    w, a = w - w.mean(0), a - a.mean(0)
    cross = w @ a.T
    diagonal = cross.diagonal()
    inner = diagonal[:, None] + diagonal[None] - cross - cross.T
    sizes = [
        torch.cdist(side, side, compute_mode="donot_use_mm_for_euclid_dist") for side in (w, a)
    ]
    norm = sizes[0] * sizes[1]
    return torch.where(norm > 0, inner / norm.where(norm > 0, 1.0), 0.0)
