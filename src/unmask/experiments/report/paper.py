"""The page and the picture of a table that was run again: what table.json holds -> report.html, NAME.png."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmask.atomic_files import write_text
from unmask.experiments.report.axes import legend, logarithmic, write_picture
from unmask.experiments.report.markup import Html, join, scrolling, tag
from unmask.experiments.report.page import whole
from unmask.experiments.report.style import LIGHT, NARROW, SMALL, WIDE, drawing
from unmask.experiments.report.svg import picture

_ROUNDS = ("#fdba74", "#fb923c", "#f97316", "#c2410c", "#7c2d12")  # light to dark, round by round
_MARKERS = "os^DvP"
_TEACHER = {"MDLM": "teacher", "MDLM large": "teacher", "Duo": "autoregressive"}


def write_table(record: Mapping[str, Any], directory: Path, name: str) -> Path:
    """Write NAME.png and report.html for what `recipes.tables.record` holds; -> the page's path."""
    several = len({steps for line in record["lines"] for steps in line["cells"]}) > 1
    draw, caption = (
        (figure, "Gen PPL and entropy against steps")
        if several
        else (plane, "Gen PPL against entropy")
    )
    with drawing():
        wide = draw(record, WIDE)
        write_picture(wide, directory / f"{name}.png")
        alt = f"{caption}: teachers, and methods by round. The numbers are those of the table."
        pictures = [picture(wide, name, alt), picture(draw(record, NARROW), f"{name}-narrow", alt)]
    shown = (
        picture.inline(kind) for picture, kind in zip(pictures, ("wide", "narrow"), strict=True)
    )
    curves = tag("figure", tag("figcaption", caption), *shown)
    title = str(record["title"])
    sections = {
        "table": ("The table", join(_words(record), _table(record))),
        "curves": ("The curves" if several else "The picture", curves),
        "doubts": ("The teacher in other precisions", _doubts(record)),
        "texts": ("The texts", _texts(record)),
    }
    masthead = tag(
        "div", tag("h1", title), tag("p", str(record["lede"]), class_="lede"), class_="masthead"
    )
    footer = tag("footer", tag("p", str(record["protocol"])))
    page = directory / (
        "report.html" if name.startswith("table") else f"{name}.html"
    )  # figure3 shares a directory
    write_text(page, whole(title, str(record["version"]), masthead, sections, footer, record))
    return page


def figure(record: Mapping[str, Any], width: float) -> Figure:
    """A column for each method: gen PPL above, entropy below; its teacher dashed, its rounds from light to dark."""
    methods = [
        method
        for method in record["methods"]
        if any(line["name"] == method for line in record["lines"])
    ]
    columns = max(1, len(methods)) if width > NARROW else 1
    rows = 1 if width > NARROW else max(1, len(methods))
    drawn = Figure(figsize=(width, 6.2 * rows))
    grid = drawn.subplots(2 * rows, columns, squeeze=False, sharex=True)
    for i, method in enumerate(methods or [""]):
        row, column = (0, i) if width > NARROW else (2 * i, 0)
        above, below = grid[row][column], grid[row + 1][column]
        teacher = record["methods"].get(method)
        for line in record["lines"]:
            if line["cells"] and line["name"] in (method, teacher):
                _curve(above, line, "gen_ppl")
                _curve(below, line, "entropy")
        logarithmic(
            above.xaxis, {int(steps) for line in record["lines"] for steps in line["cells"]}
        )
        above.set_yscale("log")
        above.set(ylabel="gen PPL" if column == 0 else "")
        below.set(xlabel="steps", ylabel="unigram entropy, nats" if column == 0 else "")
        legend(above, method, 2)
    _same_scale([axes for pair in grid[::2] for axes in pair])
    for axes in (axes for pair in grid[::2] for axes in pair):
        logarithmic(axes.yaxis)
    _protocol(drawn, record, width)
    _same_scale([axes for pair in grid[1::2] for axes in pair])
    return drawn


def plane(record: Mapping[str, Any], width: float) -> Figure:
    """Of one step count: a point a line at (entropy, gen PPL), so that whoever lowers both is seen to."""
    drawn = Figure(figsize=(width, 4.4))
    axes = drawn.subplots()
    for i, line in enumerate(line for line in record["lines"] if line["cells"]):
        (cell,) = line["cells"].values()
        color = LIGHT["student"] if line["round"] else LIGHT[_TEACHER.get(line["name"], "ink")]
        marker = _MARKERS[i % len(_MARKERS)]
        axes.plot(
            cell["entropy"],
            cell["gen_ppl"],
            color=color,
            marker=marker,
            linestyle="none",
            label=line["line"],
        )
    logarithmic(axes.yaxis)
    legend(axes, "", 4 if width > NARROW else 2)
    axes.margins(0.12)
    axes.set(xlabel="unigram entropy, nats", ylabel="gen PPL")
    _protocol(drawn, record, width)
    return drawn


def _protocol(drawn: Figure, record: Mapping[str, Any], width: float) -> None:
    words = textwrap.fill(str(record["protocol"]), 165 if width > NARROW else 70)
    drawn.supxlabel(words, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])


def _curve(axes: Axes, line: Mapping[str, Any], measure: str) -> None:
    steps = sorted(map(int, line["cells"]))
    values = [line["cells"][str(count)][measure] for count in steps]
    if line["round"]:
        color = _ROUNDS[min(line["round"], len(_ROUNDS)) - 1]
        axes.plot(
            steps,
            values,
            color=color,
            marker="s",
            markersize=4,
            linewidth=1.6,
            label=f"round {line['round']}",
        )
    else:
        color = LIGHT[_TEACHER.get(line["name"], "ink")]
        axes.plot(
            steps, values, color=color, marker="o", markersize=4, linestyle="--", label=line["name"]
        )


def _same_scale(axes: Sequence[Axes]) -> None:
    low, high = min(each.get_ylim()[0] for each in axes), max(each.get_ylim()[1] for each in axes)
    for each in axes:
        each.set_ylim(low, high)


def _words(record: Mapping[str, Any]) -> Html:
    words = (
        "Gen PPL / unigram entropy in nats; ± is one standard error over training seeds, of a teacher and of a single "
        "run over samples. In small print what was published at that place, by the paper or by "
        "others: other data, networks and judges, so read a line or a column of either, never one against the other. "
        "Gen PPL that falls together with entropy is no gain by itself."
    )
    return tag("p", words, class_="intro")


def _table(record: Mapping[str, Any]) -> Html:
    steps = sorted({int(count) for line in record["lines"] for count in line["cells"]})
    head = tag("tr", tag("th", ""), *(tag("th", f"{count} steps", scope="col") for count in steps))
    rows = []
    for line in record["lines"]:
        cells = [_cell(line["cells"].get(str(count)), line, record["seeds"]) for count in steps]
        there = record["failed"].get(line["name"])
        title = join(line["line"], *([tag("br"), tag("small", there)] if there else []))
        rows.append(tag("tr", tag("th", title, scope="row"), *cells))
    return scrolling(tag("table", tag("thead", head), tag("tbody", *rows)), str(record["title"]))


def _cell(cell: Mapping[str, Any] | None, line: Mapping[str, Any], seeds: int) -> Html:
    if cell is None:
        return tag("td", "failed" if line["failed"] else "")
    error = "" if cell["gen_ppl_sem"] is None else f" ± {cell['gen_ppl_sem']:.2g}"
    ours = f"{cell['gen_ppl']:.4g}{error} / {cell['entropy']:.2f}"
    if line["round"] and cell["seeds"] < seeds:
        ours += f" ({cell['seeds']} of {seeds} seeds)"
    published = [
        join(tag("br"), tag("small", f"{each['value']} {each['source']}"))
        for each in cell["published"]
    ]
    return tag("td", ours, *published)


def _doubts(record: Mapping[str, Any]) -> Html:
    if not record["doubts"]:
        return Html("")
    words = (
        "The same teacher, seed and judge. Draws in float32 are what early codes made; they leave out rare tokens, and "
        "so does top-p. A published value can differ by as much for that alone. These rows have unequal protocols: "
        "they are set side by side to show it, and compare with nothing else."
    )
    head = tag("tr", *(tag("th", name) for name in ("", "steps", "gen PPL", "entropy", "calls")))
    rows = [
        tag("tr", tag("th", row["name"]), tag("td", str(row["steps"])), tag("td", f"{row['gen_ppl']:.4g}"),
            tag("td", f"{row['entropy']:.3f}"), tag("td", f"{row['nfe']:.1f}"))
        for row in record["doubts"]
    ]  # fmt: skip
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return join(
        tag("p", words, class_="intro"), scrolling(table, "The teacher in other precisions")
    )


def _texts(record: Mapping[str, Any]) -> Html:
    words = f"The same latents, {record['shown_steps']} steps, the first training seed."
    parts = [tag("p", words, class_="intro")]
    for name, texts in record["texts"].items():
        quotes = (tag("blockquote", text, class_="text") for text in texts)
        parts.append(join(tag("h3", name), tag("div", *quotes, class_="columns")))
    return join(*parts)
