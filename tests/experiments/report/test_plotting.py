"""Pages and figures share one palette."""

import re
from importlib import resources

import matplotlib as mpl

from unmask.experiments.report.plotting import LIGHT, PALETTE, css_variables, plot_style, themed


def test_each_light_colour_has_one_name() -> None:
    """A figure is recoloured by the values of its light colours."""
    colors = [color for ink in PALETTE.values() for color in (ink.light, ink.dark)]
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_the_style_sheet_uses_only_colours_of_the_palette() -> None:
    folder = resources.files("unmask.experiments.report") / "templates"
    sheet = (folder / "page.css").read_text("utf-8")
    defined = set(re.findall(r"(--[a-z]+):", css_variables() + sheet))
    assert set(re.findall(r"var\((--[a-z]+)", sheet)) <= defined
    assert not re.search(r"#[0-9a-f]{6}", sheet)


def test_a_themed_figure_names_its_colours() -> None:
    path = f'<path style="fill: {LIGHT["teacher"]}"/>'
    text = "<text style=\"font: 9px 'DejaVu Sans'\"/>"
    assert f"var(--teacher, {LIGHT['teacher']})" in themed(path)
    assert "var(--sans" in themed(text) and "DejaVu Sans'" not in themed(text)


def test_the_plot_style_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    with plot_style():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before
