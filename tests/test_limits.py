"""Checks of whole numbers and memory: the range, and errors with the name and the value."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.limits import INT64, check_choice, check_memory, memory_bytes, seed_number, whole


@given(st.integers(-(2**70), 2**70), st.integers(-(2**66), 2**66), st.integers(0, 2**67))
def test_a_number_is_checked_against_its_range(value, low, width):
    if low <= value <= low + width:
        assert whole("n", value, "a count", low, low + width) == value
    else:
        fault = "small" if value < low else "large"
        with pytest.raises(
            ValueError, match=f"^n is too {fault}: got .*, want a whole number .*a count"
        ):
            whole("n", value, "a count", low, low + width)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_every_integer_type_is_a_whole_number(kind):
    number = whole("n", kind(5), "a count")
    assert number == 5 and type(number) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 1.0, np.float64(2), "3", None, torch.tensor(2), torch.tensor(True)]
)
def test_other_types_are_refused(value):
    with pytest.raises(ValueError, match="n is not a whole number: got " + re.escape(repr(value))):
        whole("n", value, "a count")


def test_a_number_of_many_digits_is_described_by_its_bits():
    with pytest.raises(ValueError, match="n is too large: got a number of 33220 bits, want"):
        whole("n", 10**10000, "a count")


def test_a_seed_fits_into_64_bits():
    assert [seed_number("seed", value) for value in (-INT64, 0, INT64 - 1)] == [
        -INT64,
        0,
        INT64 - 1,
    ]
    for value in (-INT64 - 1, INT64):
        with pytest.raises(
            ValueError, match=f"seed is too .*: got {value}, want a whole number -2.63 .. 2.63 - 1"
        ):
            seed_number("seed", value)


def test_a_need_above_the_memory_is_refused():
    check_memory("n", "5", memory_bytes(), "give less")
    with pytest.raises(
        ValueError, match=r"^n is too large: got 5, which takes at least .* GiB, .*; give less$"
    ):
        check_memory("n", "5", memory_bytes() + 1, "give less")
    with pytest.raises(
        ValueError, match=r"takes at least 4\.0 GiB, want at most the memory, 2\.0 GiB"
    ):
        check_memory("n", "5", 2**32, "give less", available_bytes=2**31)


def test_a_choice_is_one_of_the_allowed_names():
    check_choice("direction", "forward", ("reverse", "forward"))
    for value in ("both", None, 1):
        with pytest.raises(ValueError) as caught:
            check_choice("direction", value, ("reverse", "forward"))
        assert str(caught.value) == (
            f"direction is unknown: got {value!r}, want one of 'reverse', 'forward'"
        )
