"""One palette for page and pictures, light and dark, told apart also without seeing red or green."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl

WIDE, NARROW = 10.4, 5.0  # inches of a picture on a desk and on a phone
SMALL = 9.0  # points, notes within a picture


@dataclass(frozen=True)
class Ink:
    """A colour in the light and in the dark scheme, #rrggbb."""

    light: str
    dark: str


# Each light colour stands here once: in a picture it is how the page finds what to repaint in the dark.
PALETTE: Mapping[str, Ink] = {
    "paper": Ink("#faf9f6", "#131417"),
    "panel": Ink("#ffffff", "#1b1d21"),
    "line": Ink("#e3e0d9", "#33363d"),
    "muted": Ink("#66635c", "#a5a29b"),
    "ink": Ink("#22211f", "#eceae5"),  # also real text
    "teacher": Ink("#1f5fb0", "#6cb4f8"),
    "student": Ink("#c2410c", "#ff8a45"),
    "autoregressive": Ink("#b0407f", "#f29ac9"),
    "mask": Ink("#dcdbe6", "#3a3d4a"),
    "fresh": Ink("#ffdc7a", "#7a5a00"),
}
LIGHT: Mapping[str, str] = {name: ink.light for name, ink in PALETTE.items()}
SERIES = ("teacher", "student", "autoregressive", "ink")

_FONT = (
    "DejaVu Sans"  # what matplotlib measures with; the page puts the reader's own sans in its place
)
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def css_variables() -> str:
    """The palette as custom properties of a page or a picture, for both schemes.

    >>> css_variables().splitlines()[0][:33]
    ':root { --paper: #faf9f6; --panel'
    """
    light = " ".join(f"--{name}: {ink.light};" for name, ink in PALETTE.items())
    dark = " ".join(f"--{name}: {ink.dark};" for name, ink in PALETTE.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def themed(svg: str) -> str:
    """Colours of the palette and the font of a picture, as variables that the page around it sets."""
    for name, ink in PALETTE.items():
        svg = svg.replace(ink.light, f"var(--{name}, {ink.light})")
    return svg.replace(f"'{_FONT}'", f"var(--sans, {SANS})".replace('"', "'"))


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, matplotlib draws in the style of the house, and the same picture always gives the same file.

    Names in scripts that its font lacks are no cause for a warning: a page has the reader's own fonts.
    """
    with (
        warnings.catch_warnings(),
        mpl.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "unmask",
                "font.family": _FONT,
                "font.size": 10.5,
                "text.color": LIGHT["ink"],
                "text.parse_math": False,
                "figure.facecolor": LIGHT["panel"],
                "figure.constrained_layout.use": True,
                "savefig.facecolor": LIGHT["panel"],
                "axes.facecolor": "none",
                "axes.edgecolor": LIGHT["muted"],
                "axes.labelcolor": LIGHT["ink"],
                "axes.linewidth": 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "axes.titlesize": 10.5,
                "axes.titlelocation": "left",
                "axes.titlecolor": LIGHT["ink"],
                "grid.color": LIGHT["line"],
                "grid.linewidth": 0.8,
                "xtick.color": LIGHT["muted"],
                "ytick.color": LIGHT["muted"],
                "xtick.major.size": 3,
                "ytick.major.size": 0,
                "lines.linewidth": 2.0,
                "lines.markersize": 6.0,
                "legend.frameon": False,
                "legend.fontsize": 10.0,
            }
        ),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield
