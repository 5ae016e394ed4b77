"""The answers of the frontier in words, and the reasons against a claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from unmask.evaluation.answers import Answers, EqualEntropy, EqualSeconds, SameSteps, Speed
from unmask.evaluation.interpolation import NOT_REACHED, NOT_TIMED, Estimate
from unmask.evaluation.measure import BOUND, ENTROPIES, GEN_PPL, UNIGRAM, Row

BETTER, WORSE, EQUAL = "better", "worse", "no difference seen"
OPEN = "no interval"
UNKNOWN = {OPEN, NOT_REACHED}
NO_CLAIM = "no claim"
CLOSE_NATS = 0.05  # nats a token: calls whose bound is so close do the same work

# Texts of a row: with fewer, 95 % intervals often miss the truth (benchmarks/coverage.py).
MIN_CLAIM_TEXTS = 16
MAX_REPEATED = 0.5  # share of 4-grams that repeat the same text or another text


@dataclass(frozen=True)
class Finding:
    """One finding of a verdict.

    Attributes:
        claim: the conclusion, or the subject of a comparison
        figures: evidence of a conclusion; None for a comparison
        details: results of a comparison; empty for a conclusion
        kind: "remark" for a limit of the whole verdict
    """

    claim: str
    figures: str | None = None
    details: list[str] = field(default_factory=list)
    kind: Literal["conclusion", "comparison", "remark"] = "comparison"

    def __str__(self) -> str:
        """
        >>> print(Finding("At 4 steps", details=["better"]))
        At 4 steps: better.
        """
        figures = f" ({self.figures})" if self.figures else ""
        details = f": {'; '.join(self.details)}" if self.details else ""
        return f"{self.claim}{figures}{details}."


ONE_SEED = Finding(
    "One training seed",
    details=["these figures come from one run; a verdict on the method needs at least two"],
    kind="remark",
)


def judge_gain(gain: Estimate, claims: bool = True) -> str:
    """The conclusion that a gain and its interval allow; `NO_CLAIM` if `claims` is False."""
    if not claims:
        return NO_CLAIM
    if gain.low is None or gain.high is None:
        return OPEN
    return BETTER if gain.low > 1 else WORSE if gain.high < 1 else EQUAL


def calls_by_bound(teacher: Sequence[Row], random_order: Sequence[Row]) -> Iterator[Finding]:
    """Yield what the N-step bound says about the teacher's calls, if its rows have the bound.

    Args:
        teacher: rows at temperature 1.
        random_order: rows of the teacher in random order; empty if the texts are in that order.
    """
    bounds = [row for row in teacher if BOUND in row.measures]
    if len(bounds) < 2:
        return
    most = max(bounds, key=lambda row: row.setting.nfe)
    limit = most.measures[BOUND].value + CLOSE_NATS
    few = min(
        (row for row in bounds if row.measures[BOUND].value <= limit),
        key=lambda row: row.setting.nfe,
    )
    figures = f"{_bound(few)}, {_bound(most)}"
    random = [row for row in random_order if BOUND in row.measures]
    if same := [row for row in random if row.setting.steps == few.setting.steps]:
        figures += f"; in random order {_bound(same[0])}"
    if few is most:
        claim = f"By likelihood, fewer calls than {_calls(most)} lose more than"
    else:
        claim = f"By likelihood, {_calls(few)} calls of the teacher do the work of {_calls(most)}:"
        claim += " the loss is at most"
    yield Finding(f"{claim} {CLOSE_NATS:g} nats a token", figures, kind="conclusion")


def _calls(row: Row) -> str:
    return f"{row.setting.nfe:.4g}"


def _bound(row: Row) -> str:
    return f"{row.measures[BOUND].value:.3f} nats a token in {_calls(row)} calls"


def verdict(answers: Answers, reasons: Sequence[str] = ()) -> list[Finding]:
    """The findings, with 95 % intervals; a win needs the same result by all three diversities.

    Args:
        answers: the answers.
        reasons: reasons against a claim (`reasons_against_claim`). If there are any, the verdict
            contains only them.
    """
    if reasons:
        claim = "No claim is made about the student"
        return [Finding(claim, "; ".join(reasons), kind="conclusion"), ONE_SEED]
    at = answers.equal_entropy[0].at
    columns = {
        column: [one for one in answers.equal_entropy if one.column == column and one.at == at]
        for column in ENTROPIES
    }
    return [
        *map(_same_steps, answers.same_steps),
        *(_equal_entropy(column, entries) for column, entries in columns.items()),
        _win(list(columns.values()), at, "that only changes its temperature"),
        *_against_top_p(answers.against_top_p, at),
        *(_equal_seconds(column, answers.equal_seconds) for column in ENTROPIES),
        *(_speed(column, answers.speed) for column in ENTROPIES),
        ONE_SEED,
    ]


def _same_steps(entry: SameSteps) -> Finding:
    diversity = ", ".join(
        f"{name} {entry.student_entropy[column]:.4g} against {entry.teacher_entropy[column]:.4g}"
        for column, name in ENTROPIES.items()
        if column in entry.student_entropy and column in entry.teacher_entropy
    )
    gen_ppl = (
        f"gen_ppl of the student {entry.student:.4g}, of the teacher {entry.teacher:.4g}, "
        f"gain {_gain(entry.gain)}"
    )
    details = [gen_ppl, diversity or "no diversity was measured"]
    return Finding(f"Same steps ({entry.steps}), temperature 1", details=details)


def _equal_entropy(column: str, entries: list[EqualEntropy]) -> Finding:
    name, at, target = ENTROPIES[column], entries[0].at, entries[0].target
    if target is None:
        return Finding(f"Equal {name}", details=["not measured"])
    return Finding(
        f"Equal {name} ({target:.4g}, {at}), against a temperature-scaled teacher",
        details=[f"{entry.steps} steps {_change(entry)}" for entry in entries],
    )


def _change(entry: EqualEntropy) -> str:
    if entry.gain is None or entry.student is None or entry.teacher is None:
        return str(entry.reason)
    student, teacher = entry.student.gen_ppl.value, entry.teacher.gen_ppl.value
    return f"{student:.4g} to {teacher:.4g}, gain {_gain(entry.gain)}"


def _against_top_p(all_entries: list[EqualEntropy], at: str) -> Iterator[Finding]:
    """The same comparisons against a teacher with top-p, if it was measured."""
    if not all_entries:
        return
    columns = [[one for one in all_entries if one.column == column] for column in ENTROPIES]
    for column, entries in zip(ENTROPIES, columns, strict=True):
        details = [f"{entry.steps} steps {_change(entry)}" for entry in entries]
        yield Finding(f"Equal {ENTROPIES[column]}, against a teacher with top-p", details=details)
    yield _win(columns, at, "with top-p that also changes its temperature")


def _win(columns: list[list[EqualEntropy]], at: str, opponent: str) -> Finding:
    """The main claim: the gain at equal diversity by all measures, at each step count."""
    steps_by_result: dict[str, list[str]] = {}
    for entries in zip(*columns, strict=True):
        results = [judge_gain(entry.gain) if entry.gain else NOT_REACHED for entry in entries]
        unknown = [result for result in results if result in UNKNOWN]
        if unknown:
            result = unknown[0]
        elif len(set(results)) == 1:
            result = results[0]
        else:
            result = _mixed(entries, results)
        steps_by_result.setdefault(result, []).append(str(entries[0].steps))
    compared = steps_by_result.keys() - UNKNOWN
    if not compared:
        verb = "cannot be compared with"
    elif steps_by_result.keys() == {BETTER}:
        verb = "beats"
    else:
        verb = "beats at some steps" if BETTER in compared else "does not beat"
    return Finding(
        f"As diverse as {at} by all {len(columns)} measures together, the student {verb} a teacher "
        f"{opponent}",
        "; ".join(
            f"{result} at {', '.join(steps)} steps" for result, steps in steps_by_result.items()
        ),
        kind="conclusion",
    )


def _mixed(entries: Sequence[EqualEntropy], results: Sequence[str]) -> str:
    """The result for each diversity, where they differ."""
    columns: dict[str, list[str]] = {}
    for entry, result in zip(entries, results, strict=True):
        columns.setdefault(result, []).append(ENTROPIES[entry.column])
    return ", ".join(f"{result} by {' and '.join(names)}" for result, names in columns.items())


def _equal_seconds(column: str, entries: list[EqualSeconds]) -> Finding:
    details = [
        f"{entry.steps} steps in {entry.seconds:.3g} s, gain {_gain(entry.gain)}"
        for entry in entries
        if entry.column == column and entry.gain and entry.seconds
    ]
    return Finding(
        f"Equal seconds and {ENTROPIES[column]}, against a temperature-scaled teacher",
        details=details or [NOT_TIMED],
    )


def _speed(column: str, speeds: list[Speed]) -> Finding:
    names = {"student": "the student", "temperature_teacher": "temperature alone"}
    entries = [entry for entry in speeds if entry.column == column]
    reference, steps = entries[0].reference, entries[0].reference_steps
    return Finding(
        f"Speed to gen_ppl {reference:.4g}, the teacher's at {steps} steps, "
        f"at its {ENTROPIES[column]}",
        details=[f"{names[entry.model]} {_pace(entry)}" for entry in entries],
    )


def _pace(entry: Speed) -> str:
    if entry.steps is None or entry.calls is None or entry.support is None:
        return str(entry.reason)
    if entry.calls == 1:
        return f"needs its {entry.steps} steps"
    seconds = "seconds not measured"
    if entry.seconds is not None:
        seconds = f"{_times(entry.seconds)} seconds"
    support = f"in {entry.support:.0%} of resamples"
    return f"{entry.steps} steps, {_times(entry.calls)} calls, {seconds} ({support})"


def _times(ratio: float) -> str:
    """
    >>> _times(4.0), _times(0.5)
    ('4.00 times fewer', '2.00 times more')
    """
    return f"{ratio:.2f} times fewer" if ratio >= 1 else f"{1 / ratio:.2f} times more"


def _gain(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return f"{gain.value:.3f} (no interval: too few resamples reach the target)"
    return f"{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}], {judge_gain(gain)}"


def reasons_against_claim(
    teacher: Sequence[Row], student: Sequence[Row], baselines: Sequence[Row], data: Row | None
) -> Iterator[str]:
    """Yield the reasons against a claim about the student, one clause each.

    Args:
        teacher: rows at temperature 1.
        student: rows at temperature 1.
        baselines: rows of baseline texts; the unigram draws give the score of a model that uses no
            context.
        data: the row of real text.
    """
    best = max(teacher, key=lambda row: row.setting.steps)
    protocol = best.protocol
    if protocol.read_by_judge:
        share = protocol.read_by_judge
        yield f"the judge was trained on {share:.0%} of the held-out documents"
    if protocol.samples < MIN_CLAIM_TEXTS:
        n = protocol.samples
        yield f"n = {n} texts per row are fewer than the {MIN_CLAIM_TEXTS} that an interval needs"
    if {row.setting.model for row in student} & {row.setting.model for row in teacher}:
        yield "student and teacher have the same weights"
    unigram = next((row.measures[GEN_PPL].value for row in baselines if row.name == UNIGRAM), None)
    if unigram is not None:
        rows: Mapping[str, Row | None] = {
            f"the teacher at {best.setting.steps} steps": best,
            "real text": data,
        }
        for name, row in rows.items():
            if row is not None and not (value := row.measures[GEN_PPL].value) < unigram:
                yield f"{name} has gen PPL {value:.4g}, no lower than {unigram:.4g} of {UNIGRAM}"
    for name, row in [("teacher", best), *(("student", row) for row in student)]:
        for key, where in (("overlap_4", "other texts"), ("repetition_4", "the same text")):
            share = row.measures[key].value if key in row.measures else 0.0
            if share > MAX_REPEATED:
                steps = row.setting.steps
                yield f"{share:.0%} of the {name}'s 4-grams at {steps} steps repeat {where}"
