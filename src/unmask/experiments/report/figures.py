"""The figures of a report, drawn by matplotlib: gen PPL by steps, frontiers, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.evaluation.measure import BOUND, ENTROPIES, ENTROPY, GEN_PPL, MeasuredRow
from unmask.experiments.report.plotting import (
    LIGHT,
    MARKERS,
    NARROW,
    WIDE,
    Points,
    SvgFigure,
    caption,
    curve,
    legend,
    logarithmic,
    note,
    plot_style,
    point,
    save_figure,
    step_labels,
    svg_figure,
)
from unmask.experiments.report.report_schema import Report, rows_by_steps

_WINDOWS = 40  # windows of the running mean in a training run


@dataclass(frozen=True)
class FigurePlan:
    """A figure of a report: file name, caption, description, drawing function.

    Attributes:
        alt: a description of the figure, for screen readers
        draw: width in inches -> figure
    """

    name: str
    title: str
    alt: str
    draw: Callable[[float], Figure]


def plan_figures(report: Report) -> list[FigurePlan]:
    """The figures that the report has numbers for."""
    plans = []
    if len(points_of(report.teacher, BOUND)) > 1:
        alt = (
            "The N-step bound in nats a token against network calls: the teacher in random order, "
            "the teacher, and the student. The tables below hold the same numbers."
        )
        title = "Likelihood of held-out text against network calls"
        plans.append(FigurePlan("bound-by-calls", title, alt, partial(bound_by_calls, report)))
    plans += [
        FigurePlan(
            "gen-ppl-by-steps",
            "Gen PPL against steps",
            _steps_alt(report),
            partial(gen_ppl_by_steps, report),
        )
    ]
    for column, words in ENTROPIES.items():
        if len(points_of([*report.teacher, *report.temperature_teacher], column)) > 1:
            name = "frontier" if column == ENTROPY else "frontier-" + column.replace("_", "-")
            alt = (
                f"Generative perplexity against {words}: for teacher and student, one curve over "
                "temperatures for each step count; real text is a single point. "
                "The tables below hold the same numbers."
            )
            title = f"Gen PPL against {words}"
            plans.append(FigurePlan(name, title, alt, partial(frontier_figure, report, column)))
    if report.training.step or report.rounds:
        rounds = max((entry.round for entry in report.rounds), default=0)
        alt = (
            "The loss of the distillation and its two terms by step, and gen PPL and entropy of "
            "the student by round" + (f", {rounds} rounds." if rounds else ".")
        )
        title = "The distillation, round by round" if rounds else "The distillation"
        plans.append(FigurePlan("training", title, alt, partial(training_figure, report)))
    return plans


def save_report_figure(plan: FigurePlan, report: Report, folder: Path) -> tuple[SvgFigure, ...]:
    """Write NAME.png and NAME.svg; return the figure for a desktop and for a phone."""
    wide, narrow = plan.draw(WIDE), plan.draw(NARROW)
    for figure in (wide, narrow):
        caption(figure, report.protocol_words)
    save_figure(wide, folder / f"{plan.name}.png")
    drawn = (
        svg_figure(wide, plan.name, plan.title, plan.alt),
        svg_figure(narrow, f"{plan.name}-narrow", plan.title, plan.alt),
    )
    write_text(folder / f"{plan.name}.svg", drawn[0].standalone())
    return drawn


@plot_style()
def bound_by_calls(report: Report, width: float) -> Figure:
    """The N-step bound against network calls on a logarithmic axis; lower is better."""
    figure = Figure(figsize=(width, 4.6))
    axes = figure.add_subplot()
    for name, label, style in (
        ("random_order", "teacher in random order", (0, (4, 2))),
        ("teacher", "teacher", "-"),
        ("student", "student", "-"),
    ):
        points = points_of([row for row in vars(report)[name] if row.temperature == 1], BOUND)
        if points and points[0][0].row.setting.sampler == "order=spread":
            label += " in spread order"
        color = LIGHT["muted" if name == "random_order" else name]
        if points:
            axes.errorbar(
                [row.row.setting.nfe for row, _ in points],
                [value for _, value in points],
                [1.96 * (row.measures[BOUND].sem or 0) for row, _ in points],
                color=color,
                linestyle=style,
                marker=MARKERS.get(name, "v"),
                label=label,
                capsize=2,
                elinewidth=1,
            )
    for row, value in points_of(report.autoregressive, BOUND):
        axes.axhline(value, color=LIGHT["ink"], linewidth=1, linestyle=":")
        words = f"autoregressive, {row.row.setting.nfe:g} calls"
        note(axes, words, (1, value), (-4, 8), LIGHT["ink"], ha="right",
             xycoords=axes.get_yaxis_transform())  # fmt: skip
    drawn = [*report.random_order, *report.teacher, *report.student]
    logarithmic(axes.xaxis, {round(row.row.setting.nfe) for row, _ in points_of(drawn, BOUND)})
    axes.margins(x=0.06, y=0.1)
    axes.set(xlabel="network calls", ylabel="N-step bound, nats a token")
    legend(axes, "lower is better; a loss of diversity does not lower it")
    return figure


@plot_style()
def gen_ppl_by_steps(report: Report, width: float) -> Figure:
    """Gen PPL against steps at temperature 1 on logarithmic axes, labelled by the entropies."""
    figure = Figure(figsize=(width, 4.6))
    axes = figure.add_subplot()
    for name, side in (("teacher", 1), ("student", -1)):
        rows = [row for row in vars(report)[name] if row.temperature == 1]
        color, marker = LIGHT[name], MARKERS[name]
        axes.errorbar(
            [row.steps for row in rows],
            [row.gen_ppl.value for row in rows],
            [1.96 * (row.gen_ppl.sem or 0) for row in rows],
            color=color,
            marker=marker,
            label=name,
            capsize=2,
            elinewidth=1,
        )
        for row in rows:
            point(axes, row, row.steps, marker=marker, color=color)
            at = (row.steps, row.gen_ppl.value)
            note(axes, f"{row.entropy.value:.2f}", at, (0, 11 * side), color)
    _reference_levels(axes, report)
    logarithmic(axes.xaxis, {row.steps for row in [*report.teacher, *report.student]})
    logarithmic(axes.yaxis)
    axes.margins(x=0.06, y=0.12)
    axes.set(xlabel="steps", ylabel="gen PPL")
    legend(axes, "small numbers: unigram entropy, nats")
    return figure


@plot_style()
def frontier_figure(report: Report, column: str, width: float) -> Figure:
    """Gen PPL against the entropy `column`, a curve over temperatures for each step count."""
    figure = Figure(figsize=(width, 5.6 if width > NARROW else 5.0))
    axes = figure.add_subplot()
    for name, style in (("teacher", (0, (4, 2))), ("student", "-")):
        marker, color, label = MARKERS[name], LIGHT[name], f"{name} over temperatures"
        line = {"color": color, "linestyle": style, "linewidth": 1.4, "alpha": 0.75}
        for rows in rows_by_steps(
            [*vars(report)[name], *vars(report)[f"temperature_{name}"]]
        ).values():
            points = points_of(rows, column)
            curve(axes, points, label=label, **line)
            label = ""  # one entry of the legend for all step counts
            for row, x in points:
                point(axes, row, x, marker=marker, markersize=3.6, color=color)
    for fixed, label, color in _references(report):
        marker, size = ("*", 13) if fixed is report.data else ("D", 7)
        for row, x in points_of([fixed], column):
            point(axes, row, x, marker=marker, color=LIGHT[color], markersize=size, label=label)
    mark_target(axes, report, column)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    plain = [row for row in [*report.student, *report.teacher] if row.temperature == 1]
    step_labels(axes, points_of(plain, column))
    unit = "" if column == "completion_disagreement" else ", nats"
    axes.set(xlabel=ENTROPIES[column] + unit, ylabel="gen PPL")
    remark = "better: lower and further right; numbers are steps, at temperature 1"
    legend(axes, remark, 4 if width > NARROW else 2)
    return figure


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
    for number, indices in groupby(range(len(curve.round)), key=lambda i: curve.round[i]):
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


def points_of(rows: Sequence[MeasuredRow], column: str) -> Points:
    """The rows that have the measure `column`, with its values."""
    return [(row, row.measures[column].value) for row in rows if column in row.measures]


def _references(report: Report) -> list[tuple[MeasuredRow, str, str]]:
    """Rows without a step count: real text and the judge's own samples, with label and colour."""
    rows = [(report.data, "real text", "ink")] if report.data else []
    own = [(row, "the judge's own samples", "autoregressive") for row in report.autoregressive[:1]]
    return [*rows, *own]


def _reference_levels(axes: Axes, report: Report) -> None:
    """Draw the references as horizontal lines; the lower of two is labelled below its line."""
    references = _references(report)
    lowest = min((row.gen_ppl.value for row, *_ in references), default=0.0)
    for row, label, color in references:
        y, x, side = row.gen_ppl.value, *((0.0, "left") if row is report.data else (1.0, "right"))
        below = len(references) > 1 and y == lowest
        axes.axhline(y, color=LIGHT[color], linestyle="--", linewidth=1.3)
        note(
            axes,
            f"{label} {y:.3g} ({row.entropy.value:.2f})",
            (x, y),
            (4 - 8 * x, -3 if below else 3),
            LIGHT[color],
            xycoords=axes.get_yaxis_transform(),
            ha=side,
            va="top" if below else "bottom",
        )


def mark_target(axes: Axes, report: Report, column: str) -> None:
    """Mark the entropy at which curves are compared: the teacher's at its most steps."""
    points = points_of([row for row in report.teacher if row.temperature == 1], column)
    if points:
        row, entropy = max(points, key=lambda entry: entry[0].steps)
        axes.axvline(entropy, color=LIGHT["teacher"], linewidth=1, linestyle=":")
        note(
            axes,
            f"as diverse as the teacher\nat {row.steps} steps",
            (entropy, 1),
            (-4, 0),
            LIGHT["teacher"],
            xycoords=axes.get_xaxis_transform(),
            ha="right",
            va="top",
        )


def _steps_alt(report: Report) -> str:
    ends = (
        f"the {name} goes from {rows[0].gen_ppl.value:.3g} at {rows[0].steps} steps to "
        f"{rows[-1].gen_ppl.value:.3g} at {rows[-1].steps}"
        for name, rows in (("teacher", report.teacher), ("student", report.student))
    )
    real = f"; real text has {report.data.gen_ppl.value:.3g}" if report.data else ""
    return (
        "Generative perplexity against steps, both on logarithmic axes, at temperature 1: "
        f"{', '.join(ends)}{real}."
    )
