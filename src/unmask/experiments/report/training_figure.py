"""The figure of a training run: its loss by step, and the student's measures by round."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.evaluation.measure import GEN_PPL
from unmask.experiments.report.plot_helpers import legend, logarithmic, note
from unmask.experiments.report.report_schema import ENTROPY, Report
from unmask.experiments.report.style import LIGHT, MARKERS, NARROW, plot_style

_WINDOWS = 40  # a running mean divides a training run into so many windows


@plot_style()
def training_figure(report: Report, width: float) -> Figure:
    """The loss and its two terms by step; below, gen PPL and entropy of the student by round."""
    heights = [3.3] if report.training.step else []
    if report.rounds:
        heights.append(2.9 if width > NARROW else 5.4)
    figure = Figure(figsize=(width, sum(heights)))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    if report.training.step:
        _losses(figure.add_subplot(grid[0]), report)
    if report.rounds:
        shape = (1, 2) if width > NARROW else (2, 1)
        below = grid[-1].subgridspec(*shape)
        _by_round(figure.add_subplot(below[0]), report, GEN_PPL, "gen PPL")
        _by_round(figure.add_subplot(below[1]), report, ENTROPY, "unigram entropy, nats")
    return figure


def _losses(axes: Axes, report: Report) -> None:
    curve = report.training
    steps = np.array(curve.step)
    kernel = np.ones(window := max(1, len(steps) // _WINDOWS)) / window
    for name, color, style, width in (
        ("loss", "ink", "-", 2.0),
        ("distillation", "student", "-", 1.4),
        ("reconstruction", "muted", "--", 1.4),
    ):
        values = np.array(vars(curve)[name])
        if len(values):
            axes.plot(steps, values, color=LIGHT[color], linewidth=0.6, alpha=0.25)
            x, y = (np.convolve(column, kernel, "valid") for column in (steps, values))
            axes.plot(x, y, color=LIGHT[color], linestyle=style, linewidth=width, label=name)
    for number, indices in groupby(range(len(steps)), key=lambda i: curve.round[i]):
        inside = list(indices)
        first, last = steps[inside[0]], steps[inside[-1]]
        if number % 2:
            axes.axvspan(first, last, color=LIGHT["line"], alpha=0.35, linewidth=0)
        note(
            axes,
            f"round {number}",
            ((first + last) / 2, 1),
            (0, -3),
            LIGHT["muted"],
            xycoords=axes.get_xaxis_transform(),
            va="top",
        )
    axes.margins(x=0.01, y=0.15)
    axes.set(xlabel="step of distillation", ylabel="nats a token")
    legend(axes, "running means; the thin lines are single steps", 3)


def _by_round(axes: Axes, report: Report, measure: str, label: str) -> None:
    """A measure of the student by round. Round 0 is the teacher at the same steps."""
    start = {
        row.steps: row.measures[measure].value for row in report.teacher if row.temperature == 1
    }
    color, marker = LIGHT["student"], MARKERS["student"]
    for steps in sorted({entry.steps for entry in report.rounds}):
        entries = [entry for entry in report.rounds if entry.steps == steps]
        values = {entry.round: vars(entry)[measure] for entry in entries}
        first, last = min(values), max(values)
        if steps in start:
            x, y = [0, first], [start[steps], values[first]]
            axes.plot(x, y, color=LIGHT["muted"], linestyle=":")
            axes.plot(x[:1], y[:1], MARKERS["teacher"], color=LIGHT["teacher"])
        axes.plot(list(values), list(values.values()), color=color, marker=marker)
        note(axes, f"{steps} steps", (last, values[last]), (0, 11), color, ha="right")
    if measure == GEN_PPL:
        logarithmic(axes.yaxis)
    axes.margins(0.06, 0.16)
    axes.set_xticks(sorted({0, *(entry.round for entry in report.rounds)}))
    axes.set(xlabel="rounds of distillation (0: the teacher)", ylabel=label)
