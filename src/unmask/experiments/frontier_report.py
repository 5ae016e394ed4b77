"""Measure a run's student and its teacher over steps and temperatures, and write report.json."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from unmask import __version__
from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.dataclass_json import dumps
from unmask.evaluation import sweep
from unmask.evaluation.example_texts import example_texts
from unmask.evaluation.frontier import build_report, frontier, teacher_parts
from unmask.evaluation.judge_by_name import judge_of
from unmask.evaluation.judges import Judge
from unmask.evaluation.measure import EvaluationProtocol, MeasuredRow
from unmask.evaluation.sweep import REPORT, EvalContext
from unmask.experiments.plan import OpenRun, OpenTeacher, causal, diffusion
from unmask.experiments.rows_file import (
    ROWS,
    append_line,
    append_new,
    read_lines,
    read_rows,
    row_line,
)
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.data import TrainingData
from unmask.recipes.objective_settings import DistillationSettings
from unmask.training import STUDENT

ROUNDS = "rounds.jsonl"
COLUMNS = ("step", "loss", "distillation", "reconstruction")


@dataclass(frozen=True)
class FrontierReport:
    """Rows of teacher and student over steps and temperatures; a run's report.json holds them.

    Attributes:
        source: the origin of teacher and judge, in words
    """

    training: ClassVar[str] = "student"
    source: str = "trained here"

    def judge(self, name: str, data: TrainingData, device: str) -> Judge:
        """Load an autoregressive model of this library with the tokenizer of the texts."""
        return judge_of(causal(load(name, device=device)), data.held_out.shape[1])

    def teacher_rows(self, teacher: OpenTeacher) -> tuple[int, Iterator[MeasuredRow]]:
        """The teacher's rows of a report, which all runs share."""
        parts = teacher_parts(teacher.model, teacher.context)
        rows = chain.from_iterable(part.measure(teacher.model) for part in parts)
        return sum(map(len, parts)), rows

    def keep_round(self, run: OpenRun, student: Model, step: int) -> str | None:
        """Measure the student at the step count of the table of rounds, and append its line.

        A distillation without rounds has no such table.
        """
        if not isinstance(run.recipe.objective, DistillationSettings):
            return None
        rounds, context = run.cell.rounds, run.teacher.context
        measured = sweep.perplexity_after_round(student, context)
        line = {
            "round": rounds.round(step - 1) + 1,
            "steps": measured.steps,
            "delta": rounds.delta(step - 1),
            "temperature": rounds.temperature(step - 1),
            "gen_ppl": measured.gen_ppl.value,
            "entropy": measured.entropy.value,
            "protocol": asdict(context.protocol),
        }
        append_line(run.place / ROUNDS, line)
        return (
            f"round {line['round']}: gen PPL {line['gen_ppl']:.1f}, entropy {line['entropy']:.2f} "
            f"nats at {line['steps']} steps"
        )

    def measure_run(self, run: OpenRun) -> Iterator[Progress]:
        """Measure all rows of a run and write its report.json, unless its training failed."""
        if not (run.training / "model").exists():
            return
        file, teacher = run.place / ROWS, run.teacher.model
        known_rows = [*run.teacher.context.known_rows, *read_rows(file)]
        context = replace(run.teacher.context, known_rows=known_rows)
        judge, student = causal(load(run.plan.judge)), diffusion(load(run.training / "model"))
        rows: Mapping[str, list[MeasuredRow]] = {}
        for event in frontier(teacher, student, context, judge):
            rows = event.rows
            append_new(event.measured, known_rows, file)
            line = row_line(event.name, event.measured)
            yield Progress("measuring", event.done, event.total, line)
        report = build_report(rows)
        report |= example_texts(teacher, student, context.study, context.real)
        report |= self._origin(run, teacher, student, judge)
        report["rounds"] = _rounds(run.place / ROUNDS, context)
        write_text(run.place / REPORT, dumps(report, indent=1) + "\n")
        yield Progress("writing", 1, 1)

    def _origin(
        self, run: OpenRun, teacher: Model, student: Model, judge: CausalModel
    ) -> dict[str, Any]:
        """The fields of a report that state its origin: title, models, training, seconds."""
        recipe, metrics = run.recipe, read_lines(run.training / "metrics.jsonl")
        steps = f"{recipe.steps} steps of {recipe.objective.kind}"
        sources: dict[str, tuple[Model | CausalModel, str]] = {
            "teacher": (teacher, self.source),
            "student": (student, steps),
            "judge": (judge, self.source),
        }
        return {
            "title": f"{run.plan.title}: {run.run}" if str(run.run) else run.plan.title,
            "version": __version__,
            "date": datetime.date.today().isoformat(),
            "seed": run.plan.study.seed,
            "corpus": _corpus(recipe.data.corpus, run.teacher.data),
            "models": {
                name: {"parameters": model.parameters, "source": source}
                for name, (model, source) in sources.items()
            },
            "training": _training_curves(metrics),
            "seconds": {
                "distil": sum(line["seconds"] for line in metrics),
                "total": time.perf_counter() - run.started,
            },
        }


def _corpus(name: str, data: TrainingData) -> dict[str, Any]:
    facts = {
        "name": name,
        "train_rows": data.train_rows,
        "held_out_rows": len(data.held_out),
        "length": data.held_out.shape[1],
        "vocab_size": data.tokenizer.vocab_size,
        "digest": data.digest,
    }
    return {key: fact for key, fact in facts.items() if fact is not None}


def _rounds(file: Path, context: EvalContext) -> list[dict[str, Any]]:
    """The last line of each round that was measured under this protocol and step count."""
    lines = [
        line
        for line in read_lines(file)
        if line["steps"] == context.study.round_steps
        and EvaluationProtocol.from_json(line["protocol"]) == context.protocol
    ]
    return list({line["round"]: line for line in lines}.values())


def _training_curves(metrics: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The columns of a run's metrics.jsonl that the report draws; rounds count from 1.

    Steps that train another network than the student are left out.
    """
    lines = [line for line in metrics if line.get("turn", STUDENT) == STUDENT]
    names = [name for name in COLUMNS if all(name in line for line in lines)]
    columns = {name: [line[name] for line in lines] for name in names}
    if all("round" in line for line in lines):
        columns["round"] = [int(line["round"]) + 1 for line in lines]
    return columns
