"""A grid starts at alpha(1) of the schedule and ends at exactly 1."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.samplers.counts import (
    GRIDS,
    Grid,
    check_alphas,
    cosine_grid,
    loop_grid,
    released_grid,
    uniform_grid,
)

SCHEDULES = [LogLinear(), LogLinear(eps=0.2), Cosine(), Polynomial(power=3)]


@given(st.integers(1, 300), st.sampled_from(SCHEDULES), st.sampled_from(sorted(GRIDS)))
def test_a_grid_rises_from_alpha_1_to_exactly_1(
    steps: int, schedule: NoiseSchedule, name: str
) -> None:
    alphas = GRIDS[name](steps, schedule)
    moves = steps + (name == "released")
    assert alphas.shape == (moves + 1,) and alphas.dtype == torch.float64
    assert alphas[0] == schedule.alpha(torch.ones(1, dtype=torch.float64))[0] and alphas[-1] == 1
    assert bool((alphas.diff() > 0).all()) or name == "loop"
    check_alphas(alphas)


@pytest.mark.parametrize(
    ("grid", "times"),
    [
        (uniform_grid, [1 - k / 5 for k in range(6)]),
        (cosine_grid, [math.cos(math.pi / 2 * k / 5) for k in range(6)]),
        (released_grid, [*np.linspace(1, 1e-5, 6), 0.0]),
    ],
)
def test_inner_levels_are_those_of_their_times(grid: Grid, times: list[float]) -> None:
    expected = LogLinear(eps=1e-3).alpha(torch.tensor(times, dtype=torch.float64))
    assert torch.allclose(grid(5, LogLinear(eps=1e-3))[:-1], expected[:-1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_the_loop_rises_to_nine_tenths_stays_there_and_rises(eps: float) -> None:
    """At N = 40: 18 steps up to t = 0.55, 20 steps at exactly 0.9, 2 steps to text."""
    alphas = loop_grid(40, LogLinear(eps))
    assert torch.allclose(
        alphas[:19], torch.linspace(eps, 0.9, 19, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert torch.allclose(
        alphas[38:], torch.tensor([0.9, 0.95, 1.0], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert len(set(alphas[18:39].tolist())) <= 2 and int((alphas.diff() == 0).sum()) >= 19


@pytest.mark.parametrize("grid", GRIDS.values())
@pytest.mark.parametrize("steps", [0, -3])
def test_a_grid_needs_a_step(grid: Grid, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps .*got {steps}"):
        grid(steps, LogLinear())


@pytest.mark.parametrize(
    "alphas",
    [[0.0, 0.5], [0.0, 0.6, 0.5, 1.0], [1.0, 1.0], [-0.1, 1.0], [1.0], [0.0, math.nan, 1.0]],
)
def test_a_custom_grid_is_checked(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="grid is not a rising list of alphas: got"):
        check_alphas(torch.tensor(alphas, dtype=torch.float64))
