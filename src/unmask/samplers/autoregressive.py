"""The autoregressive baseline: one token a call, from left to right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from unmask.models.kv_cache import Cache
from unmask.samplers.categorical import (
    UNFILTERED,
    Draw,
    SamplingFilters,
    check_finite,
    draw_rows,
    gumbel_max,
    iter_log_probs,
)
from unmask.samplers.inputs import FREE, Frame, Predictor
from unmask.samplers.latent import Latent


@torch.no_grad()
def autoregress(
    predictor: Predictor,
    start: int,
    pins: Tensor,
    latent: Latent,
    filters: SamplingFilters = UNFILTERED,
    draw: Draw = gumbel_max,
) -> Iterator[Frame]:
    """Write the free positions from left to right; yield a frame for each call.

    Later tokens depend on a given token, but earlier tokens do not. A position that is given in
    every sample costs no call, because the next call reads it too. A sample takes part in a call
    (nfe) if the call draws one of its tokens.

    Args:
        predictor: The model.
        start: The start token; it stands before the text and is not part of it.
        pins: Given tokens [n, L], -1 where free.
        latent: The random numbers of the n samples.
        filters: Temperature, top-k and top-p.
        draw: Maps log-probabilities to a token.

    Raises:
        ValueError: log p of a drawn position is not a number. The check comes after the last call.
    """
    n, length = pins.shape
    z, cache, fed, free = pins, Cache(), 0, (pins == FREE).cpu()
    broken = torch.zeros((), dtype=torch.bool, device=pins.device)
    first = torch.full((n, 1), start, device=pins.device)
    yield Frame(0, 0.0, z, torch.zeros_like(z, dtype=torch.bool), z.new_empty(0))
    for step, column in enumerate(free.any(0).nonzero().flatten().tolist()):
        ids = torch.cat([first, z], dim=1)[:, fed : column + 1]
        fed, samples = column + 1, free[:, column].nonzero().squeeze(-1).to(pins.device)
        last = samples * ids.shape[1] + ids.shape[1] - 1
        at, before = (samples, torch.full_like(samples, column)), z
        for part, log_p in iter_log_probs(
            predictor(ids, cache), last, at, filters.temperature, predictor.mask_id, broken
        ):
            z = z.index_put(part, draw_rows(draw, filters, log_p, latent.address(part)))
        yield Frame(step + 1, (column + 1) / length, z, z != before, samples)
    check_finite(broken)
