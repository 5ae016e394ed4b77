"""`unmask convert`: any checkpoint that `load` reads, written in our own layout or as a checkpoint for Duo's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.console import parse, say
from unmask.diffusion.processes import MaskedProcess
from unmask.models.export import save_lightning
from unmask.models.parameterization import NetworkDenoiser
from unmask.models.pretrained import CausalModel, Model, load
from unmask.text.tokenizers import Tokenizer, check_vocabulary, tokenizer_named


@dataclass(frozen=True)
class Arguments:
    """Write a model in another layout.

    source    a run directory, a model directory, a .ckpt file of MDLM or Duo, or a hub id
    out       the directory, or the .ckpt file, to write
    to        unmask: a directory with config.json, model.safetensors and the tokenizer; lightning-duo: a .ckpt file
              that Duo's code (and its MDLM and AR) reads, in float32
    revision  branch, tag or commit of a hub id
    weights   ema: the moving average; raw: those that were averaged; both, where the source keeps both
    tokenizer  a directory or hub id of the model's tokenizer, for a source that holds none: gpt2
    dtype     precision of the written weights
    """

    source: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    to: Literal["unmask", "lightning-duo"] = "unmask"
    revision: str | None = None
    weights: Literal["ema", "raw", "both"] = "ema"
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    if asked.to == "unmask" and asked.out.suffix == ".ckpt":
        raise ValueError(f"{asked.out} is the name of a checkpoint, and unmask's own layout is a directory: add --to")
    if asked.to == "lightning-duo" and asked.tokenizer is not None:
        raise ValueError("a checkpoint for Duo's code holds no tokenizer: leave tokenizer out")
    if asked.to == "lightning-duo" and asked.dtype != "float32":
        raise ValueError(f"a checkpoint for Duo's code holds float32 weights: leave dtype out, got {asked.dtype!r}")
    model = load(asked.source, asked.revision, "raw" if asked.weights == "raw" else "ema")
    raw = load(asked.source, asked.revision, "raw").network if asked.weights == "both" else None
    if asked.tokenizer is not None:
        model = _speaking(model, tokenizer_named(asked.tokenizer))
    if asked.to == "lightning-duo":
        save_lightning(model, asked.out, raw=raw)
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked.dtype]
        model.save(asked.out, raw=raw, dtype=dtype, source=asked.source, weights=asked.weights)
    say(f"{asked.out}: {sum(p.numel() for p in model.network.parameters()):,} weights in {asked.dtype}")
    return 0


def _speaking(model: Model | CausalModel, tokenizer: Tokenizer) -> Model | CausalModel:
    """The model with a tokenizer, and with its MASK where the model's is the last token, as if no file named one."""
    size = model.network.shape.vocab_size
    check_vocabulary(tokenizer, size)
    if isinstance(model, CausalModel):
        return replace(model, tokenizer=tokenizer)
    own, told = model.denoiser.mask_id, tokenizer.mask_id
    if own in (None, told) or told is None:
        return replace(model, tokenizer=tokenizer)
    if own != size - 1:
        raise ValueError(f"MASK is token {own} by the model and {told} by the tokenizer: was it trained with another?")
    denoiser = NetworkDenoiser(model.network, told, model.denoiser.sees_alpha).eval()
    return Model(denoiser, MaskedProcess(size, told), model.schedule, tokenizer, model.network)
