"""The page is self-contained, well-formed, accessible, and shows exactly the report's numbers."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import toy_report
import unmask
from unmask.experiments.report.figures import plan_figures
from unmask.experiments.report.page import page_source, write_report
from unmask.experiments.report.report_schema import ROW_LISTS, read_report

REPORT = toy_report.small()
VOID = {"meta", "br", "hr", "input", "link", "img"}
ADDRESSES = {"src", "href", "xlink:href", "srcset", "data", "action"}
HOSTILE = "</script><!--<img src=x onerror=alert(1)>\"'&]]>"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parents: tuple[str, ...]
    text: str = ""


@dataclass
class Parsed(HTMLParser):
    """The elements of a page; the stack of open ones must end empty."""

    source: str
    elements: list[Element] = field(default_factory=list)
    stack: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self.stack, [element.tag for element in self.stack]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        element = Element(
            tag, dict(attrs), tuple(e.attributes.get("id") or e.tag for e in self.stack)
        )
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), ()))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        for element in self.stack:
            element.text += data

    def all(self, tag: str, inside: str = "html") -> list[Element]:
        return [e for e in self.elements if e.tag == tag and (inside in e.parents or tag == inside)]

    def one(self, tag: str, **attributes: str) -> Element:
        (element,) = [e for e in self.all(tag) if attributes.items() <= e.attributes.items()]
        return element

    __hash__ = None


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text("utf-8"))


def without_figures(report: dict) -> Parsed:
    return Parsed(page_source(read_report(report), {}, report))


def numbers(data: Any) -> list[float]:
    if isinstance(data, dict):
        return [number for value in data.values() for number in numbers(value)]
    if isinstance(data, list):
        return [number for value in data for number in numbers(value)]
    return [float(data)] if isinstance(data, int | float) else []


def test_nothing_is_loaded(page: Path, parsed: Parsed) -> None:
    text = page.read_text("utf-8")
    assert "://" not in text and "@import" not in text and "url(http" not in text
    for element in parsed.elements:
        assert element.tag not in {"img", "link", "iframe", "object", "embed", "base", "form"}
        for name in ADDRESSES & element.attributes.keys():
            assert element.attributes[name].startswith("#"), element
    policy = parsed.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy


def test_ids_are_unique_and_references_lead_somewhere(page: Path, parsed: Parsed) -> None:
    ids = Counter(e.attributes["id"] for e in parsed.elements if "id" in e.attributes)
    assert not {name for name, count in ids.items() if count > 1}
    references = {e.attributes["href"][1:] for e in parsed.elements if "href" in e.attributes}
    labelled = [e for e in parsed.elements if "aria-labelledby" in e.attributes]
    references |= {e.attributes["aria-labelledby"] for e in labelled}
    references |= set(re.findall(r"url\(#([^)]+)\)", page.read_text("utf-8")))
    templates = resources.files("unmask.experiments.report") / "templates"
    script = (templates / "page.js").read_text("utf-8")
    references |= set(re.findall(r'\bat\("([^"]+)"\)', script))
    assert references <= ids.keys() and len(references) > 30


def test_the_page_embeds_the_report_without_samples(parsed: Parsed, report: dict) -> None:
    embedded = json.loads(parsed.one("script", id="record").text)
    for row in [report["data"], *(row for name in ROW_LISTS for row in report[name])]:
        del row["samples"]
    assert embedded == json.loads(json.dumps(report))


def test_every_number_is_one_of_the_report(parsed: Parsed) -> None:
    measured = set(numbers(REPORT))
    elements = parsed.all("data")
    assert len(elements) > 500
    for element in elements:
        value = float(element.attributes["value"])
        assert value in measured, element
        text = element.text.removesuffix(" ×")
        scale = 100 if text.endswith("%") else 1
        text = text.removesuffix("%")
        half = 0.5 * 10 ** -len(text.partition(".")[2]) if value >= 1e-4 else 1e-4
        assert abs(float(text) - scale * value) <= half * 1.000001, element


@pytest.mark.parametrize("name", ROW_LISTS)
def test_every_row_is_in_the_tables(parsed: Parsed, name: str) -> None:
    lines = [row.text for row in parsed.all("tr", "numbers")]
    values = {element.attributes["value"] for element in parsed.all("data", "numbers")}
    for row in REPORT[name]:
        assert any(row["name"] in line for line in lines)
        assert {repr(row["gen_ppl"]), repr(row["entropy"]), repr(row["sem"])} <= values
    assert repr(REPORT["data"]["gen_ppl"]) in values and any("real text" in line for line in lines)


def test_shipped_rows_are_marked(parsed: Parsed) -> None:
    marked = [row.text for row in parsed.all("tr", "numbers") if "shipped" in row.text]
    rows = [*REPORT["teacher"], *REPORT["temperature_teacher"]]
    shipped = [f"{row['steps']} {row['nfe']:.1f}" for row in rows if row["shipped"]]
    cells = [" ".join(text.split()[1:3]) for text in marked]
    assert Counter(cells) == Counter(2 * shipped)  # in two tables: main and other measures


def test_no_table_without_its_protocol(parsed: Parsed) -> None:
    words = read_report(REPORT).protocol_words
    tables, captions = parsed.all("table"), parsed.all("caption")
    assert len(tables) == len(captions) >= 8
    assert all(words in caption.text for caption in captions)
    for cell in parsed.all("th"):
        assert cell.attributes["scope"] in ("col", "row")
    scrolling = [e for e in parsed.all("div") if e.attributes.get("class") == "scroll"]
    assert all(element.attributes["aria-label"] for element in scrolling)


def test_the_verdict_comes_first_and_is_complete(page: Path, parsed: Parsed) -> None:
    main = parsed.one("main").text
    for statement in REPORT["verdict"]:
        for words in (statement["claim"], statement["figures"], *statement["details"]):
            assert words is None or words in main
    conclusions = [s for s in REPORT["verdict"] if s["kind"] == "conclusion"]
    assert [parsed.one("p", **{"class": "lede"}).text] == [s["claim"] for s in conclusions]
    remark = REPORT["verdict"][-1]
    words = f"{remark['claim']}: {remark['details'][0]}"
    assert parsed.one("p", **{"class": "caveat"}).text.strip() == words
    text = page.read_text("utf-8")
    assert text.index('class="lede"') < text.index('id="answers"') < text.index('id="numbers"')


def test_sentences_of_an_old_report_are_listed_as_they_are(report: dict) -> None:
    sentences = ["Same steps (4): gain 1.7; better.", "As diverse: not beaten (8 steps)."]
    page = without_figures(report | {"verdict": sentences})
    assert [item.text.strip() for item in page.all("li", "content")][:2] == sentences
    assert "open" in page.all("details")[0].attributes


def test_the_page_shows_every_answer(parsed: Parsed) -> None:
    values = {element.attributes["value"] for element in parsed.all("data", "answers")}
    answers = REPORT["answers"]
    compared = [*answers["equal_entropy"], *answers["against_top_p"], *answers["equal_seconds"]]
    for entry in [*answers["same_steps"], *compared]:
        if entry["gain"] is not None:
            assert {repr(value) for value in entry["gain"].values() if value is not None} <= values
    for entry in answers["speed"]:
        if entry["calls"] is not None:
            assert {repr(entry["calls"]), repr(entry["support"])} <= values
    missing = [entry for entry in compared if entry["gain"] is None]
    empty = [cell for cell in parsed.all("td", "answers") if cell.text == "no value"]
    assert len(empty) == len(missing) + sum(entry["steps"] is None for entry in answers["speed"])
    reasons = parsed.one("section", id="answers").text
    assert all(entry["reason"] in reasons for entry in missing)


def test_texts_are_shown_side_by_side(parsed: Parsed) -> None:
    texts = [element.text for element in parsed.all("blockquote")]
    for pair in REPORT["samples"]:
        at = texts.index(pair["teacher"])
        assert pair["student"] in texts and texts[at] == pair["teacher"]
    assert set(REPORT["real"]) <= set(texts)
    assert [o.text for o in parsed.all("option", "pair-steps")] == ["4", "8", "16", "32"]
    assert [o.text for o in parsed.all("option", "pair-latent")] == ["0", "1", "2"]
    for side in ("teacher", "student"):
        words = {word for pair in REPORT["samples"] for word in pair[side].split()}
        assert {mark.text for mark in parsed.all("mark")} <= words


def test_figures_have_descriptions(parsed: Parsed) -> None:
    drawn = [svg for svg in parsed.all("svg") if "figure" in "".join(svg.parents)]
    figures = [figure.attributes["id"] for figure in parsed.all("figure")]
    assert figures == [f"figure-{plan.name}" for plan in plan_figures(read_report(REPORT))]
    assert [svg.attributes["class"] for svg in drawn] == ["wide", "narrow"] * len(figures)
    for svg in drawn:
        assert svg.attributes["role"] == "img" and len(svg.attributes["aria-label"]) > 60


def test_controls_have_names(parsed: Parsed) -> None:
    assert all(
        button.text.strip() or button.attributes["aria-label"] for button in parsed.all("button")
    )
    assert (
        parsed.one("html").attributes["lang"] == "en"
        and parsed.all("title", "head")[0].text == REPORT["title"]
    )
    assert [int(e.tag[1]) for e in parsed.elements if re.fullmatch("h[1-6]", e.tag)][:2] == [1, 2]
    assert parsed.one("input", id="player-slider").attributes["aria-label"]
    assert parsed.one("p", id="player-live").attributes["aria-live"] == "polite"


def test_figures_are_also_files(page: Path) -> None:
    names = [plan.name for plan in plan_figures(read_report(REPORT))]
    files = sorted((page.parent / "figures").iterdir())
    assert {f.name for f in files} == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    for file in files:
        if file.suffix == ".svg":
            namespaces = {element.tag.split("}")[0] for element in ET.parse(file).iter()}
            assert namespaces == {"{http://www.w3.org/2000/svg"}
            assert file.read_text("utf-8").count("://") == 1  # the name of SVG itself
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_hostile_text_stays_text(report: dict) -> None:
    report |= {
        "title": HOSTILE,
        "date": HOSTILE,
        "verdict": [
            {"claim": HOSTILE, "figures": HOSTILE, "details": [HOSTILE, HOSTILE]},
            {"claim": HOSTILE, "figures": HOSTILE},
            HOSTILE,
        ],
    }
    report["real"] = [HOSTILE]
    report["corpus"]["name"] = report["models"]["judge"]["source"] = HOSTILE
    report["seconds"][HOSTILE] = 1.0
    report["models"][HOSTILE] = report["models"]["judge"]
    report["player"][0] |= {
        "title": HOSTILE,
        "pieces": [HOSTILE] * len(report["player"][0]["pieces"]),
    }
    report["answers"]["equal_entropy"][0] |= {"gain": None, "reason": HOSTILE}
    for pair in report["samples"]:
        pair |= {"teacher": f"{HOSTILE} a\n{HOSTILE}", "student": HOSTILE}
    for name in ("teacher", "naive"):
        for row in report[name]:
            row["name"] = HOSTILE
            row["measures"][HOSTILE] = row["measures"]["entropy"] | {"unit": HOSTILE}
    for row in [report["data"], *(row for name in ROW_LISTS for row in report[name])]:
        row["protocol"] |= {"data": HOSTILE, "judge": row["protocol"]["judge"] | {"name": HOSTILE}}
    report["protocol"] = report["data"]["protocol"]
    parsed = without_figures(report)
    assert not parsed.all("img") and len(parsed.all("script")) == 3
    embedded = parsed.one("script", id="record").text
    assert json.loads(embedded)["title"] == HOSTILE and not set(embedded) & set("<>&")
    assert parsed.all("title", "head")[0].text == parsed.all("h1")[0].text == HOSTILE
    assert HOSTILE in [element.text for element in parsed.all("blockquote")]
    assert not [e for e in parsed.elements if "onerror" in e.attributes]


SECTIONS = {"player": ["player"], "texts": ["samples", "real"], "training": ["rounds", "training"]}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("empty", [True, False])
def test_a_section_without_content_is_left_out(report: dict, section: str, empty: bool) -> None:
    for name in SECTIONS[section]:
        if empty:
            report[name] = {} if name == "training" else []
        else:
            del report[name]
    page = without_figures(report)
    assert section not in {e.attributes.get("id") for e in page.all("section")}
    assert f"#{section}" not in {e.attributes.get("href") for e in page.all("a")}


def test_the_least_report_is_a_page(report: dict) -> None:
    needed = ("title", "version", "protocol", "teacher", "student", "verdict")
    answers = {name: [] for name in report["answers"]}
    page = without_figures({name: report[name] for name in needed} | {"answers": answers})
    assert {e.attributes.get("id") for e in page.all("section")} == {"reading", "numbers"}


def test_a_number_that_is_not_finite_is_null_in_the_data(report: dict) -> None:
    report["training"]["loss"][3] = float("nan")
    report["naive"][0]["measures"]["gen_ppl"]["value"] = float("inf")
    page = without_figures(report)
    assert json.loads(page.one("script", id="record").text)["training"]["loss"][3] is None
    assert "inf" in page.one("section", id="numbers").text


@pytest.mark.parametrize(("sampler", "start"), [("reveal", "masked"), ("ancestral", "random")])
def test_the_page_explains_calls_for_the_noise(report: dict, sampler: str, start: str) -> None:
    report["player"] = []
    for row in report["student"]:
        row["setting"]["sampler"] = sampler
    words = without_figures(report).one("section", id="reading").text
    assert f"starts as 128 {start} tokens" in words


def test_a_broken_report_writes_nothing(report: dict, tmp_path: Path) -> None:
    del report["teacher"][0]["setting"]
    with pytest.raises(ValueError, match=r"report\.teacher\[0\]\.setting"):
        write_report(report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torch_is_never_loaded(report: dict, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report), "utf-8")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from unmask.experiments.report.figures import plan_figures, save_report_figure\n"
        "from unmask.experiments.report.page import page_source\n"
        "from unmask.experiments.report.report_schema import read_report\n"
        "data = json.load(open('report.json'))\n"
        "record = read_report(data)\n"
        "plan = plan_figures(record)[0]\n"
        "figures = {plan.name: save_report_figure(plan, record, Path())}\n"
        "assert 'unmask' in page_source(record, figures, data)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr or "writing a report loads torch"


@pytest.mark.parametrize(
    ("limit", "figures"), [(20_000, False), pytest.param(300_000, True, marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_the_old_page_and_figures(
    limit: int, figures: bool, tmp_path: Path
) -> None:
    """No file may grow beyond the limit, as on a full disk: each is the old file or complete."""
    old = ["report.html", "figures/training.png", "figures/gen-ppl-by-steps.svg"]
    (tmp_path / "figures").mkdir()
    for name in old:
        (tmp_path / name).write_bytes(b"old")
    code = f"""
import resource, signal, sys
import toy_report
from unmask.experiments.report.figures import plan_figures
from unmask.experiments.report.page import write_report
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_report(toy_report.small(), sys.argv[1])
except OSError as error:
    print(error.strerror)
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    env = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "File too large\n"
    assert (tmp_path / "report.html").read_bytes() == b"old"
    assert ((tmp_path / "figures" / "training.png").read_bytes() != b"old") == figures
    for file in (tmp_path / "figures").iterdir():
        assert file.suffix in (".png", ".svg") and not file.name.startswith(".")
        content = file.read_bytes()
        assert content == b"old" or content.endswith((b"IEND\xaeB`\x82", b"</svg>\n"))


def test_without_a_claim_no_gain_is_called_better(report: dict) -> None:
    assert "better" in without_figures(report).one("section", id="answers").text
    why = "the judge was trained on 50% of the held-out documents"
    claim = "No claim is made about the student"
    report |= {"no_claim": [why], "verdict": [{"claim": claim, "figures": why, "details": []}]}
    page = without_figures(report)
    answers = page.one("section", id="answers").text
    assert "no claim" in answers and not re.search(r"[▲▼]|\d (better|worse)", answers)
    assert page.one("p", **{"class": "lede"}).text == claim
