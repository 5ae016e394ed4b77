"""`unmask sample`: draw texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from unmask.cli.console import emit, parse, say
from unmask.models.pretrained import load
from unmask.samplers.loop import sample


@dataclass(frozen=True)
class Arguments:
    """Draw texts from a model. Sample i depends on the seed and on i only, but for the rounding of products in batches.

    model        a run directory, a model directory, a .ckpt file, a hub id, or unmask:teacher
    n            samples
    length       tokens of a sample, prompt included (the model's length)
    steps        moves from noise to text
    seed         of the latents; the same seed gives coupled texts at any number of steps
    temperature  divides the log-probabilities of each token
    top_p        keep the likeliest tokens that have this probability together
    top_k        keep this many of the likeliest tokens (all)
    prompt       text at the start of every sample
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
    steps: int = 16
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    prompt: str | None = None
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
    options = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(asked)
        if field.name not in ("model", "length", "revision", "weights", "json")
    }
    drawn = sample(model, length=asked.length or model.network.shape.length, **options)
    if asked.json:
        emit({"tokens": drawn.tokens.tolist(), "texts": drawn.texts, "nfe": drawn.nfe.tolist(), "calls": drawn.calls})
        return 0
    for i, text in enumerate(drawn.texts or [str(row) for row in drawn.tokens.tolist()]):
        say(f"--- sample {i} of seed {asked.seed}: {int(drawn.nfe[i])} network calls\n{text}")
    return 0
