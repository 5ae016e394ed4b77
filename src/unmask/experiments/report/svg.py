"""matplotlib's SVG as part of a page: no network names, no ids of others, colours that follow the reader's scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import StringIO

from matplotlib.figure import Figure

from unmask.experiments.report.markup import Html, tag
from unmask.experiments.report.style import css_variables, themed

_TIP = "tip:"
_NOT_IN_XML = "[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"  # a name may hold them, a picture may not
_NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its name and its description in words, its size in points, and what stands inside the <svg>."""

    name: str
    alt: str
    width: str
    height: str
    body: str

    def inline(self, class_: str) -> Html:
        """For a page, whose style sheet sets the colours."""
        return tag(
            "svg",
            Html(self.body),
            viewBox=self._box,
            role="img",
            aria_label=self.alt,
            class_=class_,
        )

    def standalone(self) -> str:
        """A file of its own, in both colour schemes."""
        size = f'width="{self.width}" height="{self.height}" viewBox="{self._box}"'
        style = tag("style", Html(css_variables()))
        return f'<svg {_NAMESPACE} {size} role="img">{style}{tag("title", self.alt)}{self.body}</svg>\n'

    @property
    def _box(self) -> str:
        return f"0 0 {self.width} {self.height}"


def tip(text: str) -> str:
    """The `gid` of an artist that says this when pointed at."""
    return _TIP + text


def picture(figure: Figure, name: str, alt: str) -> Picture:
    """Ids are prefixed by the name, so that several pictures can share a page."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    found = re.search(
        r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>(.*)</svg>', buffer.getvalue(), re.DOTALL
    )
    if found is None:
        raise RuntimeError(
            'this version of matplotlib writes its SVG in another form: want <svg viewBox="0 0 W H">'
        )
    body = re.sub(_NOT_IN_XML, "\ufffd", found[3])
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL
    )
    body = re.sub(rf'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", body)
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(xlink:)?href="#([^"]*)"', rf'href="#{name}-\2"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    alt = re.sub(_NOT_IN_XML, "\ufffd", alt)
    return Picture(name, alt, found[1], found[2], themed(re.sub(r"\s*\n\s*", "\n", body).strip()))
