"""The learning rate: a pure function of the step, linear then constant or a half cosine."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.training import AdamW


@given(warmup=st.integers(1, 50), step=st.integers(0, 200))
def test_warm_up_is_a_line_through_zero_before_the_first_step(warmup: int, step: int) -> None:
    rate = AdamW(lr=0.5, warmup_steps=warmup).learning_rate(step)
    assert rate == pytest.approx(0.5 * min(1, (step + 1) / warmup))


@given(warmup=st.integers(0, 50), length=st.integers(1, 50), step=st.integers(0, 200))
def test_cosine_is_even_about_its_middle_and_ends_at_zero(
    warmup: int, length: int, step: int
) -> None:
    settings = AdamW(lr=2.0, warmup_steps=warmup, decay_steps=warmup + length)
    step = step % (length + 1)
    mirrored = settings.learning_rate(warmup + length - step)
    assert settings.learning_rate(warmup + step) + mirrored == pytest.approx(2.0)
    assert (
        settings.learning_rate(warmup + length) == settings.learning_rate(warmup + length + 7) == 0
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": 5, "decay_steps": 5}, "decay_steps"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdamW(**settings)
