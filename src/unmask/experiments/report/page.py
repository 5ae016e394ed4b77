"""report.html, the page of a report.json; it needs no network and no other file.

The templates escape all text from a model or a report, unless it is `Markup`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unmask.atomic_files import write_text
from unmask.dataclass_json import finite
from unmask.evaluation.answers import EqualEntropy, EqualSeconds, SameSteps
from unmask.evaluation.interpolation import Estimate
from unmask.evaluation.measure import BOUND, ENTROPIES, GEN_PPL, SECONDS, MeasuredRow
from unmask.evaluation.verdict import BETTER, EQUAL, NO_CLAIM, OPEN, WORSE, judge_gain
from unmask.experiments.report.figures import plan_figures, save_report_figure
from unmask.experiments.report.plotting import SvgFigure, css_variables
from unmask.experiments.report.report_schema import Report, read_report

_MAIN_MEASURES = {BOUND: "N-step bound", GEN_PPL: "gen PPL", **ENTROPIES, SECONDS: "seconds"}
_MEASURE_NAMES = {**_MAIN_MEASURES, "bits_per_byte": "bits a byte", "overlap_4": "4-gram overlap"}
_UNIFORM_SAMPLERS = {"ancestral", "greedy_tail"}

GAIN_SIGNS = {BETTER: "▲", WORSE: "▼", EQUAL: "●", OPEN: "○", NO_CLAIM: "○"}
_SHORT = 2  # letters of the longest word that is not marked: such words occur in most texts

NamedRow = tuple[str, MeasuredRow]  # the name of a list of rows, and a row of it


def write_report(data: Mapping[str, Any], directory: Path | str) -> Path:
    """Write report.html, and its figures as PNG and SVG in figures/; return the path of the page.

    Args:
        data: the value of a report.json.
        directory: directory of the page.

    Raises:
        ValueError: a field of the report is missing, of another type or of another version.
    """
    report = read_report(data)
    folder = Path(directory)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    plans = plan_figures(report)
    figures = {plan.name: save_report_figure(plan, report, folder / "figures") for plan in plans}
    page = folder / "report.html"
    write_text(page, page_source(report, figures, data))
    return page


def page_source(
    report: Report, figures: Mapping[str, Sequence[SvgFigure]], data: Mapping[str, Any]
) -> str:
    """The page as text.

    Args:
        report: the content of the page.
        figures: name -> the figure for a desktop and for a phone.
        data: the value of report.json, embedded without the values of single samples.
    """
    rows = list(report.rows)
    plain = [(name, row) for name, row in rows if row.temperature == 1]
    targets = dict.fromkeys(entry.at for entry in report.answers.equal_entropy)
    return render(
        "report.html.j2",
        title=report.title,
        version=report.version,
        sections=_sections(report, figures),
        record=_without_samples(data),
        record_name="report.json",
        report=report,
        protocol=report.protocol_words,
        claims=not report.no_claim,
        targets=[
            (at, [entry for entry in report.answers.equal_entropy if entry.at == at])
            for at in targets
        ],
        figures=figures,
        main_figures=[name for name in ("gen-ppl-by-steps", "frontier") if name in figures],
        first_figure="bound-by-calls" if "bound-by-calls" in figures else None,
        more_figures=[name for name in figures if name.startswith("frontier-")],
        uniform_noise=_uniform_noise(report),
        plain_rows=plain,
        other_rows=[(name, row) for name, row in rows if row.temperature != 1],
        any_shipped=any(row.shipped for _, row in rows),
        main_measures=_measures(rows, main=True),
        other_measures=_measures(rows, main=False),
    )


def _sections(report: Report, figures: Mapping[str, Any]) -> dict[str, str]:
    """Anchor -> heading of the sections that have content."""
    answers = report.answers
    sections = {
        "likelihood": ("Few calls, by likelihood", "bound-by-calls" in figures),
        "answers": ("Three answers", answers.same_steps or answers.equal_entropy or answers.speed),
        "player": ("Watch a text being unmasked", report.player),
        "reading": ("How to read this", True),
        "curves": ("The curves", figures.keys() - {"training"}),
        "texts": ("The texts", report.samples or report.real),
        "training": ("The distillation", "training" in figures),
        "numbers": ("Every number", True),
    }
    return {anchor: heading for anchor, (heading, content) in sections.items() if content}


def _uniform_noise(report: Report) -> bool:
    """True if the student denoises random tokens. Only masked diffusion has unmasking traces."""
    samplers = {row.row.setting.sampler for row in report.student}
    return not report.player and not samplers.isdisjoint(_UNIFORM_SAMPLERS)


def _measures(rows: Sequence[NamedRow], main: bool) -> list[tuple[str, str, str]]:
    """Key, name and unit of the measures of a table: the main ones, or all others."""
    units = {key: measure.unit for _, row in rows for key, measure in row.measures.items()}
    return [
        (key, _MEASURE_NAMES.get(key, key.replace("_", " ")), unit)
        for key, unit in units.items()
        if (key in _MAIN_MEASURES) == main
    ]


def _without_samples(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without the values of single samples, which only the bootstrap needs."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        if isinstance(value, Mapping) and "measures" in value:
            return {key: item for key, item in value.items() if key != "samples"}
        return value

    return {key: short(value) for key, value in data.items()}


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
