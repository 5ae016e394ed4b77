"""The page is whole by itself, well-formed, accessible, and says what the record says and nothing else."""

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
from unmask.experiments.report.page import page_source, write_report
from unmask.experiments.report.record import read_report, words_of

REPORT = toy_report.small()
VOID = {"meta", "br", "hr", "input", "link", "img"}
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
        (found,) = [e for e in self.all(tag) if attributes.items() <= e.attributes.items()]
        return found

    __hash__ = None


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text("utf-8"))


def without_pictures(report: dict) -> Parsed:
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
        for name in {
            "src",
            "href",
            "xlink:href",
            "srcset",
            "data",
            "action",
        } & element.attributes.keys():
            assert element.attributes[name].startswith("#"), element
    policy = parsed.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none';") and "connect-src" not in policy


def test_ids_are_unique_and_references_lead_somewhere(page: Path, parsed: Parsed) -> None:
    ids = Counter(e.attributes["id"] for e in parsed.elements if "id" in e.attributes)
    assert not {name for name, count in ids.items() if count > 1}
    references = {e.attributes["href"][1:] for e in parsed.elements if "href" in e.attributes}
    references |= {
        e.attributes["aria-labelledby"]
        for e in parsed.elements
        if "aria-labelledby" in e.attributes
    }
    references |= set(re.findall(r"url\(#([^)]+)\)", page.read_text("utf-8")))
    script = resources.files("unmask.experiments.report").joinpath("page.js").read_text("utf-8")
    references |= set(re.findall(r'\bat\("([^"]+)"\)', script))
    assert references <= ids.keys() and len(references) > 30


def test_the_record_is_in_the_page(parsed: Parsed, report: dict) -> None:
    found = json.loads(parsed.one("script", id="record").text)
    for row in [
        report["data"],
        *(row for value in report.values() if isinstance(value, list) for row in value),
    ]:
        if isinstance(row, dict) and "measures" in row:
            del row["samples"]
    assert found == json.loads(json.dumps(report))


def test_every_number_is_one_of_the_record(parsed: Parsed) -> None:
    known = set(numbers(REPORT))
    shown = parsed.all("data")
    assert len(shown) > 500
    for element in shown:
        value = float(element.attributes["value"])
        assert value in known, element
        text = element.text.removesuffix(" ×")
        scale = 100 if text.endswith("%") else 1
        text = text.removesuffix("%")
        half = 0.5 * 10 ** -len(text.partition(".")[2]) if value >= 1e-4 else 1e-4
        assert abs(float(text) - scale * value) <= half * 1.000001, element


@pytest.mark.parametrize(
    "name",
    ["teacher", "student", "temperature_teacher", "temperature_student", "naive", "autoregressive"],
)
def test_every_row_is_in_the_tables(parsed: Parsed, name: str) -> None:
    lines = [row.text for row in parsed.all("tr", "numbers")]
    values = {element.attributes["value"] for element in parsed.all("data", "numbers")}
    for row in REPORT[name]:
        assert any(row["name"] in line for line in lines)
        assert {repr(row["gen_ppl"]), repr(row["entropy"]), repr(row["sem"])} <= values
    assert repr(REPORT["data"]["gen_ppl"]) in values and any("real text" in line for line in lines)


def test_shipped_rows_are_marked(parsed: Parsed) -> None:
    marked = [row for row in parsed.all("tr", "numbers") if "shipped" in row.text]
    shipped = [
        row for name in ("teacher", "temperature_teacher") for row in REPORT[name] if row["shipped"]
    ]
    assert len(marked) == 2 * len(shipped) > 0  # once with the first measures, once with the others


def test_no_table_without_its_protocol(parsed: Parsed) -> None:
    words = words_of(read_report(REPORT))
    tables, captions = parsed.all("table"), parsed.all("caption")
    assert len(tables) == len(captions) >= 8
    assert all(words in caption.text for caption in captions)
    for cell in parsed.all("th"):
        assert cell.attributes["scope"] in ("col", "row")
    assert all(
        table.attributes["aria-label"]
        for table in parsed.all("div")
        if table.attributes.get("class") == "scroll"
    )


def test_the_verdict_comes_first_and_whole(page: Path, parsed: Parsed) -> None:
    squeezed = re.sub(r"[\W_]+", "", parsed.one("main").text).lower()
    for sentence in REPORT["verdict"]:
        assert re.sub(r"[\W_]+", "", sentence).lower() in squeezed
    (claim,) = [sentence for sentence in REPORT["verdict"] if ": " not in sentence]
    lede = parsed.one("p", **{"class": "lede"})
    assert claim.startswith(lede.text[:-1])
    text = page.read_text("utf-8")
    assert text.index('class="lede"') < text.index('id="answers"') < text.index('id="numbers"')


def test_the_answers_are_the_answers(parsed: Parsed) -> None:
    values = {element.attributes["value"] for element in parsed.all("data", "answers")}
    answers = REPORT["answers"]
    for entry in [*answers["same_steps"], *answers["equal_entropy"], *answers["equal_seconds"]]:
        if entry["gain"] is not None:
            assert {repr(value) for value in entry["gain"].values() if value is not None} <= values
    for entry in answers["speed"]:
        if entry["calls"] is not None:
            assert {repr(entry["calls"]), repr(entry["support"])} <= values
    missing = [
        e for e in [*answers["equal_entropy"], *answers["equal_seconds"]] if e["gain"] is None
    ]
    empty = [
        cell for cell in parsed.all("td", "answers") if cell.text in ("not reached", "not measured")
    ]
    assert len(empty) == len(missing) + sum(entry["steps"] is None for entry in answers["speed"])
    reasons = parsed.one("section", id="answers").text
    assert all(entry["reason"] in reasons for entry in missing)


def test_texts_stand_side_by_side(parsed: Parsed) -> None:
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


def test_pictures_have_words(parsed: Parsed) -> None:
    drawn = [svg for svg in parsed.all("svg") if "figure" in "".join(svg.parents)]
    assert len(drawn) == 10 and Counter(svg.attributes["class"] for svg in drawn) == {
        "wide": 5,
        "narrow": 5,
    }
    assert all(
        svg.attributes["role"] == "img" and len(svg.attributes["aria-label"]) > 60 for svg in drawn
    )
    assert len(parsed.all("figcaption")) == 5


def test_controls_are_named(parsed: Parsed) -> None:
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


def test_figures_are_files_too(page: Path) -> None:
    files = sorted(file.name for file in (page.parent / "figures").iterdir())
    assert len(files) == 10 and {file.rpartition(".")[2] for file in files} == {"png", "svg"}
    for file in (page.parent / "figures").iterdir():
        if file.suffix == ".svg":
            assert {element.tag.split("}")[0] for element in ET.parse(file).iter()} == {
                "{http://www.w3.org/2000/svg"
            }
            assert file.read_text("utf-8").count("://") == 1  # the name of SVG itself
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_hostile_text_stays_text(report: dict) -> None:
    report |= {
        "title": HOSTILE,
        "date": HOSTILE,
        "verdict": [HOSTILE, f"{HOSTILE}: {HOSTILE}; {HOSTILE}", HOSTILE],
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
    rows = [
        row
        for value in report.values()
        if isinstance(value, list)
        for row in value
        if isinstance(row, dict)
    ]
    for row in [report["data"], *(row for row in rows if "protocol" in row)]:
        row["protocol"] |= {"data": HOSTILE, "judge": row["protocol"]["judge"] | {"name": HOSTILE}}
    report["protocol"] = report["data"]["protocol"]
    parsed = without_pictures(report)
    assert not parsed.all("img") and len(parsed.all("script")) == 3
    record = parsed.one("script", id="record").text
    assert json.loads(record)["title"] == HOSTILE and not set(record) & set("<>&")
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
    found = without_pictures(report)
    assert section not in {e.attributes.get("id") for e in found.all("section")}
    assert f"#{section}" not in {e.attributes.get("href") for e in found.all("a")}


def test_the_least_report_is_a_page(report: dict) -> None:
    needed = ("title", "version", "protocol", "teacher", "student", "verdict")
    answers = {name: [] for name in report["answers"]}
    found = without_pictures({name: report[name] for name in needed} | {"answers": answers})
    assert {e.attributes.get("id") for e in found.all("section")} == {"reading", "numbers"}


def test_numbers_that_json_has_no_name_for(report: dict) -> None:
    report["training"]["loss"][3] = float("nan")
    report["naive"][0]["measures"]["gen_ppl"]["value"] = float("inf")
    found = without_pictures(report)
    assert json.loads(found.one("script", id="record").text)["training"]["loss"][3] is None
    assert "inf" in found.one("section", id="numbers").text


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
        "from unmask.experiments.report.figures import drawings, save\n"
        "from unmask.experiments.report.page import page_source\n"
        "from unmask.experiments.report.record import read_report\n"
        "data = json.load(open('report.json'))\n"
        "record = read_report(data)\n"
        "pictures = {plan.name: save(plan, record, Path()) for plan in drawings(record)[:1]}\n"
        "assert 'unmask' in page_source(record, pictures, data)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr or "writing a report loads torch"


@pytest.mark.parametrize(
    ("limit", "pictures"), [(20_000, False), pytest.param(300_000, True, marks=pytest.mark.slow)]
)
def test_a_full_disk_leaves_the_old_page_and_pictures(
    limit: int, pictures: bool, tmp_path: Path
) -> None:
    """No file may grow beyond the limit, as on a full disk: each file is the old one or whole, and none is a part."""
    old = ["report.html", "figures/training.png", "figures/gen-ppl-by-steps.svg"]
    (tmp_path / "figures").mkdir()
    for name in old:
        (tmp_path / name).write_bytes(b"old")
    code = f"""
import resource, signal, sys
import toy_report
from unmask.experiments.report.page import write_report
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_report(toy_report.small(), sys.argv[1])
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
    )  # fmt: skip
    assert done.stdout == "File too large\n"
    assert (tmp_path / "report.html").read_bytes() == b"old"
    assert ((tmp_path / "figures" / "training.png").read_bytes() != b"old") == pictures
    for file in (tmp_path / "figures").iterdir():
        assert file.suffix in (".png", ".svg") and not file.name.startswith("."), (
            "nothing half written is left"
        )
        content = file.read_bytes()
        assert content == b"old" or content.endswith((b"IEND\xaeB`\x82", b"</svg>\n"))


def test_where_no_claim_is_made_no_gain_is_called_better(report: dict) -> None:
    assert "better" in without_pictures(report).one("section", id="answers").text
    why = "the judge was trained on 50% of the held-out documents"
    report |= {
        "no_claim": [why],
        "verdict": [f"No claim is made about the student ({why}).", "One training seed."],
    }
    found = without_pictures(report)
    answers = found.one("section", id="answers").text
    assert "no claim" in answers and not re.search(r"[▲▼]|\d (better|worse)", answers)
    assert "No claim is made about the student." in [element.text for element in found.all("p")]
