"""Figures show the numbers of the report, and are the same files each time."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from unmask.evaluation.measure import ENTROPIES
from unmask.experiments.report.comparison_figure import comparison_figure
from unmask.experiments.report.figures import (
    bound_by_calls,
    frontier_figure,
    gen_ppl_by_steps,
    plan_figures,
    training_figure,
)
from unmask.experiments.report.plotting import (
    NARROW,
    WIDE,
    SvgFigure,
    describe,
    plot_style,
    step_labels,
    svg_figure,
)
from unmask.experiments.report.report_schema import read_report

HOSTILE = (
    '</title></svg></script><img src=x onerror="alert(1)"> & $x_1$ $\\frac{ [v2] 日本 \x00\x0b'
)


def drawn(figure: Figure) -> list[tuple[float, float]]:
    """All points of all lines."""
    lines = [line for axes in figure.axes for line in axes.lines]
    return [(float(x), float(y)) for line in lines for x, y in line.get_xydata()]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_gen_ppl_by_steps(report: dict) -> None:
    figure = gen_ppl_by_steps(read_report(report), WIDE)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {
        (row["steps"], row["gen_ppl"]) for row in [*report["teacher"], *report["student"]]
    } <= set(drawn(figure))
    for row in (report["data"], report["autoregressive"][0]):
        assert any(y == row["gen_ppl"] for _, y in drawn(figure))
    labels = words(figure)
    assert all(
        f"{row['entropy']:.2f}" in labels for row in [*report["teacher"], *report["student"]]
    )


def test_a_comparison_draws_each_student_and_a_shared_teacher_once(report: dict) -> None:
    figure = comparison_figure({"mcd": read_report(report), "other": read_report(report)}, 8)
    most = max(row["steps"] for row in report["teacher"])
    rows = {
        (row["entropy"], row["gen_ppl"])
        for name, steps in (("student", {8}), ("teacher", {8, most}))
        for row in [*report[name], *report[f"temperature_{name}"]]
        if row["steps"] in steps
    }
    target = next(row["entropy"] for row in report["teacher"] if row["steps"] == most)
    assert rows == {*drawn(figure)} - {(target, 0.0), (target, 1.0)}
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    names = [f"teacher, {most} steps", "teacher, 8 steps", "mcd, 8 steps", "other, 8 steps"]
    assert labels == names


@pytest.mark.parametrize("column", ENTROPIES)
def test_frontier(report: dict, column: str) -> None:
    figure = frontier_figure(read_report(report), column, NARROW)
    rows = [
        row
        for name in ("teacher", "student")
        for row in [*report[name], *report["temperature_" + name]]
    ]
    assert {(row[column], row["gen_ppl"]) for row in rows} <= set(drawn(figure))
    assert ((report["data"].get(column), report["data"]["gen_ppl"]) in drawn(figure)) == (
        column in report["data"]
    )
    steps = sorted(label for label in words(figure) if label.isdigit())
    assert steps == sorted(str(row["steps"]) for row in [*report["teacher"], *report["student"]])
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert len(curves) == len(report["teacher"]) + len(report["student"])  # one a step count
    assert {point for line in curves for point in zip(*line.get_data(), strict=True)} == {
        (row[column], row["gen_ppl"]) for row in rows
    }


def test_training(report: dict) -> None:
    figure = training_figure(read_report(report), WIDE)
    above, gen_ppl, entropy = figure.axes
    for name in ("loss", "distillation", "reconstruction"):
        assert any(list(line.get_ydata()) == report["training"][name] for line in above.lines)
    smooth = next(line.get_ydata() for line in above.lines if line.get_label() == "loss")
    assert np.std(np.diff(smooth)) < np.std(np.diff(report["training"]["loss"]))
    start = next(row for row in report["teacher"] if row["steps"] == 8)
    for axes, name in ((gen_ppl, "gen_ppl"), (entropy, "entropy")):
        rounds = {(entry["round"], entry[name]) for entry in report["rounds"]}
        points = {(x, y) for line in axes.lines for x, y in line.get_xydata()}
        assert points == rounds | {(0, start[name])}


@pytest.mark.parametrize(
    ("missing", "labels"),
    [("rounds", ["nats a token"]), ("training", ["gen PPL", "unigram entropy, nats"])],
)
def test_a_training_figure_shows_only_recorded_parts(
    report: dict, missing: str, labels: list[str]
) -> None:
    del report[missing]
    figure = training_figure(read_report(report), WIDE)
    assert [axes.get_ylabel() for axes in figure.axes] == labels


def test_only_measured_rows_are_drawn(report: dict) -> None:
    names = [plan.name for plan in plan_figures(read_report(report))]
    assert names == [
        "bound-by-calls",
        "gen-ppl-by-steps",
        "frontier",
        "frontier-pooled-entropy",
        "frontier-completion-disagreement",
        "training",
    ]
    for row in [*report["teacher"], *report["temperature_teacher"]]:
        del row["measures"]["completion_disagreement"]
        row["measures"].pop("bound", None)
    for name in ("rounds", "training", "data", "autoregressive"):
        del report[name]
    record = read_report(report)
    assert [plan.name for plan in plan_figures(record)] == names[1:4]
    gen_ppl_by_steps(record, NARROW)
    frontier_figure(record, "entropy", NARROW)


def test_the_bound_is_drawn_against_calls(report: dict) -> None:
    """A curve for each list of rows with the bound, and the floor of the autoregressive model."""
    record = read_report(report)
    (axes,) = bound_by_calls(record, WIDE).axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    drawn = {container.get_label() for container in axes.containers}
    assert drawn == {"teacher in random order", "teacher", "student"}
    (floor,) = record.autoregressive
    assert any(list(line.get_ydata()) == [floor.measures["bound"].value] * 2
               for line in curves.values())  # fmt: skip
    del report["random_order"]
    (axes,) = bound_by_calls(read_report(report), NARROW).axes
    assert {container.get_label() for container in axes.containers} == {"teacher", "student"}


def svg(report: dict, name: str = "a", alt: str = "words") -> SvgFigure:
    return svg_figure(gen_ppl_by_steps(read_report(report), NARROW), name, "title", alt)


def test_an_svg_is_the_same_twice_and_describes_its_points(report: dict) -> None:
    first, second = svg(report), svg(report)
    assert first == second
    page = ET.fromstring(first.standalone())
    tooltips = [element.text for element in page.iter("{http://www.w3.org/2000/svg}title")]
    assert tooltips[0] == "words"
    assert {describe(row) for row in read_report(report).teacher} <= set(tooltips)


def test_two_figures_of_a_page_share_no_id(report: dict) -> None:
    ids = [set(re.findall(r'id="([^"]*)"', svg(report, name).body)) for name in "ab"]
    assert ids[0] and not ids[0] & ids[1]


@pytest.mark.filterwarnings("error")
def test_hostile_words_stay_words(report: dict) -> None:
    for name in ("teacher", "student"):
        for row in report[name]:
            row["name"] = HOSTILE
    figure = svg(report, alt=HOSTILE)
    page = ET.fromstring(figure.standalone())
    assert not [element for element in page.iter() if element.tag.endswith("img")]
    assert "<img" not in figure.body
    assert "$x_1$ $\\frac{ [v2] 日本 \ufffd\ufffd" in "".join(page.itertext())


def test_step_labels_never_cover_each_other(report: dict) -> None:
    rows = read_report(report).teacher
    with plot_style():
        figure = Figure(figsize=(WIDE, 4))
        axes = figure.add_subplot()
        axes.set(xlim=(0, 2), ylim=(0, 300))
        step_labels(axes, [(row, 1.0) for row in [*rows, rows[0], rows[0]]])
        figure.canvas.draw()
    boxes = []
    for text in axes.texts:
        padding = 0.28 * text.get_fontsize() * figure.dpi / 72
        size = Text.get_window_extent(text).padded(padding).size
        middle = axes.transData.transform(text.xy) + np.array(text.xyann) * figure.dpi / 72
        boxes.append(Bbox([middle - size / 2, middle + size / 2]))
    assert len(boxes) == 8
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
