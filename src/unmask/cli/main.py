"""The command line: find the verb, run it, and turn expected errors into one sentence.

Exit codes: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pickle import PickleError
from zipfile import BadZipFile

from unmask.cli.streams import OUTPUT, open_streams, put, remark, written


@dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        module: module of its function, below `unmask.cli` or `unmask.experiments.commands`
        summary: its line in the usage
        stopped: effect of an interrupt
        function: (verb, arguments) -> exit code
    """

    module: str
    summary: str
    stopped: str
    function: str = "main"


RESUMES = "the same command resumes from the saved state"
EXPERIMENTS = ("demo", "bench", "reproduce", "report", "verify")  # of unmask.experiments
VERBS = {
    "demo": Verb(
        "demo", "distil a teacher on real text, measure the student, write a report", RESUMES
    ),
    "train": Verb("train", "train a diffusion teacher or an autoregressive baseline", RESUMES),
    "distill": Verb("train", "distil a teacher by a recipe", RESUMES),
    "sample": Verb("sample", "draw texts from a model", "only the texts above were drawn"),
    "eval": Verb(
        "evaluate",
        "measure likelihood, drawn texts, or a student against its teacher",
        "only the lines above were measured",
    ),
    "bench": Verb(
        "bench",
        "time a diffusion model against an autoregressive one",
        "no bench.json was written",
    ),
    "convert": Verb(
        "convert",
        "write any supported checkpoint in another layout",
        "nothing was written",
    ),
    "reproduce": Verb("reproduce", "repeat the experiments of this project", RESUMES),
    "report": Verb(
        "report", "write report.html from a report.json", "the same command writes the page again"
    ),
    "verify": Verb(
        "verify",
        "check the theory: duality by simulation, samplers by enumeration",
        "nothing was kept",
    ),
    "doctor": Verb("doctor", "show versions, devices and memory", "nothing was kept"),
}
EVALUATIONS = {  # the second word of `unmask eval`
    name: Verb(module, summary, VERBS["eval"].stopped, function)
    for name, module, function, summary in (
        ("likelihood", "likelihood", "main", "MODEL: perplexity of held-out text"),
        (
            "zero-shot",
            "zero_shot",
            "main",
            "MODEL: perplexity of the papers' seven data sets, or of others",
        ),
        ("samples", "evaluate", "samples", "MODEL --judge J: generative perplexity with entropy"),
        ("frontier", "evaluate", "frontier", "STUDENT TEACHER --judge J: gain at equal entropy"),
        ("lm-harness", "lm_harness", "main", "MODEL --tasks T: tasks of lm-evaluation-harness"),
    )
}

# Errors that a user can cause: a bad value or file, a diverged training, a missing extra, a number
# or input that is too large. Any other exception is a bug and keeps its traceback.
EXPECTED = (
    ValueError,
    OSError,
    RuntimeError,
    ImportError,
    MemoryError,
    OverflowError,
    EOFError,
    BadZipFile,
    PickleError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        arguments: the words after `unmask`. None: those of this process. Then the wait policy of
            its threads is set too.
    """
    if arguments is None:
        # Spinning threads take cores from other work. torch reads this once, when imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    sentence = ""
    try:
        code = _run(words)
        with written(sys.stdout):
            sys.stdout.flush()
    except SystemExit as stop:  # tyro raises SystemExit on --help and on wrong use
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    except KeyboardInterrupt:
        verb = VERBS.get(words[0]) if words else None
        code, sentence = 1, f"interrupted; {verb.stopped if verb else 'nothing was done'}"
    except EXPECTED as error:
        # A reader that closes the output, such as `head`, is not a fault.
        closed = isinstance(error, BrokenPipeError) and error.filename == OUTPUT
        code, sentence = 1, "" if closed else _sentence(error)
    if sentence:
        remark(f"{' '.join(['unmask', *words[:1]])}: {sentence}")
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        put(sys.stdout, _usage("unmask VERB", VERBS))
        return 0
    name, *rest = words
    if name == "--version":
        from unmask import __version__

        put(sys.stdout, __version__)
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "unmask --help lists all verbs"
        remark(f"unmask: unknown verb {name!r}: {hint}")
        return 2
    if fault := _encoding_fault(rest):
        remark(f"unmask {name}: {fault}")
        return 2
    verb = VERBS[name]
    if name == "eval":
        if not rest or rest[0] not in EVALUATIONS:
            from unmask.cli.console import show_usage

            return show_usage(name, _usage("unmask eval KIND", EVALUATIONS), rest)
        verb, name, rest = EVALUATIONS[rest[0]], f"eval {rest[0]}", rest[1:]
    package = "unmask.experiments.commands" if name in EXPERIMENTS else "unmask.cli"
    function = vars(import_module(f"{package}.{verb.module}"))[verb.function]
    return int(function(name, rest))


def _usage(command: str, verbs: Mapping[str, Verb]) -> str:
    lines = [f"  {name:<10} {verb.summary}" for name, verb in verbs.items()]
    return "\n".join([f"usage: {command} [...]; `{command} --help` lists all flags", "", *lines])


def _encoding_fault(words: Sequence[str]) -> str:
    """Describe the first argument that cannot be a file name or text; "" if all are valid."""
    if words[:1] == [""]:
        return "the first argument is empty: got '', want a name"
    for before, word in zip(["", *words], words, strict=False):
        flag = "an argument"
        if word.startswith("--"):
            flag = word.partition("=")[0]
        elif before.startswith("--"):
            flag = before
        if "\0" in word:
            return f"{flag} holds a NUL character: got {word!r}, want text without it"
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            return f"{flag} holds bytes that are not UTF-8: got {word!r}, want text in UTF-8"
    return ""


def _sentence(error: BaseException) -> str:
    """An exception as a sentence, also if its own text is empty or does not name the cause."""
    match error:
        case MemoryError():
            detail = error or "no size given"
            return f"out of memory ({detail}): give smaller numbers or a smaller input"
        case OverflowError():
            return f"a number is too large ({error}): give smaller numbers"
        case RecursionError():
            return f"an input nests too deeply ({error}): give one with fewer levels"
        case EOFError():
            return f"a file ends too early ({error}): copy or download it again"
        case BadZipFile() | PickleError():
            return f"a file is damaged ({error}): copy or download it again"
    return str(error) or type(error).__name__
