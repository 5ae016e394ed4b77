"""Example texts of a report: both models at the same latents, their unmasking, and real text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from unmask.data.packing import Rows, evenly_spaced
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import draw_row
from unmask.models.model import Model
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import watch


def example_texts(
    teacher: Model, student: Model, study: EvalSettings, real: Rows
) -> dict[str, Any]:
    """The example texts of a report.

    Args:
        teacher: the teacher, with a tokenizer.
        student: the student, with a tokenizer.
        study: the settings.
        real: held-out rows [m, L].

    Returns:
        JSON values: "samples" (`side_by_side`), "real" (`excerpt`), "player" (`unmasking_traces`).
    """
    if teacher.tokenizer is None:
        raise _no_tokenizer("teacher")
    length = real.shape[1]
    return {
        "samples": side_by_side(teacher, student, study, length),
        "real": excerpt(real, teacher.tokenizer.decode),
        "player": unmasking_traces(teacher, student, study, length),
    }


def unmasking_traces(
    teacher: Model, student: Model, study: EvalSettings, length: int
) -> list[dict[str, Any]]:
    """Traces of both models at several step counts.

    Empty for uniform diffusion, where every position changes many times.
    """
    if not teacher.completes_texts:
        return []
    plans = [
        ("teacher", teacher, study.player_steps),
        ("student", student, study.player_steps),
        ("teacher", teacher, length),
        ("student", student, study.round_steps),
    ]
    by_title = {f"{name}, {steps} steps": (model, steps) for name, model, steps in plans}
    return [
        unmasking_trace(model, title, steps, length, study)
        for title, (model, steps) in by_title.items()
    ]


def side_by_side(
    teacher: Model, student: Model, study: EvalSettings, length: int
) -> list[dict[str, Any]]:
    """Texts of both models at the same latents and step counts, a pair per entry."""
    if not study.shown:
        return []
    few = replace(study, samples=study.shown)
    table = []
    for steps in study.student_steps:
        texts = [draw_row(model, few, length, steps, 1.0).texts for model in (teacher, student)]
        if texts[0] is None or texts[1] is None:
            raise _no_tokenizer("teacher or student")
        for latent, (of_teacher, of_student) in enumerate(zip(texts[0], texts[1], strict=True)):
            pair = {"teacher": of_teacher, "student": of_student}
            table.append({"latent": latent, "steps": steps, "temperature": 1.0, **pair})
    return table


def unmasking_trace(
    model: Model, title: str, steps: int, length: int, study: EvalSettings
) -> dict[str, Any]:
    """The unmasking of one text.

    Returns:
        JSON values: "title", "pieces" (the final text's tokens as strings), "frames" (the positions
        that each network call unmasks), "alphas" (the alpha of each call).
    """
    options = SampleOptions(
        1, length, steps, study.seed, sampler=study.sampler, draw=study.draw, device=model.device
    )
    frames = list(watch(model, options))
    calls = [(before, after) for before, after in pairwise(frames) if len(after.rows)]
    final, tokenizer = frames[-1].z[0].tolist(), model.tokenizer
    return {
        "title": title,
        "pieces": [
            str(token) if tokenizer is None else tokenizer.decode([token]) for token in final
        ],
        "frames": [after.changed[0].nonzero().flatten().tolist() for _, after in calls],
        "alphas": [before.alpha for before, _ in calls],
    }


def excerpt(rows: Rows, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Two real rows as texts, spread evenly over all rows."""
    return [decode(row) for row in rows[evenly_spaced(len(rows), 2)].tolist()]


def _no_tokenizer(name: str) -> ValueError:
    return ValueError(f"{name} has no tokenizer, which example texts need: save it with one")
