"""`unmask eval likelihood`: how well a model knows text that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated

import tyro
from torch import Tensor

from unmask.cli.console import emit, parse, progress, remark, say
from unmask.evaluation.judges import Scores, perplexity
from unmask.evaluation.likelihood import Convention, summed
from unmask.limits import INT64, MOST_STEPS, whole
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.held_out import Limit, ScoringRule, Text, held_out, scoring_rule


@dataclass(frozen=True)
class Effort:
    """How many rows of a text are read under a model, and how.

    passes      noise levels a row
    limit       rows of a text at most, spread evenly over all of them; "all" for all
    batch_size  rows a network call
    convention  "bound": a true bound, alpha ~ U(0, 1); "mdlm": as published tables, t >= 1e-3 (below the bound)
    seed        of the noise

    ValueError for counts outside their range.
    """

    passes: int
    limit: Limit
    batch_size: int
    convention: Convention = "bound"
    seed: int = 0

    def __post_init__(self) -> None:
        whole("passes", self.passes, "the noise levels a row", 1, MOST_STEPS)
        whole("batch_size", self.batch_size, "the rows a network call", 1, INT64 - 1)
        if self.limit != "all":
            whole("limit", self.limit, 'the rows at most, or "all"', 1, INT64 - 1)

    def reading(self, model: Model | CausalModel, wrap: bool) -> ScoringRule:
        """How rows, with `wrap` or without, are read under a model."""
        return replace(
            scoring_rule(model, wrap), convention=self.convention, passes=self.passes, batch_size=self.batch_size,
            seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class Likelihood:
    """exp of the mean nats a token of held-out rows.

    model   a run or model directory, a hub id, unmask:teacher or unmask:judge
    text    what it is measured on
    device  where the model runs
    json    print JSON
    """

    model: Annotated[str, tyro.conf.Positional]
    text: Text = field(default_factory=Text)
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(
        default_factory=partial(Effort, passes=4, limit=512, batch_size=64)
    )
    device: str = "cpu"
    json: bool = False


def likelihood(arguments: Sequence[str]) -> int:
    asked = parse(Likelihood, "eval likelihood", arguments)
    model = load(asked.model, device=asked.device)
    found = held_out(asked.text, asked.model, model)
    check_length(asked.model, model, found.rows.shape[1])
    read, x0 = asked.effort.reading(model, found.data.wrap), found.some(asked.effort.limit)
    value = perplexity(scored(read, x0, "likelihood"), read.unit)
    protocol = f"{read.words}; {found.words(len(x0))}"
    if asked.json:
        emit(
            {
                "perplexity": asdict(value),
                "rows": len(x0),
                "of": len(found.rows),
                "protocol": protocol,
            }
        )
    else:
        say(f"{value} [{protocol}]")
    return 0


def check_length(name: str, model: Model | CausalModel, length: int) -> None:
    """Say where rows are longer than those of a model's training, whose numbers then are worse."""
    trained = model.length
    if length > trained:
        remark(
            f"rows of {length} tokens are longer than the {trained} tokens of the rows that {name} was trained on"
        )


def scored(read: ScoringRule, x0: Tensor, stage: str) -> Scores:
    """The scores of rows x0 [n, L], with progress by rows."""
    nats, calls = [], read.calls(len(x0))
    with progress() as (advance, _):
        for done, part in enumerate(read.batches(x0), start=1):
            nats.append(part)
            advance(stage, len(x0) * done // calls, len(x0))
    return summed(nats, read.tokens(x0.shape[1]))
