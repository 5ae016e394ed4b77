"""Methods side by side on the demo's text: MCD and SDTT of the masked teacher, DCD of the uniform-state one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unmask.cli.console import Progress
from unmask.evaluation.sweep import EvalSettings, MeasuredRow
from unmask.experiments.ablation import seeded, shortened
from unmask.experiments.comparison import Comparison, compare
from unmask.recipes.catalog import recipe
from unmask.recipes.schema import Recipe

ENTROPY = "entropy"  # the column of unigram entropy
MASKED, UNIFORM = "masked", "uniform"  # folders
HEAD = (
    "method",
    "steps",
    "calls",
    "gen PPL",
    "entropy",
    "gen PPL at the unigram entropy of real text",
)


STUDY = EvalSettings(
    teacher_steps=(8, 16, 32, 128),
    student_steps=(8, 16, 32),
    teacher_temperatures=(0.7, 0.8, 0.9, 1.1),
    student_temperatures=(0.85, 1.15, 1.3),
    round_steps=16,
    shown=2,
)


@dataclass(frozen=True)
class Methods:
    """What is distilled and measured; teachers and judge are shipped."""

    masked: Mapping[str, Recipe] = field(
        default_factory=lambda: seeded(
            {"mcd": shortened(recipe("demo-mcd")), "sdtt": shortened(recipe("demo-sdtt"))}
        )
    )
    uniform: Mapping[str, Recipe] = field(
        default_factory=lambda: seeded({"dcd": shortened(recipe("demo-dcd"))})
    )
    study: EvalSettings = field(default_factory=lambda: STUDY)
    teacher: str = "unmask:teacher"
    duo: str = "unmask:duo"
    judge: str = "unmask:judge"


def methods(
    settings: Methods, directory: Path, known: Sequence[MeasuredRow] = ()
) -> Iterator[Progress]:
    """Distil and measure the students of the masked teacher, then those of the uniform-state one.

    `known` holds rows of the masked teacher.
    """
    masked = Comparison(
        "Methods", settings.teacher, settings.judge, settings.masked, settings.study, known
    )
    study = replace(settings.study, sampler="ancestral")
    uniform = Comparison("Methods", settings.duo, settings.judge, settings.uniform, study)
    done = False
    for event in compare(masked, directory / MASKED):
        done = event.stage == "all cells"
        yield event
    if done:  # else stopped by a signal
        yield from compare(uniform, directory / UNIFORM)


def summary(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line for each method and step count; those of a teacher before its first student.

    The last column is by temperature, and compares methods with different teachers; it stands where both teacher and
    student were drawn in these steps.
    """
    table: list[list[str]] = []
    seen: set[str] = set()
    for name, report in reports.items():
        teachers = {row["setting"]["model"] for row in report["teacher"]}
        if not seen & teachers:
            table += _lines(f"teacher of {name.partition(',')[0]}", report, "teacher")
        seen |= teachers
        table += _lines(name, report, "student")
    return table


def _lines(name: str, report: Mapping[str, Any], who: str) -> list[list[str]]:
    entries = [entry for entry in report["answers"]["equal_entropy"] if entry["at"] == "data"]
    equal = {entry["steps"]: entry[who] for entry in entries if entry["column"] == ENTROPY}
    return [
        [name, str(row["steps"]), f"{row['nfe']:.1f}", f"{row['gen_ppl']:.1f}", f"{row['entropy']:.3f}",
         _gen_ppl(equal[row["steps"]]) if row["steps"] in equal else ""]
        for row in report[who]
    ]  # fmt: skip


def _gen_ppl(found: Mapping[str, Any] | None) -> str:
    return "not reached" if found is None else f"{found['gen_ppl']['value']:.1f}"
