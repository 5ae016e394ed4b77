"""`unmask convert`: any checkpoint that `load` reads, written in our own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.cli.console import parse, say
from unmask.models.pretrained import load


@dataclass(frozen=True)
class Arguments:
    """Write config.json, model.safetensors and the tokenizer of a model to a directory.

    source    a run directory, a model directory, a .ckpt file of MDLM or Duo, or a hub id
    out       the directory to write
    revision  branch, tag or commit of a hub id
    weights   the moving average, or the raw weights where the file keeps both
    dtype     precision of the written weights
    """

    source: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    revision: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    dtype: Literal["float32", "bfloat16"] = "float32"


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    model = load(asked.source, asked.revision, asked.weights)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked.dtype]
    model.save(asked.out, dtype=dtype, source=asked.source, weights=asked.weights)
    say(f"{asked.out}: {sum(p.numel() for p in model.network.parameters()):,} weights in {asked.dtype}")
    return 0
