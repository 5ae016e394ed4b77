"""`unmask convert`: any checkpoint that `load` reads, written in our own layout or as a checkpoint for Duo's code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.console import parse, say
from unmask.data.tokenizers import tokenizer_named
from unmask.models.checkpoints.export import save_lightning
from unmask.models.checkpoints.model_files import locate
from unmask.models.model import load
from unmask.models.saving import check_checkpoint, check_directory


@dataclass(frozen=True)
class Arguments:
    """Write a model in another layout.

    source    a run directory, a model directory, a .ckpt file of MDLM or Duo, or a hub id
    out       the directory, or the .ckpt file, to write: a new one, or one that holds a model to be replaced
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
        raise ValueError(
            f"{asked.out} is the name of a checkpoint, and unmask's own layout is a directory: add --to"
        )
    if asked.to == "lightning-duo" and asked.tokenizer is not None:
        raise ValueError("a checkpoint for Duo's code holds no tokenizer: leave tokenizer out")
    if asked.to == "lightning-duo" and asked.dtype != "float32":
        raise ValueError(
            f"a checkpoint for Duo's code holds float32 weights: leave dtype out, got {asked.dtype!r}"
        )
    out = check_directory(asked.out) if asked.to == "unmask" else check_checkpoint(asked.out)
    source = locate(asked.source, asked.revision)
    if out.exists() and any(out.samefile(each) for each in (source, *source.glob("*.ckpt"))):
        raise ValueError(
            f"out is the model itself, which is left as it is: got {asked.out}; give another name"
        )
    tokenizer = None if asked.tokenizer is None else tokenizer_named(asked.tokenizer)
    first = "raw" if asked.weights == "raw" else "ema"
    model = load(asked.source, asked.revision, first, tokenizer=tokenizer)
    raw = (
        load(asked.source, asked.revision, "raw", tokenizer=tokenizer).network
        if asked.weights == "both"
        else None
    )
    if asked.to == "lightning-duo":
        save_lightning(model, out, raw=raw)
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked.dtype]
        model.save(out, raw=raw, dtype=dtype, source=asked.source, weights=asked.weights)
    say(f"{asked.out}: {model.parameters:,} weights in {asked.dtype}")
    return 0
