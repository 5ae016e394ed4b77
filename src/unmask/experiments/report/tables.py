"""The tables of the page: three answers, and every row with every measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from unmask.evaluation.answers import EqualEntropy, EqualSeconds, SameSteps, Speed
from unmask.evaluation.interpolation import Estimate
from unmask.evaluation.measure import ENTROPIES, SECONDS, Measure
from unmask.evaluation.verdict import BETTER, EQUAL, NO_CLAIM, OPEN, WORSE, judge_gain
from unmask.experiments.report.markup import Html, join, scrolling, tag
from unmask.experiments.report.record import Line, Report, words_of

_SIGNS = {BETTER: "▲", WORSE: "▼", EQUAL: "●", OPEN: "○", NO_CLAIM: "○"}
_HEADS = {
    "gen_ppl": "gen PPL",
    **ENTROPIES,
    SECONDS: "seconds",
    "bits_per_byte": "bits a byte",
    "overlap_4": "4-gram overlap",
}
_FIRST = ("gen_ppl", *ENTROPIES, SECONDS)
_NAMES = {"data": "real text"}
SHIPPED = "shipped"


def same_steps(report: Report) -> Html:
    """Question 1: teacher and student at the same steps, both at temperature 1."""
    entries = report.answers.same_steps
    columns = [
        c
        for c in ENTROPIES
        if any(c in e.teacher_entropy and c in e.student_entropy for e in entries)
    ]
    scale = _scale(entry.gain for entry in entries)

    def line(entry: SameSteps) -> list[Html]:
        both = (
            (entry.teacher_entropy.get(column), entry.student_entropy.get(column))
            for column in columns
        )
        return [
            _steps(entry.steps),
            _pair(entry.teacher, entry.student),
            _gain(entry.gain, scale, not report.no_claim),
            *(_pair(*p) for p in both),
        ]

    heads = ["steps", "gen PPL", "gain", *(ENTROPIES[column] for column in columns)]
    caption = "Teacher → student at temperature 1; gain: gen PPL of the teacher / of the student, 95 % interval"
    return table(report, caption, heads, map(line, entries))


def equal_entropy(report: Report, at: str) -> Html:
    """Question 2 at one target: gains of the student over a temperature-scaled teacher, by steps and diversity."""
    entries = [entry for entry in report.answers.equal_entropy if entry.at == at]
    target = {entry.column: entry.target for entry in entries}
    heads = ["steps"] + [
        f"{ENTROPIES[column]} {'not measured' if value is None else f'= {value:.4g}'}"
        for column, value in target.items()
    ]
    caption = f"As diverse as {'real text' if at == 'data' else at}: gain, 95 % interval, gen PPL teacher → student"
    return _matrix(report, caption, heads, entries)


def equal_seconds(report: Report) -> Html:
    """Question 2 with the same seconds in place of the same steps."""
    entries = report.answers.equal_seconds
    heads = [
        "steps",
        *(ENTROPIES[column] for column in dict.fromkeys(entry.column for entry in entries)),
    ]
    return _matrix(
        report,
        "In the same seconds: gain over the teacher at whatever steps fill them",
        heads,
        entries,
    )


def speed(report: Report) -> Html:
    """Question 3: the least steps that are enough, of the student and of temperature alone."""

    def line(entry: Speed) -> list[Html]:
        who = "student" if entry.model == "student" else "temperature alone"
        head = _head(who, "student" if entry.model == "student" else "teacher")
        column = tag("td", ENTROPIES[entry.column])
        if entry.steps is None or entry.calls is None:
            return [head, column, _nothing(entry.reason, colspan="4")]
        times = (
            _number(entry.calls, f"{entry.calls:.2f} ×"),
            _number(entry.seconds, f"{entry.seconds or 0:.2f} ×"),
        )
        return [
            head,
            column,
            _number(entry.steps),
            *times,
            _number(entry.support, f"{entry.support or 0:.0%}"),
        ]

    first = report.answers.speed[0]
    goal = f"{first.reference:.4g}, the teacher's at {first.reference_steps} steps"
    caption = f"The fewest steps with a gen PPL of at most {goal}"
    heads = [
        "model",
        "as diverse by",
        "steps",
        "calls, times fewer",
        "seconds, times fewer",
        "in resamples",
    ]
    return join(
        table(report, caption, heads, map(line, report.answers.speed)),
        _reasons(report.answers.speed),
    )


def rows(
    report: Report, lines: Sequence[tuple[str, Line]], caption: str, others: bool = False
) -> Html:
    """Rows in full; `others` takes the measures of repetition in place of the first ones."""
    known = dict.fromkeys(name for _, line in lines for name in line.row.measures)
    names = [name for name in known if (name in _FIRST) != others]
    units = {
        name: next(
            m.unit.removeprefix("perplexity ")
            for _, line in lines
            for n, m in line.row.measures.items()
            if n == name
        )
        for name in names
    }
    heads: list[str | Html] = ["model", "steps", "calls", "temperature"]
    heads += [
        join(_HEADS.get(name, name.replace("_", " ")), " ", tag("small", units[name]))
        for name in names
    ]

    def line(entry: tuple[str, Line]) -> list[Html]:
        group, found = entry
        badge = (
            tag("span", SHIPPED, class_="badge", title="measured by make assets, not in this run")
            if found.shipped
            else ""
        )
        head = _head(
            _NAMES.get(found.row.name, found.row.name), group.removeprefix("temperature_"), badge
        )
        drawn = found.steps > 0
        how = [
            _number(found.steps if drawn else None),
            _number(found.row.setting.nfe if drawn else None, f"{found.row.setting.nfe:.1f}"),
            _number(found.temperature if drawn else None, f"{found.temperature:g}"),
        ]
        return [head, *how, *(_measure(found.row.measures.get(name)) for name in names)]

    return table(report, caption, heads, map(line, lines))


def rounds(report: Report) -> Html:
    """The student after each round."""
    lines = (
        [_steps(entry.round), _number(entry.steps), _number(entry.gen_ppl), _number(entry.entropy),
         _number(entry.delta, f"{entry.delta:.4g}"), _number(entry.temperature, f"{entry.temperature:g}")]
        for entry in report.rounds
    )  # fmt: skip
    heads = [
        "round",
        "steps",
        "gen PPL",
        "unigram entropy",
        "step size delta",
        "teacher's temperature",
    ]
    return table(report, "The student after each round, drawn at temperature 1", heads, lines)


def table(
    report: Report, caption: str, heads: Sequence[str | Html], lines: Iterable[Sequence[Html]]
) -> Html:
    """A table that scrolls by itself, its protocol in its caption."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag("tbody", *(tag("tr", *cells) for cells in lines))
    title = tag("caption", tag("span", caption + "."), " ", tag("small", words_of(report)))
    return scrolling(tag("table", title, head, body), caption)


def value_text(value: float, sem: float | None = None) -> str:
    """A value to as many places as its standard error allows: two figures of the error, else four of the value.

    >>> value_text(41.2345, 0.17), value_text(41.2345), value_text(21400.7), value_text(0.00557)
    ('41.23', '41.23', '21401', '0.00557')
    """
    if not math.isfinite(value) or not math.isfinite(sem or 0.0):
        return str(value)
    size = sem / 10 if sem else abs(value) / 1000
    places = min(max(0, -math.floor(math.log10(size))), 5) if size > 0 else 2
    text = f"{value:.{places}f}"
    return text if sem or "." not in text else text.rstrip("0").rstrip(".")


def _matrix(
    report: Report,
    caption: str,
    heads: Sequence[str],
    entries: Sequence[EqualEntropy | EqualSeconds],
) -> Html:
    scale = _scale(entry.gain for entry in entries if entry.gain)
    ordered = sorted(entries, key=lambda entry: entry.steps)  # stable: columns stay in their order
    lines = [
        [_steps(steps), *(_compared(entry, scale, not report.no_claim) for entry in inside)]
        for steps, inside in groupby(ordered, key=lambda entry: entry.steps)
    ]
    return join(table(report, caption, heads, lines), _reasons(entries))


def _compared(entry: EqualEntropy | EqualSeconds, scale: float, claims: bool) -> Html:
    if entry.gain is None:
        return _nothing(entry.reason)
    if isinstance(entry, EqualSeconds):
        beneath = "" if entry.seconds is None else tag("small", "in ", _data(entry.seconds), " s")
    elif entry.teacher and entry.student:
        beneath = tag(
            "small", _data(entry.teacher.gen_ppl.value), " → ", _data(entry.student.gen_ppl.value)
        )
    else:
        beneath = ""
    return _gain(entry.gain, scale, claims, beneath)


def _reasons(entries: Iterable[EqualEntropy | EqualSeconds | Speed]) -> Html:
    """Why some answers are missing, or come late; one line for those that share a reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry.reason:
            who = entry.model.replace("_", " ") if isinstance(entry, Speed) else str(entry.steps)
            found.setdefault((ENTROPIES[entry.column], entry.reason), []).append(who)
    if not found:
        return Html("")
    lines = (
        tag("li", f"{column} ({', '.join(whose)}): {reason}")
        for (column, reason), whose in found.items()
    )
    return tag(
        "details", tag("summary", "What was not reached, and why"), tag("ul", *lines, class_="note")
    )


def _gain(gain: Estimate, scale: float, claims: bool, beneath: str | Html = "") -> Html:
    """A gain with its interval, in words and as a bar around 1; the sign says it without colour."""
    word = judge_gain(gain, claims)
    sign = tag("span", _SIGNS[word], " ", aria_hidden="true")
    head = tag(
        "div", tag("b", sign, _data(gain.value, f"{gain.value:.3f}")), " ", tag("small", word)
    )
    class_ = "gain " + word.split(" ")[0]
    if gain.low is None or gain.high is None:
        return tag("td", head, tag("div", beneath), class_=class_)
    low, high = (50 + 50 * math.log(end) / scale for end in (gain.low, gain.high))
    style = f"left:{low:.2f}%;width:{max(high - low, 1.5):.2f}%"
    bar = tag("span", tag("i", style=style), class_="whisker", aria_hidden="true")
    ends = tag(
        "small", _data(gain.low, f"{gain.low:.3f}"), " to ", _data(gain.high, f"{gain.high:.3f}")
    )
    return tag("td", head, bar, tag("div", ends, beneath), class_=class_)


def _scale(gains: Iterable[Estimate]) -> float:
    """The distance from 1 (in logs) that half a bar stands for: the same for all bars of a table."""
    ends = (end for gain in gains for end in (gain.value, gain.low, gain.high) if end)
    return 1.1 * max((abs(math.log(end)) for end in ends), default=0.0) or 1.0


def _head(text: str, group: str, *more: str | Html) -> Html:
    return tag(
        "th", tag("span", class_=f"dot {group}", aria_hidden="true"), text, *more, scope="row"
    )


def _steps(steps: int) -> Html:
    return tag("th", _data(steps), scope="row")


def _pair(teacher: float | None, student: float | None) -> Html:
    if teacher is None or student is None:
        return _number(None)
    return tag("td", _data(teacher), " → ", _data(student))


def _measure(measure: Measure | None) -> Html:
    if measure is None:
        return _number(None)
    text = value_text(measure.value, measure.sem)
    sem = (
        ""
        if measure.sem is None
        else tag("small", " ± ", _data(measure.sem, value_text(measure.sem, measure.sem)))
    )
    return tag("td", _data(measure.value, text), sem)


def _nothing(reason: str | None, **attributes: str) -> Html:
    """The place of an answer that there is not; why stands beneath the table too."""
    text = "not measured" if reason and "not measured" in reason else "not reached"
    return tag("td", text, class_="none", title=reason or "", **attributes)


def _number(value: float | None, text: str | None = None) -> Html:
    return tag("td", "–", class_="none") if value is None else tag("td", _data(value, text))


def _data(value: float, text: str | None = None) -> Html:
    """A number as shown, with the number as recorded behind it."""
    return tag("data", value_text(value) if text is None else text, value=repr(value))
