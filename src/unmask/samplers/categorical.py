"""From log-probabilities to tokens: three categorical draws, and the filters before a draw.

`gumbel_max` is the draw to use. Two runs that share its random numbers draw different tokens with a
probability of about the total variation between their laws. So a small change of the model, the
precision or the number of steps changes few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.limits import whole
from unmask.prediction import Prediction
from unmask.rng import address, gumbel, uniform
from unmask.samplers.latent import Positions

BLOCK_ELEMENTS = 2**22  # rows x V drawn at a time: enough to fill a GPU
CPU_BLOCK_ELEMENTS = 2**17  # 1 MiB of float64 and 1 MiB of hashes fit into a core's cache
TOP_P_ROUNDING = 1e-6  # the tolerance of top_p, because log p comes from float32 logits


# A categorical draw. Each token is a pure function of its row.
# (log p float64 [N, V], -inf: never drawn; hashed states int64 [N]) -> tokens int64 [N]
Draw: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def gumbel_max(log_p: Tensor, state: Tensor) -> Tensor:
    """The Gumbel-max draw arg max_v (log p_v + G_v) in float64: exact.

    G_v is standard Gumbel noise at the address (state, v).
    """
    return gumbel(_token_states(log_p, state)).add_(log_p).argmax(dim=-1)


def inverse_cdf(log_p: Tensor, state: Tensor) -> Tensor:
    """The first token whose cumulative probability reaches a uniform number: exact and cheap.

    Two runs that share their random numbers are poorly coupled. A rounding error of one logit
    shifts all later cumulative probabilities. So it can change a token whose probability is the
    same in both runs.
    """
    cumulative = log_p.exp().cumsum(dim=-1)
    return torch.searchsorted(cumulative, (uniform(state) * cumulative[:, -1])[:, None]).squeeze(-1)


def gumbel_max_float32(log_p: Tensor, state: Tensor) -> Tensor:
    """The draw arg max_v p_v / (1e-10 - log(U_v + 1e-10)) in float32: biased, for old tables.

    The codes of MDLM, SDTT and the first version of Duo use this draw. U has steps of 2^-24, so the
    noise never exceeds 16.6. Let a rare token have odds r against one common token,
    and x = 2^-24 / r. The rare token is drawn x / (e^x - 1) times as often as it should be. This
    factor is 1 at r = 1e-4, a third at 3e-8, and almost 0 at 1e-8. The effect is that of a
    temperature below 1 (arXiv 2409.02908). In old tables MASK was one of the tokens of the draw.
    To reproduce such tables, use the sampler `ancestral`.
    """
    u = (uniform(_token_states(log_p, state)) * 2**24).floor().clamp(max=2**24 - 1).float() * 2**-24
    return (log_p.float().exp() / (1e-10 - torch.log(u + 1e-10))).argmax(dim=-1)


DRAWS: Mapping[str, Draw] = MappingProxyType(
    {
        "gumbel_max": gumbel_max,
        "inverse_cdf": inverse_cdf,
        "gumbel_max_float32": gumbel_max_float32,
        # The names of version 0.1.
        "race": gumbel_max,
        "legacy_gumbel32": gumbel_max_float32,
    }
)
_OLD_NAMES = {"gumbel_max": "race", "gumbel_max_float32": "legacy_gumbel32"}
# The names of the draws in measured rows on disk: those of version 0.1.
DRAW_LABELS: Mapping[str, str] = MappingProxyType(
    {name: _OLD_NAMES.get(name, name) for name in DRAWS}
)
# The names of the precision of each draw in an evaluation protocol.
PRECISION: Mapping[str, str] = MappingProxyType(
    {
        name: "float32 Gumbel" if draw is gumbel_max_float32 else "float64"
        for name, draw in DRAWS.items()
    }
)
EXACT: tuple[Draw, ...] = (gumbel_max, inverse_cdf)  # the draws that a mixture can use


def is_number(value: object) -> bool:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class SamplingFilters:
    """Changes of p(x0) before a draw: temperature, then top-k, then top-p; renormalised.

    Ties go to the smaller id. ValueError for values outside their range.

    Attributes:
        temperature: Divides log p; > 0.
        top_p: Keep the smallest set of tokens of at least this probability; in (0, 1].
        top_k: Keep the k most probable tokens; >= 1. None: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 1e-30 < self.temperature < math.inf):
            raise ValueError(
                f"temperature is out of range: got {self.temperature!r}, want a finite temperature "
                "> 0 (it divides log p)"
            )
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p is out of range: got {self.top_p!r}, want 0 < top_p <= 1 (the probability "
                "of the tokens to keep; 1 keeps all)"
            )
        if self.top_k is not None:
            whole("top_k", self.top_k, "the number of tokens to keep, None for all")

    @property
    def keeps_all(self) -> bool:
        """Whether there is neither top-k nor top-p."""
        return self.top_p == 1 and self.top_k is None

    def probability(self, log_p: Tensor, token: Tensor) -> Tensor:
        """p(x0 = token) after the filters: float64 [N], from log p [N, V] and tokens [N]."""
        probability = log_p.gather(-1, token[:, None]).squeeze(-1).double().exp()
        if self.keeps_all:
            return probability
        # A token of probability 0, such as MASK, still has probability 0 after a filter.
        possible = probability.nonzero().squeeze(-1)
        log_p, token = log_p[possible], token[possible]
        kept = [self.apply(law).gather(-1, token[rows, None]) for rows, law in iter_blocks(log_p)]
        return probability.index_copy(0, possible, torch.cat(kept).squeeze(-1).exp())

    def apply(self, log_p: Tensor) -> Tensor:
        """Apply top-k and top-p to log p [N, V] at the temperature: -inf for dropped tokens."""
        if self.keeps_all:
            return log_p
        ranked, token = log_p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ranked[:, self.top_k :] = -torch.inf
        reached = ranked.softmax(dim=-1).cumsum(dim=-1) >= self.top_p - TOP_P_ROUNDING
        if self.top_p < 1:
            ranked[:, 1:].masked_fill_(reached[:, :-1], -torch.inf)
        return torch.empty_like(log_p).scatter_(-1, token, ranked.log_softmax(dim=-1))


UNFILTERED = SamplingFilters()


def iter_log_probs(
    prediction: Prediction,
    rows: Tensor,
    at: Positions,
    temperature: float,
    mask_id: int | None,
    broken: Tensor,
) -> Iterator[tuple[Positions, Tensor]]:
    """Yield positions [m] and their log p [m, V] in chunks of bounded size, without MASK.

    `broken` (a bool scalar) becomes True if log p is not a number. The caller checks it at the end,
    because a check in each step would stall a GPU.

    Args:
        prediction: The prediction of one network call.
        rows: Flat rows [N] of the prediction.
        at: The positions [N] of these rows, samples and columns.
        temperature: Divides log p.
        mask_id: A token that is never drawn, or None.
        broken: The flag, changed in place.
    """
    (samples, columns), done = at, 0
    for part, log_p in prediction.chunks(rows, temperature):
        broken |= log_p[:, 0].isnan().any()
        # The table of a foreign denoiser may give MASK a probability.
        if mask_id not in (None, prediction.mask_id):
            never = torch.tensor(mask_id, device=log_p.device)
            log_p = log_p.double().index_fill(-1, never, -torch.inf).log_softmax(-1)
        chunk, done = slice(done, done + len(part)), done + len(part)
        yield (samples[chunk], columns[chunk]), log_p


def iter_blocks(log_p: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, float64 log p of these rows) of a table [N, V], in blocks that fit a cache."""
    elements = CPU_BLOCK_ELEMENTS if log_p.device.type == "cpu" else BLOCK_ELEMENTS
    size = max(1, elements // log_p.shape[-1])
    for low in range(0, max(1, len(log_p)), size):  # an empty table is one empty block
        rows = slice(low, low + size)
        yield rows, log_p[rows].double()


def draw_rows(draw: Draw, filters: SamplingFilters, log_p: Tensor, state: Tensor) -> Tensor:
    """Draw tokens [N] from log p [N, V] after the filters, at hashed states [N]."""
    return torch.cat([draw(filters.apply(law), state[rows]) for rows, law in iter_blocks(log_p)])


def check_finite(broken: Tensor) -> None:
    """Raise ValueError if the flag of `iter_log_probs` is set."""
    if bool(broken):
        raise ValueError(
            "log p of the model is not a number at a drawn position: check the weights for NaN or "
            "infinity, and the precision for overflow"
        )


def _token_states(log_p: Tensor, state: Tensor) -> Tensor:
    return address(state[:, None], torch.arange(log_p.shape[-1], device=log_p.device))
