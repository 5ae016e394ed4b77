"""Checks of numbers and names from users, and of memory. This module does not import torch."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

INT64 = 2**63  # tensors hold -INT64 .. INT64 - 1
MOST_STEPS = 2**20  # steps are Python objects, and no text has this many tokens
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def whole(name: str, value: object, meaning: str, low: int = 1, high: int = INT64 - 1) -> int:
    """Check a whole number and return it as an `int`.

    Args:
        name: the argument's name, for the error.
        value: any integer type, numpy's too.
        meaning: a noun phrase that describes the argument, for the error.
        low: the smallest allowed number.
        high: the largest allowed number.

    Raises:
        ValueError: for another type, a bool, or a number outside low .. high.

    >>> whole("n", 0, "the number of samples")
    Traceback (most recent call last):
    ValueError: n is too small: got 0, want a whole number 1 .. 2^63 - 1 (the number of samples)
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        fault, got = "not a whole number", repr(value)
    elif low <= (number := operator.index(value)) <= high:
        return number
    else:
        fault, got = "too small" if number < low else "too large", _words(number)
    raise ValueError(
        f"{name} is {fault}: got {got}, want a whole number {_words(low)} .. {_words(high)} "
        f"({meaning})"
    )


def seed_number(name: str, value: object) -> int:
    """Check a seed: any signed 64-bit number. ValueError otherwise."""
    return whole(name, value, "a 64-bit number", -INT64, INT64 - 1)


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the allowed strings."""
    if value not in allowed:
        raise ValueError(
            f"{name} is unknown: got {value!r}, want one of {', '.join(map(repr, allowed))}"
        )


def check_range(name: str, value: object, inside: bool, want: str) -> None:
    """Raise ValueError unless a value is inside its range.

    Args:
        name: the argument's name, for the error.
        value: the argument's value, for the error.
        inside: whether the value is inside.
        want: the range in words, and what to do, for the error.

    >>> check_range("top_k", 0, inside=0 >= 1, want="top_k >= 1")
    Traceback (most recent call last):
    ValueError: top_k is out of range: got 0, want top_k >= 1
    """
    if not inside:
        raise ValueError(f"{name} is out of range: got {value}, want {want}")


def check_memory(
    name: str, got: str, need_bytes: int, advice: str, available_bytes: int | None = None
) -> None:
    """Refuse an argument whose tensors do not fit in memory.

    Args:
        name: the argument's name, for the error.
        got: the argument's value as text, for the error.
        need_bytes: a lower bound on the memory that this value needs.
        advice: what to do, for the error.
        available_bytes: the memory of the device; None: the memory of this process.

    Raises:
        ValueError: `need_bytes` exceeds the memory.
    """
    available = memory_bytes() if available_bytes is None else available_bytes
    if need_bytes > available:
        raise ValueError(
            f"{name} is too large: got {got}, which takes at least {_gib(need_bytes)}, want at "
            f"most the memory, {_gib(available)}; {advice}"
        )


def memory_bytes() -> int:
    """The memory limit of this process: of the machine, or of its control group if that is less.

    The result is 2^63 - 1 if the system does not report its memory.
    """
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return INT64 - 1
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text("ascii").strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number < 2**70 else "2^40 GiB"


def _words(number: int) -> str:
    """A number as text for errors. Python raises an error for numbers with very many digits."""
    for power, name in ((-INT64, "-2^63"), (INT64 - 1, "2^63 - 1")):
        if number == power:
            return name
    return str(number) if abs(number) < 10**40 else f"a number of {number.bit_length()} bits"
