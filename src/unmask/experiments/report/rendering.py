"""The Jinja2 environment of the page templates, and the functions and filters that they use.

Autoescape is on: text from a model or a report is escaped, unless it is `Markup`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unmask.dataclass_json import finite
from unmask.evaluation.answers import EqualEntropy, EqualSeconds, SameSteps
from unmask.evaluation.interpolation import Estimate
from unmask.evaluation.measure import ENTROPIES
from unmask.evaluation.verdict import BETTER, EQUAL, NO_CLAIM, OPEN, WORSE, judge_gain
from unmask.experiments.report.style import css_variables

GAIN_SIGNS = {BETTER: "▲", WORSE: "▼", EQUAL: "●", OPEN: "○", NO_CLAIM: "○"}
_SHORT = 2  # letters; shorter words occur in most texts


def render(template: str, record: Mapping[str, Any], **values: Any) -> str:
    """Fill a page template.

    Args:
        template: file name in `templates/`.
        record: data of the page, embedded as JSON. A number that is not finite becomes null.
        values: variables of the template; `base.html.j2` lists those of every page.
    """
    loader = PackageLoader("unmask.experiments.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {
        "entropy_name": ENTROPIES.__getitem__,
        "value_text": value_text,
        "duration": duration,
    }
    environment.globals |= {
        "ENTROPIES": ENTROPIES,
        "GAIN_SIGNS": GAIN_SIGNS,
        "judge_gain": judge_gain,
        "gain_scale": gain_scale,
        "gain_bar": gain_bar,
        "mark_shared_words": mark_shared_words,
        "shared_columns": shared_columns,
        "palette": Markup(css_variables()),
        "style": Markup(loader.get_source(environment, "page.css")[0]),
        "script": Markup(loader.get_source(environment, "page.js")[0]),
    }
    return environment.get_template(template).render(record=finite(record), **values)


def value_text(value: float, sem: float | None = None) -> str:
    """A value with two digits of its standard error, or with four digits if it has none.

    >>> value_text(41.2345, 0.17), value_text(41.2345), value_text(21400.7), value_text(0.00557)
    ('41.23', '41.23', '21401', '0.00557')
    """
    if not math.isfinite(value) or not math.isfinite(sem or 0.0):
        return str(value)
    size = sem / 10 if sem else abs(value) / 1000
    places = min(max(0, -math.floor(math.log10(size))), 5) if size > 0 else 2
    text = f"{value:.{places}f}"
    return text if sem or "." not in text else text.rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds.

    >>> duration(59.7), duration(171.2)
    ('1 min 0 s', '2 min 51 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def gain_scale(entries: Sequence[SameSteps | EqualEntropy | EqualSeconds]) -> float:
    """Half the width of the bars of a table: a distance of log gain from 0."""
    gains = [entry.gain for entry in entries if entry.gain is not None]
    ends = [end for gain in gains for end in (gain.value, gain.low, gain.high) if end]
    return 1.1 * max((abs(math.log(end)) for end in ends), default=0.0) or 1.0


def gain_bar(gain: Estimate, scale: float) -> tuple[str, str]:
    """Left end and width of a gain's interval, in percent of a bar with gain 1 in its middle."""
    if gain.low is None or gain.high is None:
        raise ValueError(f"gain has no interval: got {gain}, want low and high")
    low, high = (50 + 50 * math.log(end) / scale for end in (gain.low, gain.high))
    return f"{low:.2f}", f"{max(high - low, 1.5):.2f}"


def shared_columns(entries: Sequence[SameSteps]) -> list[str]:
    """The diversities that some entry has of both models."""
    return [
        column
        for column in ENTROPIES
        if any(column in e.teacher_entropy and column in e.student_entropy for e in entries)
    ]


def mark_shared_words(first: str, second: str) -> tuple[Markup, Markup]:
    """Both texts, with the words that they share in the same order in <mark>.

    >>> print(mark_shared_words("the <old> state", "the new state")[0])
    <mark>the</mark> &lt;old&gt; <mark>state</mark>
    """
    tokens = [re.split("([ \n])", text) for text in (first, second)]  # words at even indices
    words = [side[::2] for side in tokens]
    blocks = SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_matching_blocks()

    def marked(side: int) -> Markup:
        shared = {2 * (block[side] + i) for block in blocks for i in range(block.size)}
        return Markup("").join(
            Markup("<mark>{}</mark>").format(token)
            if i in shared and len(token) > _SHORT
            else token
            for i, token in enumerate(tokens[side])
        )

    return marked(0), marked(1)
