"""`unmask reproduce`: measure again what this project ships or claims."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
            out.flush()
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
    (out / "README.md").write_text(card(out.name, recipe, model, str(likelihood)), "utf-8")


def card(name: str, recipe: Recipe, model: Model | CausalModel, likelihood: str) -> str:
    """The model card of a shipped model, from its recipe and what was measured."""
    kind = "masked-diffusion teacher (MDLM)" if isinstance(model, Model) else "autoregressive judge"
    tokens = recipe.steps * recipe.batch_size * recipe.network.length / 1e6
    vocab_size, length = model.network.shape.vocab_size, recipe.network.length
    return f"""# The demo's {name}

A {kind} of {studies.parameters(model):,} weights for `unmask demo`: small enough for two CPU cores,
and good for nothing else. `make assets` makes it from the recipe `{recipe.name}`, which stands whole in `config.json`.

| | |
|---|---|
| text | {recipe.data.part} of `{recipe.data.corpus}`: messages of US presidents, 1790 to 2026, public domain |
| rows | {length} tokens of a byte-level BPE with {vocab_size} entries, trained on the teacher's half |
| training | {recipe.steps:,} updates of {recipe.batch_size} rows, {tokens:.0f} M tokens; see `metrics.jsonl` |
| held-out perplexity a token | {likelihood}, seed 0, documents of its own half |
| weights | moving average, bfloat16, Apache-2.0 |

Teacher and judge saw different documents. A judge this small measures likeness to presidential prose, not quality of
text: its figures compare with each other under one protocol, and with no paper's.
"""


def teacher_rows(settings: Demo, assets: Path) -> Iterator[studies.Measured]:
    """The rows of the shipped teacher, under the protocol of the demo."""
    teacher, judge = load(assets / "teacher"), load(assets / "judge")
    if not isinstance(teacher, Model) or not isinstance(judge, CausalModel):
        raise ValueError(f"{assets} holds no masked teacher with an autoregressive judge: `make assets` trains them")
    data = texts(replace(settings.student, data=replace(settings.student.data, tokenizer=str(assets / "teacher"))))
    scene = Scene(settings.study, judge_of(judge, data.train.shape[1]), data.held_out, data.digest)
    study = settings.study
    temperatures = (1.0, *study.teacher_temperatures)
    return studies.measure("teacher", teacher, scene, study.teacher_steps, temperatures)
