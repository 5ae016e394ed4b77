"""A curve is one model at one step count over temperatures: points (entropy, log gen_ppl), read at a target entropy.

Between the two points whose entropies bracket the target, log gen_ppl is linear in the entropy; outside all points
there is no answer, never an extrapolation. Everything carries its bootstrap: arrays [1 + draws] hold the value as
measured, then its resamples. One resample draws latents for all rows at once, because sample i of every row was drawn
from latent i; so the intervals of ratios are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unmask.evaluation.measure import (
    ENTROPIES,
    NATS,
    SECONDS,
    TOKENS,
    Floats,
    Index,
    Row,
    pooled_mean,
    resamples,
)

NOT_REACHED = "not reached: "
LEAST_SHARE = 0.95  # of resamples in which a target must be bracketed, before an interval is given


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None where too few resamples reach the target to give one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A row under every resample: log gen_ppl [1 + draws], and each measured entropy [1 + draws]."""

    row: Row
    log_ppl: Floats
    entropy: Mapping[str, Floats]

    @property
    def seconds(self) -> float | None:
        return self.row.measures[SECONDS].value if SECONDS in self.row.measures else None


@dataclass(frozen=True)
class CurvePoint:
    """A curve at a target: log gen_ppl [1 + draws], nan where a resample misses it; calls, seconds a sample."""

    log_ppl: Floats
    nfe: float
    seconds: float | None


@dataclass(frozen=True)
class Resampler:
    """Row -> `Point`, by the same resamples for all rows of n samples."""

    draws: int
    seed: int

    def __call__(self, row: Row) -> Point:
        if not {NATS, TOKENS} <= row.samples.keys():
            raise ValueError(
                f"row {row.name} at {row.setting.steps} steps lacks the per-sample {NATS} and {TOKENS} that a paired "
                "interval needs: measure it again, or keep `samples` when you store it"
            )
        columns = {name: np.asarray(values, np.float64) for name, values in row.samples.items()}
        entropies = {
            name: pooled_mean(
                columns[name], np.ones(len(columns[name])), self._index(len(columns[name]))
            )
            for name in ENTROPIES
            if name in columns
        }
        return Point(
            row,
            pooled_mean(columns[NATS], columns[TOKENS], self._index(len(columns[NATS]))),
            entropies,
        )

    def _index(self, n: int) -> Index:
        return np.concatenate([np.arange(n)[None], resamples(n, self.draws, self.seed)])


def curves(rows: Iterable[Row], resampler: Resampler) -> dict[int, list[Point]]:
    """Steps -> the points at those steps, both ascending; of two rows at one temperature the first is taken."""
    table: dict[int, dict[float, Row]] = {}
    for row in rows:
        table.setdefault(row.setting.steps, {}).setdefault(row.setting.temperature, row)
    return {
        steps: [resampler(table[steps][tau]) for tau in sorted(table[steps])]
        for steps in sorted(table)
    }


def untempered(curve: Iterable[Point]) -> Point | None:
    """The point at temperature 1."""
    return next((point for point in curve if point.row.setting.temperature == 1), None)


def read(curve: Sequence[Point], column: str, target: Point) -> CurvePoint | str:
    """The curve where its `column` equals the target's, or in words why it cannot be read there."""
    if not curve:
        return "no rows at these steps"
    if column not in target.entropy or any(column not in point.entropy for point in curve):
        return f"{ENTROPIES[column]} was not measured"
    x, wanted = np.stack([point.entropy[column] for point in curve]), target.entropy[column]
    log_ppl = interpolate(x, np.stack([point.log_ppl for point in curve]), wanted)
    if np.isnan(log_ppl[0]):
        temperatures = ", ".join(f"{point.row.setting.temperature:g}" for point in curve)
        return (
            f"{NOT_REACHED}{wanted[0]:.4g} is outside {x[:, 0].min():.4g} to {x[:, 0].max():.4g} "
            f"(temperatures {temperatures})"
        )

    def here(values: Sequence[float]) -> float:
        return float(interpolate(x[:, :1], np.array(values)[:, None], wanted[:1])[0])

    seconds = [point.seconds for point in curve if point.seconds is not None]
    nfe = here([point.row.setting.nfe for point in curve])
    return CurvePoint(log_ppl, nfe, here(seconds) if len(seconds) == len(curve) else None)


def interpolate(x: Floats, y: Floats, target: Floats) -> Floats:
    """y at x = target, linear between the neighbours in x: x, y [P, D], target [D] -> [D]; nan outside all points.

    Points need no order; a single point answers for its own x only.

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
    """exp of log values [1 + draws]: the value itself, and the interval that its resamples span."""
    value, resampled = float(np.exp(log_values[0])), log_values[1:][~np.isnan(log_values[1:])]
    if len(resampled) < max(1, LEAST_SHARE * (len(log_values) - 1)):
        return Estimate(value, None, None)
    low, high = np.exp(np.quantile(resampled, [0.025, 0.975]))
    return Estimate(value, float(low), float(high))
