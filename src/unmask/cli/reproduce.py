"""`unmask reproduce`: measure again what this project ships or claims."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.console import parse, progress, say
from unmask.evaluation.likelihood import nelbo_ppl, next_token_ppl
from unmask.models.pretrained import CausalModel, Model, load
from unmask.recipes import study as studies
from unmask.recipes.build import texts
from unmask.recipes.demo import Demo, train_pair
from unmask.recipes.judge import judge_of
from unmask.recipes.schema import Recipe, from_json, to_json
from unmask.recipes.study import Scene


@dataclass(frozen=True)
class Arguments:
    """Rebuild what is shipped. assets: train the demo's teacher and judge, and measure the teacher's rows.

    work  where the runs are kept; a run that was stopped goes on
    out   where the finished assets go
    """

    what: Annotated[Literal["assets"], tyro.conf.Positional]
    work: Path = Path("runs/assets")
    out: Path = Path("src/unmask/assets")


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    settings = Demo(from_scratch=True)
    with progress() as (advance, note):
        for event in train_pair(settings, asked.work):
            advance(event.stage, event.done, event.total)
            if event.line is not None:
                note(event.line)
    for name in ("teacher", "judge"):
        publish(asked.work / name, asked.out / name)
        say(f"{asked.out / name}: shipped")
    with progress() as (advance, note), (asked.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        study = settings.study
        total = len(study.teacher_steps) * (1 + len(study.teacher_temperatures))
        for done, measured in enumerate(teacher_rows(settings, asked.out), start=1):
            out.write(json.dumps(measured.row.to_json()) + "\n")
            advance("measuring the teacher", done, total)
    return 0


def publish(run: Path, out: Path) -> None:
    """Ship the averaged weights of a run in bfloat16, with recipe, held-out likelihood and training curve."""
    model = load(run / "model")
    recipe = from_json(Recipe, json.loads((run / "recipe.json").read_text("utf-8")))
    held_out = texts(recipe).held_out[:512]
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Model):
        likelihood = nelbo_ppl(model.denoiser, model.process, held_out, passes=4, batch_size=64, generator=generator)
    else:
        likelihood = next_token_ppl(model.predictor, held_out, batch_size=64)
    model.save(out, dtype=torch.bfloat16, recipe=to_json(recipe), held_out_perplexity=str(likelihood))
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    (out / "metrics.jsonl").write_text("\n".join(lines[::20] + lines[-1:]) + "\n", "utf-8")
    card = Path(__file__).parent.parent / "assets" / f"{out.name}.md"
    if card.exists() and card.parent != out.parent:
        shutil.copy(card, out.parent / card.name)


def teacher_rows(settings: Demo, assets: Path) -> list[studies.Measured]:
    """The rows of the shipped teacher, under the protocol of the demo."""
    teacher, judge = load(assets / "teacher"), load(assets / "judge")
    if not isinstance(teacher, Model) or not isinstance(judge, CausalModel):
        raise ValueError(f"{assets} holds no masked teacher with an autoregressive judge: `make assets` trains them")
    data = texts(replace(settings.student, data=replace(settings.student.data, tokenizer=str(assets / "teacher"))))
    scene = Scene(settings.study, judge_of(judge, data.train.shape[1]), data.held_out, data.digest)
    study = settings.study
    temperatures = (1.0, *study.teacher_temperatures)
    return list(studies.measure("teacher", teacher, scene, study.teacher_steps, temperatures))
