"""The pictures of a report and of `unmask verify`, drawn by matplotlib from numbers alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.evaluation.measure import ENTROPIES, GEN_PPL
from unmask.experiments.report.axes import legend, logarithmic, note, pills, point, write_picture
from unmask.experiments.report.record import ENTROPY, Line, Report, curves, words_of
from unmask.experiments.report.style import LIGHT, NARROW, SMALL, WIDE, drawing
from unmask.experiments.report.svg import Picture, picture

if TYPE_CHECKING:  # it draws Gaussians with torch; its results are plain lists
    from unmask.experiments.exact.duality_checks import FigureData, JointLaw

_SMOOTHED = 40  # windows that a running mean divides a training run into
_MARKER = {"teacher": "o", "student": "s"}
_CELLS = (  # after Okabe and Ito, and three more
    "#c2410c", "#e69f00", "#009e73", "#cc79a7", "#22211f", "#66635c", "#56b4e9", "#7b3294", "#8c510a",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A picture of a report: file name, what it shows in words, and how to draw it at a width (inches)."""

    name: str
    alt: str
    draw: Callable[[float], Figure]


def drawings(report: Report) -> list[Drawing]:
    """Those that the report has numbers for."""
    plans = [Drawing("gen-ppl-by-steps", _steps_alt(report), partial(gen_ppl_by_steps, report))]
    for column, words in ENTROPIES.items():
        if (
            sum(
                column in line.row.measures
                for line in [*report.teacher, *report.temperature_teacher]
            )
            > 1
        ):
            name = "frontier" if column == ENTROPY else "frontier-" + column.replace("_", "-")
            plans.append(Drawing(name, _frontier_alt(words), partial(frontier, report, column)))
    if report.training.step or report.rounds:
        plans.append(Drawing("training", _training_alt(report), partial(training, report)))
    return plans


def save(plan: Drawing, report: Report, folder: Path) -> list[Picture]:
    """Write the picture as PNG and SVG, its protocol beneath it, and return it for a desk and for a phone."""
    words = words_of(report)
    with drawing():
        wide, narrow = plan.draw(WIDE), plan.draw(NARROW)
        for figure, columns in ((wide, 165), (narrow, 70)):
            beneath = textwrap.fill(words, columns)
            figure.supxlabel(beneath, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])
        write_picture(wide, folder / f"{plan.name}.png")
        pictures = [
            picture(wide, plan.name, plan.alt),
            picture(narrow, f"{plan.name}-narrow", plan.alt),
        ]
    write_text(folder / f"{plan.name}.svg", pictures[0].standalone())
    return pictures


def gen_ppl_by_steps(report: Report, width: float) -> Figure:
    """Gen PPL against steps at temperature 1, both axes logarithmic; the small figures are entropies."""
    figure = Figure(figsize=(width, 4.6))
    axes = figure.add_subplot()
    for name, side in (("teacher", 1), ("student", -1)):
        lines = [line for line in vars(report)[name] if line.temperature == 1]
        x, y = [line.steps for line in lines], [line.gen_ppl.value for line in lines]
        error = [1.96 * (line.gen_ppl.sem or 0) for line in lines]
        axes.errorbar(
            x,
            y,
            error,
            color=LIGHT[name],
            marker=_MARKER[name],
            label=name,
            capsize=2,
            elinewidth=1,
        )
        for line in lines:
            point(axes, line, line.steps, marker=_MARKER[name], color=LIGHT[name])
            note(
                axes,
                f"{line.entropy.value:.2f}",
                (line.steps, line.gen_ppl.value),
                (0, 11 * side),
                LIGHT[name],
            )
    _levels(axes, report)
    logarithmic(axes.xaxis, {line.steps for line in [*report.teacher, *report.student]})
    logarithmic(axes.yaxis)
    axes.margins(x=0.06, y=0.12)
    axes.set(xlabel="steps", ylabel="gen PPL")
    legend(axes, "small figures: unigram entropy, nats")
    return figure


def frontier(report: Report, column: str, width: float) -> Figure:
    """Gen PPL against an entropy, a curve a step count over temperatures; the pill at temperature 1 names its steps."""
    figure = Figure(figsize=(width, 5.6 if width > NARROW else 5.0))
    axes = figure.add_subplot()

    def known(lines: Iterable[Line]) -> list[tuple[Line, float]]:
        return [
            (line, line.row.measures[column].value) for line in lines if column in line.row.measures
        ]

    for name, style in (("teacher", (0, (4, 2))), ("student", "-")):
        label, marker, color = f"{name} over temperatures", _MARKER[name], LIGHT[name]
        for lines in curves([*vars(report)[name], *vars(report)[f"temperature_{name}"]]).values():
            places = known(lines)
            y = [line.gen_ppl.value for line, _ in places]
            axes.plot(
                [x for _, x in places],
                y,
                color=color,
                linestyle=style,
                linewidth=1.4,
                label=label,
                alpha=0.75,
            )
            label = ""
            for line, x in places:
                point(axes, line, x, marker=marker, markersize=3.6, color=color)
    for line, label, color in _fixed(report):
        for _, x in known([line]):
            marker, size = ("*", 13) if line is report.data else ("D", 7)
            point(axes, line, x, marker=marker, color=LIGHT[color], markersize=size, label=label)
    _target(axes, report, column)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    pills(axes, known(line for line in [*report.student, *report.teacher] if line.temperature == 1))
    axes.set(
        xlabel=ENTROPIES[column] + ("" if "disagreement" in column else ", nats"), ylabel="gen PPL"
    )
    legend(
        axes,
        "better: lower and further right; numbers are steps, at temperature 1",
        4 if width > NARROW else 2,
    )
    return figure


def training(report: Report, width: float) -> Figure:
    """The loss and its two terms by step, rounds shaded; below, gen PPL and entropy of the student after each round."""
    above, below = bool(report.training.step), bool(report.rounds)
    figure = Figure(figsize=(width, 3.3 * above + (2.9 if width > NARROW else 5.4) * below))
    grid = figure.add_gridspec(
        above + below, 1, height_ratios=[3.3] * above + [2.9 if width > NARROW else 5.4] * below
    )
    if above:
        _losses(figure.add_subplot(grid[0]), report)
    if below:
        shape = (1, 2) if width > NARROW else (2, 1)
        inner = grid[-1].subgridspec(*shape)
        _by_round(figure.add_subplot(inner[0, 0]), report, "gen_ppl", "gen PPL")
        _by_round(
            figure.add_subplot(inner[shape[0] - 1, shape[1] - 1]),
            report,
            ENTROPY,
            "unigram entropy, nats",
        )
    return figure


def duality_figure(data: FigureData, path: Path | str) -> Path:
    """The checks of the duality in four panels, written to `path` as its ending says (.png, .svg, .pdf)."""
    with drawing():
        figure = Figure(figsize=(WIDE, 8.0))
        ((marginal, curve), (transform, joint)) = figure.subplots(2, 2)
        _calibration(marginal, data)
        _keep(curve, data)
        transform.plot(
            [0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle="--", label="uniform"
        )
        transform.plot(
            data.uniform, data.pit, color=LIGHT["student"], label="F_Y(Y), Gaussian margins"
        )
        transform.set(
            xlabel="quantile of the uniform law", ylabel="quantile of F_Y(Y)", aspect="equal"
        )
        transform.set_title("Theorem 3.3: one uniform number a token")
        transform.legend(loc="upper left")
        _joint(joint, data.joint)
        write_picture(figure, Path(path))
    return Path(path)


def study(reports: Mapping[str, Report], steps: int) -> Figure:
    """Gen PPL against unigram entropy over temperatures: the student of each cell in `steps` steps, and the teacher.

    A teacher is drawn once, at `steps` and at its most steps; where there are several, each by its first cell's name.
    """
    figure = Figure(figsize=(WIDE, 5.6))
    axes = figure.add_subplot()
    first = next(iter(reports.values()))
    owners: dict[str, str] = {}
    for name, report in reports.items():
        owners.setdefault(report.teacher[0].row.setting.model, name)
    found = []
    for name, color in zip(
        owners.values(), (LIGHT["teacher"], LIGHT["ink"], *_CELLS), strict=False
    ):
        teachers = curves([*reports[name].teacher, *reports[name].temperature_teacher])
        label = "teacher" if len(owners) == 1 else f"teacher of {name}"
        found += [(f"{label}, {n} steps", teachers[n], color, "o", style)
                  for n, style in ((max(teachers), ":"), (steps, "--")) if n in teachers]  # fmt: skip
    for (name, report), color in zip(reports.items(), cycle(_CELLS), strict=False):
        lines = curves([*report.student, *report.temperature_student]).get(steps, [])
        found.append((f"{name}, {steps} steps", lines, color, "s", "-"))
    for label, lines, color, marker, style in found:
        x, y = [line.entropy.value for line in lines], [line.gen_ppl.value for line in lines]
        axes.plot(
            x,
            y,
            color=color,
            marker=marker,
            markersize=4,
            linestyle=style,
            linewidth=1.4,
            label=label,
        )
        for line in lines:
            if line.temperature == 1:
                point(axes, line, line.entropy.value, marker=marker, markersize=9, color=color)
    _target(axes, first, ENTROPY)
    logarithmic(axes.yaxis)
    axes.margins(0.06, 0.09)
    axes.set(xlabel=ENTROPIES[ENTROPY] + ", nats", ylabel="gen PPL")
    columns = 4 if max(len(label) for label, *_ in found) < 24 else 3
    legend(
        axes, "better: lower and further right; the large markers stand at temperature 1", columns
    )
    words = textwrap.fill(words_of(first), 165)
    figure.supxlabel(words, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])
    return figure


def _fixed(report: Report) -> list[tuple[Line, str, str]]:
    """What has no steps to choose: the row, its label, its colour."""
    data = [(report.data, "real text", "ink")] if report.data else []
    return [
        *data,
        *(
            (line, "the judge's own samples", "autoregressive")
            for line in report.autoregressive[:1]
        ),
    ]


def _levels(axes: Axes, report: Report) -> None:
    """Real text, and the autoregressive judge's own samples, as lines; the lower one is labelled below itself."""
    found = _fixed(report)
    lowest = min((line.gen_ppl.value for line, *_ in found), default=0.0)
    for line, label, color in found:
        y, x, side = line.gen_ppl.value, *((0.0, "left") if line is report.data else (1.0, "right"))
        down = len(found) > 1 and y == lowest
        axes.axhline(y, color=LIGHT[color], linestyle="--", linewidth=1.3)
        axes.annotate(
            f"{label} {y:.3g} ({line.entropy.value:.2f})", (x, y), (4 - 8 * x, -3 if down else 3),
            xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha=side, va="top" if down else "bottom",
            color=LIGHT[color], fontsize=SMALL,
        )  # fmt: skip


def _losses(axes: Axes, report: Report) -> None:
    record = report.training
    steps = np.array(record.step)
    window = max(1, len(steps) // _SMOOTHED)
    for name, color, style, width in (
        ("loss", "ink", "-", 2.0),
        ("distillation", "student", "-", 1.4),
        ("reconstruction", "muted", "--", 1.4),
    ):
        values = np.array(vars(record)[name])
        if len(values):
            axes.plot(steps, values, color=LIGHT[color], linewidth=0.6, alpha=0.25)
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            where = np.convolve(steps, np.ones(window) / window, "valid")
            axes.plot(
                where, smooth, color=LIGHT[color], linestyle=style, linewidth=width, label=name
            )
    for number, inside in groupby(range(len(steps)), key=lambda i: record.round[i]):
        places = list(inside)
        first, last = steps[places[0]], steps[places[-1]]
        if number % 2:
            axes.axvspan(first, last, color=LIGHT["line"], alpha=0.35, linewidth=0)
        middle = ((first + last) / 2, 1)
        axes.annotate(f"round {number}", middle, (0, -3), xycoords=axes.get_xaxis_transform(), ha="center", va="top",
                      textcoords="offset points", fontsize=SMALL, color=LIGHT["muted"])  # fmt: skip
    axes.margins(x=0.01, y=0.15)
    axes.set(xlabel="step of distillation", ylabel="nats a token")
    legend(axes, "running means; the thin lines are single steps", 3)


def _by_round(axes: Axes, report: Report, measure: str, label: str) -> None:
    """Round 0 is the teacher at the same steps."""
    start = {
        line.steps: line.row.measures[measure].value
        for line in report.teacher
        if line.temperature == 1
    }
    for steps in sorted({entry.steps for entry in report.rounds}):
        values = {
            entry.round: vars(entry)[measure] for entry in report.rounds if entry.steps == steps
        }
        if steps in start:
            axes.plot(
                [0, min(values)],
                [start[steps], values[min(values)]],
                color=LIGHT["muted"],
                linestyle=":",
            )
            axes.plot([0], [start[steps]], _MARKER["teacher"], color=LIGHT["teacher"])
        axes.plot(
            list(values), list(values.values()), color=LIGHT["student"], marker=_MARKER["student"]
        )
        note(
            axes,
            f"{steps} steps",
            (max(values), values[max(values)]),
            (0, 11),
            LIGHT["student"],
            ha="right",
        )
    if measure == GEN_PPL:
        logarithmic(axes.yaxis)
    axes.margins(0.06, 0.16)
    axes.set_xticks(sorted({0, *(entry.round for entry in report.rounds)}))
    axes.set(xlabel="rounds of distillation (0: the teacher)", ylabel=label)


def _target(axes: Axes, report: Report, column: str) -> None:
    """The diversity at which the curves are compared: that of the teacher at its most steps."""
    lines = [
        line for line in report.teacher if line.temperature == 1 and column in line.row.measures
    ]
    if lines:
        most = max(lines, key=lambda line: line.steps)
        target = most.row.measures[column].value
        axes.axvline(target, color=LIGHT["teacher"], linewidth=1, linestyle=":")
        axes.annotate(f"as diverse as the teacher\nat {most.steps} steps", (target, 1), (-4, 0), ha="right", va="top",
                      xycoords=axes.get_xaxis_transform(), textcoords="offset points", fontsize=SMALL,
                      color=LIGHT["teacher"])  # fmt: skip


def _calibration(axes: Axes, data: FigureData) -> None:
    alpha, error = np.array(data.alpha), np.array(data.kept_error)
    axes.fill_between(
        alpha, -1.96 * error, 1.96 * error, color=LIGHT["line"], label="95 % of chance"
    )
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle="--")
    axes.plot(
        alpha, np.array(data.kept) - alpha, "o", color=LIGHT["teacher"], label="projected Gaussians"
    )
    axes.set(xlabel="alpha, share of text asked for", ylabel="share of text seen - alpha")
    axes.set_title("Lemma 3.1: calibrated marginals")
    axes.legend(loc="upper right")


def _keep(axes: Axes, data: FigureData) -> None:
    axes.plot(data.curve_root, data.curve_keep, color=LIGHT["ink"], label="F_Y, by quadrature")
    axes.plot(data.snr_root, data.kept, "o", color=LIGHT["teacher"], label="projected Gaussians")
    axes.axhline(data.edge, color=LIGHT["student"], linewidth=1, linestyle="--")
    axes.axvline(0, color=LIGHT["student"], linewidth=1, linestyle="--")
    end = max(data.curve_root)
    note(
        axes,
        f"no signal: 1/K = {data.edge:.2g}",
        (end, data.edge),
        (0, 8),
        LIGHT["student"],
        ha="right",
    )
    axes.set(xlabel="root of the signal-to-noise ratio", ylabel="P(token kept)")
    axes.set_title("From signal to share of text")
    axes.legend(loc="upper left")


def _joint(axes: Axes, laws: Sequence[JointLaw]) -> None:
    patterns = [pattern for law in laws for pattern in law.pattern]
    place = np.arange(len(patterns))
    for values, shift, marker, color, label in (
        ("exact", 0.0, "_", "ink", "exact"),
        ("projected", -0.16, "o", "teacher", "projected Gaussians"),
        ("thresholded", 0.16, "s", "student", "one scalar"),
    ):
        heights = [value for law in laws for value in vars(law)[values]]
        size = 20 if marker == "_" else 6
        axes.plot(place + shift, heights, marker, color=LIGHT[color], markersize=size, label=label)
    axes.set_xticks(place, patterns)
    times = "; ".join("t = " + ", ".join(f"{t:g}" for t in law.time) for law in laws)
    axes.set(xlabel=f"shown (1) or masked (0) at {times}", ylabel="probability")
    axes.set_title("Joint laws at 2 and 3 times")
    axes.legend(loc="upper center", bbox_to_anchor=(0.62, 1.0))


def _steps_alt(report: Report) -> str:
    """What figure 1 shows, for those who do not see it."""
    ends = (
        f"the {name} goes from {lines[0].gen_ppl.value:.3g} at {lines[0].steps} steps to "
        f"{lines[-1].gen_ppl.value:.3g} at {lines[-1].steps}"
        for name, lines in (("teacher", report.teacher), ("student", report.student))
    )
    real = f"; real text has {report.data.gen_ppl.value:.3g}" if report.data else ""
    return f"Generative perplexity against steps, both on logarithmic axes, temperature 1: {', '.join(ends)}{real}."


def _frontier_alt(words: str) -> str:
    return (
        f"Generative perplexity against {words}: a curve for each step count over temperatures, of the teacher and "
        "of the student, with real text as a single point. The tables below hold the same numbers."
    )


def _training_alt(report: Report) -> str:
    rounds = max((entry.round for entry in report.rounds), default=0)
    return (
        "The loss of the distillation and its two terms by step, and gen PPL and entropy of the student by round"
        + (f", {rounds} rounds." if rounds else ".")
    )
