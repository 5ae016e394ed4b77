"""The options of a draw as one checked value, and the names of samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import TypeVar, cast, get_args

import torch
from torch import Tensor

from unmask.diffusion.processes import Process
from unmask.limits import MOST_STEPS, seed_number, whole
from unmask.samplers.categorical import DRAWS, Draw, SamplingFilters
from unmask.samplers.counts import COUNTS, GRIDS, Count, Grid, GridCount, entropy_bound
from unmask.samplers.inputs import Prompt
from unmask.samplers.latent import check_first
from unmask.samplers.orders import ENTROPY, ORDERS
from unmask.samplers.remasking import (
    ancestral,
    greedy_tail,
    psi,
    remdm_cap,
    remdm_loop,
    remdm_rescale,
)
from unmask.samplers.steps import Sampler
from unmask.samplers.unmasking import Unmasking, confidence, reveal, spread

Choice = TypeVar("Choice")

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {"reveal": reveal, "ancestral": ancestral, "greedy_tail": greedy_tail, "confidence": confidence}
)
FAMILIES: Mapping[str, Callable[[float], Sampler]] = MappingProxyType(
    {
        "psi": psi,
        "remdm_cap": remdm_cap,
        "remdm_rescale": remdm_rescale,
        "remdm_loop": remdm_loop,
        "entropy_bounded": lambda nats: Unmasking(ENTROPY, entropy_bound(nats)),
        "blockwise": lambda size: Unmasking(blocks=_block_size(size)),
    }
)
_PARTS = "order=ORDER,blocks=SIZE,count=COUNT"
_COUNT_FORMS = [*get_args(GridCount), "threshold:PROBABILITY", "bound:NATS"]


@dataclass(frozen=True)
class SampleOptions:
    """The arguments of `sample` except the model, as one value that is checked once.

    `sample` describes each field. ValueError for values outside their range. Prompt and pinned are
    checked with a model, because they depend on its vocabulary and length.
    """

    n: int = 4
    length: int | None = None
    steps: int = 16
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: Prompt | None = field(default=None, compare=False)
    pinned: Tensor | None = field(default=None, compare=False)
    device: torch.device | str = "cpu"
    top_k: int | None = None
    sampler: str | Sampler | None = None
    grid: str | Grid = "uniform"
    draw: str | Draw = "gumbel_max"
    first: int = 0
    batch_size: int | None = None
    order: str | None = None
    cache: int | None = None

    def __post_init__(self) -> None:
        whole("n", self.n, "the number of samples")
        whole("steps", self.steps, "the number of steps from noise to text", 1, MOST_STEPS)
        seed_number("seed", self.seed)
        for name, value, meaning in (
            ("length", self.length, "the tokens of a sample, prompt included"),
            ("batch_size", self.batch_size, "the number of samples in a network call"),
            ("cache", self.cache, "the steps from one full forward pass to the next"),
        ):
            if value is not None:
                whole(name, value, meaning)
        check_first(self.first, self.n)
        # Each value is made once here, so that a wrong name or number fails before any sampling.
        _ = self.filters, self.grid_value, self.draw_value
        if self.sampler is not None and self.order is not None:
            raise ValueError(
                f"order contradicts sampler: got order={self.order!r} and "
                f"sampler={self.sampler!r}; leave one of them out"
            )
        _ = self.chosen_sampler

    @property
    def filters(self) -> SamplingFilters:
        return SamplingFilters(self.temperature, self.top_p, self.top_k)

    @property
    def grid_value(self) -> Grid:
        return named("grid", self.grid, GRIDS)

    @property
    def draw_value(self) -> Draw:
        return named("draw", self.draw, DRAWS)

    @property
    def chosen_sampler(self) -> Sampler | None:
        """The sampler that `sampler` or `order` names; None if both are None."""
        if self.order is not None:
            return sampler_of(f"order={self.order}")
        return None if self.sampler is None else sampler_of(self.sampler)

    def sampler_value(self, process: Process) -> Sampler:
        """The chosen sampler, else the default of a process."""
        if (chosen := self.chosen_sampler) is not None:
            return chosen
        return ancestral if process.mask_id is None else spread

    def check_autoregressive(self) -> None:
        """Raise ValueError for options that have no effect on an autoregressive model."""
        for name, value, reason in (
            ("sampler", self.sampler, "which writes from left to right"),
            ("order", self.order, "which writes from left to right"),
            ("grid", None if self.grid == "uniform" else self.grid, "which has no noise levels"),
            ("cache", self.cache, "which always keeps keys and values"),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} has no effect on an autoregressive model, {reason}: got {value!r}; "
                    "leave it out"
                )


def sampler_of(choice: str | Sampler) -> Sampler:
    """Read a sampler from its text form; a `Sampler` is returned as it is.

    The text is a name such as "reveal", a family with a number such as "psi:0.5", or an order with
    a count: "order=ORDER,blocks=SIZE,count=COUNT". Any of these three parts can be missing. ORDER
    is random (default), spread, confidence, entropy or margin. COUNT is grid (default), equal,
    threshold:PROBABILITY or bound:NATS.

    >>> sampler_of("order=random,count=grid") == sampler_of("reveal")
    True
    >>> sampler_of("order=entropy,count=bound:0.1") == sampler_of("entropy_bounded:0.1")
    True

    Raises:
        ValueError: The name is unknown, or a number is missing or outside its range.
    """
    if not isinstance(choice, str):
        return choice
    if "=" in choice:
        return _unmasking(choice)
    name, colon, number = choice.partition(":")
    if name in FAMILIES:
        try:
            return FAMILIES[name](_number(number))
        except ValueError as error:
            raise ValueError(
                f"sampler is not valid: got {choice!r}, want {name}:NUMBER; {error}"
            ) from None
    if name in SAMPLERS and colon:
        raise ValueError(f"sampler {name!r} takes no number: got {choice!r}, want {name!r}")
    if name not in SAMPLERS:
        forms = [*SAMPLERS, *(f"{family}:NUMBER" for family in FAMILIES), _PARTS]
        raise _unknown("sampler", choice, forms)
    return SAMPLERS[name]


def named(kind: str, choice: str | Choice, choices: Mapping[str, Choice]) -> Choice:
    """Look up a name; a value is returned as it is. ValueError for an unknown name."""
    if not isinstance(choice, str):
        return choice
    if choice not in choices:
        raise _unknown(kind, choice, list(choices))
    return choices[choice]


def _unmasking(text: str) -> Unmasking:
    """The sampler of "order=ORDER,blocks=SIZE,count=COUNT", of which any part can be missing."""
    parts: dict[str, str] = {}
    try:
        for part in text.split(","):
            key, _, value = part.partition("=")
            if key not in ("order", "blocks", "count"):
                raise _unknown("part", key, ["order", "blocks", "count"])
            if key in parts:
                raise ValueError(f"the part {key!r} comes twice")
            parts[key] = value
        order = named("order", parts.get("order", "random"), ORDERS)
        count = _count(parts.get("count", "grid"))
        blocks = _block_size(_number(parts["blocks"])) if "blocks" in parts else None
    except ValueError as error:
        raise ValueError(f"sampler is not valid: got {text!r}, want {_PARTS}; {error}") from None
    return Unmasking(order, count, blocks)


def _count(text: str) -> Count:
    name, _, number = text.partition(":")
    for grid in get_args(GridCount):
        if text == grid:
            return cast(GridCount, grid)
    if name not in COUNTS:
        raise _unknown("count", text, _COUNT_FORMS)
    return COUNTS[name](_number(number))


def _unknown(kind: str, choice: str, forms: list[str]) -> ValueError:
    names = {form.partition(":")[0]: form for form in forms}
    close = get_close_matches(choice.partition(":")[0], names, n=1)
    hint = f" (did you mean {names[close[0]]!r}?)" if close else ""
    return ValueError(f"{kind} is unknown: got {choice!r}{hint}, want one of {', '.join(forms)}")


def _number(text: str) -> float:
    """Read a number from a text; NaN, which no sampler allows, if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _block_size(number: float) -> int:
    """Check a block size, which `_number` reads as a float. ValueError unless it is whole."""
    size = int(number) if number == number // 1 else number
    return whole("blocks", size, "the free tokens of a block")
