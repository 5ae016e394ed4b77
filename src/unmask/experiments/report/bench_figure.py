"""The figure of `unmask bench`: tokens a second by batch, and latency by network calls."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.experiments.bench.bench_results import Bench, BenchRow, step_name
from unmask.experiments.report.plotting import (
    LIGHT,
    WIDE,
    caption,
    legend,
    logarithmic,
    note,
    plot_style,
    save_figure,
    svg_figure,
    tooltip,
)

NAME = "bench"
_MARKERS = ("o", "s", "v", "D", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_MOST_LABELS = 5  # with more rows the legend alone names the points


def write_figure(bench: Bench, directory: Path) -> list[Path]:
    """Write bench.png and bench.svg; return their paths."""
    png, svg = (directory / f"{NAME}.{suffix}" for suffix in ("png", "svg"))
    figure = throughput_figure(bench)
    save_figure(figure, png)
    write_text(svg, svg_figure(figure, NAME, NAME, _alt(bench)).standalone())
    return [png, svg]


@plot_style()
def throughput_figure(bench: Bench) -> Figure:
    """Left: tokens a second against batch by step count. Right: latency at the least batch."""
    figure = Figure(figsize=(WIDE, 4.6))
    throughput, latency = figure.subplots(1, 2)
    counts = sorted({row.steps for row in bench.rows if row.steps is not None})
    for steps in (*counts, None):
        _draw_rates(throughput, bench.rows_of(steps), step_name(steps), _style(steps, counts))
    batches = sorted({row.batch for row in bench.rows})
    logarithmic(throughput.xaxis, _spaced_ticks(batches))
    logarithmic(throughput.yaxis)
    throughput.set(xlabel="batch, texts a call of sample", ylabel="tokens a second, median")
    legend(throughput, "Throughput: higher is faster; bars are one standard error", 4)
    _draw_latencies(latency, [row for row in bench.rows if row.batch == batches[0]], counts)
    caption(figure, bench.protocol_words)
    return figure


def _draw_rates(axes: Axes, rows: Sequence[BenchRow], name: str, style: dict[str, Any]) -> None:
    batches = [row.batch for row in rows]
    rates = [row.tokens_per_second for row in rows]
    values, errors = [rate.value for rate in rates], [rate.sem or 0 for rate in rates]
    axes.errorbar(batches, values, errors, label=name, elinewidth=1, **style)
    for row in rows:
        _draw_point(axes, row, row.batch, row.tokens_per_second.value, style)


def _draw_latencies(axes: Axes, rows: Sequence[BenchRow], counts: Sequence[int]) -> None:
    """The median of each row, and a whisker up to its 95 % quantile."""
    middle = statistics.geometric_mean(row.nfe for row in rows)
    for row in rows:
        style = _style(row.steps, counts)
        whisker = [[0.0], [row.p95_s - row.p50_s]]
        axes.errorbar(row.nfe, row.p50_s, whisker, capsize=4, elinewidth=1.4, **style)
        _draw_point(axes, row, row.nfe, row.p50_s, style)
        if len(rows) <= _MOST_LABELS:
            ha, shift = ("right", (-9.0, 0.0)) if row.nfe > middle else ("left", (9.0, 0.0))
            if row.steps is None:  # below, because L steps may lie at the same point
                ha, shift = "right", (5.0, -14.0)
            note(axes, row.name, (row.nfe, row.p50_s), shift, style["color"], ha=ha)
    axes.margins(0.12)
    logarithmic(axes.xaxis, _spaced_ticks(row.nfe for row in rows))
    logarithmic(axes.yaxis)
    axes.set(xlabel="network calls a text, measured", ylabel="seconds of a call of sample")
    axes.set_title(f"Latency at batch {rows[0].batch}: median, whisker to p95")


def _draw_point(axes: Axes, row: BenchRow, x: float, y: float, style: dict[str, Any]) -> None:
    (point,) = axes.plot(x, y, **style | {"linestyle": "none"})
    words = f"{row.name}, batch {row.batch}: {row.tokens_per_second}, {row.nfe:.4g} calls a text"
    point.set_gid(tooltip(f"{words}, p50 {row.p50_s:.3g} s, p95 {row.p95_s:.3g} s"))


def _spaced_ticks(values: Iterable[float]) -> list[float]:
    """Ticks at the values, without those too close to the tick before on a logarithmic axis."""
    ordered, ticks = sorted(values), list[float]()
    least = (ordered[-1] / ordered[0]) ** 0.07
    for value in ordered:
        if not ticks or value > least * ticks[-1]:
            ticks.append(round(value, 1))
    return ticks


def _style(steps: int | None, counts: Sequence[int]) -> dict[str, Any]:
    """One colour a model; step counts differ in marker and dashes."""
    if steps is None:
        return {"color": LIGHT["autoregressive"], "marker": "^"}
    i = counts.index(steps)
    marker, dashes = _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)]
    return {"color": LIGHT["teacher"], "marker": marker, "linestyle": dashes}


def _alt(bench: Bench) -> str:
    """The ratios in words."""
    ratios = [
        f"{row.ratio.value:.3g} in {row.name} at batch {row.batch}"
        for row in bench.rows
        if row.ratio is not None
    ]
    return f"Tokens a second over those of the autoregressive model: {', '.join(ratios)}"
