"""The frontier of quality against diversity, and its three questions, as pure functions of rows.

1. Same steps: the student's gain over the teacher, both at temperature 1.
2. Equal entropy: the student's gain over a teacher whose temperature gives it the same diversity.
   There are three measures of diversity. A second comparison is also at equal seconds.
3. Speed: the fewest calls and seconds with which the student is as good as the reference. The
   reference is the teacher at its largest step count, and the diversity is that of the reference.

A gain is gen_ppl of the teacher / gen_ppl of the student: above 1 the student is better. `verdict`
puts the answers into words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from unmask.evaluation.interpolation import (
    NOT_REACHED,
    NOT_TIMED,
    CurvePoint,
    Estimate,
    Point,
    at_temperature_1,
    curves,
    estimate,
    interpolate,
    point_at,
    resampled,
)
from unmask.evaluation.measure import ENTROPIES, Row, require_same_protocol

Curves: TypeAlias = Mapping[int, Sequence[Point]]  # steps -> points over temperatures


@dataclass(frozen=True)
class SameSteps:
    """Teacher and student at temperature 1: gen_ppl, gain, and entropies by column."""

    steps: int
    teacher: float
    student: float
    gain: Estimate
    teacher_entropy: Mapping[str, float]
    student_entropy: Mapping[str, float]


@dataclass(frozen=True)
class AtTarget:
    """A curve interpolated at the target entropy: gen_ppl, calls and seconds per sample."""

    gen_ppl: Estimate
    nfe: float
    seconds: float | None


@dataclass(frozen=True)
class EqualEntropy:
    """Student and temperature-scaled teacher at one step count and one value of `column`.

    Attributes:
        at: origin of the target: "the teacher at 64 steps", or "data"
        target: the value of `column`
        gain: gain of the student over the teacher at the same steps
        reason: reason for a None: not reached, not measured
    """

    column: str
    at: str
    target: float | None
    steps: int
    teacher: AtTarget | None
    student: AtTarget | None
    gain: Estimate | None
    reason: str | None


@dataclass(frozen=True)
class EqualSeconds:
    """The student against the temperature-scaled teacher at equal seconds and equal `column`.

    The teacher's value lies between two of its step counts: log gen_ppl linear in log seconds.
    """

    column: str
    steps: int
    seconds: float | None
    gain: Estimate | None
    reason: str | None


@dataclass(frozen=True)
class Speed:
    """The fewest steps at which `model` reaches a reference gen_ppl at the same `column`.

    The reference is the teacher at its largest step count.

    Attributes:
        model: "student" or "temperature_teacher" (the effect of temperature alone)
        reference_steps: steps of that teacher
        reference: gen_ppl of that teacher
        steps: the fewest steps that are good enough; None: no step count is good enough
        calls: nfe of the reference / nfe at these steps
        seconds: seconds of the reference / seconds at these steps
        support: share of resamples in which these steps are good enough
        reason: the step counts that are not good enough, each with its fault
    """

    column: str
    model: str
    reference_steps: int
    reference: float
    steps: int | None
    calls: float | None
    seconds: float | None
    support: float | None
    reason: str | None


@dataclass(frozen=True)
class Answers:
    """The answers to all questions, in order of column and steps.

    Attributes:
        against_top_p: as `equal_entropy` at the teacher's diversity, against a teacher with top-p
    """

    same_steps: list[SameSteps]
    equal_entropy: list[EqualEntropy]
    speed: list[Speed]
    equal_seconds: list[EqualSeconds]
    against_top_p: list[EqualEntropy] = field(default_factory=list)


def answer_questions(
    teacher: Sequence[Row],
    student: Sequence[Row],
    temperature_teacher: Sequence[Row],
    data: Row | None = None,
    top_p_teacher: Sequence[Row] = (),
) -> Answers:
    """Answer the three questions from rows of one protocol.

    Args:
        teacher: rows at temperature 1, at some step counts.
        student: rows at some step counts and temperatures, with 1 among them, and some above 1 to
            reach the teacher's entropy.
        temperature_teacher: rows of the teacher at other temperatures.
        data: the row of real text; its entropy is a second target.
        top_p_teacher: rows of the teacher with top-p, at some temperatures.

    Raises:
        UnequalProtocols: for rows of several protocols.
    """
    plain = [row for row in teacher if row.setting.temperature == 1]
    if not plain or not student:
        raise ValueError(
            f"teacher or student is empty: got {len(plain)} rows of the teacher at temperature 1 "
            f"and {len(student)} of the student, want rows of both"
        )
    others = [*temperature_teacher, *top_p_teacher, *([data] if data else [])]
    require_same_protocol([*teacher, *student, *others])
    teachers = curves([*plain, *temperature_teacher])
    students, top_p_curves = curves(student), curves(top_p_teacher)
    most = max(row.setting.steps for row in plain)
    reference = at_temperature_1(teachers[most])
    assert reference is not None  # `plain` has a row at `most` steps
    targets = {f"the teacher at {most} steps": reference}
    if data:
        targets["data"] = resampled(data)

    def compare(opponents: Curves, at: str, target: Point) -> list[EqualEntropy]:
        return [
            _equal_entropy(column, at, target, steps, opponents, students)
            for column in ENTROPIES
            for steps in students
        ]

    return Answers(
        same_steps=list(_same_steps(teachers, students)),
        equal_entropy=[one for target in targets.items() for one in compare(teachers, *target)],
        speed=[
            _speed(column, model, model_curves, reference)
            for column in ENTROPIES
            for model, model_curves in (("student", students), ("temperature_teacher", teachers))
        ],
        equal_seconds=[
            _equal_seconds(column, steps, reference, teachers, students)
            for column in ENTROPIES
            for steps in students
        ],
        against_top_p=compare(top_p_curves, *next(iter(targets.items()))) if top_p_curves else [],
    )


def _same_steps(teachers: Curves, students: Curves) -> Iterator[SameSteps]:
    for steps in students:
        teacher = at_temperature_1(teachers.get(steps, ()))
        student = at_temperature_1(students[steps])
        if teacher and student:
            yield SameSteps(
                steps,
                float(np.exp(teacher.log_ppl[0])),
                float(np.exp(student.log_ppl[0])),
                estimate(teacher.log_ppl - student.log_ppl),
                {column: float(values[0]) for column, values in teacher.entropy.items()},
                {column: float(values[0]) for column, values in student.entropy.items()},
            )


def _equal_entropy(
    column: str, at: str, target: Point, steps: int, teachers: Curves, students: Curves
) -> EqualEntropy:
    teacher = point_at(teachers.get(steps, ()), column, target)
    student = point_at(students[steps], column, target)
    problems = [
        f"{name}: {point}"
        for name, point in (("teacher", teacher), ("student", student))
        if isinstance(point, str)
    ]
    gain = None
    if isinstance(teacher, CurvePoint) and isinstance(student, CurvePoint):
        gain = estimate(teacher.log_ppl - student.log_ppl)
    return EqualEntropy(
        column,
        at,
        float(target.entropy[column][0]) if column in target.entropy else None,
        steps,
        _at_target(teacher),
        _at_target(student),
        gain,
        "; ".join(problems) or None,
    )


def _at_target(point: CurvePoint | str) -> AtTarget | None:
    if isinstance(point, str):
        return None
    return AtTarget(estimate(point.log_ppl), point.nfe, point.seconds)


def _equal_seconds(
    column: str, steps: int, target: Point, teachers: Curves, students: Curves
) -> EqualSeconds:
    student = point_at(students[steps], column, target)
    if isinstance(student, str):
        return EqualSeconds(column, steps, None, None, f"student: {student}")
    if student.seconds is None:
        return EqualSeconds(column, steps, None, None, "student: seconds were not measured")
    points = [point_at(curve, column, target) for curve in teachers.values()]
    timed = [
        (np.log(point.seconds), point.log_ppl)
        for point in points
        if isinstance(point, CurvePoint) and point.seconds is not None
    ]
    if not timed:
        reason = f"teacher: {NOT_TIMED}"
        return EqualSeconds(column, steps, student.seconds, None, reason)
    log_ppl = np.stack([values for _, values in timed])
    clock = np.broadcast_to(np.array([seconds for seconds, _ in timed])[:, None], log_ppl.shape)
    teacher = interpolate(clock, log_ppl, np.full(log_ppl.shape[1], np.log(student.seconds)))
    if np.isnan(teacher[0]):
        least, most = np.exp(clock[:, 0].min()), np.exp(clock[:, 0].max())
        outside = f"{student.seconds:.3g} s is outside {least:.3g} to {most:.3g} s"
        reason = f"teacher: {NOT_REACHED}: {outside}"
        return EqualSeconds(column, steps, student.seconds, None, reason)
    return EqualSeconds(column, steps, student.seconds, estimate(teacher - student.log_ppl), None)


def _speed(column: str, model: str, model_curves: Curves, reference: Point) -> Speed:
    """Search the step counts in ascending order."""
    setting, goal = reference.row.setting, float(np.exp(reference.log_ppl[0]))
    problems = []
    for steps, curve in model_curves.items():
        point = point_at(curve, column, reference)
        if isinstance(point, str):
            problems.append(f"{steps} steps: {point.removeprefix(f'{NOT_REACHED}: ')}")
            continue
        if point.log_ppl[0] > reference.log_ppl[0]:
            gen_ppl = np.exp(point.log_ppl[0])
            problems.append(f"{steps} steps: gen_ppl {gen_ppl:.4g} is above {goal:.4g}")
            continue
        seconds = None
        if point.seconds is not None and reference.seconds is not None:
            seconds = reference.seconds / point.seconds
        good_enough = point.log_ppl[1:] <= reference.log_ppl[1:]  # False for NaN
        return Speed(
            column,
            model,
            setting.steps,
            goal,
            steps,
            calls=setting.nfe / point.nfe,
            seconds=seconds,
            support=float(good_enough.mean()),
            reason="; ".join(problems) or None,
        )
    reason = f"{NOT_REACHED}: {'; '.join(problems)}"
    return Speed(column, model, setting.steps, goal, None, None, None, None, reason)
