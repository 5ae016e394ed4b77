"""The picture of `unmask bench`: tokens a second by batch, and the latency of one text by its network calls."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.experiments.bench.throughput import Bench, BenchRow, words
from unmask.experiments.report.axes import legend, logarithmic, note, write_picture
from unmask.experiments.report.style import LIGHT, SMALL, WIDE, drawing
from unmask.experiments.report.svg import picture, tip

NAME = "bench"
_MARKERS = ("o", "s", "v", "D", "P", "X")
_NAMED = 5  # rows that bear their names beside their points: of more the legend tells
_DASHES = ("-", "--", "-.", ":")


def write_figure(bench: Bench, directory: Path) -> list[Path]:
    """Write bench.png and bench.svg."""
    png, svg = (directory / f"{NAME}.{ending}" for ending in ("png", "svg"))
    with drawing():
        drawn = throughput_figure(bench)
        write_picture(drawn, png)
        write_text(svg, picture(drawn, NAME, _alt(bench)).standalone())
    return [png, svg]


def throughput_figure(bench: Bench) -> Figure:
    """Left: tokens a second against batch, a line a step count. Right: seconds of a call at the smallest batch."""
    figure = Figure(figsize=(WIDE, 4.6))
    throughput, latency = figure.subplots(1, 2)
    counts = sorted({row.steps for row in bench.rows if row.steps is not None})
    for steps in (*counts, None):
        _rates(throughput, bench.of(steps), _style(steps, counts), _name(steps))
    batches = sorted({row.batch for row in bench.rows})
    logarithmic(throughput.xaxis, _apart(batches))
    logarithmic(throughput.yaxis)
    throughput.set(xlabel="batch, texts a call of sample", ylabel="tokens a second, median")
    legend(throughput, "Throughput: higher is faster; bars are one standard error", 4)
    _latencies(latency, [row for row in bench.rows if row.batch == batches[0]], counts)
    beneath = textwrap.fill(words(bench), 165)
    figure.supxlabel(beneath, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])
    return figure


def _rates(axes: Axes, line: Sequence[BenchRow], style: dict[str, Any], name: str) -> None:
    values = [row.tokens_per_second for row in line]
    axes.errorbar(
        [row.batch for row in line], [value.value for value in values], [value.sem or 0 for value in values],
        label=name, elinewidth=1, **style,
    )  # fmt: skip
    for row in line:
        (dot,) = axes.plot(row.batch, row.tokens_per_second.value, **style | {"linestyle": "none"})
        dot.set_gid(tip(_describe(row)))


def _latencies(axes: Axes, column: Sequence[BenchRow], counts: Sequence[int]) -> None:
    """The median of each row, and a whisker up to its 95 % quantile."""
    middle = statistics.geometric_mean(row.nfe for row in column)
    for row in column:
        style = _style(row.steps, counts)
        above = row.p95_s - row.p50_s
        axes.errorbar(
            row.nfe, row.p50_s, np.array([[0.0], [above]]), capsize=4, elinewidth=1.4, **style
        )
        (dot,) = axes.plot(row.nfe, row.p50_s, **style | {"linestyle": "none"})
        dot.set_gid(tip(_describe(row)))
        if len(column) > _NAMED:
            continue
        ha, shift = ("right", (-9.0, 0.0)) if row.nfe > middle else ("left", (9.0, 0.0))
        if row.steps is None:  # below, where it does not cover as many steps as tokens
            ha, shift = "right", (5.0, -14.0)
        note(axes, _name(row.steps), (row.nfe, row.p50_s), shift, style["color"], ha)
    axes.margins(0.12)
    logarithmic(axes.xaxis, _apart(row.nfe for row in column))
    logarithmic(axes.yaxis)
    axes.set(xlabel="network calls a text, measured", ylabel="seconds of a call of sample")
    axes.set_title(f"Latency at batch {column[0].batch}: median, whisker to p95")


def _apart(values: Iterable[float]) -> list[float]:
    """Ticks at the values, without those too near to the one before on a logarithmic axis."""
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
    place = counts.index(steps)
    dashes = _DASHES[place % len(_DASHES)]
    return {
        "color": LIGHT["teacher"],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": dashes,
    }


def _name(steps: int | None) -> str:
    return "autoregressive" if steps is None else f"{steps} step{'' if steps == 1 else 's'}"


def _describe(row: BenchRow) -> str:
    return (
        f"{_name(row.steps)}, batch {row.batch}: {row.tokens_per_second}, {row.nfe:.4g} calls a text, "
        f"p50 {row.p50_s:.3g} s, p95 {row.p95_s:.3g} s"
    )


def _alt(bench: Bench) -> str:
    """What the picture says, in words: the ratios."""
    ratios = [
        f"{row.ratio.value:.3g} in {_name(row.steps)} at batch {row.batch}"
        for row in bench.rows
        if row.ratio is not None
    ]
    return f"Tokens a second over those of the autoregressive model: {', '.join(ratios)}"
