"""The autoregressive baseline: one token a call, from left to right, through the same latent and the same draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from unmask.models.kv_cache import Cache
from unmask.prediction import Prediction
from unmask.samplers.categorical import (
    UNFILTERED,
    Draw,
    Filters,
    check_numbers,
    draw_rows,
    race,
    read,
)
from unmask.samplers.inputs import FREE, Frame
from unmask.samplers.latent import Latent
from unmask.types import Tokens


class Predictor(Protocol):
    """ids [B, l], the continuation of what the cache holds -> at each position the law of the next token."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def mask_id(self) -> int | None: ...

    def __call__(self, ids: Tokens, cache: Cache | None = None, /) -> Prediction: ...


@torch.no_grad()
def autoregress(
    predictor: Predictor,
    start: int,
    pins: Tensor,
    latent: Latent,
    filters: Filters = UNFILTERED,
    draw: Draw = race,
) -> Iterator[Frame]:
    """Write the free positions of `pins` [n, L] (-1) from left to right; yields a frame a call.

    The start token stands before the text and is no part of it. Given tokens are forced: later ones see them,
    earlier ones do not (they were written without knowing). A position that is given in every sample costs no
    call: it is fed with the next one. A sample takes part in a call (nfe) where it draws a token.
    """
    n, length = pins.shape
    z, cache, fed, free = pins, Cache(), 0, (pins == FREE).cpu()
    broken = torch.zeros((), dtype=torch.bool, device=pins.device)
    first = torch.full((n, 1), start, device=pins.device)
    yield Frame(0, 0.0, z, torch.zeros_like(z, dtype=torch.bool), z.new_empty(0))
    for step, i in enumerate(free.any(0).nonzero().flatten().tolist()):
        ids = torch.cat([first, z], dim=1)[:, fed : i + 1]
        fed, rows = i + 1, free[:, i].nonzero().squeeze(-1).to(pins.device)
        where = rows * ids.shape[1] + ids.shape[1] - 1
        before = z
        for part, log_p in read(
            predictor(ids, cache), where, filters.temperature, predictor.mask_id, broken
        ):
            at = part // ids.shape[1] * length + i
            token = draw_rows(draw, filters, log_p, latent.address(at))
            z = z.flatten().index_copy(0, at, token).view_as(z)
        yield Frame(step + 1, (i + 1) / length, z, z != before, rows)
    check_numbers(broken)
