"""Curves of log gen_ppl against an entropy, interpolated at a target entropy.

A curve is one model at one step count over temperatures, with points (entropy, log gen_ppl).
Between the two points whose entropies bracket the target, log gen_ppl is linear in the entropy. It
is never extrapolated. Every number is an array [1 + draws]: the measured value, and then its
resamples. One resample draws latents for all rows at once, because sample i of
every row comes from latent i. Intervals of ratios are therefore paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unmask.evaluation.bootstrap import Floats, Index, pooled_mean, resamples
from unmask.evaluation.measure import ENTROPIES, NATS, SECONDS, TOKENS, Row

NOT_REACHED = "not reached"
NOT_TIMED = f"{NOT_REACHED}, or not timed, at any steps"
MIN_SHARE = 0.95  # share of the resamples that must bracket the target for an interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None if too few resamples reach the target."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A row under every resample.

    Attributes:
        log_ppl: log gen_ppl [1 + draws]
        entropy: each entropy [1 + draws], by its column
    """

    row: Row
    log_ppl: Floats
    entropy: Mapping[str, Floats]

    @property
    def seconds(self) -> float | None:
        return self.row.measures[SECONDS].value if SECONDS in self.row.measures else None


@dataclass(frozen=True)
class CurvePoint:
    """The point of a curve at a target.

    Attributes:
        log_ppl: log gen_ppl [1 + draws]; NaN in resamples whose target is outside the curve
        nfe: network calls per sample
        seconds: wall clock time per sample; None if a row of the curve was not timed
    """

    log_ppl: Floats
    nfe: float
    seconds: float | None


def resampled(row: Row) -> Point:
    """A row under every resample; all rows of n samples use the same resamples."""
    if not {NATS, TOKENS} <= row.samples.keys():
        raise ValueError(
            f"row {row.name} at {row.setting.steps} steps lacks the per-sample {NATS} and "
            f"{TOKENS}, which a paired interval needs: measure it again, or store its `samples`"
        )
    columns = {name: np.asarray(values, np.float64) for name, values in row.samples.items()}
    entropies = {
        name: _pooled(columns[name], np.ones(len(columns[name])))
        for name in ENTROPIES
        if name in columns
    }
    return Point(row, _pooled(columns[NATS], columns[TOKENS]), entropies)


def _pooled(total: Floats, count: Floats) -> Floats:
    n = len(total)
    index: Index = np.concatenate([np.arange(n)[None], resamples(n)])
    return pooled_mean(total, count, index)


def curves(rows: Iterable[Row]) -> dict[int, list[Point]]:
    """Steps -> points by temperature, both ascending. The first of two equal settings is used."""
    table: dict[int, dict[float, Row]] = {}
    for row in rows:
        table.setdefault(row.setting.steps, {}).setdefault(row.setting.temperature, row)
    return {
        steps: [resampled(table[steps][tau]) for tau in sorted(table[steps])]
        for steps in sorted(table)
    }


def at_temperature_1(curve: Iterable[Point]) -> Point | None:
    """The point at temperature 1."""
    return next((point for point in curve if point.row.setting.temperature == 1), None)


def point_at(curve: Sequence[Point], column: str, target: Point) -> CurvePoint | str:
    """The point of a curve at the target's value of `column`, or the reason for its absence."""
    if not curve:
        return "no rows at these steps"
    if column not in target.entropy or any(column not in point.entropy for point in curve):
        return f"{ENTROPIES[column]} was not measured"
    x, goal = np.stack([point.entropy[column] for point in curve]), target.entropy[column]
    log_ppl = interpolate(x, np.stack([point.log_ppl for point in curve]), goal)
    if np.isnan(log_ppl[0]):
        temperatures = ", ".join(f"{point.row.setting.temperature:g}" for point in curve)
        return (
            f"{NOT_REACHED}: {goal[0]:.4g} is outside {x[:, 0].min():.4g} to {x[:, 0].max():.4g} "
            f"(temperatures {temperatures})"
        )

    def at_goal(values: Sequence[float]) -> float:
        return float(interpolate(x[:, :1], np.array(values)[:, None], goal[:1])[0])

    seconds = [point.seconds for point in curve if point.seconds is not None]
    nfe = at_goal([point.row.setting.nfe for point in curve])
    return CurvePoint(log_ppl, nfe, at_goal(seconds) if len(seconds) == len(curve) else None)


def interpolate(x: Floats, y: Floats, target: Floats) -> Floats:
    """y at x = target, linear between neighbours in x; NaN outside all points.

    Args:
        x: [P, D], points in any order; a single point gives a value at its own x only.
        y: [P, D].
        target: [D].

    >>> interpolate(np.array([[3.0], [1.0]]), np.array([[8.0], [4.0]]), np.array([2.5]))
    array([7.])
    """
    order = x.argsort(axis=0, kind="stable")
    x, y = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    below = (x < target).sum(axis=0)
    high, low = np.minimum(below, len(x) - 1)[None], np.maximum(below - 1, 0)[None]
    (x_low, y_low), (x_high, y_high) = (
        (np.take_along_axis(x, at, 0)[0], np.take_along_axis(y, at, 0)[0]) for at in (low, high)
    )
    gap = x_high - x_low
    weight = np.divide(target - x_low, gap, out=np.zeros_like(gap), where=gap > 0)
    inside = (x[0] <= target) & (target <= x[-1])
    result: Floats = np.where(inside, y_low + weight * (y_high - y_low), np.nan)
    return result


def estimate(log_values: Floats) -> Estimate:
    """exp of log values [1 + draws]: the measured value and the 95 % interval of its resamples."""
    value, resampled = float(np.exp(log_values[0])), log_values[1:][~np.isnan(log_values[1:])]
    if len(resampled) < max(1, MIN_SHARE * (len(log_values) - 1)):
        return Estimate(value, None, None)
    low, high = np.exp(np.quantile(resampled, [0.025, 0.975]))
    return Estimate(value, float(low), float(high))
