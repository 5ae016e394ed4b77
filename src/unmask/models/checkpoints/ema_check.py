"""Check that EMA weights, stored as a list without names, are in the order of the parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from unmask.models.checkpoints import CheckpointError

ELEMENTS = 2**14  # compared elements of a tensor
BOUND = 0.25


def thinned(tensor: Tensor) -> Tensor:
    """Up to `ELEMENTS` elements, evenly spaced, float64."""
    flat = tensor.flatten()
    return flat[:: -(-max(1, len(flat)) // ELEMENTS)].double()


def check_order(raw: Mapping[str, Tensor], averages: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError if EMA weights are assigned to the wrong parameters.

    Two parameters w, v of one size have averages a, b. The test is the cosine of a - b and w - v.
    The cosine is near 1 for averages of these weights, and above 0 even for averages of the initial
    weights. If two averages are swapped, it is -1. In a longer cycle of independent weights it is
    at most -1/2 for some pair. An order with a cosine below -1/4 is refused. For n < 256 elements
    the bound is -4 / sqrt(n), four standard deviations of the cosine of unrelated vectors. Pairs of
    equal weights or equal averages are skipped.

    Args:
        raw: Parameters by name, as `thinned` returns them.
        averages: EMA weights by the same names, as `thinned` returns them.
        where: Name of the checkpoint in errors.
    """
    groups = defaultdict(list)
    for name, tensor in raw.items():
        groups[len(tensor)].append(name)
    for size, names in groups.items():
        w, a = (torch.stack([side[name] for name in names]) for side in (raw, averages))
        cosines = _cosines(w, a)
        least = float(cosines.min())
        first, second = divmod(int(cosines.argmin()), len(names))
        if least < -max(BOUND, 4 / math.sqrt(size)):
            raise CheckpointError(
                f"{where} has EMA weights in another order than its parameters: those of "
                f"{names[first]} and {names[second]} differ from the weights "
                f"(cosine {least:.2f}, want above {-max(BOUND, 4 / math.sqrt(size)):.2f}); "
                "load with weights='raw'"
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
