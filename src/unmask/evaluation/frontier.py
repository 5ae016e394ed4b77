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

# Lists of further rows of the teacher.
RANDOM_ORDER, TOP_P = "random_order", "top_p_teacher"


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
    parts = teacher_parts(teacher, context)
    student_temperatures = (1.0, *study.student_temperatures)
    parts.insert(1, Part("student", context, study.student_steps, student_temperatures))
    if autoregressive is not None and length <= autoregressive.length:
        parts.append(Part("autoregressive", context, (length,), (1.0,)))
    total, done = sum(map(len, parts)), 0
    rows: dict[str, list[MeasuredRow]] = {"naive": baselines, "data": [real]}
    rows |= {part.name: [] for part in parts}
    rows |= {f"temperature_{name}": [] for name in ("teacher", "student")}
    models = {"student": student, "autoregressive": autoregressive}
    for part in parts:
        for measured in part.measure(models.get(part.name) or teacher):
            at_1 = measured.row.setting.temperature == 1
            tempered = part.name in ("teacher", "student") and not at_1
            place = f"temperature_{part.name}" if tempered else part.name
            rows[place].append(measured)
            done += 1
            yield FrontierEvent(done, total, place, measured, rows)


@dataclass(frozen=True)
class Part:
    """Rows of one model in one setting, over steps and temperatures.

    Attributes:
        name: name of the list of the report. All rows of the teacher have the name "teacher"
        context: judge, real text and settings
        steps: step counts
        temperatures: temperatures at each step count
        top_p: probability of the tokens that the sampler keeps
    """

    name: str
    context: EvalContext
    steps: Sequence[int]
    temperatures: Sequence[float]
    top_p: float = 1.0

    def __len__(self) -> int:
        return len(self.steps) * len(self.temperatures)

    def measure(self, model: Model | CausalModel) -> Iterator[MeasuredRow]:
        """Measure the rows of this model."""
        name = "teacher" if self.name in (RANDOM_ORDER, TOP_P) else self.name
        return measure(name, model, self.context, self.steps, self.temperatures, self.top_p)


def teacher_parts(teacher: Model, context: EvalContext) -> list[Part]:
    """The rows of a teacher: over temperatures, with top-p, and in random order."""
    study = context.study
    parts = [
        Part("teacher", context, study.teacher_steps, (1.0, *study.teacher_temperatures)),
    ]
    if study.top_p < 1:
        temperatures, top_p = study.top_p_temperatures, study.top_p
        parts.append(Part(TOP_P, context, study.student_steps, temperatures, top_p))
    if (random := in_random_order(teacher, context)) is not None:
        parts.append(Part(RANDOM_ORDER, random, study.teacher_steps, (1.0,)))
    return parts


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
    tempered, top_p = by_name["temperature_teacher"], by_name.get(TOP_P, [])
    answers = answer_questions(teacher, all_student, tempered, data, top_p)
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
