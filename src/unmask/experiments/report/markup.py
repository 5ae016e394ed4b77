"""HTML that cannot be broken by what it holds: text is escaped unless it is `Html` already."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

from unmask.dataclass_json import finite

_VOID = {"br", "hr", "input", "meta"}


@dataclass(frozen=True)
class Html:
    """Finished markup."""

    source: str

    def __str__(self) -> str:
        return self.source


def tag(name: str, *children: str | Html, **attributes: str | bool) -> Html:
    """An element. A trailing underscore of an attribute goes, others become hyphens; True is bare, False is left out.

    >>> print(tag("a", "1 < 2", tag("b", "!"), class_="x", aria_label='"', hidden=True, open=False))
    <a class="x" aria-label="&quot;" hidden>1 &lt; 2<b>!</b></a>
    """
    pairs = (
        (key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not False
    )
    start = name + "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"' for key, value in pairs
    )
    return Html(f"<{start}>" if name in _VOID else f"<{start}>{join(*children)}</{name}>")


def join(*parts: str | Html) -> Html:
    """Parts in a row."""
    return Html("".join(part.source if isinstance(part, Html) else escape(part) for part in parts))


def scrolling(table: Html, label: str) -> Html:
    """A table in a frame that scrolls by itself, by keyboard too; `label` is read out."""
    return tag("div", table, class_="scroll", role="region", tabindex="0", aria_label=label)


def embedded(data: Any) -> Html:
    """JSON for a <script type="application/json">: no character in it can end the script or start a comment.

    Numbers that JSON does not know (nan, inf) become null.

    >>> print(embedded({"text": "</script><!-- & é", "worst": float("inf")}))
    {"text": "\\u003c/script\\u003e\\u003c!-- \\u0026 \\u00e9", "worst": null}
    """
    text = json.dumps(finite(data), allow_nan=False)
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
