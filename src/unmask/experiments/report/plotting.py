"""The look of all figures: palette, axes, points with tooltips, PNG files, SVG inside a page."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from unmask.atomic_files import writing
from unmask.evaluation.measure import MeasuredRow

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
    """Set matplotlib's style in a `with` block, or as the decorator of a function that draws.

    The same figure always gives the same file. Missing glyphs raise no warning, because a page
    is shown in the reader's own fonts.
    """
    with warnings.catch_warnings(), mpl.rc_context(_RC):
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


_TOOLTIP = "tooltip:"
_NAMESPACE = "http://www.w3.org/2000/svg"
_DROPPED = {"metadata", "style"}  # they name addresses, or would style the whole page
_CONTROLS = [*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF]
_NOT_IN_XML = dict.fromkeys(_CONTROLS, "\ufffd")  # a model's name may hold such characters


@dataclass(frozen=True)
class SvgFigure:
    """A drawn figure.

    Attributes:
        title: title of the caption
        alt: a description, for screen readers
        width, height: points
        body: the markup between <svg> and </svg>
    """

    title: str
    alt: str
    width: str
    height: str
    body: Markup

    @property
    def view_box(self) -> str:
        return f"0 0 {self.width} {self.height}"

    def standalone(self) -> str:
        """The text of an SVG file, in both colour schemes."""
        size = f'width="{self.width}" height="{self.height}" viewBox="{self.view_box}"'
        names = f'xmlns="{_NAMESPACE}" role="img"'
        head = f"<style>{css_variables()}</style><title>{escape(self.alt)}</title>"
        return f"<svg {names} {size}>{head}{self.body}</svg>\n"


def tooltip(text: str) -> str:
    """The `gid` of an artist that shows `text` as its tooltip."""
    return _TOOLTIP + text


@plot_style()
def svg_figure(figure: Figure, name: str, title: str, alt: str) -> SvgFigure:
    """Draw a figure as SVG.

    Args:
        figure: a figure that was drawn in `plot_style`.
        name: a name that is unique on the page; ids depend on it.
        title: title of the caption.
        alt: a description of the figure.
    """
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue().translate(_NOT_IN_XML))
    for element in root.iter():
        for child in list(element):
            if _local(child.tag) in _DROPPED:
                element.remove(child)
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        if element.tag == "g":
            # matplotlib numbers its groups. Nothing refers to them, and two figures share them.
            group = element.attrib.pop("id", "")
            if group.startswith(_TOOLTIP):
                tip = ElementTree.Element("title")
                tip.text = group.removeprefix(_TOOLTIP)
                element.insert(0, tip)
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    _, _, width, height = root.attrib["viewBox"].split()
    title, alt = title.translate(_NOT_IN_XML), alt.translate(_NOT_IN_XML)
    return SvgFigure(title, alt, width, height, Markup(themed(body)))


def _local(name: str) -> str:
    """A tag or attribute without its namespace."""
    return name.rpartition("}")[2]


Points = Sequence[tuple[MeasuredRow, float]]  # rows with their x

PNG_DPI = 160
_LABEL_SIZE = (24.0, 14.0)  # width and height of a step label, points


@plot_style()
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically in the format of the suffix of `path`: .png, .svg or .pdf."""
    with writing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=PNG_DPI)


def caption(figure: Figure, text: str) -> None:
    """Write a small text below the axes, wrapped to the width of the figure."""
    columns = 165 if figure.get_figwidth() > NARROW else 70
    words = textwrap.fill(text, columns)
    figure.supxlabel(words, x=0.01, ha="left", fontsize=SMALL - 1, color=LIGHT["muted"])


def logarithmic(axis: Axis, ticks: Collection[float] | None = None) -> None:
    """Make an axis logarithmic, with plain numbers at `ticks` or at round values of its range."""
    axes = axis.axes
    axes.set_xscale("log") if axis is axes.xaxis else axes.set_yscale("log")
    axes.autoscale_view()
    axis.set_major_locator(FixedLocator(sorted(ticks or _round_values(*axis.get_view_interval()))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def curve(axes: Axes, points: Points, **style: Any) -> None:
    """Draw a line through rows at (x, gen PPL)."""
    axes.plot([x for _, x in points], [row.gen_ppl.value for row, _ in points], **style)


def point(axes: Axes, row: MeasuredRow, x: float, **style: Any) -> None:
    """Draw a row as a marker at (x, gen PPL), with a tooltip that describes it."""
    (artist,) = axes.plot([x], [row.gen_ppl.value], **style | {"linestyle": "none"})
    artist.set_gid(tooltip(describe(row)))


def step_labels(axes: Axes, points: Points) -> None:
    """Label rows at (x, gen PPL) by their step counts; move a label aside if it covers another."""
    axes.autoscale_view()
    taken: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    width, height = _LABEL_SIZE
    for row, x in points:
        left, bottom = axes.transData.transform((x, row.gen_ppl.value)) * scale
        aside = 0.0
        while any(abs(left + aside - a) < width and abs(bottom - b) < height for a, b in taken):
            aside += width
        taken.append((left + aside, bottom))
        color = LIGHT.get(row.row.name, LIGHT["muted"])
        box = {"boxstyle": "round,pad=0.28,rounding_size=0.7", "facecolor": color}
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.8}
        text = axes.annotate(
            str(row.steps),
            (x, row.gen_ppl.value),
            (aside, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL - 0.5,
            fontweight="bold",
            color=LIGHT["panel"],
            bbox=box | {"edgecolor": LIGHT["panel"]},
            arrowprops=arrow if aside else None,
            zorder=4,
        )
        text.set_gid(tooltip(describe(row)))


def describe(row: MeasuredRow) -> str:
    """A row in words: model, steps, temperature, gen PPL ± one standard error, entropy."""
    sem = "" if row.gen_ppl.sem is None else f" ± {row.gen_ppl.sem:.2g}"
    how = f", {row.steps} steps, temperature {row.temperature:g}" if row.steps else ""
    measures = f"gen PPL {row.gen_ppl.value:.4g}{sem}, entropy {row.entropy.value:.3f} nats"
    return f"{row.row.name}{how}: {measures}"


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    shift: tuple[float, float],
    color: str,
    **style: Any,
) -> None:
    """Write a small text near a point.

    Args:
        at: the point, in the coordinates of the data.
        shift: from the point to the text, in typographic points.
        style: overrides of `Axes.annotate`, such as `ha` or `xycoords`.
    """
    usual: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
    options = usual | {"textcoords": "offset points"} | style
    axes.annotate(text, at, shift, color=color, **options)


def legend(axes: Axes, title: str, columns: int = 2) -> None:
    """Put the legend above the axes, where it covers nothing, with a remark as its title."""
    box = axes.legend(
        title=title,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.012, 1.01),
        alignment="left",
        title_fontsize=SMALL,
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.4,
    )
    box.get_title().set_color(LIGHT["muted"])


def _round_values(low: float, high: float) -> list[float]:
    """At least four round numbers in the range, if possible."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [float(f"{decade * factor:.6g}") for decade in decades for factor in factors]
        ticks = [value for value in values if low <= value <= high]
        if len(ticks) >= 4:
            return ticks
    return [float(value) for value in MaxNLocator(6).tick_values(low, high) if low <= value <= high]
