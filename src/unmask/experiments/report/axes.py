"""What several pictures do with an axis: plain figures on logarithmic scales, labels, points that say what they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from unmask.atomic_files import writing
from unmask.experiments.report.record import Line
from unmask.experiments.report.style import LIGHT, SMALL
from unmask.experiments.report.svg import tip

PNG_DPI = 160
_PILL = (24.0, 14.0)  # points that a pill takes


def write_picture(figure: Figure, path: Path) -> None:
    """Write a picture whole, as the ending of `path` says (.png, .svg, .pdf); the old one stays if that fails."""
    with writing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=PNG_DPI)


def logarithmic(axis: Axis, ticks: Collection[float] | None = None) -> None:
    """A logarithmic axis with plain figures at the ticks, by default at round values within what is drawn."""
    axes = axis.axes
    axes.set_xscale("log") if axis is axes.xaxis else axes.set_yscale("log")
    axes.autoscale_view()
    axis.set_major_locator(FixedLocator(sorted(ticks or _round_values(*axis.get_view_interval()))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def point(axes: Axes, line: Line, x: float, **style: Any) -> None:
    """A row as a marker without a line, which says what it is when pointed at."""
    (artist,) = axes.plot([x], [line.gen_ppl.value], linestyle="none", **style)
    artist.set_gid(tip(describe(line)))


def pills(axes: Axes, places: Sequence[tuple[Line, float]]) -> None:
    """Rows as their step counts in filled pills at (x, gen PPL); where two would cover each other, one stands aside."""
    axes.autoscale_view()
    taken: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    for line, x in places:
        at = axes.transData.transform((x, line.gen_ppl.value)) * scale
        aside = 0.0
        while any(
            abs(at[0] + aside - other[0]) < _PILL[0] and abs(at[1] - other[1]) < _PILL[1]
            for other in taken
        ):
            aside += _PILL[0]
        taken.append((at[0] + aside, at[1]))
        color = LIGHT[line.row.name] if line.row.name in LIGHT else LIGHT["muted"]
        text = axes.annotate(
            str(line.steps), (x, line.gen_ppl.value), (aside, 0), textcoords="offset points", ha="center", va="center",
            fontsize=SMALL - 0.5, color=LIGHT["panel"], fontweight="bold", zorder=4,
            bbox={"boxstyle": "round,pad=0.28,rounding_size=0.7", "facecolor": color, "edgecolor": LIGHT["panel"]},
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8} if aside else None,
        )  # fmt: skip
        text.set_gid(tip(describe(line)))


def describe(line: Line) -> str:
    """A row in words: who, how, gen PPL and entropy.

    The ± is one standard error over samples.
    """
    row = line.row
    sem = "" if line.gen_ppl.sem is None else f" ± {line.gen_ppl.sem:.2g}"
    how = f", {line.steps} steps, temperature {line.temperature:g}" if line.steps else ""
    return f"{row.name}{how}: gen PPL {line.gen_ppl.value:.4g}{sem}, entropy {line.entropy.value:.3f} nats"


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float],
    color: str,
    ha: str = "center",
) -> None:
    """A small text beside a point; shift in points."""
    axes.annotate(
        text, at, shift, textcoords="offset points", ha=ha, va="center", color=color, fontsize=SMALL
    )


def legend(axes: Axes, title: str, columns: int = 2) -> None:
    """Above the axes, where it covers nothing; the title is a remark."""
    box = axes.legend(loc="lower left", bbox_to_anchor=(-0.012, 1.01), ncols=columns, title=title, alignment="left",
                      title_fontsize=SMALL, borderaxespad=0, borderpad=0.2, columnspacing=1.4)  # fmt: skip
    box.get_title().set_color(LIGHT["muted"])


def _round_values(low: float, high: float) -> list[float]:
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [
            float(f"{decade * step:.6g}")
            for decade in decades
            for step in steps
            if low <= decade * step <= high
        ]
        if len(ticks) >= 4:
            return ticks
    return [float(value) for value in MaxNLocator(6).tick_values(low, high) if low <= value <= high]
