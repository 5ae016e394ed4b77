"""`unmask convert`: write any checkpoint that `load` can read in another layout."""

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

    Attributes:
        source: run or model directory, .ckpt file of MDLM or Duo, or hub id
        out: directory or .ckpt file to write: a new one, or one that holds a model to replace
        to: unmask: a directory with config.json, model.safetensors and the tokenizer;
            lightning-duo: a .ckpt file for Duo's code (and its MDLM and AR), in float32
        revision: branch, tag or commit of a hub id
        weights: ema: the moving average of the weights; raw: the weights without averaging; both:
            write both sets, if the source has both
        tokenizer: directory or hub id of the model's tokenizer, such as gpt2, for a source without
            one
        dtype: number format of the written weights
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    to: Literal["unmask", "lightning-duo"] = "unmask"
    revision: str | None = None
    weights: Literal["ema", "raw", "both"] = "ema"
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


def main(verb: str, arguments: Sequence[str]) -> int:
    options = parse(Arguments, verb, arguments)
    _check(options)
    out = check_directory(options.out) if options.to == "unmask" else check_checkpoint(options.out)
    source = locate(options.source, options.revision)
    if out.exists() and any(out.samefile(file) for file in (source, *source.glob("*.ckpt"))):
        raise ValueError(
            f"out is the source model: got {options.out}, want another name, because the source is "
            "never changed"
        )
    tokenizer = None if options.tokenizer is None else tokenizer_named(options.tokenizer)
    first = "raw" if options.weights == "raw" else "ema"
    model = load(options.source, options.revision, first, tokenizer=tokenizer)
    raw = None
    if options.weights == "both":
        raw = load(options.source, options.revision, "raw", tokenizer=tokenizer).network
    if options.to == "lightning-duo":
        save_lightning(model, out, raw=raw)
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
        model.save(out, raw=raw, dtype=dtype, source=options.source, weights=options.weights)
    say(f"{options.out}: {model.parameters:,} weights in {options.dtype}")
    return 0


def _check(options: Arguments) -> None:
    """ValueError for flags that contradict each other."""
    if options.to == "unmask":
        if options.out.suffix == ".ckpt":
            raise ValueError(
                f"out is the name of a checkpoint file: got {options.out}, want a directory; give "
                "another name, or --to lightning-duo"
            )
        return
    if options.tokenizer is not None:
        raise ValueError(
            f"tokenizer has no effect: got {options.tokenizer!r}, and a checkpoint for Duo's code "
            "holds no tokenizer; omit it"
        )
    if options.dtype != "float32":
        raise ValueError(
            f"dtype has no effect: got {options.dtype!r}, and a checkpoint for Duo's code holds "
            "float32 weights; omit it"
        )
