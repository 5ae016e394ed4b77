"""From a law over tokens to a token: three draws, and the filters that sharpen a law before it.

The race is the draw to use. Two runs that share its numbers pick different tokens with about the total variation
between their laws, so that a small change of the model, the precision or the step count changes few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from unmask.limits import whole
from unmask.prediction import Prediction
from unmask.rng import address, gumbel, uniform

BLOCK_ELEMENTS = 2**22  # rows x V drawn at a time: enough to fill a GPU
CPU_BLOCK_ELEMENTS = 2**17  # a core's cache holds 1 MiB of float64, and as much of hashes
TOP_P_ROUNDING = 1e-6  # laws come from float32 logits: a set within this of p has reached it


class Draw(Protocol):
    """log p [N, V] float64 (-inf where never) and hashed states [N] -> tokens [N], each a pure function of its row."""

    def __call__(self, log_p: Tensor, state: Tensor, /) -> Tensor: ...


def race(log_p: Tensor, state: Tensor) -> Tensor:
    """arg max_v (log p_v + G_v), G_v standard Gumbel noise at the address (state, v), in float64: exactly p."""
    return gumbel(_token_states(log_p, state)).add_(log_p).argmax(dim=-1)


def inverse_cdf(log_p: Tensor, state: Tensor) -> Tensor:
    """The first token whose cumulative probability reaches one uniform number: exactly p, and cheap at a large V.

    The worst coupling: a rounding error of one logit shifts the whole table, so two runs that share their numbers
    differ in tokens that the error did not concern.
    """
    cumulative = log_p.exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, (uniform(state) * cumulative[:, -1])[:, None]).squeeze(-1)


def legacy_gumbel32(log_p: Tensor, state: Tensor) -> Tensor:
    """arg max_v p_v / (1e-10 - log(U_v + 1e-10)) in float32, as MDLM's, SDTT's and early Duo's codes draw: biased.

    U has steps of 2^-24, so the noise never passes 16.6, and a rare token of odds r against one common token comes
    x / (e^x - 1) times as often as it should, x = 2^-24 / r: right at 1e-4, a third at 3e-8, hardly ever at 1e-8. That
    acts as a temperature below 1 (Zheng et al. 2024, arXiv 2409.02908). Only to reproduce old tables,
    where MASK took part in the race: use it with the `ancestral` sampler.
    """
    u = (uniform(_token_states(log_p, state)) * 2**24).floor().clamp(max=2**24 - 1).float() * 2**-24
    return (log_p.float().exp() / (1e-10 - torch.log(u + 1e-10))).argmax(dim=-1)


DRAWS: Mapping[str, Draw] = MappingProxyType(
    {"race": race, "inverse_cdf": inverse_cdf, "legacy_gumbel32": legacy_gumbel32}
)
PRECISION: Mapping[str, str] = MappingProxyType(  # of a draw, as a protocol names it
    {"race": "float64", "inverse_cdf": "float64", "legacy_gumbel32": "float32 Gumbel"}
)
EXACT: tuple[Draw, ...] = (
    race,
    inverse_cdf,
)  # their law is p: a mixture may be drawn branch by branch


def is_number(value: object) -> bool:
    """A real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Filters:
    """What is done to p(x0) before the draw: temperature, then top-k, then top-p on what is left; renormalised.

    temperature  divides log p; > 0
    top_p        keep the smallest set of tokens whose probability reaches it; in (0, 1]
    top_k        keep the k most probable tokens; >= 1, None for all

    Ties go to the smaller id. ValueError outside the ranges.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 1e-30 < self.temperature < math.inf):
            raise ValueError(
                f"temperature divides log p: want a finite temperature > 0, got {self.temperature!r}"
            )
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p is the probability of the tokens kept: want 0 < top_p <= 1 (1 keeps all), got {self.top_p!r}"
            )
        if self.top_k is not None:
            whole("top_k", self.top_k, "the number of tokens kept, None for all")

    @property
    def keep_all(self) -> bool:
        """Neither top-k nor top-p."""
        return self.top_p == 1 and self.top_k is None

    def chance(self, log_p: Tensor, token: Tensor) -> Tensor:
        """p(x0 = token) after the filters, float64 [N], of laws [N, V] and tokens [N]."""
        chance = log_p.gather(-1, token[:, None]).squeeze(-1).double().exp()
        if self.keep_all:
            return chance
        some = chance.nonzero().squeeze(
            -1
        )  # what was never drawn, as MASK, is not drawn after a filter
        kept = [
            self.keep(law).gather(-1, part[:, None])
            for law, part in blocks(log_p[some], token[some])
        ]
        return chance.index_copy(0, some, torch.cat(kept).squeeze(-1).exp())

    def keep(self, log_p: Tensor) -> Tensor:
        """Top-k and top-p of laws [N, V] that `read` has tempered: log p, -inf where a token is dropped."""
        if self.keep_all:
            return log_p
        ranked, token = log_p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ranked[:, self.top_k :] = -torch.inf
        reached = ranked.softmax(dim=-1).cumsum(dim=-1) >= self.top_p - TOP_P_ROUNDING
        if self.top_p < 1:
            ranked[:, 1:].masked_fill_(reached[:, :-1], -torch.inf)
        return torch.empty_like(log_p).scatter_(-1, token, ranked.log_softmax(dim=-1))


UNFILTERED = Filters()


def read(
    prediction: Prediction, where: Tensor, temperature: float, mask_id: int | None, broken: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (flat rows [n] of `where`, their log p [n, V]) in chunks of a bounded size, MASK excluded.

    Raises the flag `broken` (bool, no shape) where a law is not a number: whoever draws looks at it at the end,
    because a look each step would stall an accelerator.
    """
    for rows, log_p in prediction.chunks(where, temperature):
        broken |= log_p[:, 0].isnan().any()
        if (
            mask_id is not None and prediction.mask_id != mask_id
        ):  # a foreign table may give MASK some mass
            never = torch.tensor(mask_id, device=log_p.device)
            log_p = log_p.double().index_fill(-1, never, -torch.inf).log_softmax(-1)
        yield rows, log_p


def blocks(log_p: Tensor, of_row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Laws [N, V] in float64, as many rows at a time as a core's cache or a GPU likes, with their `of_row` [N]."""
    elements = CPU_BLOCK_ELEMENTS if log_p.device.type == "cpu" else BLOCK_ELEMENTS
    size = max(1, elements // log_p.shape[-1])
    for law, part in zip(log_p.split(size), of_row.split(size), strict=True):
        yield law.double(), part


def draw_rows(draw: Draw, filters: Filters, log_p: Tensor, state: Tensor) -> Tensor:
    """Tokens [N] from laws [N, V] after the filters, at hashed states [N]."""
    return torch.cat([draw(filters.keep(law), part) for law, part in blocks(log_p, state)])


def check_numbers(broken: Tensor) -> None:
    """ValueError where a law that was drawn from was not a number."""
    if bool(broken):
        raise ValueError(
            "log p of the model is not a number at a position that was drawn, and the text would be worthless: "
            "check the weights for NaN or infinity, and the precision for overflow"
        )


def _token_states(log_p: Tensor, state: Tensor) -> Tensor:
    return address(state[:, None], torch.arange(log_p.shape[-1], device=log_p.device))
