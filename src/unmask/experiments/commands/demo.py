"""`unmask demo`: the whole job of the paper in one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unmask.cli.console import follow, parse, remark, result_folder, say, table
from unmask.evaluation.sweep import EvalSettings
from unmask.experiments.demo import Demo, demo
from unmask.recipes.schema import Recipe


@dataclass(frozen=True)
class Arguments:
    """Distil a small teacher on real text, measure what was gained, and write report.html and report.json.

    corpus        "sotu" (comes with shipped models), "pydocs", a file or a folder: others train everything first
    out           the run directory
    from_scratch  train teacher and judge although they are shipped
    student, teacher, judge  their recipes; text and start come from the demo
    study         what is measured
    """

    corpus: str = Demo().corpus
    out: Path = Path("runs/demo")
    from_scratch: bool = False
    student: Recipe = field(default_factory=lambda: Demo().student)
    teacher: Recipe = field(default_factory=lambda: Demo().teacher)
    judge: Recipe = field(default_factory=lambda: Demo().judge)
    study: EvalSettings = field(default_factory=EvalSettings)


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    settings = replace(
        Demo(corpus=asked.corpus, from_scratch=asked.from_scratch),
        student=asked.student, teacher=asked.teacher, judge=asked.judge, study=asked.study,
    )  # fmt: skip
    report = follow(demo(settings, result_folder(asked.out)))
    if report is None:
        remark(
            f"stopped; the state is saved in {asked.out}, and the same command goes on from there"
        )
        return 1
    from unmask.experiments.report.page import write_report
    from unmask.experiments.report.report_schema import read_report

    page = write_report(report, asked.out)
    for name in ("teacher", "student"):
        rows = [
            [row["steps"], row["nfe"], row["gen_ppl"], row["sem"], row["entropy"]]
            for row in report[name]
        ]
        table(name, ["steps", "calls", "gen PPL", "sem", "entropy"], rows)
    say(read_report(report).protocol_words)
    for sentence in report["verdict"]:
        say(sentence)
    say(f"\n{page} shows it all, with pictures and a player ({report['seconds']['total']:.0f} s)")
    return 0
