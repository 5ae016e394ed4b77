"""The figure NAME.png and the page of a table.json, a table of the paper measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.experiments.report.page import render
from unmask.experiments.report.plotting import (
    LIGHT,
    NARROW,
    WIDE,
    caption,
    legend,
    logarithmic,
    plot_style,
    save_figure,
    svg_figure,
)

_ROUND_COLORS = ("#fdba74", "#fb923c", "#f97316", "#c2410c", "#7c2d12")  # light to dark
_MARKERS = "os^DvP"
_TEACHER_COLORS = {"MDLM": "teacher", "MDLM large": "teacher", "Duo": "autoregressive"}


def write_table(record: Mapping[str, Any], directory: Path, name: str) -> Path:
    """Write NAME.png and the page of a table; return the path of the page.

    Args:
        record: the value of a table.json.
        directory: directory of both files. Figures of the paper share it with a table.
        name: "table1", "figure3", ...
    """
    steps = sorted({int(count) for line in record["lines"] for count in line["cells"]})
    several = len(steps) > 1
    draw, title = (
        (curves_by_steps, "Gen PPL and entropy against steps")
        if several
        else (entropy_plane, "Gen PPL against entropy")
    )
    alt = f"{title}: teachers, and methods by round. The numbers are those of the table."
    wide, narrow = draw(record, WIDE), draw(record, NARROW)
    save_figure(wide, directory / f"{name}.png")
    sections = {
        "table": "The table",
        "curves": "The curves" if several else "The figure",
        "precisions": "The teacher in other precisions",
        "texts": "The texts",
    }
    if not record["doubts"]:
        del sections["precisions"]
    source = render(
        "table.html.j2",
        title=record["title"],
        version=record["version"],
        sections=sections,
        record=record,
        record_name=f"{name}.json",
        protocol=record["protocol"],
        claims=False,
        steps=steps,
        figures={
            "figure": (
                svg_figure(wide, name, title, alt),
                svg_figure(narrow, f"{name}-narrow", title, alt),
            )
        },
    )
    page = directory / ("report.html" if name.startswith("table") else f"{name}.html")
    write_text(page, source)
    return page


@plot_style()
def curves_by_steps(record: Mapping[str, Any], width: float) -> Figure:
    """A column for each method: gen PPL above, entropy below, by steps.

    The teacher's curve is dashed. Rounds go from light to dark.
    """
    names = {line["name"] for line in record["lines"]}
    methods = [method for method in record["methods"] if method in names] or [""]
    figure = Figure()
    pairs = _axes_of_methods(figure, len(methods), width)
    steps = {int(count) for line in record["lines"] for count in line["cells"]}
    for i, (method, (above, below)) in enumerate(zip(methods, pairs, strict=True)):
        teacher = record["methods"].get(method)
        for line in record["lines"]:
            if line["cells"] and line["name"] in (method, teacher):
                _curve(above, line, "gen_ppl")
                _curve(below, line, "entropy")
        logarithmic(above.xaxis, steps)
        above.set_yscale("log")
        labelled = i == 0 or width <= NARROW
        above.set(ylabel="gen PPL" if labelled else "")
        below.set(xlabel="steps", ylabel="unigram entropy, nats" if labelled else "")
        legend(above, method, 2)
    _share_y([above for above, _ in pairs])
    for above, _ in pairs:
        logarithmic(above.yaxis)
    caption(figure, record["protocol"])
    _share_y([below for _, below in pairs])
    return figure


@plot_style()
def entropy_plane(record: Mapping[str, Any], width: float) -> Figure:
    """A point for each line of one step count: gen PPL against entropy."""
    figure = Figure(figsize=(width, 4.4))
    axes = figure.subplots()
    for i, line in enumerate(line for line in record["lines"] if line["cells"]):
        (cell,) = line["cells"].values()
        axes.plot(
            cell["entropy"],
            cell["gen_ppl"],
            color=LIGHT["student"] if line["round"] else _teacher_color(line),
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle="none",
            label=line["line"],
        )
    logarithmic(axes.yaxis)
    legend(axes, "", 4 if width > NARROW else 2)
    axes.margins(0.12)
    axes.set(xlabel="unigram entropy, nats", ylabel="gen PPL")
    caption(figure, record["protocol"])
    return figure


def _axes_of_methods(figure: Figure, count: int, width: float) -> list[tuple[Axes, Axes]]:
    """Axes above and below for each method: side by side, or on a phone one after another."""
    columns = count if width > NARROW else 1
    rows = count // columns
    figure.set_size_inches(width, 6.2 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False, sharex=True)
    upper, lower = grid[::2].flatten(), grid[1::2].flatten()
    return list(zip(upper, lower, strict=True))


def _curve(axes: Axes, line: Mapping[str, Any], measure: str) -> None:
    steps = sorted(map(int, line["cells"]))
    values = [line["cells"][str(count)][measure] for count in steps]
    if line["round"]:
        color = _ROUND_COLORS[min(line["round"], len(_ROUND_COLORS)) - 1]
        label = f"round {line['round']}"
        axes.plot(steps, values, "s-", color=color, markersize=4, linewidth=1.6, label=label)
    else:
        color, label = _teacher_color(line), line["name"]
        axes.plot(steps, values, "o--", color=color, markersize=4, label=label)


def _teacher_color(line: Mapping[str, Any]) -> str:
    return LIGHT[_TEACHER_COLORS.get(line["name"], "ink")]


def _share_y(axes: Sequence[Axes]) -> None:
    """Give all axes one range of y."""
    limits = [panel.get_ylim() for panel in axes]
    for panel in axes:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
