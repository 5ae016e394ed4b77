"""What samplers are called on the command line and in `sample`: NAME, or NAME:NUMBER for a family of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import TypeVar

from unmask.samplers.blockwise import blockwise
from unmask.samplers.entropy_bounded import entropy_bounded
from unmask.samplers.remasking import psi, remdm_cap, remdm_loop, remdm_rescale
from unmask.samplers.steps import Sampler, ancestral, confidence, greedy_tail, reveal

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
        "entropy_bounded": entropy_bounded,
        "blockwise": blockwise,
    }
)


def sampler_of(choice: str | Sampler) -> Sampler:
    """The sampler of a name, "reveal", or of a family's name and number, "psi:0.5"; a sampler stands for itself.

    ValueError for an unknown name, a family without its number or with one outside its range.
    """
    if not isinstance(choice, str):
        return choice
    name, colon, number = choice.partition(":")
    if name in FAMILIES:
        try:
            return FAMILIES[name](_number(number))
        except ValueError as error:
            raise ValueError(
                f"the sampler {choice!r} is written {name}:NUMBER, where {error}"
            ) from None
    if name in SAMPLERS and colon:
        raise ValueError(f"the sampler {name!r} takes no number: write {name!r}, got {choice!r}")
    if name not in SAMPLERS:
        raise _unknown("sampler", choice, [*SAMPLERS, *(f"{family}:NUMBER" for family in FAMILIES)])
    return SAMPLERS[name]


def named(kind: str, choice: str | Choice, choices: Mapping[str, Choice]) -> Choice:
    """What a name stands for; a thing stands for itself. ValueError with a suggestion for an unknown name."""
    if not isinstance(choice, str):
        return choice
    if choice not in choices:
        raise _unknown(kind, choice, list(choices))
    return choices[choice]


def _unknown(kind: str, choice: str, known: list[str]) -> ValueError:
    names = {one.partition(":")[0]: one for one in known}
    close = get_close_matches(choice.partition(":")[0], names, n=1)
    hint = f" (did you mean {names[close[0]]!r}?)" if close else ""
    return ValueError(f"no {kind} is called {choice!r}{hint}: want one of {', '.join(known)}")


def _number(text: str) -> float:
    """What stands behind the colon; NaN, which no family allows, where it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
