"""The command line: find the verb, run it, and end with a sentence and an exit code instead of a stack trace.

0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pickle import PickleError
from zipfile import BadZipFile

from unmask.cli.streams import OUTPUT, open_streams, put, remark, written

ON = "the same command goes on from what is saved"
EXPERIMENTS = ("demo", "bench", "reproduce", "report", "verify")  # a higher floor: loaded by name
VERBS = {  # verb -> module, what it does, what an interrupt leaves
    "demo": (
        "demo",
        "distil a teacher on real text, measure it, and write a report with pictures",
        ON,
    ),
    "train": ("train", "train a recipe: a diffusion teacher, or an autoregressive baseline", ON),
    "distill": ("train", "distil a teacher by a recipe", ON),
    "sample": ("sample", "draw texts from a model", "only the texts above were drawn"),
    "eval": (
        "evaluate",
        "likelihood, generative perplexity with entropy, the frontier against a teacher",
        "only the lines above were measured",
    ),
    "bench": (
        "bench",
        "tokens a second and latency on this machine, beside an autoregressive model",
        "no bench.json was written",
    ),
    "convert": (
        "convert",
        "read any checkpoint that unmask knows and write it in its own layout",
        "nothing was written",
    ),
    "reproduce": ("reproduce", "measure again what this project ships or claims", ON),
    "report": (
        "report",
        "write report.html from a report.json",
        "the same command writes the page again",
    ),
    "verify": (
        "verify",
        "check the duality by simulation, samplers and objectives on a known law",
        "nothing was kept",
    ),
    "doctor": ("doctor", "what of this machine matters to unmask", "nothing was kept"),
}

USAGE = "usage: unmask VERB [...]; unmask VERB --help says more\n\n" + "\n".join(
    f"  {verb:<10} {what}" for verb, (_, what, _) in VERBS.items()
)

# What a user can cause: a bad value or file, a training gone wrong, an extra that is missing, a number or an input that
# is too large for the machine. Any other exception is a fault of the program, and keeps its traceback.
EXPECTED = (
    ValueError, OSError, RuntimeError, ImportError, MemoryError, OverflowError, EOFError, BadZipFile, PickleError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Without `arguments` it is the whole program, and sets how threads wait."""
    if arguments is None:
        # Threads that spin while they wait steal the cores of other work. Read once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    code, sentence = 1, ""
    try:
        code = _verb(words)
        with written(sys.stdout):
            sys.stdout.flush()
    except SystemExit as stop:  # so tyro ends, on --help and on wrong use
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    except KeyboardInterrupt:
        sentence = f"interrupted; {VERBS[words[0]][2] if words and words[0] in VERBS else 'nothing was done'}"
    except EXPECTED as error:
        read_enough = isinstance(error, BrokenPipeError) and error.filename == OUTPUT
        code, sentence = 1, "" if read_enough else _sentence(error)
    if sentence:
        remark(f"{' '.join(['unmask', *words[:1]])}: {sentence}")
    return code


def _verb(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        put(sys.stdout, USAGE)
        return 0
    verb, *rest = words
    if verb == "--version":
        from unmask import __version__

        put(sys.stdout, __version__)
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "unmask --help lists them"
        remark(f"unmask: there is no verb {verb!r}: {hint}")
        return 2
    if fault := _unreadable(rest):
        remark(f"unmask {verb}: {fault}")
        return 2
    package = "unmask.experiments.commands" if verb in EXPERIMENTS else "unmask.cli"
    return int(import_module(f"{package}.{VERBS[verb][0]}").main(verb, rest))


def _unreadable(words: Sequence[str]) -> str:
    """The fault of an argument that no file name and no recipe can hold; empty where there is none."""
    if words[:1] == [""]:
        return "the first argument is empty: got '', want a name"
    for before, word in zip(["", *words], words, strict=False):
        flag = (
            word.partition("=")[0]
            if word.startswith("--")
            else before
            if before.startswith("--")
            else "an argument"
        )
        if "\0" in word:
            return f"{flag} holds a NUL character: got {word!r}, want text without it"
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            return f"{flag} holds bytes that are not UTF-8: got {word!r}, want text in UTF-8"
    return ""


def _sentence(error: BaseException) -> str:
    """A sentence about an exception; some exceptions of Python have no text, or a text without the cause."""
    match error:
        case MemoryError():
            return f"out of memory ({error or 'Python gave no size'}): give smaller numbers or a smaller input"
        case OverflowError():
            return f"a number is too large ({error}): give smaller numbers"
        case RecursionError():
            return f"an input nests too deeply to be read ({error})"
        case EOFError():
            return f"a file ends too early ({error}): copy or download it again"
        case BadZipFile() | PickleError():
            return f"a file is damaged ({error}): copy or download it again"
    return str(error) or type(error).__name__
