"""Output: texts and names unchanged, and no result lost to a failure of printing."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import unmask
from unmask.cli import console, main, sample
from unmask.models.model import load
from unmask.samplers.sample import Samples

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = (
    "at 10:100:5 :smile: [v2] [/bold] [red]a\tb\rc\x1b[31m \u202e 'x' 12 "
    + "long " * 60
    + "\n end "
)
SEEN = (
    TEXT.replace("\r", "\\r").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
)  # on a terminal


class Words:
    """A tokenizer whose every text is TEXT."""

    bos_id = eos_id = None

    def encode(self, text: str) -> list[int]:
        return [1] * len(text)

    def decode(self, ids: list[int]) -> str:
        return TEXT


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`unmask sample` of two texts, both TEXT."""
    model = replace(load(GOLDEN / "hub_mdlm"), tokenizer=Words())
    monkeypatch.setattr(sample, "load", lambda *_: model)
    return ["sample", "any", "--n", "2", "--length", "4", "--steps", "2", "--batch-size", "1"]


def test_a_pipe_gets_the_text_that_was_drawn(monkeypatch, drawing):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", newline="\n"))
    assert main.main(drawing) == 0
    first, second = out.getvalue().decode("utf-8").split("--- sample ")[1:]
    assert first == f"0 of seed 0: {first.split(': ')[1].split(' ')[0]} network calls\n{TEXT}\n"
    assert second.endswith(f" network calls\n{TEXT}\n")


def test_a_terminal_gets_no_control_characters(monkeypatch, drawing):
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    assert main.main(drawing) == 0
    assert out.getvalue().count(f" network calls\n{SEEN}\n") == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch, drawing, encoding):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert main.main([*drawing, "--json"]) == 0
    assert json.loads(out.getvalue().decode(encoding))["texts"] == [TEXT] * 2


def test_json_has_no_numbers_of_its_own(capsys):
    console.emit({"inf": float("inf"), "rows": [(1.5, float("nan"))]})
    console.emit([float("-inf")], indent=None)
    assert "".join(capsys.readouterr().out.split()) == '{"inf":null,"rows":[[1.5,null]]}[null]'


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_names_are_no_markup(monkeypatch, kind):
    """[/bold], [v2] and :100: stay text in titles, heads, cells, lines, and names of bars."""
    name = "run[v2] :100: [/bold]"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", out := kind())
    monkeypatch.setattr(sys, "stderr", err := kind())
    console.table(f"title {name}", [f"head {name}", "n"], [[f"cell {name}\x1b[2J\t\n", 1]])
    console.say(f"line {name}")
    for where in ("title", "head", "cell", "line"):
        assert f"{where} {name}" in out.getvalue(), where
    assert r"\x1b[2J\t\n" in out.getvalue()
    with console.progress() as (advance, note):
        advance(f"{name} {{task.total}}", 1, 1)
        note(f"note {name}")
    assert f"note {name}" in err.getvalue() and f"{name} {{task.total}}" in err.getvalue()


def test_a_table_that_is_too_wide_for_the_terminal_is_a_line_a_row(monkeypatch):
    """No name is folded to a column of letters, and no cell is left out."""
    columns = ["", "note", *(f"measure {i}" for i in range(6))]
    row = ["4 steps", "a longer note that may be folded", *(123456.0 + i for i in range(6))]
    for width, lines in ((120, 0), (80, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", out := Terminal())
        console.table("title", columns, [row])
        assert (
            out.getvalue().count(
                "4 steps; note: a longer note that may be folded; measure 0: 1.235e+05"
            )
            == lines
        )
        assert "title" in out.getvalue() and out.getvalue().count("1.235e+05") == 6
    assert out.getvalue().count("\n") == 2


def test_a_bar_on_a_terminal_leaves_the_standard_output_alone(monkeypatch):
    """`unmask train --json > file` at a terminal: the lines belong to the file."""
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.progress() as (advance, _):
        advance("training", 1, 2)
        console.emit({"step": 1}, indent=None)
    assert out.getvalue() == '{"step": 1}\n'


def test_a_result_survives_an_ascii_locale(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    main.open_streams()
    console.table("ppl", ["±"], [["1 ± 2"]])
    console.say("20.5 ± 0.2 \udcff")
    sys.stdout.flush()
    assert b"1 \\xb1 2" in out.getvalue() and b"20.5 \\xb1 0.2 \\udcff\n" in out.getvalue()


PRINTING = [
    ["train", "demo-teacher", "--dry-run"],
    ["eval", "--help"],
    ["--help"],
    ["--version"],
    ["sample", "--help"],
    ["train", "--help"],
    ["doctor"],
    ["doctor", "--json"],
    None,
]


@pytest.mark.parametrize("words", PRINTING, ids=str)
def test_a_full_disk_is_named(monkeypatch, drawing, words):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", err := io.StringIO())
        assert main.main(words or drawing) == 1
        monkeypatch.undo()
    assert err.getvalue().endswith(": [Errno 28] No space left on device: 'the output'\n")
    assert err.getvalue().count("\n") == 1


@pytest.mark.parametrize("words", PRINTING, ids=str)
def test_a_reader_that_goes_away_ends_it_quietly(monkeypatch, drawing, words):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", err := io.StringIO())
        assert main.main(words or drawing) == 1
        monkeypatch.undo()
    assert err.getvalue() == ""


def test_the_work_continues_without_its_remarks(monkeypatch, capsys):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        with console.progress() as (advance, note):
            note("far along")
            advance("drawing", 1, 1)
        console.say("the result")
        assert main.main(["no such verb"]) == 2
        monkeypatch.undo()
    assert capsys.readouterr().out == "the result\n"


SHELL = """
{python} -m unmask --version >&- 2>&-; echo $?
{python} -c "from unmask.cli.streams import open_streams; open_streams()
print(open('new', 'w').fileno() > 2, file=open('found', 'w'))" <&- >&- 2>&-
cat found
( {python} -m unmask --help; echo "code $?" >&2 ) | true
"""


def test_streams_that_are_closed(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    script = SHELL.format(python=sys.executable)
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout == "0\nTrue\n", (
        "a file that is opened later does not take the number of a closed stream"
    )
    assert done.stderr in ("code 0\n", "code 1\n"), (
        "no 'Exception ignored', no 120, whoever is faster"
    )


def broken(error: BaseException):
    def fail(*_: object) -> Samples:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OverflowError("int too big to convert"), "a number is too large (int too big to convert)"),
        (RecursionError("maximum recursion depth exceeded"), "nests too deeply"),
        (EOFError("compressed file ended"), "a file ends too early (compressed file ended)"),
        (zipfile.BadZipFile("no central directory"), "a file is damaged (no central directory)"),
        (pickle.UnpicklingError("invalid load key"), "a file is damaged (invalid load key)"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "'utf-8' codec can't decode",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_user_can_cause_is_a_sentence(monkeypatch, capsys, error, words):
    monkeypatch.setattr(sample, "load", broken(error))
    assert main.main(["sample", "any"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("unmask sample: ") and words in err and err.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sample, "load", broken(TypeError("a fault")))
    with pytest.raises(TypeError, match="a fault"):
        main.main(["sample", "any"])


def test_an_interrupt_keeps_the_printed_texts(monkeypatch, capsys, drawing):
    batches = sample.iter_samples

    def interrupted(*arguments, **options):
        yield next(batches(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "iter_samples", interrupted)
    assert main.main(drawing) == 1
    out, err = capsys.readouterr()
    assert out.count("--- sample") == 1 and out.endswith(TEXT + "\n"), (
        "the first batch is printed when it is there"
    )
    assert err == "unmask sample: interrupted; only the texts above were drawn\n"
