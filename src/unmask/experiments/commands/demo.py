"""`unmask demo`: distil a small teacher on real text and measure the gain, in one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unmask.cli.console import follow, parse, remark, result_folder, say, table
from unmask.dataclass_json import LARGEST_REPORT, read_json
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import REPORT
from unmask.experiments.driver import run_plan
from unmask.experiments.plans import DEMO, SHIPPED, demo
from unmask.experiments.report.page import write_report
from unmask.experiments.report.report_schema import read_report
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import Recipe


@dataclass(frozen=True)
class Arguments:
    """Distil a small teacher on real text, measure the gain, and write report.html and report.json.

    Attributes:
        corpus: "sotu" (with shipped teacher and judge), "pydocs", a file or a folder (which train
            all models)
        out: directory of the models and the report
        from_scratch: train teacher and judge instead of using the shipped ones
        student: recipe of the distillation; the demo sets its corpus and its teacher
        teacher: recipe of the teacher; the demo sets its corpus
        judge: recipe of the judge; the demo sets its corpus and its tokenizer
        study: size and settings of the evaluation
    """

    corpus: str = SHIPPED
    out: Path = Path("runs/demo")
    from_scratch: bool = False
    student: Recipe = field(default_factory=lambda: recipe("demo-moments"))
    teacher: Recipe = field(default_factory=lambda: recipe("demo-teacher"))
    judge: Recipe = field(default_factory=lambda: recipe("demo-judge"))
    study: EvalSettings = DEMO


def main(verb: str, arguments: Sequence[str]) -> int:
    args = parse(Arguments, verb, arguments)
    plan = demo(
        result_folder(args.out),
        args.corpus,
        args.from_scratch,
        student=args.student,
        teacher=args.teacher,
        judge=args.judge,
        study=args.study,
    )
    if not follow(run_plan(plan, args.out)):
        remark(f"stopped: the state is saved in {args.out}; the same command continues from there")
        return 1
    report = read_json(args.out / REPORT, LARGEST_REPORT)
    page = write_report(report, args.out)
    columns = ("steps", "nfe", "gen_ppl", "sem", "entropy")
    for name in ("teacher", "student"):
        rows = [[row[column] for column in columns] for row in report[name]]
        table(name, ["steps", "calls", "gen PPL", "sem", "entropy"], rows)
    record = read_report(report)
    say(record.protocol_words)
    for finding in record.verdict:
        say(str(finding))
    seconds = report["seconds"]["total"]
    say(f"\n{page}: the report, with figures and a player ({seconds:.0f} s)")
    return 0
