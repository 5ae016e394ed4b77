"""`unmask reproduce`: measure again what this project ships or claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.console import follow, parse, progress, say, table
from unmask.evaluation.likelihood import nelbo_ppl, next_token_ppl
from unmask.evaluation.measure import require_same_protocol
from unmask.models.pretrained import CausalModel, Model, load
from unmask.plain import to_json
from unmask.recipes import study as studies
from unmask.recipes.build import texts
from unmask.recipes.demo import Demo, from_scratch, train, trained
from unmask.recipes.experiment import REPORT, ROWS, teacher_rows
from unmask.recipes.larger import HEAD, Larger, cells, folder, larger, summary
from unmask.recipes.schema import Recipe, recipe_of


@dataclass(frozen=True)
class Arguments:
    """Measure again what this project ships or claims.

    what    assets: train the demo's teacher and judge, and measure the teacher's rows
            study: on rows of 256 tokens, distil by recipes that differ in one factor, and measure each
    work    where the runs are kept (runs/assets, runs/study); a run that was stopped goes on
    out     where finished assets go
    cells   cells of the study (all)
    """

    what: Annotated[Literal["assets", "study"], tyro.conf.Positional]
    work: Path | None = None
    out: Path = Path("src/unmask/assets")
    cells: tuple[str, ...] = ()


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    work = asked.work or Path("runs") / asked.what
    done = assets(work, asked.out) if asked.what == "assets" else study(work, asked.cells)
    if not done:
        say(f"stopped; the state is saved in {work}, and the same command goes on from there")
    return 0 if done else 1


def assets(work: Path, out: Path) -> bool:
    """Train, publish, measure; whether all is done."""
    settings = Demo(from_scratch=True)
    plans = from_scratch(settings, work)
    follow(train(plans, work))
    if not trained(plans, work):
        return False
    for name in plans:
        publish(work / name, out / name)
        say(f"{out / name}: shipped")
    rows = teacher_rows(str(out / "teacher"), str(out / "judge"), settings.student, settings.study, work / ROWS)
    found = []
    with progress() as (advance, _):
        for event, measured in rows:
            advance(event.stage, event.done, event.total)
            found.append(json.dumps(measured.row.to_json()) + "\n")
    (out / ROWS).write_text("".join(found), "utf-8")
    return True


def study(work: Path, only: tuple[str, ...]) -> bool:
    """Carry the larger study out, all cells or `only` some; print the table of the cells that are measured, draw it."""
    settings = Larger()
    done = follow(larger(settings, work, only)) is not None
    files = {name: work / folder(name) / REPORT for name in cells(settings.student)}
    reports = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    if reports:
        from unmask.report.axes import PNG_DPI
        from unmask.report.figures import study as picture_of
        from unmask.report.record import read_report
        from unmask.report.style import drawing

        records = {name: read_report(report) for name, report in reports.items()}
        require_same_protocol(line.row for record in records.values() for _, line in record.lines)
        table("students; gains over a temperature-scaled teacher at equal steps", HEAD, summary(reports))
        steps = max(settings.study.teacher_steps) // 16
        with drawing():
            picture_of(records, steps).savefig(work / "study.png", dpi=PNG_DPI)
        say(f"{work / 'study.png'}: all cells at {steps} steps")
    return done


def publish(run: Path, out: Path) -> None:
    """Ship the averaged weights of a run in bfloat16, with recipe, held-out likelihood and training curve."""
    recipe, trained = recipe_of(run), load(run / "model")
    trained.save(out, dtype=torch.bfloat16)
    model = load(out)  # what is shipped is measured: rounded to bfloat16
    held_out = texts(recipe).held_out[:512]
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Model):
        likelihood = nelbo_ppl(model.denoiser, model.process, held_out, passes=4, batch_size=64, generator=generator)
    else:
        likelihood = next_token_ppl(model.predictor, held_out, batch_size=64)
    trained.save(out, dtype=torch.bfloat16, recipe=to_json(recipe), held_out_perplexity=str(likelihood))
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    (out / "metrics.jsonl").write_text("\n".join(lines[::20] + lines[-1:]) + "\n", "utf-8")
    (out / "README.md").write_text(card(out.name, recipe, model, str(likelihood)), "utf-8")


def card(name: str, recipe: Recipe, model: Model | CausalModel, likelihood: str) -> str:
    """The model card of a shipped model, from its recipe and what was measured."""
    kind = "A masked-diffusion teacher (MDLM)" if isinstance(model, Model) else "An autoregressive judge"
    tokens = recipe.steps * recipe.batch_size * recipe.network.length / 1e6
    vocab_size, length = model.network.shape.vocab_size, recipe.network.length
    return f"""# The demo's {name}

{kind} of {studies.parameters(model):,} weights for `unmask demo`: small enough for two CPU cores,
and good for nothing else. `make assets` makes it from the recipe `{recipe.name}`, which stands whole in `config.json`.

| | |
|---|---|
| text | {recipe.data.part} of `{recipe.data.corpus}`: messages of US presidents, 1790 to 2026, public domain |
| rows | {length} tokens of a byte-level BPE with {vocab_size} entries, trained on the teacher's half |
| training | {recipe.steps:,} updates of {recipe.batch_size} rows, {tokens:.0f} M tokens; see `metrics.jsonl` |
| held-out perplexity a token | {likelihood}, ± a standard error, seed 0, documents of its own half |
| weights | moving average, bfloat16, Apache-2.0 |

`unmask eval likelihood src/unmask/assets/{name}` measures the perplexity again. Teacher and judge saw different
documents. A judge this small measures likeness to presidential prose, not quality of text: its figures compare with
each other under one protocol, and with no paper's.
"""
