"""A schedule is a function, its derivative and its inverse, exact in float64 whatever precision it is asked in."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial, check_unit

UNIT = st.floats(0, 1)
EPS = st.one_of(st.sampled_from([0.0, 1e-3]), st.floats(0, 0.9))
SCHEDULES = st.one_of(
    st.builds(LogLinear, EPS),
    st.builds(Cosine, EPS),
    st.builds(Polynomial, st.sampled_from([0.5, 1.0, 2.0, 3.0]), EPS),
)
NAMED = [LogLinear(), Cosine(), Polynomial(), Polynomial(power=0.5, eps=0.0), LogLinear(eps=0.0)]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(SCHEDULES)
def test_from_all_of_the_text_to_eps_of_it(schedule: NoiseSchedule) -> None:
    """alpha(0) = 1 exactly: at time 0 nothing is noise."""
    assert schedule.alpha(double(0.0)).item() == 1
    assert schedule.alpha(double(1.0)).item() == pytest.approx(schedule.eps, abs=4e-16)
    assert schedule.time(double(1.0)).item() == 0
    assert schedule.time(double(schedule.eps)).item() == pytest.approx(1, abs=1e-7)


@given(SCHEDULES, st.lists(UNIT, min_size=2, max_size=20))
def test_alpha_falls_and_stays_inside_its_bounds(schedule: NoiseSchedule, times: list[float]) -> None:
    alpha = schedule.alpha(double(*sorted(times)))
    assert bool((alpha.diff() <= 0).all())
    assert schedule.eps - 4e-16 <= float(alpha.min()) and float(alpha.max()) <= 1


@given(SCHEDULES, UNIT)
def test_alpha_undoes_time(schedule: NoiseSchedule, share: float) -> None:
    alpha = double(schedule.eps + (1 - schedule.eps) * share).clamp(max=1)
    assert_close(schedule.alpha(schedule.time(alpha)), alpha, rtol=0, atol=1e-15)


@given(SCHEDULES, st.floats(1e-3, 1 - 1e-3))
def test_time_undoes_alpha(schedule: NoiseSchedule, t: float) -> None:
    """Near the ends a float alpha knows t to sqrt(2^-53) only, where the slope is zero."""
    assert schedule.time(schedule.alpha(double(t))).item() == pytest.approx(t, abs=1e-9)


@given(SCHEDULES, UNIT)
def test_times_are_times_for_every_alpha(schedule: NoiseSchedule, alpha: float) -> None:
    """Below eps the answer is 1, the noisiest there is; so `alpha(time(a))` never fails."""
    t = schedule.time(double(alpha))
    assert 0 <= t.item() <= 1
    assert schedule.alpha(t).item() == pytest.approx(max(alpha, schedule.eps), abs=1e-15)


@given(SCHEDULES, st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=8))
def test_dalpha_is_the_derivative(schedule: NoiseSchedule, times: list[float]) -> None:
    t = double(*times).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    assert_close(schedule.dalpha(t.detach()), slope, rtol=1e-12, atol=1e-15)
    assert bool((slope <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("schedule", NAMED, ids=str)
def test_the_dtype_of_the_answer_is_that_of_the_question_and_the_work_is_float64(
    schedule: NoiseSchedule, dtype: torch.dtype
) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for function in (schedule.alpha, schedule.dalpha, schedule.time):
        answer = function(values)
        assert answer.dtype == dtype and answer.shape == values.shape
        assert torch.equal(answer, function(values.double()).to(dtype))


def test_near_time_zero_nothing_cancels() -> None:
    """1 - alpha of a float64 answer is good to 2^-53 absolutely; through float32 it would be 0 below t = 3e-8."""
    for schedule in (LogLinear(), Polynomial(power=1.0)):
        assert (1 - schedule.alpha(double(1e-9))).item() == pytest.approx(0.999e-9, rel=1e-6)
    assert (1 - Cosine(eps=0.0).alpha(double(1e-4))).item() == pytest.approx(1.2337e-8, rel=1e-4)


def test_special_values() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for function in ("alpha", "dalpha", "time"):
        first, second = (getattr(schedule, function)(t) for schedule in (LogLinear(0.1), Polynomial(1.0, 0.1)))
        assert_close(first, second)
    for schedule in (LogLinear(0.0), Cosine(0.0), Polynomial(2.0, 0.0)):
        assert schedule.alpha(double(0.0, 1.0)).tolist() == [1, 0], "exactly"
    assert_close(Cosine(eps=0.0).alpha(t), torch.cos(torch.pi * t / 2), rtol=0, atol=1e-15)
    mdlm_sigma = -torch.log1p(-(1 - 1e-3) * t)  # MDLM's total noise
    assert_close(-torch.log(LogLinear().alpha(t)), mdlm_sigma, rtol=1e-13, atol=1e-15)


def test_the_weight_of_the_log_linear_bound_is_one_over_t() -> None:
    """-alpha' / (1 - alpha) = 1 / t, and sigma' / expm1(sigma) is the same."""
    t = double(1e-3, 0.1, 0.5, 1.0)
    schedule = LogLinear()
    alpha, slope = schedule.alpha(t), schedule.dalpha(t)
    assert_close(-slope / (1 - alpha), 1 / t, rtol=1e-12, atol=0)
    assert_close((-slope / alpha) / torch.expm1(-torch.log(alpha)), 1 / t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [LogLinear, Cosine, Polynomial])
@pytest.mark.parametrize("eps", [-1e-9, 1.0, float("nan")])
def test_eps_is_a_share(kind: type, eps: float) -> None:
    with pytest.raises(ValueError, match=r"share of text left at t = 1: want 0 <= eps < 1, got"):
        kind(eps=eps)


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan")])
def test_power_is_positive(power: float) -> None:
    with pytest.raises(ValueError, match="want power > 0, got"):
        Polynomial(power=power)


@pytest.mark.parametrize("schedule", NAMED[:3], ids=str)
def test_outside_the_unit_interval(schedule: NoiseSchedule) -> None:
    for bad in (-1e-9, 1 + 1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"want 0 <= t <= 1, got {bad}"):
            schedule.alpha(double(0.5, bad))
        with pytest.raises(ValueError, match=f"want 0 <= t <= 1, got {bad}"):
            schedule.dalpha(double(bad))
        with pytest.raises(ValueError, match=f"share of text left: want 0 <= alpha <= 1, got {bad}"):
            schedule.time(double(bad))


def test_values_are_frozen_and_nothing_is_checked_of_nothing() -> None:
    check_unit(torch.zeros(0), "t")
    with pytest.raises(FrozenInstanceError):
        LogLinear().eps = 0.5
