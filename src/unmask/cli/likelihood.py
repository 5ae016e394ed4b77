"""`unmask eval likelihood`: how well a model knows text that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import tyro
from torch import Tensor

from unmask.cli.console import emit, parse, progress, say
from unmask.evaluation.judges import Scores, perplexity
from unmask.evaluation.likelihood import Convention, summed
from unmask.limits import INT64, MOST_STEPS, whole
from unmask.models.pretrained import load
from unmask.recipes.held_out import Limit, Reading, Text, held_out, reading


@dataclass(frozen=True)
class Likelihood:
    """exp of the mean nats a token of held-out rows.

    model       a run or model directory, a hub id, unmask:teacher or unmask:judge
    text        what it is measured on
    convention  "bound": a true bound, alpha ~ U(0, 1); "mdlm": as published tables, t >= 1e-3 (below the bound)
    passes      noise levels a row
    limit       rows at most, spread evenly over all of them; "all" for all
    batch_size  rows a network call
    seed        of the noise
    device      where the model runs
    json        print JSON
    """

    model: Annotated[str, tyro.conf.Positional]
    text: Text = field(default_factory=Text)
    convention: Convention = "bound"
    passes: int = 4
    limit: Limit = 512
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    json: bool = False


def likelihood(arguments: Sequence[str]) -> int:
    asked = parse(Likelihood, "eval likelihood", arguments)
    check_counts(asked.limit, asked.batch_size, asked.passes)
    model = load(asked.model, device=asked.device)
    found = held_out(asked.text, asked.model, model)
    read = replace(
        reading(asked.model, model, found.data.wrap), convention=asked.convention, passes=asked.passes,
        batch_size=asked.batch_size, seed=asked.seed,
    )  # fmt: skip
    x0 = found.some(asked.limit)
    value = perplexity(scored(read, x0, "likelihood"), read.unit)
    protocol = f"{read.words}; {found.words(len(x0))}"
    if asked.json:
        emit({"perplexity": asdict(value), "rows": len(x0), "of": len(found.rows), "protocol": protocol})
    else:
        say(f"{value} [{protocol}]")
    return 0


def scored(read: Reading, x0: Tensor, stage: str) -> Scores:
    """The scores of rows x0 [n, L], with progress by rows."""
    nats, calls = [], read.calls(len(x0))
    with progress() as (advance, _):
        for done, part in enumerate(read.batches(x0), start=1):
            nats.append(part)
            advance(stage, len(x0) * done // calls, len(x0))
    return summed(nats, read.tokens(x0.shape[1]))


def check_counts(limit: Limit, batch_size: int, passes: int) -> None:
    """ValueError for counts outside their range."""
    for name, count, meaning in (
        ("limit", limit, 'the rows at most, or "all"'),
        ("batch_size", batch_size, "the rows a network call"),
        ("passes", passes, "the noise levels a row"),
    ):
        if count != "all":
            whole(name, count, meaning, 1, MOST_STEPS if name == "passes" else INT64 - 1)
