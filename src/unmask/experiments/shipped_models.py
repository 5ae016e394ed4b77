"""Train the models that this package ships, and measure them for their cards."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import torch

from unmask.atomic_files import write_text
from unmask.cli.console import Progress
from unmask.data.hub import PACKAGE_PREFIX
from unmask.dataclass_json import dumps, to_json
from unmask.evaluation.judges import perplexity
from unmask.experiments.driver import open_teacher, teacher_rows
from unmask.experiments.plan import Cell, PlanTeacher
from unmask.experiments.plans import DEMO, SHIPPED, demo, teacher_and_judge, with_tokenizer
from unmask.experiments.rows_file import ROWS
from unmask.models.denoiser import AUTOREGRESSIVE, MASKED, UNIFORM
from unmask.models.model import LanguageModel, load
from unmask.recipes.catalog import recipe
from unmask.recipes.held_out import Text, held_out, scoring_rule
from unmask.recipes.schema import Recipe, recipe_from_json

NAMES = ("teacher", "judge", "duo")
_KINDS = {
    MASKED: "A masked-diffusion teacher (MDLM)",
    UNIFORM: "A uniform-state diffusion teacher (Duo)",
    AUTOREGRESSIVE: "An autoregressive judge",
}
CARD = """# The demo's {name}

{kind} of {parameters:,} weights for `unmask demo` and `unmask reproduce`:
small enough for two CPU cores, and not useful for anything else.
`make assets` makes it from the recipe `{recipe}`; `config.json` holds the whole recipe.

| | |
|---|---|
| text | {part} of `{corpus}`: messages of US presidents, 1790 to 2026, public domain |
| rows | {length} tokens of a byte-level BPE with {vocab_size} entries from the teacher's half |
| training | {steps:,} updates of {batch_size} rows, {tokens:.0f} M tokens; see `metrics.jsonl` |
| held-out perplexity a token | {likelihood}, ± a standard error |
| weights | EMA, bfloat16, Apache-2.0 |

`unmask eval likelihood src/unmask/assets/{name} --limit all` measures the perplexity again. Teacher
and judge saw different documents. A judge this small measures how close a text is to presidential
prose, not its quality: compare its figures with each other under one protocol, not with a paper's.
"""


def recipes(directory: Path) -> dict[str, Recipe]:
    """The recipes of all shipped models, trained below `directory`."""
    tokenizer = str(directory / "teacher" / "model")
    both = teacher_and_judge(directory, SHIPPED)
    return both | {"duo": with_tokenizer(recipe("demo-duo"), tokenizer)}


def measure_rows(work: Path, out: Path) -> Generator[Progress, None, None]:
    """Measure the masked teacher of `out` and write its rows there.

    Rows in `work` are not measured again.
    """
    teacher = str(out / "teacher")
    student = with_tokenizer(recipe("demo-mcd"), teacher)
    plan = replace(
        demo(work),
        teachers={"teacher": PlanTeacher(teacher, DEMO.sampler)},
        judge=str(out / "judge"),
        cells={"": Cell("teacher", student)},
        known_rows=(),
    )
    lines = []
    for event, measured in teacher_rows(plan, open_teacher(plan, "teacher", work), work):
        lines.append(dumps(measured.row.to_json()) + "\n")
        yield event
    write_text(out / ROWS, "".join(lines))


def publish(run: Path, out: Path) -> None:
    """Write the EMA weights of a run in bfloat16, with recipe, held-out likelihood and curve."""
    load(run / "model").save(out, dtype=torch.bfloat16)
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    write_text(out / "metrics.jsonl", "\n".join(lines[::20] + lines[-1:]) + "\n")
    measure_card(out)


def measure_card(out: Path) -> None:
    """Write recipe and held-out likelihood of a shipped model into config.json and README.md.

    The likelihood is that of the rounded weights in `out`.
    """
    model = load(out)
    plan = recipe_from_json(model.card["recipe"], f"recipe in the card of {out}")
    if not plan.data.tokenizer.startswith("bpe:"):
        # Only the teacher's run trains a tokenizer, which the others share.
        plan = with_tokenizer(plan, PACKAGE_PREFIX + "teacher")
    text = held_out(Text(), str(out), model)
    rule, n = scoring_rule(model, text.data.wrap), len(text.rows)
    value = perplexity(rule.scores(text.some("all")), rule.unit)
    likelihood = f"{value} [{rule.words}; {text.words(n)}]"
    model.save(out, dtype=torch.bfloat16, recipe=to_json(plan), held_out_perplexity=likelihood)
    write_text(out / "README.md", card(out.name, plan, model, likelihood))


def card(name: str, plan: Recipe, model: LanguageModel, likelihood: str) -> str:
    """The model card of a shipped model in Markdown."""
    length = plan.network.length
    return CARD.format(
        name=name,
        kind=_KINDS[model.kind],
        parameters=model.parameters,
        recipe=plan.name,
        part=plan.data.part,
        corpus=plan.data.corpus,
        length=length,
        vocab_size=model.vocab_size,
        steps=plan.steps,
        batch_size=plan.batch_size,
        tokens=plan.steps * plan.batch_size * length / 1e6,
        likelihood=likelihood,
    )
