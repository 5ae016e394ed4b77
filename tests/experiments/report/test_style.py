"""The palette can be read, in both schemes and by eyes that see no red or no green; page and pictures share it."""

import re
from importlib import resources
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray

from unmask.experiments.report.style import LIGHT, PALETTE, SERIES, css_variables, drawing, themed

SCHEMES = ("light", "dark")
# Linear RGB as seen without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
EYES = {
    "all cones": np.eye(3),
    "no red": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
    "no green": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "no blue": np.array(
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]
    ),
}


def linear(color: str) -> NDArray[np.float64]:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""
    low, high = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (first, second))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of linear RGB, where a distance of 2 is just seen."""
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    f = np.cbrt(matrix @ rgb.clip(0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colors(scheme: str) -> dict[str, str]:
    return {name: vars(ink)[scheme] for name, ink in PALETTE.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read(scheme: str) -> None:
    """WCAG AA asks 4.5 of text."""
    found = colors(scheme)
    for name in (*SERIES, "muted"):
        for ground in ("paper", "panel"):
            assert contrast(found[name], found[ground]) >= 4.5, (name, ground)
    assert contrast(found["ink"], found["fresh"]) >= 4.5
    assert contrast(found["mask"], found["panel"]) >= 1.2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("eyes", EYES)
def test_series_are_told_apart(scheme: str, eyes: str) -> None:
    seen = {name: lab(EYES[eyes] @ linear(colors(scheme)[name])) for name in SERIES}
    for first, second in combinations(SERIES, 2):
        assert np.linalg.norm(seen[first] - seen[second]) >= 18, (first, second)


def test_each_light_colour_is_one_name() -> None:
    """A picture is repainted by its light colours."""
    assert len(set(LIGHT.values())) == len(LIGHT) and all(
        re.fullmatch("#[0-9a-f]{6}", c) for c in LIGHT.values()
    )


def test_the_style_sheet_uses_only_what_is_defined() -> None:
    sheet = resources.files("unmask.experiments.report").joinpath("page.css").read_text("utf-8")
    defined = set(re.findall(r"(--[a-z]+):", css_variables() + sheet))
    assert set(re.findall(r"var\((--[a-z]+)", sheet)) <= defined
    assert (
        css_variables().count("#") == 2 * len(PALETTE)
        and "prefers-color-scheme: dark" in css_variables()
    )
    assert not re.search(r"#[0-9a-f]{6}", sheet), "a colour outside of the palette"


def test_a_themed_picture_names_its_colours() -> None:
    drawn = themed(
        f'<path style="fill: {LIGHT["teacher"]}"/><text style="font: 9px \'DejaVu Sans\'"/>'
    )
    assert (
        f"var(--teacher, {LIGHT['teacher']})" in drawn
        and "var(--sans" in drawn
        and "DejaVu Sans'" not in drawn
    )


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    with drawing():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before
