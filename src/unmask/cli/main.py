"""The command line: find the verb, run it, and end with a sentence and an exit code instead of a stack trace.

0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {  # verb -> module, what it does
    "demo": ("demo", "distil a teacher on real text, measure it, and write a report with pictures"),
    "train": ("train", "train a recipe: a diffusion teacher, or an autoregressive baseline"),
    "distill": ("train", "distil a teacher by a recipe"),
    "sample": ("sample", "draw texts from a model"),
    "eval": ("evaluate", "likelihood, generative perplexity with entropy, the frontier against a teacher"),
    "bench": ("bench", "tokens a second and latency on this machine, beside an autoregressive model"),
    "convert": ("convert", "read any checkpoint that unmask knows and write it in its own layout"),
    "reproduce": ("reproduce", "measure again what this project ships or claims"),
    "report": ("report", "write report.html from a report.json"),
    "verify": ("verify", "check the duality by simulation, samplers and objectives on a known law"),
    "doctor": ("doctor", "what of this machine matters to unmask"),
}

USAGE = "usage: unmask VERB [...]; unmask VERB --help says more\n\n" + "\n".join(
    f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Without `arguments` it is the whole program, and sets how threads wait."""
    if arguments is None:
        # Threads that spin while they wait steal the cores of other work. Read once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        sys.stdout.write(USAGE + "\n")
        return 0
    if verb == "--version":
        from unmask import __version__

        sys.stdout.write(__version__ + "\n")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "unmask --help lists them"
        sys.stderr.write(f"unmask: there is no verb {verb!r}: {hint}\n")
        return 2
    return _run(verb, rest)


def _run(verb: str, rest: Sequence[str]) -> int:
    """What a user can cause: ValueError, OSError, RuntimeError (a training gone wrong), ImportError (an extra)."""
    try:
        code = import_module(f"unmask.cli.{VERBS[verb][0]}").main(verb, list(rest))
        return int(code)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.stderr.write(f"unmask {verb}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"unmask {verb}: interrupted\n")
        return 1
