"""The answers of the frontier in plain words, whichever way they fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unmask.evaluation.answers import Answers, EqualEntropy, EqualSeconds, SameSteps, Speed
from unmask.evaluation.interpolation import Estimate
from unmask.evaluation.measure import ENTROPIES

BETTER, WORSE, EQUAL, OPEN, NOT_REACHED = (
    "better",
    "worse",
    "no difference seen",
    "no interval",
    "not reached",
)
UNKNOWN = {OPEN, NOT_REACHED}
NO_CLAIM = "no claim"


def judge_gain(gain: Estimate, claims: bool = True) -> str:
    """What a gain and its interval allow to be said of the student; nothing where no claim is made."""
    if not claims:
        return NO_CLAIM
    if gain.low is None or gain.high is None:
        return OPEN
    return BETTER if gain.low > 1 else WORSE if gain.high < 1 else EQUAL


def verdict(answers: Answers, training_seeds: int = 1, against: Sequence[str] = ()) -> list[str]:
    """Sentences with figures. Intervals are 95 %; a win is called only where all three diversities agree.

    against  why no claim is made (`grounds`): the verdict then says so, and nothing else of the student
    """
    if against:
        return [
            f"No claim is made about the student ({'; '.join(against)}).",
            _seeds(training_seeds),
        ]
    at = answers.equal_entropy[0].at
    columns = {
        column: [
            entry for entry in answers.equal_entropy if entry.column == column and entry.at == at
        ]
        for column in ENTROPIES
    }
    return [
        *map(_same_steps, answers.same_steps),
        *(_equal_entropy(column, entries) for column, entries in columns.items()),
        _win(list(columns.values()), at),
        *_equal_seconds(answers.equal_seconds),
        *(
            _speed(column, [entry for entry in answers.speed if entry.column == column])
            for column in ENTROPIES
        ),
        _seeds(training_seeds),
    ]


def _same_steps(entry: SameSteps) -> str:
    diversity = ", ".join(
        f"{ENTROPIES[column]} {entry.student_entropy[column]:.4g} against {entry.teacher_entropy[column]:.4g}"
        for column in ENTROPIES
        if column in entry.student_entropy and column in entry.teacher_entropy
    )
    return (
        f"Same steps ({entry.steps}), temperature 1: gen_ppl of the student {entry.student:.4g}, of the teacher "
        f"{entry.teacher:.4g}, gain {_gain(entry.gain)}; {diversity or 'no diversity was measured'}."
    )


def _equal_entropy(column: str, entries: list[EqualEntropy]) -> str:
    target = entries[0].target
    if target is None:
        return f"Equal {ENTROPIES[column]}: not measured."
    clauses = "; ".join(f"{entry.steps} steps {_clause(entry)}" for entry in entries)
    return f"Equal {ENTROPIES[column]} ({target:.4g}, {entries[0].at}), against a temperature-scaled teacher: {clauses}."


def _clause(entry: EqualEntropy) -> str:
    if entry.gain is None or entry.student is None or entry.teacher is None:
        return str(entry.reason)
    return f"{entry.student.gen_ppl.value:.4g} to {entry.teacher.gen_ppl.value:.4g}, gain {_gain(entry.gain)}"


def _win(columns: list[list[EqualEntropy]], at: str) -> str:
    """The one line that may claim something: each step count, all columns together."""
    said: dict[str, list[str]] = {}
    for entries in zip(*columns, strict=True):
        words = [judge_gain(entry.gain) if entry.gain else NOT_REACHED for entry in entries]
        unknown = [word for word in words if word in UNKNOWN]
        word = (
            unknown[0] if unknown else words[0] if len(set(words)) == 1 else _mixed(entries, words)
        )
        said.setdefault(word, []).append(str(entries[0].steps))
    figures = "; ".join(f"{word} at {', '.join(steps)} steps" for word, steps in said.items())
    known = said.keys() - UNKNOWN
    claim = (
        "beats"
        if said.keys() == {BETTER}
        else "beats at some steps"
        if BETTER in known
        else "does not beat"
    )
    claim = claim if known else "cannot be compared with"
    return (
        f"As diverse as {at} by all {len(columns)} measures together, the student {claim} a teacher that only lowers "
        f"its temperature ({figures})."
    )


def _mixed(entries: Sequence[EqualEntropy], words: Sequence[str]) -> str:
    """What each diversity says, where they differ."""
    columns: dict[str, list[str]] = {}
    for entry, word in zip(entries, words, strict=True):
        columns.setdefault(word, []).append(ENTROPIES[entry.column])
    return ", ".join(f"{word} by {' and '.join(names)}" for word, names in columns.items())


def _equal_seconds(entries: list[EqualSeconds]) -> Iterator[str]:
    for column, name in ENTROPIES.items():
        clauses = [
            f"{entry.steps} steps in {entry.seconds:.3g} s, gain {_gain(entry.gain)}"
            for entry in entries
            if entry.column == column and entry.gain and entry.seconds
        ]
        figures = "; ".join(clauses) or "not reached, or not timed, at any steps"
        yield f"Equal seconds and {name}, against a temperature-scaled teacher: {figures}."


def _speed(column: str, entries: list[Speed]) -> str:
    reference = entries[0]
    goal = f"gen_ppl {reference.reference:.4g}, the teacher's at {reference.reference_steps} steps"
    clauses = "; ".join(f"{_MODELS[entry.model]} {_pace(entry)}" for entry in entries)
    return f"Speed to {goal}, at its {ENTROPIES[column]}: {clauses}."


_MODELS = {"student": "the student", "temperature_teacher": "temperature alone"}


def _pace(entry: Speed) -> str:
    if entry.steps is None or entry.calls is None or entry.support is None:
        return str(entry.reason)
    if entry.calls == 1:
        return f"needs its {entry.steps} steps"
    seconds = (
        "seconds not measured" if entry.seconds is None else f"{_times(entry.seconds)} seconds"
    )
    return f"{entry.steps} steps, {_times(entry.calls)} calls, {seconds} (in {entry.support:.0%} of resamples)"


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


def _seeds(count: int) -> str:
    if count < 2:
        return "One training seed: figures of one run, not yet a verdict on the method, which takes two at least."
    return f"Training seeds: {count}."
