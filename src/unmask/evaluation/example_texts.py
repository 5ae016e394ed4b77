"""Texts to be looked at: of both models at the same latents, as they are unmasked, and real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from unmask.data.packing import Rows, evenly_spaced
from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.sweep import EvalSettings
from unmask.models.model import Model
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import sample, watch


def shown(teacher: Model, student: Model, study: EvalSettings, real: Rows) -> dict[str, Any]:
    """What a report shows besides its numbers: texts of both models, real ones, and texts as they are unmasked."""
    if teacher.tokenizer is None:
        raise ValueError(
            "samples are shown as text, and this model has no tokenizer: save it with one"
        )
    length = real.shape[1]
    return {
        "samples": side_by_side(teacher, student, study, length),
        "real": excerpt(real, teacher.tokenizer.decode),
        "player": films(teacher, student, study, length),
    }


def films(teacher: Model, student: Model, study: EvalSettings, length: int) -> list[dict[str, Any]]:
    """Texts as they are unmasked; none of uniform diffusion, where every position changes again and again."""
    if not isinstance(teacher.process, MaskedProcess):
        return []
    plans = [("teacher", teacher, study.player_steps), ("student", student, study.player_steps),
             ("teacher", teacher, length), ("student", student, study.round_steps)]  # fmt: skip
    titled = {f"{name}, {steps} steps": (model, steps) for name, model, steps in plans}
    return [film(model, title, steps, length, study) for title, (model, steps) in titled.items()]


def side_by_side(
    teacher: Model, student: Model, study: EvalSettings, length: int
) -> list[dict[str, Any]]:
    """Texts of both models at the same latents and step counts."""
    table = []
    for steps in study.student_steps if study.shown else ():
        texts = [
            sample(
                model, study.shown, length, steps, study.seed, sampler=study.sampler, draw=study.draw,
                batch_size=study.batch_size, device=model.device,
            ).texts
            for model in (teacher, student)
        ]  # fmt: skip
        if texts[0] is None or texts[1] is None:
            raise ValueError(
                "samples are shown as text, and this model has no tokenizer: save it with one"
            )
        pairs = zip(*texts, strict=True)
        table += [
            {
                "latent": latent,
                "steps": steps,
                "temperature": 1.0,
                "teacher": of_teacher,
                "student": of_student,
            }
            for latent, (of_teacher, of_student) in enumerate(pairs)
        ]
    return table


def film(model: Model, title: str, steps: int, length: int, study: EvalSettings) -> dict[str, Any]:
    """One text as it is unmasked: its final pieces, and the positions that each network call reveals."""
    options = SampleOptions(
        1, length, steps, study.seed, sampler=study.sampler, draw=study.draw, device=model.device
    )
    frames = list(watch(model, options))
    calls = [(before, after) for before, after in pairwise(frames) if len(after.rows)]
    final = frames[-1].z[0].tolist()
    return {
        "title": title,
        "pieces": [model.tokenizer.decode([token]) for token in final]
        if model.tokenizer
        else [str(t) for t in final],
        "frames": [after.changed[0].nonzero().flatten().tolist() for _, after in calls],
        "alphas": [before.alpha for before, _ in calls],
    }


def excerpt(rows: Rows, decode: Callable[[Sequence[int]], str], n: int = 2) -> list[str]:
    """n real rows as text, spread evenly over all of them."""
    return [decode(row) for row in rows[evenly_spaced(len(rows), n)].tolist()]
