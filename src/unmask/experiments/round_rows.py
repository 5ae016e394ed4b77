"""Save the student of every round and measure it at temperature 1, for the paper's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from typing import ClassVar

from unmask.cli.console import Progress
from unmask.dataclass_json import to_json
from unmask.evaluation import judge_by_name, sweep
from unmask.evaluation.judges import Judge
from unmask.evaluation.measure import Setting
from unmask.evaluation.sample_metrics import draw_and_measure
from unmask.evaluation.sweep import MeasuredRow
from unmask.experiments.plan import OpenRun, OpenTeacher, diffusion
from unmask.experiments.rows_file import ROWS, append_new, read_rows, row_line
from unmask.models.model import Model, load
from unmask.recipes.data import TrainingData

# Sampler and draw: exact; and as the codes of MDLM, SDTT and early Duo draw.
PRECISIONS = (("reveal", "race"), ("ancestral", "legacy_gumbel32"))
TOP_P = (1.0, 0.9)


@dataclass(frozen=True)
class RoundRows:
    """A row at each step count for each teacher, and for the student of each round of a run."""

    training: ClassVar[str] = "run"

    def judge(self, name: str, data: TrainingData, device: str) -> Judge:
        """Load a judge of any kind."""
        return judge_by_name.judge(name, data.tokenizer, data.held_out.shape[1], device)

    def teacher_rows(self, teacher: OpenTeacher) -> tuple[int, Iterator[MeasuredRow]]:
        """Rows in each precision at `precision_steps`, then a row at each step count."""
        steps, precise = teacher.context.study.student_steps, teacher.settings.precision_steps
        rows = sweep.measure(teacher.name, teacher.model, teacher.context, steps, (1.0,))
        total = len(PRECISIONS) * len(TOP_P) * len(precise) + len(steps)
        return total, chain(_precision_rows(teacher), rows)

    def keep_round(self, run: OpenRun, student: Model, step: int) -> str | None:
        """Save the student as the model round-N."""
        number = step // run.cell.rounds.round_steps
        student.save(run.place / f"round-{number}", recipe=to_json(run.recipe), steps=step)
        return None

    def measure(self, run: OpenRun) -> Iterator[Progress]:
        """Measure the student of every round, also of those before a failure."""
        known_rows, steps = read_rows(run.place / ROWS), run.plan.study.student_steps
        context = replace(run.teacher.context, known_rows=known_rows)
        count = run.cell.rounds.count
        for number in range(1, count + 1):
            saved, name = run.place / f"round-{number}", f"round {number}"
            if not saved.exists():
                continue
            student = diffusion(load(saved, device=run.plan.device or "cpu"))
            rows = sweep.measure(name, student, context, steps, (1.0,))
            for i, measured in enumerate(rows, start=(number - 1) * len(steps) + 1):
                is_new = append_new(measured, known_rows, run.place / ROWS)
                line = row_line(name, measured) if is_new else None
                yield Progress("measuring", i, count * len(steps), line)


def _precision_rows(teacher: OpenTeacher) -> Iterator[MeasuredRow]:
    """The teacher in each precision of the draw, with and without top-p.

    Their differences show how much precision alone may change a published value.
    """
    context, model = teacher.context, teacher.model
    grid = product(PRECISIONS, TOP_P, teacher.settings.precision_steps)
    for (sampler, draw), top_p, count in grid:
        study = replace(context.study, sampler=sampler, draw=draw)
        protocol = replace(context, study=study).protocol
        title = f"{teacher.name}, {protocol.precision}, top-p {top_p:g}"
        seeds = (study.seed,)
        setting = Setting(model.digest, sampler, steps=count, nfe=0.0, top_p=top_p, seeds=seeds)
        matches = (m for m in context.known_rows if sweep.matches(m.row, title, setting, protocol))
        measured = next(matches, None)
        if measured is None:
            length = context.real.shape[1]
            draw_texts = partial(sweep.draw_row, model, study, length, count, 1.0, top_p)
            row = draw_and_measure(draw_texts, context.judge, protocol, setting, name=title)
            measured = MeasuredRow(row, shipped=False)
        yield measured
