"""`unmask eval likelihood`: perplexity of held-out text, a bound for diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
import tyro
from torch import Tensor

from unmask.cli.console import emit, parse, progress, remark, say, table
from unmask.evaluation.judges import Scores, perplexity
from unmask.evaluation.likelihood import Convention, summed
from unmask.evaluation.measure import Measure, mean
from unmask.evaluation.scoring_rules import ScoringRule
from unmask.evaluation.step_bound import StepBound, bound_of, step_bound_batches
from unmask.limits import INT64, MOST_STEPS, whole
from unmask.models.model import CausalModel, LanguageModel, Model, load
from unmask.recipes.held_out import HeldOut, Limit, Text, held_out, scoring_rule


@dataclass(frozen=True)
class Effort:
    """Size and settings of a likelihood measurement; ValueError for counts outside their range.

    Attributes:
        passes: noise levels per row
        limit: maximum rows of a text, spread evenly over all of them; "all" for all
        batch_size: rows per network call
        convention: "bound": a true bound, alpha ~ U(0, 1). "mdlm": as in published tables, with
            t >= 1e-3, which gives less than the bound
        seed: seed of the noise
    """

    passes: int
    limit: Limit
    batch_size: int
    convention: Convention = "bound"
    seed: int = 0

    def __post_init__(self) -> None:
        whole("passes", self.passes, "noise levels per row", 1, MOST_STEPS)
        whole("batch_size", self.batch_size, "rows per network call", 1, INT64 - 1)
        if self.limit != "all":
            whole("limit", self.limit, 'maximum rows, or "all"', 1, INT64 - 1)

    def scoring_rule(self, model: Model | CausalModel, wrap: bool) -> ScoringRule:
        """The scoring rule of a model for rows with or without BOS and EOS (`wrap`)."""
        return scoring_rule(
            model,
            wrap,
            convention=self.convention,
            passes=self.passes,
            batch_size=self.batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Likelihood:
    """Measure the perplexity of held-out text: exp of the mean nats per token.

    Attributes:
        model: run or model directory, hub id, unmask:teacher or unmask:judge
        steps: step counts N of a sampler; measure the N-step bound for each, with `passes` sets of
            levels a row. It bounds the likelihood of text under the sampler
        order: orders of unmasking for `steps`: random, spread, entropy or margin, with blocks and
            a count as in spread,count=equal; differences are to the first one
        text: text to measure on
        effort: size and settings of the measurement
        device: device of the model
        json: print JSON
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    steps: tuple[int, ...] = ()
    order: tuple[str, ...] = ("random",)
    text: Text = field(default_factory=Text)
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(
        default_factory=partial(Effort, passes=4, limit=512, batch_size=64)
    )
    device: str = "cpu"
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    options = parse(Likelihood, verb, arguments)
    model = load(options.model, device=options.device)
    real = held_out(options.text, options.model, model)
    check_length(options.model, model, real.rows.shape[1])
    x0 = real.some(options.effort.limit)
    if options.steps:
        return _step_bounds(options, model, real, x0)
    if options.order != ("random",):
        raise ValueError(f"order has no effect without steps: got {options.order}; give --steps")
    rule = options.effort.scoring_rule(model, real.data.wrap)
    value = perplexity(scored(rule, x0, "likelihood"), rule.unit)
    protocol = f"{rule.words}; {real.words(len(x0))}"
    if options.json:
        counts = {"rows": len(x0), "of": len(real.rows)}
        emit({"perplexity": asdict(value), **counts, "protocol": protocol})
    else:
        say(f"{value} [{protocol}]")
    return 0


def _step_bounds(options: Likelihood, model: Model | CausalModel, real: HeldOut, x0: Tensor) -> int:
    """Print the N-step bound for each step count and order, with paired differences."""
    if not isinstance(model, Model):
        raise ValueError(
            f"steps has no effect: got {options.steps}, and {options.model} is autoregressive; "
            "leave --steps out, because the likelihood is exact, at one token a call"
        )
    if not options.order:
        raise ValueError("order is empty: want at least one of random, spread, entropy, margin")
    effort = options.effort
    if effort.convention != "bound":
        raise ValueError(
            f"convention has no effect with steps: got {effort.convention!r}; leave out "
            "--convention or --steps"
        )
    rows: list[dict[str, object]] = []
    lines: list[list[object]] = []
    for steps in options.steps:
        first = None
        for order in options.order:
            bound = _step_bound(model, x0, steps, order, effort)
            nats = np.asarray(bound.samples)
            first = nats if first is None else first
            gap = mean(nats - first, bound.unit)
            value = Measure(bound.value, bound.unit, bound.n, bound.sem)
            measures = {"bound": asdict(value), "difference": asdict(gap)}
            rows.append({"order": order, "steps": steps, "nfe": bound.nfe, **measures})
            lines.append([order, steps, bound.nfe, bound.value, bound.sem, gap.value, gap.sem])
    protocol = (
        f"{effort.passes} sets of levels a row, seed {effort.seed}; products in "
        f"{model.precision}; {real.words(len(x0))}"
    )
    if options.json:
        emit({"bounds": rows, "protocol": protocol})
    else:
        head = [
            "order",
            "steps",
            "calls",
            "nats a token",
            "sem",
            f"minus {options.order[0]}",
            "sem",
        ]
        table("N-step bound: -E log q_N(x | levels) / L", head, lines)
        say(protocol)
    return 0


def _step_bound(model: Model, x0: Tensor, steps: int, order: str, effort: Effort) -> StepBound:
    """The N-step bound of rows x0 [n, L], with a progress bar of network calls."""
    scores, calls = [], -(-len(x0) // effort.batch_size) * effort.passes * steps
    ids = x0.to(model.device)
    with progress() as (advance, _):
        for score in step_bound_batches(
            model, ids, steps, order, effort.seed,
            passes=effort.passes, batch_size=effort.batch_size,
        ):  # fmt: skip
            scores.append(score)
            advance(f"{order}, {steps} steps", min(len(scores), calls), calls)
    return bound_of(scores, ids, passes=effort.passes)


def check_length(name: str, model: LanguageModel, length: int) -> None:
    """Warn about rows longer than the training rows of a model, which make its numbers worse."""
    trained = model.length
    if length > trained:
        remark(
            f"rows of {length} tokens are longer than the {trained} tokens of the rows that {name} "
            "was trained on"
        )


def scored(rule: ScoringRule, x0: Tensor, stage: str) -> Scores:
    """Score rows x0 [n, L], with a progress bar of rows."""
    nats, calls = [], rule.calls(len(x0))
    with progress() as (advance, _):
        for done, part in enumerate(rule.batches(x0), start=1):
            nats.append(part)
            advance(stage, len(x0) * done // calls, len(x0))
    return summed(nats, rule.tokens(x0.shape[1]))
