"""Hostile values for all flags: each ends with an exit code and a sentence about the flag."""

import contextlib
import dataclasses
import importlib
import io
import random
import signal
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from unmask.cli.main import EXPERIMENTS, main
from unmask.data.corpora import library_files
from unmask.experiments import package_corpora
from unmask.experiments.exact import distillation_optima
from unmask.recipes.catalog import recipe

HOSTILE = (
    *(
        "",
        " ",
        "0",
        "-1",
        "-0.5",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "None",
        "True",
        "none",
    ),
    *(str(2**31), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(10**30), "9" * 5000),
    *(
        "[/bold]",
        ":100:",
        "[red]",
        "$x$",
        "news[1]",
        "what?",
        "a*",
        "{}",
        "%s",
        "-",
        "--",
        "é",
        "\x1b[31m",
        "a\rb",
    ),
    *(
        "\udcff",
        "\0",
        "a\0b",
        "x" * 5000,
        "no/such/place",
        "a file",
        "unmask:none",
        "cuda:99",
        "mps",
        "psi:nan",
        "bpe:x",
    ),
    *(
        "blockwise:99999999999999999999",
        "block:0:1",
        "span:99999999999999999999",
        "https://example.invalid/x",
    ),
)
HUB = (
    "couldn't connect to 'https://huggingface.co'"  # the words of transformers, which name no model
)
SECONDS = 60  # no command below takes so long with a value that it accepts


class Hung(Exception):
    """A command that did not end."""


def flags_of(kind: type, prefix: str = "--") -> Iterator[tuple[str, object]]:
    """The flags of a dataclass and its nested dataclasses, with types; no positional arguments."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        flag, inner = prefix + name.replace("_", "-"), hint
        if typing.get_origin(hint) is typing.Annotated:
            inner, *marks = typing.get_args(hint)
            if any("Positional" in repr(mark) for mark in marks):
                continue
            flag = prefix.rstrip(".") if not dataclasses.is_dataclass(inner) else prefix
        parts = [
            part for part in (inner, *typing.get_args(inner)) if dataclasses.is_dataclass(part)
        ]
        for part in parts:
            yield from flags_of(
                typing.cast(type, part), flag.rstrip(".") + "." if flag != "--" else flag
            )
        if not parts and inner is not bool:  # a switch takes no value
            yield flag, inner


def commands(places: dict[str, Path]) -> dict[str, tuple[list[str], list[str | int]]]:
    """verb -> (a cheap valid command line, flags to add and indices of words to replace)."""
    masked, causal, text = (str(places[name]) for name in ("masked", "causal", "text"))
    rows = ["--text.corpus", text, "--text.length", "16"]
    few = ["--samples", "2", "--texts", "1", "--completions", "2", "--steps", "1", "--no-naive"]
    sizes = {
        "samples": "2",
        "teacher-steps": "1",
        "student-steps": "1",
        "texts": "1",
        "teacher-temperatures": "1",
        "student-temperatures": "1",
        "completions": "2",
    }
    study = [word for name, size in sizes.items() for word in (f"--study.{name}", size)]
    bench = ["--steps", "1", "--batches", "1", "--repeats", "1", "--length", "4"]
    lines = {
        "sample.Arguments": ["sample", masked, "--n", "1", "--length", "8", "--steps", "2"],
        "bench.Arguments": ["bench", masked, "--baseline", causal, *bench],
        "verify.Arguments": ["verify", "duality", "--n", "100", "--vocab-size", "4"],
        "train.Arguments": ["train", "demo-teacher", "--dry-run"],
        "likelihood.Likelihood": ["eval", "likelihood", masked, *rows, "--limit", "2"],
        "zero_shot.ZeroShot": ["eval", "zero-shot", masked, "--sets", "code", "--limit", "1"],
        "evaluate.SamplesArguments": ["eval", "samples", masked, "--judge", causal, *rows, *few],
        "evaluate.Frontier": ["eval", "frontier", masked, masked, "--judge", causal, *rows, *study],
        "convert.Arguments": ["convert", masked, "converted"],
        "reproduce.Arguments": ["reproduce", "table1", "--dry-run"],
        "report.Arguments": ["report", "no run"],
        "demo.Arguments": ["demo"],
    }  # fmt: skip
    results: dict[str, tuple[list[str], list[str | int]]] = {}
    for name, line in lines.items():
        module, _, own = name.partition(".")
        package = "unmask.experiments.commands" if module in EXPERIMENTS else "unmask.cli"
        kind = vars(importlib.import_module(f"{package}.{module}"))[own]
        second = 2 if line[0] == "eval" else 1
        named = next((i for i, word in enumerate(line) if word.startswith("--")), len(line))
        results[name] = (line, [*(flag for flag, _ in flags_of(kind)), *range(second, named)])
    objective: list[str | int] = [
        flag for flag, _ in flags_of(type(recipe("demo-mcd").objective), "--objective.")
    ]
    results["distill"] = (["distill", "demo-mcd", "--dry-run"], objective)
    exact = ["verify", "exact", "--n", "100", "--length", "4", "--vocab-size", "3", "--no-train"]
    results["exact"] = (exact, results["verify.Arguments"][1])
    return results


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def faults(words: Sequence[str], flag: str, value: str) -> Iterator[str]:
    """What is wrong with the end of a command line."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    try:
        with within(SECONDS), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except BaseException as error:  # also SystemExit: main returns its code
        if isinstance(error, KeyboardInterrupt):
            raise
        yield f"{type(error).__name__}: {error}"
        return
    for stream in (out, err):
        stream.flush()
    output = typing.cast(io.BytesIO, err.buffer).getvalue().decode("utf-8")
    if code not in (0, 1, 2):
        yield f"exit code {code}"
    if "Traceback" in output:
        yield "a traceback"
    if code and not output.strip():
        yield f"exit code {code} without a word"
    name = flag.lstrip("-").rpartition(".")[2]
    names = {
        name,
        name.replace("-", "_"),
        name.replace("-", " "),
        value.strip() or "''",
        repr(value)[1:-1],
        value[:60],
    }
    names |= {
        name.replace("-", "_").rstrip("s"),
        name.rpartition("-")[2].rstrip("s"),
        value.replace("//", "/"),
    }
    # "stopped" is the end of the demo, whose work is left out: its values were accepted.
    if output.startswith("stopped: ") or HUB in output:
        return
    if code and not any(each in " ".join(output.split()) or each in output for each in names):
        yield f"exit code {code} without the name of {flag}: {' '.join(output.split())[:300]}"


def fuzz(places: dict[str, Path], verbs: Sequence[str], count: int, seed: int) -> list[str]:
    """The faults of `count` command lines."""
    source, by_name, results = random.Random(seed), commands(places), []
    for _ in range(count):
        line, flags = by_name[source.choice(verbs)]
        flag, value = source.choice(flags), source.choice(HOSTILE)
        words = (
            [*line, flag, value]
            if isinstance(flag, str)
            else [*line[:flag], value, *line[flag + 1 :]]
        )
        for fault in faults(words, flag if isinstance(flag, str) else "argument", value):
            results.append(f"{' '.join(words)[:400]!r}: {fault}")
    return results


@pytest.fixture
def places(tmp_path, monkeypatch, masked, causal, text) -> dict[str, Path]:
    """Tiny models and a text in a directory with "a file"; nothing is trained or drawn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("words")
    some = library_files()[:5]  # of 12 MB
    few = distillation_optima.OBJECTIVES[:2]
    monkeypatch.setattr(distillation_optima, "OBJECTIVES", few)
    monkeypatch.setattr(package_corpora, "library_files", lambda: some)
    monkeypatch.setattr("unmask.experiments.commands.demo.run_plan", lambda *_: iter(()))
    monkeypatch.setattr("unmask.experiments.exact.verify_figures.duality_figure", lambda *_: None)
    monkeypatch.setattr(
        "unmask.experiments.report.bench_figure.write_figure",
        lambda *_: (Path("a.png"), Path("a.svg")),
    )
    return {"masked": masked, "causal": causal, "text": text}


def test_hostile_values_end_in_a_sentence(places):
    results = fuzz(places, ["sample.Arguments", "bench.Arguments", "verify.Arguments"], 60, seed=0)
    assert not results, "\n".join(results)


@pytest.mark.slow
def test_hostile_values_for_every_verb(places):
    results = fuzz(places, [*commands(places)], 1200, seed=3)
    assert not results, "\n".join(results)
