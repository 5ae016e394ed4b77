"""The conditions for a claim about a student, and the reasons against one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unmask.evaluation.measure import GEN_PPL, Row

LEAST = 16  # texts a row: with fewer, 95 % intervals cover the truth far less often (benchmarks/coverage.py)
MOST_REPEATED = 0.5  # share of 4-grams that stand in the same text before, or in another text
UNIGRAM = "unigram draws"


def against(
    teacher: Sequence[Row], student: Sequence[Row], naive: Sequence[Row], data: Row | None
) -> list[str]:
    """The reasons against a claim about the student, a clause each; empty where the rows allow one.

    teacher, student  at temperature 1
    naive             among them the unigram draws, the score of a model without any context
    """
    return list(_reasons(teacher, student, naive, data))


def _reasons(
    teacher: Sequence[Row], student: Sequence[Row], naive: Sequence[Row], data: Row | None
) -> Iterator[str]:
    best = max(teacher, key=lambda row: row.setting.steps)
    protocol = best.protocol
    if protocol.read_by_judge:
        yield f"the judge was trained on {protocol.read_by_judge:.0%} of the held-out documents"
    if protocol.samples < LEAST:
        yield f"n = {protocol.samples} texts a row are too few for an interval, {LEAST} are the least"
    if {row.setting.model for row in student} & {row.setting.model for row in teacher}:
        yield "student and teacher have the same weights"
    floor = next((row.measures[GEN_PPL].value for row in naive if row.name == UNIGRAM), None)
    if floor is not None:
        who = [(f"the teacher at {best.setting.steps} steps", best)] + (
            [("real text", data)] if data else []
        )
        for name, row in who:
            value = row.measures[GEN_PPL].value
            if not value < floor:
                yield f"{name} has gen PPL {value:.4g}, no lower than {floor:.4g} of {UNIGRAM}"
    for name, rows in (("teacher", [best]), ("student", student)):
        for row in rows:
            for key, where in (("overlap_4", "other texts"), ("repetition_4", "the same text")):
                share = row.measures[key].value if key in row.measures else 0.0
                if share > MOST_REPEATED:
                    yield f"{share:.0%} of the {name}'s 4-grams at {row.setting.steps} steps repeat {where}"
