"""The estimated memory of a training (`--dry-run`) against its measured peak.

    python benchmarks/memory.py                 every case on this CPU: minutes
    python benchmarks/memory.py --shards 2      each of two processes that share the weights
    python benchmarks/memory.py --device cuda   the same on a GPU

Each case trains two updates in its own process. Prints a JSON line for each case: GiB estimated,
GiB measured (the peak minus the memory before), and their ratio. On a GPU the peak is that of
torch's allocator. On a CPU it is that of the resident set, with a C library that returns freed
memory at once (MALLOC_MMAP_THRESHOLD_). By default the holes of its heap add up to a quarter;
--holes includes them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.timing import peak_memory, reset_peak_memory
from unmask.models.model import Model
from unmask.recipes.build import build
from unmask.recipes.estimate import estimate
from unmask.recipes.objective_settings import (
    AutoregressiveSettings,
    ConsistencySettings,
    NelboSettings,
    SdttSettings,
)
from unmask.recipes.schema import NetworkSettings, Recipe
from unmask.training import Engine, LossGuard, State, fit, launch

WIDE = NetworkSettings(length=256, width=512, blocks=6, heads=8, dropout=0.1)
DEEP = NetworkSettings(length=256, width=256, blocks=12, heads=4, dropout=0.0)
BODY = Recipe("body", NelboSettings(), WIDE, batch_size=8, steps=2, precision="float32")
CASES = {  # recipe, V
    "body": (BODY, 1024),
    "body, recomputed": (replace(BODY, checkpointing=True, batch_size=32), 1024),
    "uniform": (
        replace(
            BODY, objective=NelboSettings(process="uniform"), network=replace(DEEP, sees_alpha=True)
        ),
        4096,
    ),
    "head": (replace(BODY, network=replace(WIDE, blocks=2), batch_size=4), 50258),
    "next token": (replace(BODY, objective=AutoregressiveSettings(), network=DEEP), 4096),
    "MCD": (replace(BODY, objective=ConsistencySettings(teacher="-"), batch_size=4), 50258),
    "MCD, wide": (
        replace(BODY, objective=ConsistencySettings(teacher="-"), network=DEEP, batch_size=16),
        1024,
    ),
    "SDTT": (
        replace(BODY, objective=SdttSettings(teacher="-", delta0=1 / 64, count=3), batch_size=4),
        50258,
    ),
    "169M": (
        replace(
            BODY,
            objective=ConsistencySettings(teacher="-"),
            network=NetworkSettings(length=256),
            batch_size=4,
        ),
        50258,
    ),
}


def measured_bytes(recipe: Recipe, vocab_size: int, device: torch.device) -> int:
    """Peak bytes of two updates, minus the memory after two updates of a tiny network."""
    small = replace(
        recipe,
        network=NetworkSettings(
            length=8, width=16, blocks=1, heads=2, dropout=recipe.network.dropout
        ),
    )
    train(small, 16, device)
    gc.collect()
    if device.type == "cuda":
        reset_peak_memory(device)
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set
        before = peak_memory(device)
    train(recipe, vocab_size, device)
    return peak_memory(device) - before


def train(recipe: Recipe, vocab_size: int, device: torch.device) -> None:
    """Train two updates. A distillation has a teacher with random weights."""
    distils = recipe.traits.distils
    parts = build(
        replace(recipe, objective=NelboSettings()) if distils else recipe, None, vocab_size
    )
    for weight in parts.student.parameters():
        torch.nn.init.normal_(weight, std=0.02)  # gates and head start at zero, and must not here
    if distils:
        process = MaskedProcess(vocab_size, vocab_size - 1)
        teacher = Model(parts.student, process, parts.schedule, None)
        parts = build(recipe, None, start=teacher)
        del teacher
    ids = torch.randint(vocab_size - 1, (recipe.batch_size, recipe.network.length))
    engine = launch(str(device), sharded=True) if "WORLD_SIZE" in os.environ else Engine(device)
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    updates = fit(
        parts.objective,
        state,
        lambda step: ids,
        steps=2,
        accumulation=recipe.accumulation,
        engine=engine,
        guard=LossGuard(factor=1e9),
    )
    for _ in updates:
        gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[*CASES])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shards", type=int, default=1, help="processes that share the weights")
    parser.add_argument(
        "--holes", action="store_true", help="include holes of the C library's heap"
    )
    parser.add_argument(
        "--narrow", type=int, default=1, help="divide widths and heads: cheaper, same formulas"
    )
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    for name in args.cases:
        recipe, vocab_size = CASES[name]
        width, heads = recipe.network.width // args.narrow, recipe.network.heads // args.narrow
        recipe = replace(recipe, network=replace(recipe.network, width=width, heads=heads))
        if args.alone:
            # One write for the whole line, because other processes write too.
            sys.stdout.write(f"{measured_bytes(recipe, vocab_size, torch.device(args.device))}\n")
            return
        torchrun = (
            ["-m", "torch.distributed.run", "--nproc-per-node", str(args.shards)]
            if args.shards > 1
            else []
        )
        command = [
            sys.executable,
            *torchrun,
            __file__,
            "--cases",
            name,
            "--device",
            args.device,
            "--narrow",
            str(args.narrow),
            "--alone",
        ]
        exact = {} if args.holes else {"MALLOC_MMAP_THRESHOLD_": "65536"}
        process = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | exact
        )
        peak = max(map(int, process.stdout.split()))
        expected = estimate(recipe, vocab_size, torch.device(args.device))
        memory = (
            expected["sharded_bytes"][str(args.shards)]
            if args.shards > 1
            else expected["memory_bytes"]
        )
        line = {"case": name}
        for key in ("weights", "activations", "vocabulary"):
            line[key] = round(expected[f"{key}_bytes"] / 2**30, 3)
        line["estimated"], line["measured"] = round(memory / 2**30, 3), round(peak / 2**30, 3)
        line["ratio"] = round(memory / peak, 3)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
