"""One palette for pages and figures, in a light and a dark colour scheme."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

WIDE, NARROW = 10.4, 5.0  # width of a figure on a desktop and on a phone, inches
SMALL = 9.0  # font size of notes inside a figure, points


@dataclass(frozen=True)
class Ink:
    """A colour in the light and in the dark scheme, #rrggbb."""

    light: str
    dark: str


# No two light colours are equal: `themed` finds the name of a colour in a figure by its value.
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
MARKERS: Mapping[str, str] = {"teacher": "o", "student": "s"}

_FONT = "DejaVu Sans"  # matplotlib measures text with it; pages use the reader's sans-serif font
SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
_RC: Any = {  # its type lists every key of matplotlib
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


def css_variables() -> str:
    """The palette as CSS custom properties for both colour schemes.

    >>> css_variables().splitlines()[0][:33]
    ':root { --paper: #faf9f6; --panel'
    """
    light = " ".join(f"--{name}: {ink.light};" for name, ink in PALETTE.items())
    dark = " ".join(f"--{name}: {ink.dark};" for name, ink in PALETTE.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def themed(svg: str) -> str:
    """Replace the palette's colours and the font of an SVG by CSS variables that its page sets."""
    for name, ink in PALETTE.items():
        svg = svg.replace(ink.light, f"var(--{name}, {ink.light})")
    return svg.replace(f"'{_FONT}'", f"var(--sans, {SANS})".replace('"', "'"))


@contextmanager
def plot_style() -> Iterator[None]:
    """Set matplotlib's style: a `with` block, or a decorator of a function that draws or saves.

    The same figure always gives the same file. Missing glyphs raise no warning, because a page
    is shown in the reader's own fonts.
    """
    with warnings.catch_warnings(), mpl.rc_context(_RC):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield
