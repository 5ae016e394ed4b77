"""`unmask sample`: draw texts from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from unmask.cli.console import emit, parse, say
from unmask.cli.likelihood import check_length
from unmask.models.model import LanguageModel, load
from unmask.recipes.held_out import wraps
from unmask.samplers.inputs import Prompt
from unmask.samplers.options import SampleOptions
from unmask.samplers.sample import iter_samples

STEPS = 16  # unless --steps is given


@dataclass(frozen=True)
class Arguments:
    """Draw texts from a model.

    Except for rounding, sample i depends only on the seed and on i. A file or a pipe gets the texts
    unchanged. On a terminal, control characters are escaped.

    Attributes:
        model: run directory, model directory, .ckpt file, hub id, or unmask:teacher
        n: number of samples
        length: tokens of a sample, prompt included; None: the model's length
        steps: steps from noise to text; None: 16. An autoregressive model takes no steps and makes
            one network call for each token
        seed: 64-bit number; one seed gives coupled texts at different numbers of steps
        temperature: divides the log-probabilities of each token
        top_p: probability of the tokens to keep, the most probable first
        top_k: number of tokens to keep, the most probable first; None: all
        prompt: text at the start of every sample, after BOS if the training rows had BOS
        sampler: reveal, ancestral, greedy_tail, confidence, psi:0.5, remdm_cap:0.02,
            remdm_rescale:0.015, remdm_loop:0.02, entropy_bounded:0.1, blockwise:16, or an order and
            a count, such as order=confidence,blocks=16,count=grid; see docs/choosing-a-sampler.md.
            None: order=spread for masked diffusion, ancestral for uniform noise
        grid: noise levels of the steps; released has one step more, as in the released codes
        draw: categorical draw. gumbel_max and inverse_cdf are exact, in float64. gumbel_max_float32
            is biased, as in old tables. race is an old name of gumbel_max, and legacy_gumbel32 of
            gumbel_max_float32
        batch_size: samples in a network call; None: all. With 1, no bit of a sample depends on n
        cache: run a full forward pass every CACHE steps, and a cached window in between. This is
            faster and approximate, for masked diffusion only. None: no cache
        order: order of unmasking, in place of a sampler: random, spread, confidence, entropy or
            margin, with blocks and a count as in spread,blocks=16,count=equal. None: see sampler
        revision: branch, tag or commit of a hub id
        weights: ema: the moving average of the weights; raw: the weights without averaging, if the
            files hold both
        device: device of the model: cpu, cuda, cuda:1
        json: print tokens, texts and calls as JSON
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    n: int = 4
    length: int | None = None
    steps: int | None = None
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    prompt: str = ""
    sampler: str | None = None
    grid: Literal["uniform", "cosine", "released", "loop"] = "uniform"
    draw: Literal["gumbel_max", "inverse_cdf", "gumbel_max_float32", "race", "legacy_gumbel32"] = (
        "gumbel_max"
    )
    batch_size: int | None = None
    cache: int | None = None
    order: str | None = None
    revision: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    device: str = "cpu"
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    given = parse(Arguments, verb, arguments)
    model = load(given.model, given.revision, given.weights, given.device)
    length = model.length if given.length is None else given.length
    check_length(given.model, model, length)
    if given.steps is not None and not model.draws_in_steps:
        raise ValueError(
            f"steps has no effect: got {given.steps}, and {given.model} is autoregressive, with "
            "one network call for each token; omit --steps"
        )
    options = SampleOptions(
        n=given.n, length=length, steps=STEPS if given.steps is None else given.steps,
        seed=given.seed, temperature=given.temperature, top_p=given.top_p, top_k=given.top_k,
        prompt=prompt_ids(given.prompt, model), sampler=given.sampler, grid=given.grid,
        draw=given.draw, batch_size=given.batch_size, order=given.order,
        cache=given.cache, device=given.device,
    )  # fmt: skip
    batches = iter_samples(model, options)  # an interrupt loses one batch
    if given.json:
        drawn = list(batches)
        texts = [text for batch in drawn for text in batch.texts or []]
        emit({"tokens": [row for batch in drawn for row in batch.tokens.tolist()],
              "texts": None if model.tokenizer is None else texts,
              "nfe": [nfe for batch in drawn for nfe in batch.nfe.tolist()],
              "calls": sum(batch.calls for batch in drawn)})  # fmt: skip
        return 0
    number = 0
    for batch in batches:
        rows = map(str, batch.tokens.tolist()) if batch.texts is None else batch.texts
        for text, nfe in zip(rows, batch.nfe.tolist(), strict=True):
            title = f"--- sample {number} of seed {given.seed}: {nfe} network calls"
            say(f"{title}\n{text}", flush=True)
            number += 1
    return 0


def prompt_ids(text: str, model: LanguageModel) -> Prompt | None:
    """The start of every sample, after BOS if the training rows of the model had BOS."""
    if text == "" or model.tokenizer is None or not wraps(model, None, False):
        return text or None
    tokenizer = model.tokenizer
    bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return text if bos is None else [bos, *tokenizer.encode(text)]
