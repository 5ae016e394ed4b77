"""matplotlib figures as SVG inside a page: unique ids, tooltips, colours of the page's scheme."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import StringIO
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from unmask.experiments.report.style import css_variables, plot_style, themed

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
