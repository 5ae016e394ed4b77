"""The figure that compares the reports of several students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from unmask.evaluation.measure import ENTROPIES, ENTROPY, MeasuredRow
from unmask.experiments.report.figures import mark_target, points_of
from unmask.experiments.report.plotting import (
    LIGHT,
    WIDE,
    caption,
    curve,
    legend,
    logarithmic,
    plot_style,
    point,
)
from unmask.experiments.report.report_schema import Report, rows_by_steps

# Colours of compared cells: after Okabe and Ito, and three more.
_COLORS = "#c2410c #e69f00 #009e73 #cc79a7 #22211f #66635c #56b4e9 #7b3294 #8c510a".split()


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
        points = points_of(rows, ENTROPY)
        curve(axes, points, label=label, markersize=4, linewidth=1.4, **style)
        for row, x in points:
            if row.temperature == 1:
                point(axes, row, x, **style | {"markersize": 9})
    first = next(iter(reports.values()))
    mark_target(axes, first, ENTROPY)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    axes.set(xlabel=f"{ENTROPIES[ENTROPY]}, nats", ylabel="gen PPL")
    columns = 4 if max(len(label) for label, *_ in lines) < 24 else 3
    remark = "better: lower and further right; the large markers stand at temperature 1"
    legend(axes, remark, columns)
    caption(figure, first.protocol_words)
    return figure


Lines = Iterator[tuple[str, Sequence[MeasuredRow], dict[str, Any]]]  # label, rows, style


def _teacher_lines(reports: Mapping[str, Report], steps: int) -> Lines:
    """Each teacher at its most steps and at `steps`; names are those of its first student."""
    owners: dict[str, str] = {}
    for name, report in reports.items():
        owners.setdefault(report.teacher[0].row.setting.model, name)
    colors = (LIGHT["teacher"], LIGHT["ink"], *_COLORS)
    for name, color in zip(owners.values(), colors, strict=False):
        table = rows_by_steps([*reports[name].teacher, *reports[name].temperature_teacher])
        label = "teacher" if len(owners) == 1 else f"teacher of {name}"
        for count, dashes in ((max(table), ":"), (steps, "--")):
            if count in table:
                style = {"color": color, "marker": "o", "linestyle": dashes}
                yield f"{label}, {count} steps", table[count], style


def _student_lines(reports: Mapping[str, Report], steps: int) -> Lines:
    for (name, report), color in zip(reports.items(), cycle(_COLORS), strict=False):
        rows = rows_by_steps([*report.student, *report.temperature_student]).get(steps, [])
        yield f"{name}, {steps} steps", rows, {"color": color, "marker": "s"}
