"""`unmask sample`: draw texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import tyro

from unmask.cli.console import emit, parse, say
from unmask.cli.likelihood import check_length
from unmask.limits import whole
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.held_out import wraps
from unmask.samplers.inputs import Prompt
from unmask.samplers.sample import Samples, sample

STEPS = 16  # unless others are given


@dataclass(frozen=True)
class Arguments:
    """Draw texts from a model. Sample i depends on the seed and on i only, but for the rounding of products in batches.

    A file or a pipe gets the texts character by character; on a terminal control characters are written as escapes.

    model        a run directory, a model directory, a .ckpt file, a hub id, or unmask:teacher
    n            samples
    length       tokens of a sample, prompt included (the model's length)
    steps        moves from noise to text (16; an autoregressive model takes a call a token, and no steps)
    seed         of the latents; the same seed gives coupled texts at any number of steps
    temperature  divides the log-probabilities of each token
    top_p        keep the likeliest tokens that have this probability together
    top_k        keep this many of the likeliest tokens (all)
    prompt       text at the start of every sample, behind BOS where the rows of the training began with it (none)
    sampler      reveal, ancestral, greedy_tail, confidence, psi:0.5, remdm_cap:0.02, remdm_rescale:0.015,
                 remdm_loop:0.02, entropy_bounded:0.1, blockwise:16 (reveal for masked diffusion, else
                 ancestral); see docs/choosing-a-sampler.md
    grid         noise levels of the steps; released: one move more than steps, as the released codes
    draw         race: float64, the default; legacy_gumbel32: as old tables were drawn, biased
    batch_size   samples a network call at most (all); 1: each sample is exactly what it is alone, whatever n
    cache        moves from one whole pass of the network to the next, those between over a window: faster, not exact;
                 masked diffusion (whole passes only)
    structure    tokens that reveal shows together: block:8:0.9, span:16, hierarchy:64,16:0.5,0.3 (none)
    revision     branch, tag or commit of a hub id
    weights      the moving average, or the raw weights where both were kept
    device       where the model runs: cpu, cuda, cuda:1
    json         print tokens, texts and calls as JSON
    """

    model: Annotated[str, tyro.conf.Positional]
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
    draw: Literal["race", "inverse_cdf", "legacy_gumbel32"] = "race"
    batch_size: int | None = None
    cache: int | None = None
    structure: str = "none"
    revision: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    device: str = "cpu"
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    model = load(asked.model, asked.revision, asked.weights, asked.device)
    length = model.length if asked.length is None else asked.length
    check_length(asked.model, model, length)
    options = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(asked)
        if field.name
        not in (
            "model",
            "n",
            "length",
            "steps",
            "prompt",
            "batch_size",
            "revision",
            "weights",
            "json",
        )
    }
    if isinstance(model, CausalModel) and asked.steps is not None:
        raise ValueError(
            f"steps belongs to diffusion models: got {asked.steps}, and {asked.model} is autoregressive, a call a "
            "token; leave --steps out"
        )
    steps = STEPS if asked.steps is None else asked.steps
    draw = partial(
        sample, model, length=length, steps=steps, prompt=prompted(asked.prompt, model), **options
    )
    drawn = batches(draw, asked.n, asked.batch_size)
    if asked.json:
        found = [*drawn]
        emit({"tokens": [row for each in found for row in each.tokens.tolist()],
              "texts": None if model.tokenizer is None else [text for each in found for text in each.texts or []],
              "nfe": [nfe for each in found for nfe in each.nfe.tolist()],
              "calls": sum(each.calls for each in found)})  # fmt: skip
        return 0
    number = 0
    for each in drawn:
        texts = [str(row) for row in each.tokens.tolist()] if each.texts is None else each.texts
        for text, nfe in zip(texts, each.nfe.tolist(), strict=True):
            say(
                f"--- sample {number} of seed {asked.seed}: {nfe} network calls\n{text}", flush=True
            )
            number += 1
    return 0


def prompted(text: str, model: Model | CausalModel) -> Prompt | None:
    """The start of every sample, as in the rows of the model's training: BOS first where they had it."""
    if text == "" or model.tokenizer is None or not wraps(model, None, False):
        return text or None
    tokenizer = model.tokenizer
    bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return text if bos is None else [bos, *tokenizer.encode(text)]


def batches(draw: Callable[..., Samples], n: int, batch_size: int | None) -> Iterator[Samples]:
    """The n samples of a seed, a network batch at a time: an interrupt costs one batch, and so does memory."""
    n = whole("n", n, "the number of samples")
    size = (
        n
        if batch_size is None
        else whole("batch_size", batch_size, "the number of samples in a network call")
    )
    for first in range(0, n, size):
        yield draw(n=min(size, n - first), first=first)
