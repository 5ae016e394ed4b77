"""Helpers that figures share: saving, logarithmic axes, points with tooltips, labels, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from unmask.atomic_files import writing
from unmask.experiments.report.report_schema import ReportRow
from unmask.experiments.report.style import LIGHT, NARROW, SMALL, plot_style
from unmask.experiments.report.svg import tooltip

Points = Sequence[tuple[ReportRow, float]]  # rows with their x

PNG_DPI = 160
_LABEL_SIZE = (24.0, 14.0)  # width and height of a step label, points


@plot_style()
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically in the format of the suffix of `path`: .png, .svg or .pdf."""
    with writing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=PNG_DPI)


def caption(figure: Figure, text: str) -> None:
    """Write a small text below the axes, wrapped to the width of the figure."""
    columns = 165 if figure.get_figwidth() > NARROW else 70
    words = textwrap.fill(text, columns)
    figure.supxlabel(words, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])


def logarithmic(axis: Axis, ticks: Collection[float] | None = None) -> None:
    """Make an axis logarithmic, with plain numbers at `ticks` or at round values of its range."""
    axes = axis.axes
    axes.set_xscale("log") if axis is axes.xaxis else axes.set_yscale("log")
    axes.autoscale_view()
    axis.set_major_locator(FixedLocator(sorted(ticks or _round_values(*axis.get_view_interval()))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curve(axes: Axes, points: Points, **style: Any) -> None:
    """Draw a line through rows at (x, gen PPL)."""
    axes.plot([x for _, x in points], [row.gen_ppl.value for row, _ in points], **style)


def point(axes: Axes, row: ReportRow, x: float, **style: Any) -> None:
    """Draw a row as a marker at (x, gen PPL), with a tooltip that describes it."""
    (artist,) = axes.plot([x], [row.gen_ppl.value], **style | {"linestyle": "none"})
    artist.set_gid(tooltip(describe(row)))


def step_labels(axes: Axes, points: Points) -> None:
    """Label rows at (x, gen PPL) by their step counts; move a label aside if it covers another."""
    axes.autoscale_view()
    taken: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    width, height = _LABEL_SIZE
    for row, x in points:
        left, bottom = axes.transData.transform((x, row.gen_ppl.value)) * scale
        aside = 0.0
        while any(abs(left + aside - a) < width and abs(bottom - b) < height for a, b in taken):
            aside += width
        taken.append((left + aside, bottom))
        color = LIGHT.get(row.row.name, LIGHT["muted"])
        box = {"boxstyle": "round,pad=0.28,rounding_size=0.7", "facecolor": color}
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.8}
        text = axes.annotate(
            str(row.steps),
            (x, row.gen_ppl.value),
            (aside, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL - 0.5,
            fontweight="bold",
            color=LIGHT["panel"],
            bbox=box | {"edgecolor": LIGHT["panel"]},
            arrowprops=arrow if aside else None,
            zorder=4,
        )
        text.set_gid(tooltip(describe(row)))


def describe(row: ReportRow) -> str:
    """A row in words: model, steps, temperature, gen PPL ± one standard error, entropy."""
    sem = "" if row.gen_ppl.sem is None else f" ± {row.gen_ppl.sem:.2g}"
    how = f", {row.steps} steps, temperature {row.temperature:g}" if row.steps else ""
    measures = f"gen PPL {row.gen_ppl.value:.4g}{sem}, entropy {row.entropy.value:.3f} nats"
    return f"{row.row.name}{how}: {measures}"


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float],
    color: str,
    **style: Any,
) -> None:
    """Write a small text near a point.

    Args:
        at: the point, in the coordinates of the data.
        shift: from the point to the text, in typographic points.
        style: overrides of `Axes.annotate`, such as `ha` or `xycoords`.
    """
    usual: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
    options = usual | {"textcoords": "offset points"} | style
    axes.annotate(text, at, shift, color=color, **options)


def legend(axes: Axes, title: str, columns: int = 2) -> None:
    """Put the legend above the axes, where it covers nothing, with a remark as its title."""
    box = axes.legend(
        title=title,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.012, 1.01),
        alignment="left",
        title_fontsize=SMALL,
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.4,
    )
    box.get_title().set_color(LIGHT["muted"])


def _round_values(low: float, high: float) -> list[float]:
    """At least four round numbers in the range, if possible."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [float(f"{decade * factor:.6g}") for decade in decades for factor in factors]
        ticks = [value for value in values if low <= value <= high]
        if len(ticks) >= 4:
            return ticks
    return [float(value) for value in MaxNLocator(6).tick_values(low, high) if low <= value <= high]
