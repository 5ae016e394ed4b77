"""Measure a teacher against its student, and write down what came out: the content of report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unmask.evaluation.answers import answer
from unmask.evaluation.claims import against
from unmask.evaluation.sweep import EvalContext, MeasuredRow, measure, naive
from unmask.evaluation.verdict import verdict
from unmask.models.model import CausalModel, Model


@dataclass(frozen=True)
class FrontierEvent:
    """The row that a frontier has just measured, and all rows so far, by their place in the report."""

    done: int
    total: int
    name: str
    measured: MeasuredRow
    rows: Mapping[str, list[MeasuredRow]]


def frontier(
    teacher: Model, student: Model, scene: EvalContext, autoregressive: CausalModel | None = None
) -> Iterator[FrontierEvent]:
    """Measure every row of a report: both models over steps and temperatures, naive texts, real text.

    autoregressive  a judge of ours, whose own texts are a row where it was trained on rows of their length
    """
    study, length, tokenizer = scene.study, scene.real.shape[1], teacher.tokenizer
    if tokenizer is None:
        raise ValueError(
            "a frontier is measured on text, and this teacher has no tokenizer: save it with one"
        )
    if (
        student.tokenizer is None
        or student.tokenizer.digest != tokenizer.digest
        or student.process != teacher.process
    ):
        raise ValueError(
            "teacher and student are compared token by token: want one tokenizer and one noise process, and theirs "
            "differ; measure them apart by `unmask eval samples` under a judge that reads texts"
        )
    *fakes, real = naive(scene, teacher)
    plans: list[tuple[str, Model | CausalModel, tuple[int, ...], tuple[float, ...]]] = [
        ("teacher", teacher, study.teacher_steps, (1.0, *study.teacher_temperatures)),
        ("student", student, study.student_steps, (1.0, *study.student_temperatures)),
    ]
    if autoregressive is not None and length <= autoregressive.length:
        plans.append(("autoregressive", autoregressive, (length,), (1.0,)))
    total, done = sum(len(steps) * len(temperatures) for _, _, steps, temperatures in plans), 0
    rows: dict[str, list[MeasuredRow]] = {"naive": fakes, "data": [real]}
    rows |= {name: [] for name, *_ in plans} | {
        f"temperature_{name}": [] for name in ("teacher", "student")
    }
    for name, model, steps, temperatures in plans:
        for measured in measure(name, model, scene, steps, temperatures):
            place = name if measured.row.setting.temperature == 1 else f"temperature_{name}"
            rows[place].append(measured)
            done += 1
            yield FrontierEvent(done, total, place, measured, rows)


def conclude(
    rows: Mapping[str, Sequence[MeasuredRow]], doubts: Sequence[str] = ()
) -> dict[str, Any]:
    """Rows by their place in the report, the three answers, and the verdict in sentences.

    doubts  why no claim is made, besides what the rows say themselves (`evaluation.grounds`)
    """
    teacher, student = ([m.row for m in rows[name]] for name in ("teacher", "student"))
    warmer = [m.row for m in rows["temperature_student"]]
    data, fakes = rows["data"][0].row, [m.row for m in rows["naive"]]
    answers = answer(
        teacher, [*student, *warmer], [m.row for m in rows["temperature_teacher"]], data
    )
    no_claim = [*doubts, *against(teacher, student, fakes, data)]
    table = {
        name: [m.to_json() for m in measured] for name, measured in rows.items() if name != "data"
    }
    return table | {
        "data": rows["data"][0].to_json(),
        "answers": answers.to_json(),
        "no_claim": no_claim,
        "verdict": verdict(answers, against=no_claim),
        "protocol": asdict(teacher[0].protocol),
    }
