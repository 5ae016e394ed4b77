"""The range of a whole number that a user gives, and the memory of the machine. No torch here."""

from __future__ import annotations

import operator
import os
from numbers import Integral
from pathlib import Path

INT64 = 2**63  # tensors hold -INT64 .. INT64 - 1
MOST_STEPS = (
    2**20
)  # of a text or a measurement: each step is a Python object, and no text has as many tokens
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def whole(name: str, value: object, meaning: str, low: int = 1, high: int = INT64 - 1) -> int:
    """The `int` of any integer type, numpy's too; ValueError for other types, bool, and outside low .. high.

    >>> whole("n", 0, "the number of samples")
    Traceback (most recent call last):
    ValueError: n is too small: got 0, want a whole number 1 .. 2^63 - 1 (the number of samples)
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        fault, got = "no whole number", repr(value)
    elif low <= (number := operator.index(value)) <= high:
        return number
    else:
        fault, got = "too small" if number < low else "too large", _words(number)
    raise ValueError(
        f"{name} is {fault}: got {got}, want a whole number {_words(low)} .. {_words(high)} ({meaning})"
    )


def seed_number(name: str, value: object) -> int:
    """A seed: any 64-bit number; ValueError for others."""
    return whole(name, value, "the 64-bit number of the randomness", -INT64, INT64 - 1)


def check_memory(
    name: str, got: str, need_bytes: int, advice: str, room_bytes: int | None = None
) -> None:
    """ValueError where `need_bytes`, a lower bound, pass the memory: of this process, or `room_bytes` of a device."""
    room = memory_bytes() if room_bytes is None else room_bytes
    if need_bytes > room:
        raise ValueError(
            f"{name} is too large: got {got}, which takes at least {_gib(need_bytes)}, want at most the memory, "
            f"{_gib(room)}; {advice}"
        )


def memory_bytes() -> int:
    """The memory that this process can have at most: the machine's, or its control group's where that is less.

    2^63 - 1 where the system does not say.
    """
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return INT64 - 1
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text("ascii").strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number < 2**70 else "2^40 GiB"


def _words(number: int) -> str:
    """A number as people write it; Python refuses to print the very long ones."""
    for power, name in ((-INT64, "-2^63"), (INT64 - 1, "2^63 - 1")):
        if number == power:
            return name
    return str(number) if abs(number) < 10**40 else f"a number of {number.bit_length()} bits"
