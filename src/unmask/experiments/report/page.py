"""report.json -> one page, report.html, that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from unmask.atomic_files import write_text
from unmask.experiments.report import tables
from unmask.experiments.report.figures import drawings, save
from unmask.experiments.report.markup import Html, embedded, join, tag
from unmask.experiments.report.record import Pair, Report, read_report, words_of
from unmask.experiments.report.style import css_variables
from unmask.experiments.report.svg import Picture

_FEW_SENTENCES = 6  # of a verdict that stands open
_SHORT = 2  # letters of a word whose return alone says nothing about two texts
_TITLES = {
    "gen-ppl-by-steps": "Gen PPL against steps",
    "frontier": "Gen PPL against unigram entropy",
    "frontier-pooled-entropy": "The same, against the pooled 4-gram entropy",
    "frontier-completion-disagreement": "The same, against the disagreement of completions",
    "training": "The distillation, round by round",
}


def write_report(report: Mapping[str, Any], directory: Path | str) -> Path:
    """Write report.html, and its pictures as PNG and SVG in figures/; -> the page's path.

    report  what report.json holds; ValueError names a field that is missing, foreign or of another version
    """
    record = read_report(report)
    folder = Path(directory)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {plan.name: save(plan, record, folder / "figures") for plan in drawings(record)}
    page = folder / "report.html"
    write_text(page, page_source(record, pictures, report))
    return page


def page_source(
    report: Report, pictures: Mapping[str, Sequence[Picture]], data: Mapping[str, Any]
) -> str:
    """The page as text. `data` goes into it as JSON, without the values of single samples."""
    sections = {
        "answers": ("Three answers", _answers(report)),
        "player": ("Watch a text being unmasked", _player(report)),
        "reading": (
            "How to read this",
            Html(Template(_asset("reading.html")).substitute(call=_call(report))),
        ),
        "curves": ("The curves", _curves(pictures)),
        "texts": ("The texts", _texts(report)),
        "training": ("The distillation", _training(report, pictures)),
        "numbers": ("Every number", _numbers(report)),
    }
    return whole(
        report.title, report.version, _masthead(report), sections, _footer(report), _without_samples(data),
        _asset("page.js"),
    )  # fmt: skip


def whole(
    title: str,
    version: str,
    masthead: Html,
    sections: Mapping[str, tuple[str, Html]],
    footer: Html,
    data: Mapping[str, Any],
    script: str = "",
) -> str:
    """A page that needs nothing else: a bar of links, masthead, sections (anchor -> title, body) and its data."""
    kept = {name: (head, body) for name, (head, body) in sections.items() if body.source}
    links = [tag("a", head, href=f"#{name}") for name, (head, _) in kept.items()]
    parts = [
        tag(
            "section",
            tag("h2", head, id=f"{name}-title"),
            body,
            id=name,
            aria_labelledby=f"{name}-title",
        )
        for name, (head, body) in kept.items()
    ]
    logo = tag("span", "un", tag("i", "m"), "a", tag("i", "s"), "k", class_="logo")
    bar = tag("header", tag("div", logo, tag("nav", *links, aria_label="Sections")), class_="bar")
    main = tag("main", masthead, *parts, id="content")
    return Template(_asset("page.html")).substitute(
        title=str(join(title)),
        version=str(join(version)),
        palette=css_variables(),
        style=_asset("page.css"),
        body=str(join(bar, main, footer)),
        record=str(embedded(data)),
        script=script,
    )


def _masthead(report: Report) -> Html:
    """Title and verdict: first the sentence that sums up (it names no single measurement before a colon)."""
    sums = [sentence for sentence in report.verdict if ": " not in sentence] or report.verdict[:1]
    rest = [sentence for sentence in report.verdict if sentence not in sums]
    caveat = tag("p", rest.pop(), class_="caveat") if len(rest) > 1 else Html("")
    sentences = tag("ul", *(_sentence(sentence) for sentence in rest), class_="verdict")
    summary = tag("summary", f"The verdict in full, {len(rest)} sentences with their figures")
    full = (
        tag("details", summary, sentences, open=len(rest) <= _FEW_SENTENCES) if rest else Html("")
    )
    leading = [_lede(sentence) for sentence in sums]
    facts = tag("dl", *_facts(report), class_="facts")
    return tag("div", tag("h1", report.title), *leading, caveat, full, facts, class_="masthead")


def _lede(sentence: str) -> Html:
    """A sentence that sums up; what it says in brackets is smaller."""
    claim, bracket, figures = sentence.removesuffix(").").partition(" (")
    if not bracket:
        return tag("p", sentence, class_="lede")
    figures = figures[:1].upper() + figures[1:]
    return join(tag("p", claim + ".", class_="lede"), tag("p", figures + ".", class_="figures"))


def _sentence(text: str) -> Html:
    """What is compared stands before the first colon, what was found after it, a clause a line."""
    head, colon, found = text.partition(": ")
    if not colon:
        return tag("li", text)
    clauses = found.split("; ")
    return tag(
        "li",
        tag("b", head),
        tag("ul", *(tag("li", clause) for clause in clauses)) if clauses[1:] else " " + found,
    )


def _facts(report: Report) -> Iterator[Html]:
    def fact(name: str, *words: str) -> Html:
        return tag("div", tag("dt", name), tag("dd", ", ".join(word for word in words if word)))

    if report.corpus is not None:
        corpus = {key: fact for key, fact in vars(report.corpus).items() if fact is not None}
        sizes = {"train_rows": "{:,} rows to learn from", "held_out_rows": "{:,} held out", "length": "L = {}",
                 "vocab_size": "V = {:,}"}  # fmt: skip
        yield fact(
            "Corpus",
            report.corpus.name,
            *(t.format(corpus[k]) for k, t in sizes.items() if k in corpus),
        )
    for name, network in report.models.items():
        yield fact(
            name.capitalize(), f"{network.parameters / 1e6:.2f} M parameters", network.source
        )
    if report.seconds:
        yield fact(
            "Time", *(f"{name} {_duration(seconds)}" for name, seconds in report.seconds.items())
        )
    yield fact(
        "Measured",
        report.date,
        "" if report.seed is None else f"seed {report.seed}",
        f"unmask {report.version}",
    )


def _call(report: Report) -> str:
    """What a network call does to a text: uniform noise has no masks, and nothing to play."""
    length = report.protocol.length
    if any(line.row.setting.sampler.startswith("ancestral") for line in report.student):
        return f"A text starts as {length} random tokens. Each step is a call of the network and may change any of them."
    return (
        f"A text starts as {length} masks. A step reveals some of them with one call of the network; a step that "
        f"reveals nothing makes no call. So a text of {length} tokens costs at most {length} calls, however many steps "
        "are asked for."
    )


def _answers(report: Report) -> Html:
    def answer(number: int, question: str, words: str, *body: Html) -> Html:
        text = tag(
            "div",
            tag("h3", tag("span", str(number), class_="number", aria_hidden="true"), question),
            tag("p", words),
        )
        return tag("div", text, tag("div", *body), class_="answer")

    found, parts = report.answers, []
    if found.same_steps:
        words = "Draw both with the same number of steps. A gain above 1 is a better score; what is its price?"
        parts.append(answer(1, "At the same steps?", words, tables.same_steps(report)))
    if found.equal_entropy:
        words = (
            "Choose temperatures at which both are equally diverse, and compare again. What is left is no exchange of "
            "variety for fluency. It counts as a win only if all three diversities agree."
        )
        first, *body = [
            tables.equal_entropy(report, at)
            for at in dict.fromkeys(e.at for e in found.equal_entropy)
        ]
        if found.equal_seconds:
            body.append(tables.equal_seconds(report))
        summary = tag("summary", "At the diversity of real text, and in equal seconds")
        parts.append(
            answer(
                2,
                "At equal diversity?",
                words,
                first,
                tag("details", summary, *body) if body else Html(""),
            )
        )
    if found.speed:
        words = f"How few steps are as good as the teacher's {found.speed[0].reference_steps}, at that teacher's diversity?"
        parts.append(answer(3, "How much faster?", words, tables.speed(report)))
    return join(*parts)


def _player(report: Report) -> Html:
    if not report.player:
        return Html("")
    words = "Each call of the network reveals some tokens, all at once. Blocks are still masked; the newest are lit."
    return join(tag("p", words, class_="intro"), Html(_asset("player.html")))


def _curves(pictures: Mapping[str, Sequence[Picture]]) -> Html:
    others = [name for name in pictures if name.startswith("frontier-")]
    more = join(*(_figure(name, pictures[name]) for name in others))
    summary = tag("summary", "The frontier against the other diversities")
    shown = (name for name in ("gen-ppl-by-steps", "frontier") if name in pictures)
    return join(
        *(_figure(name, pictures[name]) for name in shown),
        tag("details", summary, more) if others else "",
    )


def _figure(name: str, pictures: Sequence[Picture]) -> Html:
    wide, narrow = pictures
    return tag(
        "figure",
        tag("figcaption", _TITLES[name]),
        wide.inline("wide"),
        narrow.inline("narrow"),
        id=f"figure-{name}",
    )


def _texts(report: Report) -> Html:
    def choice(name: str, label: str, values: Sequence[int]) -> Html:
        options = (tag("option", str(value), value=str(value)) for value in values)
        return tag("label", label + " ", tag("select", *options, id=f"pair-{name}"))

    parts = []
    if report.samples:
        latents = list(dict.fromkeys(pair.latent for pair in report.samples))
        steps = list(dict.fromkeys(pair.steps for pair in report.samples))
        words = (
            "The same latent is the same randomness: when each token is revealed, and the race that chooses it. So two "
            "models, or two step counts, write related texts. Words that both sides share, in order, are underlined."
        )
        box = tag(
            "label",
            tag("input", type="checkbox", id="pair-shared", checked=True),
            " underline shared words",
        )
        choices = (choice("latent", "Latent", latents), choice("steps", "Steps", steps), box)
        parts = [
            tag("p", words, class_="intro"),
            tag("div", *choices, class_="choices js-only"),
            tag("div", *map(_pair, report.samples), id="pairs"),
        ]
    if report.real:
        excerpts = tag(
            "div",
            *(tag("blockquote", text, class_="text") for text in report.real),
            class_="columns",
        )
        parts.append(tag("details", tag("summary", "Real text, for comparison"), excerpts))
    return join(*parts)


def _pair(pair: Pair) -> Html:
    where = f"latent {pair.latent}, {pair.steps} steps, temperature {pair.temperature:g}"
    sides = zip(("teacher", "student"), _shared(pair.teacher, pair.student), strict=True)
    columns = (
        tag("div", tag("h3", tag("span", class_=f"dot {name}", aria_hidden="true"), f"{name}, {where}"),
            tag("blockquote", text, class_="text"), class_=f"side {name}")
        for name, text in sides
    )  # fmt: skip
    return tag(
        "div",
        *columns,
        class_="pair columns",
        data_latent=str(pair.latent),
        data_steps=str(pair.steps),
    )


def _shared(first: str, second: str) -> tuple[Html, Html]:
    """Both texts, with the words marked that stand in both in the same order."""
    words = [[line.split(" ") for line in text.split("\n")] for text in (first, second)]
    flat = [[word for line in lines for word in line] for lines in words]
    blocks = SequenceMatcher(a=flat[0], b=flat[1], autojunk=False).get_matching_blocks()
    marked: list[Html] = []
    for side, lines in enumerate(words):
        same = {block[side] + i for block in blocks for i in range(block.size)}
        place, out = 0, []
        for line in lines:
            row = [
                tag("mark", w) if place + i in same and len(w) > _SHORT else join(w)
                for i, w in enumerate(line)
            ]
            place += len(line)
            out.append(" ".join(map(str, row)))
        marked.append(Html("\n".join(out)))
    return marked[0], marked[1]


def _training(report: Report, pictures: Mapping[str, Sequence[Picture]]) -> Html:
    if "training" not in pictures:
        return Html("")
    words = (
        "The student starts as the teacher. In each round it learns to say at more noise what its own teacher says at "
        "a little less; then it becomes the teacher, and the distance doubles. Below, the student after each round."
        if report.rounds
        else "The loss in nats a token, and its two terms."
    )
    body = [tag("p", words, class_="intro"), _figure("training", pictures["training"])]
    if report.rounds:
        body.append(tables.rounds(report))
    return join(*body)


def _numbers(report: Report) -> Html:
    lines = list(report.lines)
    plain = [(name, line) for name, line in lines if not name.startswith("temperature_")]
    other = [(name, line) for name, line in lines if name.startswith("temperature_")]
    parts = [
        tag(
            "p",
            "± is one standard error over samples. Naive rows show what each measure can be fooled by.",
            class_="intro",
        ),
        tables.rows(report, plain, "Temperature 1, real text, and naive rows"),
    ]
    if any(line.shipped for _, line in lines):
        note = "measured by make assets under the same protocol, and not in this run."
        parts.append(
            tag("p", tag("span", tables.SHIPPED, class_="badge"), " ", note, class_="note")
        )
    if other:
        summary = tag("summary", f"Other temperatures, {len(other)} rows")
        parts.append(
            tag(
                "details",
                summary,
                tables.rows(report, other, "Teacher and student at other temperatures"),
            )
        )
    more = tables.rows(report, lines, "Repetition and distinct n-grams", others=True)
    parts.append(tag("details", tag("summary", "Repetition, distinct n-grams, overlap"), more))
    return join(*parts)


def _footer(report: Report) -> Html:
    button = tag(
        "button", "Download the record (JSON)", type="button", id="download", class_="js-only"
    )
    words = f"Written by unmask {report.version} from report.json. This page loads nothing. {words_of(report)}"
    return tag("footer", tag("p", words), button)


def _without_samples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Rows without the value of every sample: long, and of use only to the bootstrap, which has been."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(item) for item in value]
        if isinstance(value, Mapping) and "measures" in value:
            return {key: item for key, item in value.items() if key != "samples"}
        return value

    return {key: short(value) for key, value in data.items()}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _asset(name: str) -> str:
    return resources.files("unmask.experiments.report").joinpath(name).read_text("utf-8")
