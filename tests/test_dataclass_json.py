"""JSON text: strict JSON for every reader."""

import json
import math
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.cli.console import emit
from unmask.dataclass_json import dumps, finite, not_finite

numbers = (
    st.floats()
    | st.integers()
    | st.booleans()
    | st.none()
    | st.text(st.characters(exclude_categories=["Cs"]))
)
data = st.recursive(
    numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", min_size=1), inner)
)


def refused(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@given(data)
def test_json_holds_finite_numbers_and_nothing_else_is_changed(value: Any) -> None:
    read = json.loads(dumps(value), parse_constant=refused)
    assert read == finite(value)
    if not not_finite(value):
        assert read == value


def test_each_number_that_is_not_finite_is_named() -> None:
    value = {"a": [1.0, math.inf, {"b": math.nan}], "c": (-math.inf,), "d": 2}
    assert not_finite(value) == ["a[1]", "a[2].b", "c[0]"]
    assert finite(value) == {"a": [1.0, None, {"b": None}], "c": [None], "d": 2}


@pytest.mark.parametrize("write", [emit, partial(emit, indent=None)])
def test_a_result_that_is_not_finite_is_null_with_a_remark(
    capsys: pytest.CaptureFixture[str], write: Any
) -> None:
    write({"perplexity": {"value": math.inf, "n": 3}})
    out, err = capsys.readouterr()
    assert json.loads(out, parse_constant=refused) == {"perplexity": {"value": None, "n": 3}}
    assert "not finite, written as null: perplexity.value" in err
    write({"value": 1.0})
    assert capsys.readouterr().err == ""
