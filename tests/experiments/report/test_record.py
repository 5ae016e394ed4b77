"""A report is read whole, or refused with the name of the field that is wrong."""

import json
import random
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from unmask import __version__
from unmask.cli.main import main
from unmask.evaluation.measure import UnequalProtocols
from unmask.experiments.report.page import page_source
from unmask.experiments.report.record import curves, read_report, words_of

OPTIONAL = ["date", "seed", "data", "temperature_teacher", "temperature_student", "naive", "autoregressive", "rounds",
            "training", "samples", "real", "player", "seconds", "corpus", "models"]  # fmt: skip


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
    found = read_report(json.loads(json.dumps(report)))
    assert (
        found.title == report["title"]
        and found.verdict == report["verdict"]
        and found.date == report["date"]
    )
    lists = (
        "teacher",
        "student",
        "temperature_teacher",
        "temperature_student",
        "naive",
        "autoregressive",
    )
    for name in lists:
        lines = vars(found)[name]
        assert [line.gen_ppl.value for line in lines] == [row["gen_ppl"] for row in report[name]]
        assert [line.shipped for line in lines] == [row["shipped"] for row in report[name]]
        assert [line.row.to_json() for line in lines] == [
            {key: value for key, value in row.items() if key != "shipped"} for row in report[name]
        ]
    assert found.answers.to_json() == report["answers"]
    assert len(list(found.lines)) == 1 + sum(len(report[name]) for name in lists)
    assert (
        found.player[0].frames == report["player"][0]["frames"] and found.rounds[0].delta == 2 / 512
    )


@pytest.mark.parametrize(
    "path",
    ["version", "title", "protocol", "teacher", "student", "answers", "verdict", "protocol.judge.dtype",
     "rounds.0.delta", "teacher.0.measures", "student.1.setting.sampler", "data.protocol.length",
     "answers.speed.0.calls", "answers.equal_entropy.0.teacher.nfe", "player.1.frames", "samples.0.student",
     "models.judge.parameters"],
)  # fmt: skip
def test_a_missing_field_is_named(report: dict, path: str) -> None:
    container, key = place(report, path)
    del container[key]
    with pytest.raises(ValueError, match=path.rsplit(".", 1)[-1]) as error:
        read_report(report)
    assert name_of(path) in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("title", 3), ("teacher", {}), ("teacher.0", "x"), ("teacher.0.setting.steps", 4.5),
     ("teacher.0.setting.nfe", True), ("teacher.0.shipped", "yes"), ("teacher.0.measures.gen_ppl.value", "high"),
     ("teacher.0.measures", []), ("student.0.samples.nats", 1), ("answers.speed", None), ("verdict.0", None),
     ("answers.same_steps.0.gain", 1.5), ("training.loss", [None]), ("rounds.0.round", True), ("real", "text"),
     ("player.0.pieces.0", 7), ("seconds.total", "1")],
)  # fmt: skip
def test_a_foreign_value_is_named(report: dict, path: str, value: object) -> None:
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


def test_a_patch_release_reads_on(report: dict) -> None:
    report["version"] = ".".join([*__version__.split(".")[:2], "999"])
    assert read_report(report).version.endswith("999")


def test_not_an_object() -> None:
    with pytest.raises(ValueError, match="report"):
        read_report(["report"])


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_optional_may_be_missing(report: dict, name: str) -> None:
    del report[name]
    assert not vars(read_report(report))[name] or name == "training"


def test_rows_of_two_protocols_share_no_page(report: dict) -> None:
    report["naive"][1]["protocol"]["judge"]["dtype"] = "bfloat16"
    with pytest.raises(UnequalProtocols, match=r"judge\.dtype.*bfloat16.*unigram draws"):
        read_report(report)


def test_the_protocol_on_top_is_that_of_the_rows(report: dict) -> None:
    report["protocol"] = report["protocol"] | {"precision": "float32"}
    with pytest.raises(ValueError, match=r"report\.protocol"):
        read_report(report)


@pytest.mark.parametrize("measure", ["gen_ppl", "entropy"])
def test_gen_ppl_and_entropy_stand_together(report: dict, measure: str) -> None:
    del report["temperature_student"][2]["measures"][measure]
    with pytest.raises(ValueError, match=f"report.temperature_student.*measures.{measure}"):
        read_report(report)


@pytest.mark.parametrize("name", ["teacher", "student", "verdict"])
def test_nothing_to_compare(report: dict, name: str) -> None:
    report[name] = []
    with pytest.raises(ValueError, match=f"report.{name} is empty"):
        read_report(report)


@pytest.mark.parametrize(
    ("frames", "alphas"), [([[0], [0]], []), ([[-1]], []), ([[10**6]], []), ([[0, 1]], [0.0, 0.5])]
)
def test_a_film_that_cannot_be_shown(report: dict, frames: list, alphas: list) -> None:
    report["player"][1] |= {"frames": frames, "alphas": alphas}
    with pytest.raises(ValueError, match=r"report\.player\[1\]\.(frames|alphas)"):
        read_report(report)


def test_columns_of_training_are_equally_long(report: dict) -> None:
    report["training"]["loss"].pop()
    with pytest.raises(ValueError, match=r"report\.training.*loss"):
        read_report(report)


def test_curves_go_by_steps_and_temperature(report: dict) -> None:
    found = read_report(report)
    table = curves([*found.temperature_teacher, *found.teacher, *found.teacher])
    assert list(table) == [4, 8, 16, 32, 64, 128]
    assert all(
        [line.temperature for line in lines] == [0.7, 0.8, 0.9, 1.0] for lines in table.values()
    )


def test_the_protocol_in_words_holds_all_that_decides_a_number(report: dict) -> None:
    report["student"][0]["setting"]["seeds"] = [0, 3]
    words, protocol = words_of(read_report(report)), report["protocol"]
    judge = protocol["judge"]
    for fact in (judge["name"], judge["revision"][:8], judge["dtype"], judge["context"], judge["eos_rule"],
                 protocol["precision"], protocol["data"][:8], f"n = {protocol['samples']}", f"L = {protocol['length']}",
                 "seed 0, 3"):  # fmt: skip
        assert str(fact) in words


def _paths(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place of a JSON value, of lists the first item only."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from _paths(item, (*path, key))


BROKEN = (None, [], {}, "x", -1, 0, 10**400, 1e308, float("nan"), float("inf"), "\ud800", True)


def test_any_broken_field_is_named_or_drawn(report: dict) -> None:
    """A mutation of a field, whichever, is refused by a sentence about the report, or the page can be written."""
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
    dice, named, drawn = random.Random(0), 0, 0
    for path, wrong in dice.sample([(path, wrong) for path in paths[1:] for wrong in BROKEN], 400):
        *way, last = path
        holder = reduce(lambda value, key: value[key], way, report)
        before, holder[last] = holder[last], wrong
        try:
            found = read_report(report)
        except ValueError as error:
            named += 1
            assert re.match(
                r"report\b|these rows were measured under different protocols", str(error)
            ), (path, wrong)
        else:
            if drawn < 30:
                page_source(found, {}, report).encode()
            drawn += 1
        holder[last] = before
    assert named > 200 and drawn > 30, "both happen"


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"", b'{"version": NaN}']
)
def test_a_file_that_is_no_report_ends_in_a_sentence(
    content: bytes, tmp_path: Path, capsys
) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert (
        re.match(r"unmask report: (\S*report\.json is not valid JSON|report(\.version)? is)", said)
        and said.count("\n") == 1
    )
