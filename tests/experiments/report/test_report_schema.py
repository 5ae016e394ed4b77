"""A report is read completely, or refused with the name of the wrong field."""

import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from unmask import __version__
from unmask.cli.main import main
from unmask.evaluation.measure import UnequalProtocols
from unmask.experiments.report.page import page_source
from unmask.experiments.report.report_schema import ROW_LISTS, Finding, read_report, rows_by_steps

OPTIONAL = """date seed data temperature_teacher temperature_student naive autoregressive rounds
training samples real player seconds corpus models""".split()


def place(report: Any, path: str) -> tuple[Any, Any]:
    """The container of a field "a.0.b", and the field's key in it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        report = report[part]
    return report, last


def name_of(path: str) -> str:
    return "report" + "".join(
        f"[{part}]" if part.isdigit() else f".{part}" for part in path.split(".")
    )


def test_everything_is_read(report: dict) -> None:
    read = read_report(json.loads(json.dumps(report)))
    assert (read.title, read.date) == (report["title"], report["date"])
    for name in ROW_LISTS:
        rows = vars(read)[name]
        assert [row.gen_ppl.value for row in rows] == [row["gen_ppl"] for row in report[name]]
        assert [row.shipped for row in rows] == [row["shipped"] for row in report[name]]
        assert [row.row.to_json() | {"shipped": row.shipped} for row in rows] == report[name]
    assert asdict(read.answers) == report["answers"]
    assert len(list(read.rows)) == 1 + sum(len(report[name]) for name in ROW_LISTS)
    assert read.player[0].frames == report["player"][0]["frames"]
    assert read.rounds[0].delta == 2 / 512


def test_a_finding_has_parts_and_an_old_sentence_has_none(report: dict) -> None:
    verdict = copy.deepcopy(report["verdict"])
    assert [vars(finding) for finding in read_report(report).verdict] == verdict
    for finding in report["verdict"]:
        del finding["kind"]  # as in the reports of version 0.1.0
    assert [vars(finding) for finding in read_report(report).verdict] == verdict
    report["verdict"] = ["Claim (figures): one; two."]
    assert read_report(report).verdict == [Finding("Claim (figures): one; two.")]


REQUIRED = """version title protocol teacher student answers verdict protocol.judge.dtype
rounds.0.delta teacher.0.measures student.1.setting.sampler data.protocol.length
answers.speed.0.calls answers.equal_entropy.0.teacher.nfe player.1.frames samples.0.student
models.judge.parameters verdict.0.claim""".split()


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(report: dict, path: str) -> None:
    container, key = place(report, path)
    del container[key]
    with pytest.raises(ValueError, match=path.rsplit(".", 1)[-1]) as error:
        read_report(report)
    assert name_of(path) in str(error.value)


OF_ANOTHER_TYPE = {
    "title": 3,
    "teacher": {},
    "teacher.0": "x",
    "teacher.0.setting.steps": 4.5,
    "teacher.0.setting.nfe": True,
    "teacher.0.shipped": "yes",
    "teacher.0.measures.gen_ppl.value": "high",
    "teacher.0.measures": [],
    "student.0.samples.nats": 1,
    "answers.speed": None,
    "answers.same_steps.0.gain": 1.5,
    "verdict.0": None,
    "verdict.0.details": "x",
    "training.loss": [None],
    "rounds.0.round": True,
    "real": "text",
    "player.0.pieces.0": 7,
    "seconds.total": "1",
}


@pytest.mark.parametrize(("path", "value"), OF_ANOTHER_TYPE.items())
def test_a_value_of_another_type_is_named(report: dict, path: str, value: object) -> None:
    container, key = place(report, path)
    container[key] = value
    with pytest.raises(ValueError) as error:
        read_report(report)
    assert name_of(path) in str(error.value)


@pytest.mark.parametrize("version", ["99.0.0", "0", None, 1])
def test_another_version_is_refused_before_anything_else(version: object) -> None:
    with pytest.raises(ValueError, match=r"report\.version") as error:
        read_report({"version": version})
    assert __version__ in str(error.value)


def test_another_patch_release_is_read(report: dict) -> None:
    report["version"] = ".".join([*__version__.split(".")[:2], "999"])
    assert read_report(report).version.endswith("999")


def test_not_an_object() -> None:
    with pytest.raises(ValueError, match="report"):
        read_report(["report"])


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_field_may_be_missing(report: dict, name: str) -> None:
    del report[name]
    assert not vars(read_report(report))[name] or name == "training"


def test_rows_of_two_protocols_are_refused(report: dict) -> None:
    report["naive"][1]["protocol"]["judge"]["dtype"] = "bfloat16"
    with pytest.raises(UnequalProtocols, match=r"judge\.dtype.*bfloat16.*unigram draws"):
        read_report(report)


def test_the_protocol_of_the_report_is_that_of_its_rows(report: dict) -> None:
    report["protocol"] = report["protocol"] | {"precision": "float32"}
    with pytest.raises(ValueError, match=r"report\.protocol"):
        read_report(report)


@pytest.mark.parametrize("measure", ["gen_ppl", "entropy"])
def test_a_row_needs_gen_ppl_and_entropy(report: dict, measure: str) -> None:
    del report["temperature_student"][2]["measures"][measure]
    with pytest.raises(ValueError, match=f"report.temperature_student.*measures.{measure}"):
        read_report(report)


@pytest.mark.parametrize("name", ["teacher", "student", "verdict"])
def test_an_empty_list_is_refused(report: dict, name: str) -> None:
    report[name] = []
    with pytest.raises(ValueError, match=f"report.{name} is empty"):
        read_report(report)


@pytest.mark.parametrize(
    ("frames", "alphas"), [([[0], [0]], []), ([[-1]], []), ([[10**6]], []), ([[0, 1]], [0.0, 0.5])]
)
def test_an_impossible_trace_is_refused(report: dict, frames: list, alphas: list) -> None:
    report["player"][1] |= {"frames": frames, "alphas": alphas}
    with pytest.raises(ValueError, match=r"report\.player\[1\]\.(frames|alphas)"):
        read_report(report)


def test_training_columns_of_two_lengths_are_refused(report: dict) -> None:
    report["training"]["loss"].pop()
    with pytest.raises(ValueError, match=r"report\.training.*loss"):
        read_report(report)


def test_rows_are_grouped_by_steps_and_sorted_by_temperature(report: dict) -> None:
    read = read_report(report)
    table = rows_by_steps([*read.temperature_teacher, *read.teacher, *read.teacher])
    assert list(table) == [4, 8, 16, 32, 64, 128]
    for rows in table.values():
        assert [row.temperature for row in rows] == [0.7, 0.8, 0.9, 1.0]


def test_the_protocol_in_words_holds_each_fact(report: dict) -> None:
    report["student"][0]["setting"]["seeds"] = [0, 3]
    words, protocol = read_report(report).protocol_words, report["protocol"]
    judge = protocol["judge"]
    facts = [judge[key] for key in ("name", "dtype", "context", "eos_rule")]
    facts += [judge["revision"][:8], protocol["precision"], protocol["data"][:8]]
    facts += [f"n = {protocol['samples']}", f"L = {protocol['length']}", "seed 0, 3"]
    assert [fact for fact in facts if str(fact) not in words] == []


def _paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place of a JSON value; in a list only the first item."""
    yield path
    if isinstance(value, list):
        value = dict(enumerate(value[:1]))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))


BROKEN = (None, [], {}, "x", -1, 0, 10**400, 1e308, float("nan"), float("inf"), "\ud800", True)


def test_any_broken_field_is_named_or_drawn(report: dict) -> None:
    """A report with any one field broken is refused by its name, or the page can be written."""
    for rows in (rows for rows in report.values() if isinstance(rows, list)):
        del rows[1:]
    for row in (
        report["data"],
        *(report[name][0] for name in ("naive", "autoregressive", "temperature_student")),
    ):
        row["samples"] = {}
    for column in (*report["training"].values(), *report["answers"].values()):
        del column[2:]
    paths = list(_paths(report))
    named = drawn = 0
    for path, wrong in random.Random(0).sample(
        [(path, wrong) for path in paths[1:] for wrong in BROKEN], 400
    ):
        *parents, last = path
        holder = reduce(lambda value, key: value[key], parents, report)
        before, holder[last] = holder[last], wrong
        try:
            read = read_report(report)
        except ValueError as error:
            named += 1
            assert re.match(r"report\b|.*protocol", str(error)), (path, wrong)
        else:
            if drawn < 30:
                page_source(read, {}, report).encode()
            drawn += 1
        holder[last] = before
    assert named > 200 and drawn > 30


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"", b'{"version": NaN}']
)
def test_a_file_that_is_not_a_report_ends_in_an_error_message(
    content: bytes, tmp_path: Path, capsys
) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert main(["report", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert re.match(r"unmask report: .*report\b", message) and message.count("\n") == 1
