"""The frontier of quality against diversity, and its three answers, as pure functions of measured rows.

1. Same steps: what the student gains over the teacher, both at temperature 1.
2. Equal entropy: what it gains over a teacher whose temperature makes it as diverse, by three measures of diversity;
   and the same at equal seconds.
3. Speed: with how few calls, and seconds, it is as good as the teacher at its most steps, at that teacher's diversity.

A gain is gen_ppl of the teacher / gen_ppl of the student: above 1 the student is better. `verdict` says it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from unmask.evaluation.interpolation import (
    NOT_REACHED,
    CurvePoint,
    Estimate,
    Point,
    Resampler,
    curves,
    estimate,
    interpolate,
    read,
    untempered,
)
from unmask.evaluation.measure import DRAWS, ENTROPIES, Row, require_same_protocol

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
    """A curve read at the target: gen_ppl, calls and seconds a sample there."""

    gen_ppl: Estimate
    nfe: float
    seconds: float | None


@dataclass(frozen=True)
class EqualEntropy:
    """Student and temperature-scaled teacher at one step count, both where `column` has the value `target`.

    at      whose diversity that is: "the teacher at 64 steps", or "data"
    gain    of the student over the teacher at the same steps
    reason  why something is None: not reached, not measured
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
    """The student at one step count against the temperature-scaled teacher in the same seconds, at the target.

    The teacher is read between two of its step counts: log gen_ppl linear in log seconds.
    """

    column: str
    steps: int
    seconds: float | None
    gain: Estimate | None
    reason: str | None


@dataclass(frozen=True)
class Speed:
    """The least steps at which `model` has at most the gen_ppl `reference` of the teacher at its most steps.

    Where `column` equals that teacher's. `model` is "student" or "temperature_teacher": what temperature alone gives.
    calls, seconds  how many times fewer (ratio of nfe, of measured seconds)
    support         share of resamples in which these steps are good enough
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
    """Lists in order of column and steps."""

    same_steps: list[SameSteps]
    equal_entropy: list[EqualEntropy]
    speed: list[Speed]
    equal_seconds: list[EqualSeconds]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def answer(
    teacher: Sequence[Row],
    student: Sequence[Row],
    temperature_teacher: Sequence[Row],
    data: Row | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Answers:
    """The answers that rows measured under one protocol give; `UnequalProtocols` where they were not.

    teacher               temperature 1, some step counts
    student               some step counts, temperatures (1 among them; some above 1 to reach the teacher's entropy)
    temperature_teacher   the teacher at other temperatures
    data                  real text: its entropy is a second target
    """
    plain = [row for row in teacher if row.setting.temperature == 1]
    if not plain or not student:
        raise ValueError(
            "a frontier compares a teacher at temperature 1 with a student: want rows of both"
        )
    require_same_protocol([*teacher, *student, *temperature_teacher, *([data] if data else [])])
    resampler = Resampler(draws, seed)
    teachers = curves([*plain, *temperature_teacher], resampler)
    students = curves(student, resampler)
    most = max(row.setting.steps for row in plain)
    reference = next(point for point in teachers[most] if point.row.setting.temperature == 1)
    targets = {f"the teacher at {most} steps": reference} | (
        {"data": resampler(data)} if data else {}
    )
    return Answers(
        list(_same_steps(teachers, students)),
        [
            _equal_entropy(column, at, target, steps, teachers, students)
            for at, target in targets.items()
            for column in ENTROPIES
            for steps in students
        ],
        [
            _speed(column, model, found, reference)
            for column in ENTROPIES
            for model, found in (("student", students), ("temperature_teacher", teachers))
        ],
        [
            _equal_seconds(column, steps, reference, teachers, students)
            for column in ENTROPIES
            for steps in students
        ],
    )


def _same_steps(teachers: Curves, students: Curves) -> Iterator[SameSteps]:
    for steps in students:
        teacher, student = untempered(teachers.get(steps, ())), untempered(students[steps])
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
    teacher, student = (
        read(teachers.get(steps, ()), column, target),
        read(students[steps], column, target),
    )
    problems = [
        f"{who} {what}"
        for who, what in (("teacher:", teacher), ("student:", student))
        if isinstance(what, str)
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


def _at_target(reading: CurvePoint | str) -> AtTarget | None:
    if isinstance(reading, str):
        return None
    return AtTarget(estimate(reading.log_ppl), reading.nfe, reading.seconds)


def _equal_seconds(
    column: str, steps: int, target: Point, teachers: Curves, students: Curves
) -> EqualSeconds:
    student = read(students[steps], column, target)
    if isinstance(student, str):
        return EqualSeconds(column, steps, None, None, f"student: {student}")
    if student.seconds is None:
        return EqualSeconds(column, steps, None, None, "student: seconds were not measured")
    timed = [
        (np.log(found.seconds), found.log_ppl)
        for found in (read(curve, column, target) for curve in teachers.values())
        if isinstance(found, CurvePoint) and found.seconds is not None
    ]
    if not timed:
        return EqualSeconds(
            column, steps, student.seconds, None, "teacher: not reached, or not timed, at any steps"
        )
    log_ppl = np.stack([values for _, values in timed])
    clock = np.broadcast_to(np.array([seconds for seconds, _ in timed])[:, None], log_ppl.shape)
    teacher = interpolate(clock, log_ppl, np.full(log_ppl.shape[1], np.log(student.seconds)))
    if np.isnan(teacher[0]):
        least, most = np.exp(clock[:, 0].min()), np.exp(clock[:, 0].max())
        reason = (
            f"teacher: not reached: {student.seconds:.3g} s is outside {least:.3g} to {most:.3g} s"
        )
        return EqualSeconds(column, steps, student.seconds, None, reason)
    return EqualSeconds(column, steps, student.seconds, estimate(teacher - student.log_ppl), None)


def _speed(column: str, model: str, found: Curves, reference: Point) -> Speed:
    """Search the step counts from the least."""
    setting, level = reference.row.setting, float(np.exp(reference.log_ppl[0]))
    problems = []
    for steps, curve in found.items():
        reading = read(curve, column, reference)
        if isinstance(reading, str):
            problems.append(f"{steps} steps: {reading.removeprefix(NOT_REACHED)}")
        elif reading.log_ppl[0] > reference.log_ppl[0]:
            problems.append(
                f"{steps} steps: gen_ppl {np.exp(reading.log_ppl[0]):.4g} is above {level:.4g}"
            )
        else:
            enough = (
                reading.log_ppl[1:] <= reference.log_ppl[1:]
            )  # nan, not bracketed, counts against
            return Speed(
                column,
                model,
                setting.steps,
                level,
                steps,
                setting.nfe / reading.nfe,
                None
                if reading.seconds is None or reference.seconds is None
                else reference.seconds / reading.seconds,
                float(enough.mean()),
                "; ".join(problems) or None,
            )
    reason = NOT_REACHED + "; ".join(problems)
    return Speed(column, model, setting.steps, level, None, None, None, None, reason)
