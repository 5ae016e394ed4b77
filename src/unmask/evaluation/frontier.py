"""Measure a teacher and its student, and build the contents of report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from unmask.evaluation.answers import answer_questions
from unmask.evaluation.measure import MeasuredRow
from unmask.evaluation.sweep import EvalContext, measure, measure_baselines
from unmask.evaluation.verdict import calls_by_bound, reasons_against_claim, verdict
from unmask.models.model import CausalModel, Model
from unmask.samplers.options import sampler_of
from unmask.samplers.unmasking import reveal

RANDOM_ORDER = "random_order"  # the rows of the teacher in random order


@dataclass(frozen=True)
class FrontierEvent:
    """Progress of `frontier`.

    Attributes:
        done: rows measured so far
        total: rows in all
        name: name of the list of the report to which the new row belongs
        measured: the new row
        rows: all rows so far, by the name of their list
    """

    done: int
    total: int
    name: str
    measured: MeasuredRow
    rows: Mapping[str, list[MeasuredRow]]


def frontier(
    teacher: Model, student: Model, context: EvalContext, autoregressive: CausalModel | None = None
) -> Iterator[FrontierEvent]:
    """Measure every row of a report: both models over steps and temperatures, baselines, real text.

    If the texts are not drawn in random order, the teacher in random order has rows too.

    Args:
        teacher: the teacher.
        student: the student, with the teacher's tokenizer and noise process.
        context: judge, real text and settings.
        autoregressive: an autoregressive model of ours. Its texts become a row if its training rows
            are at least as long as the texts.

    Yields:
        An event per row of a model.
    """
    study, length, tokenizer = context.study, context.real.shape[1], teacher.tokenizer
    if tokenizer is None:
        raise ValueError(
            "teacher has no tokenizer, and a frontier is measured on text: save it with one"
        )
    if (
        student.tokenizer is None
        or student.tokenizer.digest != tokenizer.digest
        or student.process != teacher.process
    ):
        raise ValueError(
            "student and teacher differ: want one tokenizer and one noise process, because a "
            "frontier compares token by token. Measure each by `unmask eval samples` with a judge "
            "of texts"
        )
    *baselines, real = measure_baselines(context, teacher)
    plans: list[tuple[str, Model | CausalModel, tuple[int, ...], tuple[float, ...]]] = [
        ("teacher", teacher, study.teacher_steps, (1.0, *study.teacher_temperatures)),
        ("student", student, study.student_steps, (1.0, *study.student_temperatures)),
    ]
    if autoregressive is not None and length <= autoregressive.length:
        plans.append(("autoregressive", autoregressive, (length,), (1.0,)))
    random = in_random_order(teacher, context)
    if random is not None:
        plans.append((RANDOM_ORDER, teacher, study.teacher_steps, (1.0,)))
    total, done = sum(len(steps) * len(temperatures) for _, _, steps, temperatures in plans), 0
    rows: dict[str, list[MeasuredRow]] = {"naive": baselines, "data": [real]}
    rows |= {name: [] for name, *_ in plans}
    rows |= {f"temperature_{name}": [] for name in ("teacher", "student")}
    for name, model, steps, temperatures in plans:
        own = random if name == RANDOM_ORDER and random is not None else context
        drawn = "teacher" if name == RANDOM_ORDER else name
        for measured in measure(drawn, model, own, steps, temperatures):
            untempered = measured.temperature == 1
            place = name if untempered else f"temperature_{name}"
            rows[place].append(measured)
            done += 1
            yield FrontierEvent(done, total, place, measured, rows)


def in_random_order(teacher: Model, context: EvalContext) -> EvalContext | None:
    """The context of the teacher's rows in random order; None if the texts are in that order.

    Uniform noise has no order.
    """
    if teacher.mask_id is None or sampler_of(context.study.sampler) == reveal:
        return None
    return replace(context, study=replace(context.study, sampler="reveal"))


def build_report(
    rows: Mapping[str, Sequence[MeasuredRow]], doubts: Sequence[str] = ()
) -> dict[str, Any]:
    """Build the contents of report.json: rows, answers and verdict as JSON values.

    Args:
        rows: rows by the name of their list, as `frontier` yields them.
        doubts: reasons against a claim, in addition to those that follow from the rows.
    """
    by_name = {name: [m.row for m in measured] for name, measured in rows.items()}
    teacher, student, (data,) = by_name["teacher"], by_name["student"], by_name["data"]
    all_student = [*student, *by_name["temperature_student"]]
    answers = answer_questions(teacher, all_student, by_name["temperature_teacher"], data)
    reasons = [*doubts, *reasons_against_claim(teacher, student, by_name["naive"], data)]
    findings = [
        *calls_by_bound(teacher, by_name.get(RANDOM_ORDER, [])),
        *verdict(answers, reasons=reasons),
    ]
    table: dict[str, Any] = {
        name: [m.to_json() for m in measured] for name, measured in rows.items() if name != "data"
    }
    return table | {
        "data": rows["data"][0].to_json(),
        "answers": asdict(answers),
        "no_claim": reasons,
        "verdict": [asdict(finding) for finding in findings],
        "protocol": asdict(teacher[0].protocol),
    }
