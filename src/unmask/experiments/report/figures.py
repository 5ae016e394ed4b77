"""The figures of a report, drawn by matplotlib: gen PPL by steps, frontiers, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.evaluation.measure import ENTROPIES
from unmask.experiments.report.plot_helpers import (
    Points,
    caption,
    curve,
    legend,
    logarithmic,
    note,
    point,
    save_figure,
    step_labels,
)
from unmask.experiments.report.report_schema import ENTROPY, Report, ReportRow, curves
from unmask.experiments.report.style import LIGHT, MARKERS, NARROW, WIDE, plot_style
from unmask.experiments.report.svg import SvgFigure, svg_figure
from unmask.experiments.report.training_figure import training_figure

# Colours of compared cells: after Okabe and Ito, and three more.
_COLORS = "#c2410c #e69f00 #009e73 #cc79a7 #22211f #66635c #56b4e9 #7b3294 #8c510a".split()


@dataclass(frozen=True)
class FigurePlan:
    """A figure of a report: file name, caption, description, and how to draw it.

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
    plans = [
        FigurePlan(
            "gen-ppl-by-steps",
            "Gen PPL against steps",
            _steps_alt(report),
            partial(gen_ppl_by_steps, report),
        )
    ]
    for column, words in ENTROPIES.items():
        if len(_points([*report.teacher, *report.temperature_teacher], column)) > 1:
            name = "frontier" if column == ENTROPY else "frontier-" + column.replace("_", "-")
            alt = (
                f"Generative perplexity against {words}: for teacher and student, one curve over "
                "temperatures for each step count; real text is a single point. "
                "The tables below hold the same numbers."
            )
            title = f"Gen PPL against {words}"
            plans.append(FigurePlan(name, title, alt, partial(frontier, report, column)))
    if report.training.step or report.rounds:
        rounds = max((entry.round for entry in report.rounds), default=0)
        alt = (
            "The loss of the distillation and its two terms by step, and gen PPL and entropy of "
            "the student by round" + (f", {rounds} rounds." if rounds else ".")
        )
        title = "The distillation, round by round"
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
def frontier(report: Report, column: str, width: float) -> Figure:
    """Gen PPL against the entropy `column`, a curve over temperatures for each step count."""
    figure = Figure(figsize=(width, 5.6 if width > NARROW else 5.0))
    axes = figure.add_subplot()
    for name, style in (("teacher", (0, (4, 2))), ("student", "-")):
        marker, color, label = MARKERS[name], LIGHT[name], f"{name} over temperatures"
        line = {"color": color, "linestyle": style, "linewidth": 1.4, "alpha": 0.75}
        for rows in curves([*vars(report)[name], *vars(report)[f"temperature_{name}"]]).values():
            points = _points(rows, column)
            curve(axes, points, label=label, **line)
            label = ""  # one entry of the legend for all step counts
            for row, x in points:
                point(axes, row, x, marker=marker, markersize=3.6, color=color)
    for fixed, label, color in _references(report):
        marker, size = ("*", 13) if fixed is report.data else ("D", 7)
        for row, x in _points([fixed], column):
            point(axes, row, x, marker=marker, color=LIGHT[color], markersize=size, label=label)
    _target(axes, report, column)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    plain = [row for row in [*report.student, *report.teacher] if row.temperature == 1]
    step_labels(axes, _points(plain, column))
    unit = "" if column == "completion_disagreement" else ", nats"
    axes.set(xlabel=ENTROPIES[column] + unit, ylabel="gen PPL")
    remark = "better: lower and further right; numbers are steps, at temperature 1"
    legend(axes, remark, 4 if width > NARROW else 2)
    return figure


@plot_style()
def comparison_figure(reports: Mapping[str, Report], steps: int) -> Figure:
    """Gen PPL against unigram entropy over temperatures, for several students and their teachers.

    Each teacher is drawn once, at `steps` and at its most steps. If there are several teachers,
    each is named after its first student.

    Args:
        reports: cell -> report. All reports share one protocol.
        steps: step count of the students.
    """
    figure = Figure(figsize=(WIDE, 5.6))
    axes = figure.add_subplot()
    lines = [*_teacher_lines(reports, steps), *_student_lines(reports, steps)]
    for label, rows, style in lines:
        points = _points(rows, ENTROPY)
        curve(axes, points, label=label, markersize=4, linewidth=1.4, **style)
        for row, x in points:
            if row.temperature == 1:
                point(axes, row, x, **style | {"markersize": 9})
    first = next(iter(reports.values()))
    _target(axes, first, ENTROPY)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    axes.set(xlabel=f"{ENTROPIES[ENTROPY]}, nats", ylabel="gen PPL")
    columns = 4 if max(len(label) for label, *_ in lines) < 24 else 3
    remark = "better: lower and further right; the large markers stand at temperature 1"
    legend(axes, remark, columns)
    caption(figure, first.protocol_words)
    return figure


Line = tuple[str, Sequence[ReportRow], dict[str, Any]]  # label, rows, style


def _teacher_lines(reports: Mapping[str, Report], steps: int) -> list[Line]:
    owners: dict[str, str] = {}
    for name, report in reports.items():
        owners.setdefault(report.teacher[0].row.setting.model, name)
    lines: list[Line] = []
    colors = (LIGHT["teacher"], LIGHT["ink"], *_COLORS)
    for name, color in zip(owners.values(), colors, strict=False):
        table = curves([*reports[name].teacher, *reports[name].temperature_teacher])
        label = "teacher" if len(owners) == 1 else f"teacher of {name}"
        for count, dashes in ((max(table), ":"), (steps, "--")):
            if count in table:
                style = {"color": color, "marker": "o", "linestyle": dashes}
                lines.append((f"{label}, {count} steps", table[count], style))
    return lines


def _student_lines(reports: Mapping[str, Report], steps: int) -> list[Line]:
    lines: list[Line] = []
    for (name, report), color in zip(reports.items(), cycle(_COLORS), strict=False):
        rows = curves([*report.student, *report.temperature_student]).get(steps, [])
        lines.append((f"{name}, {steps} steps", rows, {"color": color, "marker": "s"}))
    return lines


def _points(rows: Sequence[ReportRow], column: str) -> Points:
    """The rows that have the measure `column`, with its values."""
    return [(row, row.measures[column].value) for row in rows if column in row.measures]


def _references(report: Report) -> list[tuple[ReportRow, str, str]]:
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


def _target(axes: Axes, report: Report, column: str) -> None:
    """Mark the entropy at which curves are compared: the teacher's at its most steps."""
    points = _points([row for row in report.teacher if row.temperature == 1], column)
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
