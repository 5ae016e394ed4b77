"""One experiment: distil a teacher by a recipe, measure student and teacher, and gather what a report shows.

`experiment` is a generator: it yields `Progress` for whoever shows it, and the last one carries the report. Everything
that it finds on the way is kept in its directory, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unmask import __version__
from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.dataclass_json import dumps
from unmask.evaluation import sweep as studies
from unmask.evaluation.example_texts import shown
from unmask.evaluation.frontier import conclude, frontier
from unmask.evaluation.judge_by_name import judge_of
from unmask.evaluation.measure import EvaluationProtocol, Row
from unmask.evaluation.sweep import REPORT, EvalContext, EvalSettings, MeasuredRow
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.contamination import share_read
from unmask.recipes.data import TrainingData, texts
from unmask.recipes.run import run
from unmask.recipes.schema import DistillationSettings, Recipe
from unmask.training import launch

ROWS, ROUNDS = "rows.jsonl", "rounds.jsonl"


@dataclass(frozen=True)
class Experiment:
    """What is distilled from what, and how it is measured.

    student        a recipe of distillation; its teacher and tokenizer are replaced by `teacher`
    teacher, judge directories or names of models
    source         where these two come from, in words
    known          rows that were measured before, of any model
    """

    title: str
    student: Recipe
    teacher: str
    judge: str
    study: EvalSettings
    source: str = "trained here"
    known: Sequence[MeasuredRow] = ()

    def recipe(self) -> Recipe:
        """The student's recipe with the teacher that it is given."""
        objective = self.student.objective
        if not isinstance(objective, DistillationSettings):
            raise ValueError(
                f"a student is distilled: want a recipe of distillation, got {objective.kind}"
            )
        data = replace(self.student.data, tokenizer=self.teacher)
        return replace(self.student, objective=replace(objective, teacher=self.teacher), data=data)


def experiment(plan: Experiment, directory: Path) -> Iterator[Progress]:
    """Carry an experiment out in `directory`, and write its report.json there; in one process."""
    if launch().world > 1:
        raise ValueError(
            "an experiment measures in one process: train by `torchrun`, then start it without"
        )
    started = time.perf_counter()
    yield Progress("reading", 0, 1)
    directory.mkdir(parents=True, exist_ok=True)
    teacher, judge, recipe = diffusion(load(plan.teacher)), causal(load(plan.judge)), plan.recipe()
    data = texts(recipe)
    length = data.held_out.shape[1]
    known = [*plan.known, *read_rows(directory / ROWS)]
    reads, share = judge_of(judge, length), share_read(plan.judge, recipe.data)
    scene = EvalContext(
        plan.study, reads, data.held_out, data.digest, known, wrap=data.wrap, read_by_judge=share
    )
    corpus = recipe.data.corpus
    count = "a stream of" if data.train_rows is None else data.train_rows
    yield Progress("reading", 1, 1, f"{corpus}: {count} rows of {length} tokens to learn from")

    said: list[str] = []
    for update in run(recipe, directory / "student", data=data, say=said.append):
        line = f"student: {said.pop(0)}" if said else None
        if update.student is not None:
            round_ = _round(diffusion(update.student), scene, recipe, update.step)
            note(directory / ROUNDS, round_)
            line = "round {round}: gen PPL {gen_ppl:.1f}, entropy {entropy:.2f} nats at {steps} steps".format(
                **round_
            )
        yield Progress("distilling", update.step, recipe.steps, line)
    if not (directory / "student" / "model").exists():
        return  # stopped by a signal: the state is saved, and the next call goes on
    student = diffusion(load(directory / "student" / "model"))
    seconds = [line["seconds"] for line in lines(directory / "student" / "metrics.jsonl")]

    rows: Mapping[str, list[MeasuredRow]] = {}
    for found in frontier(teacher, student, scene, judge):
        rows = found.rows
        keep(found.measured, known, directory / ROWS)
        yield Progress("measuring", found.done, found.total, row_line(found.name, found.measured))
    report = conclude(rows) | shown(teacher, student, plan.study, data.held_out)
    report |= {
        "title": plan.title,
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "seed": plan.study.seed,
        "corpus": _corpus(corpus, data),
        "models": {
            "teacher": {"parameters": teacher.parameters, "source": plan.source},
            "student": {
                "parameters": student.parameters,
                "source": f"{recipe.steps} steps of {recipe.objective.kind}",
            },
            "judge": {"parameters": judge.parameters, "source": plan.source},
        },
        "rounds": _rounds(directory / ROUNDS, scene),
        "training": _curves(directory / "student" / "metrics.jsonl"),
        "seconds": {"distil": sum(seconds), "total": time.perf_counter() - started},
    }
    write_text(directory / REPORT, dumps(report, indent=1) + "\n")
    yield Progress("writing", 1, 1, report=report)


def teacher_rows(
    teacher: str,
    judge: str,
    recipe: Recipe,
    study: EvalSettings,
    file: Path,
    known: Sequence[MeasuredRow] = (),
) -> Iterator[tuple[Progress, MeasuredRow]]:
    """The rows of a teacher over the steps and temperatures of a study, on the held-out text of `recipe`.

    They are kept in `file`; those that it holds, and those in `known`, are not measured again.
    """
    data = texts(replace(recipe, data=replace(recipe.data, tokenizer=teacher)))
    file.parent.mkdir(parents=True, exist_ok=True)
    known = [*known, *read_rows(file)]
    reads, share = (
        judge_of(causal(load(judge)), data.held_out.shape[1]),
        share_read(judge, recipe.data),
    )
    scene = EvalContext(
        study, reads, data.held_out, data.digest, known, wrap=data.wrap, read_by_judge=share
    )
    temperatures = (1.0, *study.teacher_temperatures)
    total = len(study.teacher_steps) * len(temperatures)
    rows = studies.measure(
        "teacher", diffusion(load(teacher)), scene, study.teacher_steps, temperatures
    )
    for done, measured in enumerate(rows, start=1):
        keep(measured, known, file)
        yield (
            Progress("measuring the teacher", done, total, row_line("teacher", measured)),
            measured,
        )


def _round(model: Model, scene: EvalContext, plan: Recipe, step: int) -> dict[str, Any]:
    """One line of the table of rounds."""
    if not isinstance(plan.objective, DistillationSettings):
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
        "protocol": asdict(scene.protocol),
    }


def _rounds(file: Path, scene: EvalContext) -> list[dict[str, Any]]:
    """The table of rounds, as far as it was measured under this protocol and in these steps."""
    known = [line for line in lines(file) if line["steps"] == scene.study.round_steps]
    found = [
        line for line in known if EvaluationProtocol.from_json(line["protocol"]) == scene.protocol
    ]
    return list({line["round"]: line for line in found}.values())


def _corpus(name: str, data: TrainingData) -> dict[str, Any]:
    found = {
        "name": name,
        "train_rows": data.train_rows,
        "held_out_rows": len(data.held_out),
        "length": data.held_out.shape[1],
        "vocab_size": data.tokenizer.vocab_size,
        "digest": data.digest,
    }
    return {name: fact for name, fact in found.items() if fact is not None}


def row_line(name: str, measured: MeasuredRow) -> str:
    """A row in words, for a terminal."""
    row = measured.row
    gen_ppl, entropy = row.measures["gen_ppl"], row.measures["entropy"]
    return (
        f"{name.replace('_', ' ')}, {row.setting.steps} steps, temperature {row.setting.temperature:g}: "
        f"gen PPL {gen_ppl.value:.1f}, entropy {entropy.value:.2f} nats, {row.setting.nfe:.1f} calls"
        + (" (shipped)" if measured.shipped else "")
    )


def diffusion(model: object) -> Model:
    """The model, if it is a diffusion model."""
    if not isinstance(model, Model):
        raise ValueError(f"a diffusion model is distilled, got {type(model).__name__}")
    return model


def causal(model: object) -> CausalModel:
    """The model, if it is autoregressive."""
    if not isinstance(model, CausalModel):
        raise ValueError(f"the judge is autoregressive, got {type(model).__name__}")
    return model


def read_rows(file: Path, shipped: bool = False) -> list[MeasuredRow]:
    """The rows of a file of JSON lines; none where there is no file."""
    return [MeasuredRow(Row.from_json(line), shipped) for line in lines(file)]


def keep(measured: MeasuredRow, known: Sequence[MeasuredRow], file: Path) -> bool:
    """Note a row that was measured here and was not known before; whether it was."""
    new = not measured.shipped and all(measured is not before for before in known)
    if new:
        note(file, measured.to_json())
    return new


def note(file: Path, line: Mapping[str, Any]) -> None:
    """Add a JSON line, in the place of one that a killed process left unfinished. OSError names the file."""
    try:
        with file.open("a+b") as out:
            out.seek(0)
            out.truncate(out.read().rfind(b"\n") + 1)
            out.write(dumps(line).encode() + b"\n")
    except OSError as error:
        raise OSError(
            f"{file} did not get its next line ({error.strerror}): the lines before it are kept; make room, and the "
            "same command goes on"
        ) from error


def lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; a last one that a killed process left unfinished does not count."""
    try:
        whole, _, _ = file.read_text("utf-8").rpartition("\n") if file.exists() else ("", "", "")
        return [json.loads(line) for line in whole.split("\n") if line]
    except ValueError as error:
        raise ValueError(
            f"{file} holds a line that is no JSON: {error}. Move the file away to measure again"
        ) from error


def _curves(file: Path) -> dict[str, list[float]]:
    """The columns of a run's metrics.jsonl that the report draws; rounds count from 1, as in its table."""
    table = lines(file)
    names = [
        name
        for name in ("step", "loss", "distillation", "reconstruction")
        if all(name in line for line in table)
    ]
    curves = {name: [line[name] for line in table] for name in names}
    return curves | {"round": [int(line["round"]) + 1 for line in table]}
