"""Schedules: a function, its derivative and its inverse, exact in float64 for any input dtype."""

import csv
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from last_bit import SHIFTS, LastBit
from reference import duality_density, duality_keep
from unmask.diffusion.schedules import (
    ARGMAX_RANGE,
    Cosine,
    GaussianArgmax,
    LogLinear,
    NoiseSchedule,
    Polynomial,
    check_unit,
    gamma_at,
)
from unmask.samplers.counts import GRIDS, check_alphas

pytestmark = pytest.mark.processor

TABLE = Path(__file__).parents[1] / "golden" / "keep_probability_K50257.csv"
# The unit interval with its ends and the floats beside them.
EDGES = [
    0.0,
    5e-324,
    1e-300,
    1e-3,
    math.nextafter(1e-3, 0),
    math.nextafter(1e-3, 1),
    1 - 2**-52,
    1 - 2**-53,
    1.0,
]
UNIT = st.one_of(st.sampled_from(EDGES), st.floats(0, 1))
# A product or a sum has a relative error of 2^-53, an elementary function of 2^-52.
# alpha(time(alpha)) has at most 14 errors of 2^-53 for numbers <= 1, each times at most pi / 2.
ROUNDING = 16 * 2.0**-53
EPS = st.one_of(st.sampled_from([0.0, 1e-3]), st.floats(0, 0.9))
SCHEDULES = st.one_of(
    st.builds(LogLinear, EPS),
    st.builds(Cosine, EPS),
    st.builds(Polynomial, st.sampled_from([0.5, 1.0, 2.0, 3.0]), EPS),
)
NAMED = [
    LogLinear(),
    Cosine(),
    Polynomial(),
    Polynomial(power=0.5, eps=0.0),
    LogLinear(eps=0.0),
    GaussianArgmax(50257, -3.55, -1.85),
]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(SCHEDULES)
def test_alpha_goes_from_one_to_eps(schedule: NoiseSchedule) -> None:
    """alpha(0) = 1 exactly, except for the last bit of a sine of pi / 2."""
    assert 1 - schedule.alpha(double(0.0)).item() <= (2**-52 if isinstance(schedule, Cosine) else 0)
    assert schedule.alpha(double(1.0)).item() == pytest.approx(schedule.eps, abs=ROUNDING)
    assert schedule.time(double(1.0)).item() == 0
    assert schedule.time(double(schedule.eps)).item() == pytest.approx(1, abs=1e-7)


@given(SCHEDULES, st.lists(UNIT, min_size=2, max_size=20))
def test_alpha_decreases_and_stays_in_range(schedule: NoiseSchedule, times: list[float]) -> None:
    """For two neighbouring floats, rounding may give the later one the greater alpha."""
    alpha = schedule.alpha(double(*sorted(times)))
    assert bool((alpha.diff() <= ROUNDING).all())
    assert schedule.eps - ROUNDING <= float(alpha.min()) and float(alpha.max()) <= 1


@given(SCHEDULES, UNIT)
def test_alpha_inverts_time(schedule: NoiseSchedule, share: float) -> None:
    alpha = double(schedule.eps + (1 - schedule.eps) * share).clamp(max=1)
    assert_close(schedule.alpha(schedule.time(alpha)), alpha, rtol=0, atol=ROUNDING)


@given(SCHEDULES, st.floats(1e-3, 1 - 1e-3))
def test_time_inverts_alpha(schedule: NoiseSchedule, t: float) -> None:
    """Where the slope is zero, a float alpha determines t only to sqrt(2^-53)."""
    assert schedule.time(schedule.alpha(double(t))).item() == pytest.approx(t, abs=1e-9)


@given(SCHEDULES, UNIT)
def test_time_is_in_the_unit_interval_for_every_alpha(
    schedule: NoiseSchedule, alpha: float
) -> None:
    """Below eps `time` returns 1, the noisiest time, so `alpha(time(a))` never fails."""
    t = schedule.time(double(alpha))
    assert 0 <= t.item() <= 1
    assert schedule.alpha(t).item() == pytest.approx(max(alpha, schedule.eps), abs=ROUNDING)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(
    "kind", [LogLinear, Cosine, Polynomial, partial(Polynomial, 0.5), GaussianArgmax]
)
def test_rounding_never_leaves_the_unit_interval(
    kind: Callable[..., NoiseSchedule], shift: str
) -> None:
    """time, alpha and every grid lie in [0, 1] for any rounding of elementary functions.

    Without clamping, Cosine().time(0) is 1.0000000000000002 on some processors, and alpha of it
    raises.
    """
    # The table of a Gaussian path is cached, so each shift needs another path.
    schedule = kind(50257, -3.5 - len(shift) / 64, -1.0) if kind is GaussianArgmax else kind()
    values = torch.cat([double(*EDGES), torch.linspace(0, 1, 1001, dtype=torch.float64)])
    with LastBit(shift):
        for dtype in (torch.float64, torch.float32):
            for share in (
                schedule.alpha(values.to(dtype)),
                schedule.alpha(schedule.time(values.to(dtype))),
            ):
                assert bool(((share >= 0) & (share <= 1)).all())
        for grid in GRIDS.values():
            for steps in (1, 3, 64):
                check_alphas(grid(steps, schedule))
        top, bottom = schedule.alpha(double(0.0, 1.0)).tolist()
        back = schedule.alpha(schedule.time(values))
    # Each of at most 4 elementary functions has two errors: its own rounding and the shift.
    assert_close(back, values.clamp(bottom, top), rtol=0, atol=2 * ROUNDING)


def test_the_rounding_shift_is_one_bit() -> None:
    """The test above needs such a schedule to be meaningful."""
    for shift, expected in (("up", 1 + 2**-52), ("down", 1 - 2**-53)):
        with LastBit(shift):
            assert torch.cos(double(0.0)).item() == expected
            assert (double(1.0) ** 0.5).item() == expected
            assert (double(1.0) + 1).item() == 2


@given(SCHEDULES, st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=8))
def test_dalpha_is_the_derivative(schedule: NoiseSchedule, times: list[float]) -> None:
    t = double(*times).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    assert_close(schedule.dalpha(t.detach()), slope, rtol=1e-12, atol=1e-15)
    assert bool((slope <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("schedule", NAMED, ids=str)
def test_dtypes_follow_the_input_and_the_work_is_float64(
    schedule: NoiseSchedule, dtype: torch.dtype
) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for function in (schedule.alpha, schedule.dalpha, schedule.time):
        answer = function(values)
        assert answer.dtype == dtype and answer.shape == values.shape
        assert torch.equal(answer, function(values.double()).to(dtype))


def test_near_time_zero_nothing_cancels() -> None:
    """1 - alpha in float64 has an absolute error of 2^-53.

    In float32 it would be 0 below t = 3e-8.
    """
    for schedule in (LogLinear(), Polynomial(power=1.0)):
        assert (1 - schedule.alpha(double(1e-9))).item() == pytest.approx(0.999e-9, rel=1e-6)
    assert (1 - Cosine(eps=0.0).alpha(double(1e-4))).item() == pytest.approx(1.2337e-8, rel=1e-4)


def test_special_values() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for function in ("alpha", "dalpha", "time"):
        first, second = (
            getattr(schedule, function)(t) for schedule in (LogLinear(0.1), Polynomial(1.0, 0.1))
        )
        assert_close(first, second)
    for schedule in (LogLinear(0.0), Polynomial(2.0, 0.0)):
        assert schedule.alpha(double(0.0, 1.0)).tolist() == [1, 0], "exactly"
    assert Cosine(0.0).alpha(double(1.0)).item() == 0, "exactly"
    assert_close(Cosine(eps=0.0).alpha(t), torch.cos(torch.pi * t / 2), rtol=0, atol=ROUNDING)
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
    with pytest.raises(ValueError, match=f"eps .*got {eps}, want 0 <= eps < 1"):
        kind(eps=eps)


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan")])
def test_power_is_positive(power: float) -> None:
    with pytest.raises(ValueError, match=r"power .*got .*, want power > 0"):
        Polynomial(power=power)


@pytest.mark.parametrize("schedule", [*NAMED[:3], NAMED[-1]], ids=str)
def test_outside_the_unit_interval(schedule: NoiseSchedule) -> None:
    for bad in (-1e-9, 1 + 1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"t .*got {bad}, want 0 <= t <= 1"):
            schedule.alpha(double(0.5, bad))
        with pytest.raises(ValueError, match=f"t .*got {bad}, want 0 <= t <= 1"):
            schedule.dalpha(double(bad))
        with pytest.raises(ValueError, match=f"alpha .*got {bad}, want 0 <= alpha <= 1"):
            schedule.time(double(bad))


def test_values_are_frozen_and_empty_tensors_pass() -> None:
    check_unit(torch.zeros(0), "t")
    with pytest.raises(FrozenInstanceError):
        LogLinear().eps = 0.5


# --- Duo's operator: GaussianArgmax

ARGMAX = pytest.mark.parametrize(
    "argmax",
    [
        GaussianArgmax(50257, -4.0, -1.0),
        GaussianArgmax(50257, -4.7, 8.9),
        GaussianArgmax(1024, -3.74, 0.79),
        GaussianArgmax(2, -4.3, 26.4),
    ],
    ids=str,
)


def by_sums(argmax: GaussianArgmax, t: float) -> tuple[float, float]:
    """(alpha, d alpha / dt) by sums over the Gaussian and the chain rule, without a table."""
    size, span = argmax.vocab_size, argmax.gamma_max - argmax.gamma_min
    root = math.exp(-0.5 * (argmax.gamma_min + t * span))
    alpha = (size * duality_keep(root, size) - 1) / (size - 1)
    return alpha, size / (size - 1) * duality_density(root, size) * -0.5 * span * root


@ARGMAX
def test_the_operator_and_its_derivative_are_the_plain_sums(argmax: GaussianArgmax) -> None:
    """At random times and at the ends.

    The error of the derivative is relative to its maximum, because both ends are flat.
    """
    t = torch.cat(
        [
            double(0.0, 1.0),
            torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        ]
    )
    alpha, slope = (
        double(*column)
        for column in zip(*(by_sums(argmax, time) for time in t.tolist()), strict=True)
    )
    wide = argmax.gamma_max - argmax.gamma_min > 5  # the distance of the nodes grows with the range
    assert_close(argmax.alpha(t), alpha, rtol=0, atol=1e-11 if wide else 5e-13)
    assert_close(
        argmax.dalpha(t), slope, rtol=0, atol=(1e-8 if wide else 1e-9) * float(slope.abs().max())
    )
    assert_close(
        argmax.snr_root(t),
        torch.exp(-0.5 * (argmax.gamma_min + (argmax.gamma_max - argmax.gamma_min) * t)),
    )


@ARGMAX
def test_its_derivative_belongs_to_its_values(argmax: GaussianArgmax) -> None:
    """Between two times alpha decreases by the integral of its slope (Gauss's rule, 64 pieces)."""
    cut = torch.linspace(0, 1, 65, dtype=torch.float64)
    middle, half = (cut[1:] + cut[:-1]) / 2, cut.diff() / 2
    third = math.sqrt(0.6)
    parts = [(5 / 9, -third), (8 / 9, 0.0), (5 / 9, third)]
    area = sum(weight * half * argmax.dalpha(middle + half * x) for weight, x in parts)
    assert_close(area.cumsum(0), (argmax.alpha(cut) - argmax.alpha(cut[:1]))[1:], rtol=0, atol=1e-5)
    assert bool((argmax.dalpha(cut) < 0).all())


@pytest.mark.parametrize(("low", "high"), [(-4.7, -1.0), (-4.0, -1.5)])
def test_duos_published_integral(low: float, high: float) -> None:
    """P(arg max = x0) = alpha + (1 - alpha) / K against the published table (tests/golden)."""
    argmax, size = GaussianArgmax(50257, low, high), 50257
    rows = [row for row in csv.DictReader(TABLE.open()) if low <= float(row["gamma"]) <= high]
    gamma, root, keep = (
        double(*(float(row[name]) for row in rows))
        for name in ("gamma", "snr_root", "keep_probability")
    )
    assert len(rows) > 50
    t = ((gamma - low) / (high - low)).clamp(0, 1)
    assert_close(argmax.snr_root(t), root, rtol=1e-12, atol=0)
    alpha = argmax.alpha(t)
    assert_close(alpha + (1 - alpha) / size, keep, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("gamma", "alpha"),
    [(-4, 0.9987), (-3.55, 0.9455), (-3, 0.5962), (-2.5, 0.238), (-1.85, 0.0493), (-1, 0.0062)],
)
def test_published_levels(gamma: float, alpha: float) -> None:
    """Duo's published values for the 50257 tokens of GPT-2."""
    argmax = GaussianArgmax(50257, -4.5, 0.0)
    assert argmax.alpha(double((gamma + 4.5) / 4.5)).item() == pytest.approx(alpha, abs=1e-4)
    assert gamma_at(argmax.alpha(double((gamma + 4.5) / 4.5)).item(), 50257) == pytest.approx(
        gamma, abs=1e-9
    )


@ARGMAX
@given(times=st.lists(UNIT, min_size=2, max_size=20))
def test_the_operator_decreases_and_time_inverts_it(
    argmax: GaussianArgmax, times: list[float]
) -> None:
    t = double(*sorted(times))
    alpha = argmax.alpha(t)
    assert bool((alpha.diff() <= ROUNDING).all())
    back = argmax.time(alpha)
    steep = argmax.dalpha(t).abs() > 1e-4
    # Elsewhere alpha determines t no better.
    assert_close(back[steep], t[steep], rtol=0, atol=1e-10)
    assert_close(argmax.alpha(back), alpha, rtol=0, atol=1e-14)


@ARGMAX
@given(share=UNIT)
def test_levels_outside_the_path_get_the_nearest_time(argmax: GaussianArgmax, share: float) -> None:
    """The path is cut off: above alpha(0) `time` returns 0, below alpha(1) it returns 1."""
    top, bottom = argmax.alpha(double(0.0, 1.0)).tolist()
    t = argmax.time(double(share))
    assert 0 <= t.item() <= 1
    assert argmax.alpha(t).item() == pytest.approx(min(max(share, bottom), top), abs=1e-14)
    # alpha(1) may be rounded to above the last value of the table, where alpha' exceeds alpha.
    assert argmax.time(double(1.0, top, bottom, 0.0)).tolist() == pytest.approx(
        [0, 0, 1, 1], abs=ROUNDING
    )


@pytest.mark.parametrize("size", [2, 7, 1024, 50257, 200_000])
def test_gamma_at_is_the_inverse_of_the_operator(size: int) -> None:
    for alpha in (*ARGMAX_RANGE, 1e-3, 0.5, 0.95):
        gamma = gamma_at(alpha, size)
        got = (size * duality_keep(math.exp(-gamma / 2), size) - 1) / (size - 1)
        assert got == pytest.approx(alpha, rel=1e-7 if alpha == ARGMAX_RANGE[0] else 1e-9)
    argmax = GaussianArgmax(size, gamma_at(0.9, size), gamma_at(0.1, size))
    assert argmax.alpha(double(0.0, 1.0)).tolist() == pytest.approx([0.9, 0.1], abs=1e-11)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-5.0, -1.0),
        (-4.0, 9.0),
        (-1.0, -4.0),
        (-2.0, -2.0),
        (float("nan"), -1.0),
        (-4.0, float("nan")),
    ],
)
def test_a_range_of_gamma_outside_the_table(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="gamma is out of range") as caught:
        GaussianArgmax(50257, low, high)
    message = str(caught.value)
    assert (
        f"got gamma_min = {low} and gamma_max = {high}" in message
        and "want -4.74 <= gamma_min < gamma_max <= 8.91" in message
        and "50257" in message
    )


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_gammas_of_no_level(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha .*got {alpha}, want 0 < alpha < 1"):
        gamma_at(alpha, 5)


def test_an_operator_needs_two_tokens() -> None:
    with pytest.raises(ValueError, match=r"vocab_size .*got 1, want"):
        GaussianArgmax(1, -3.0, -1.0)
