"""The memory that a dry run tells, against what a training takes: two updates in a process of their own.

    python benchmarks/memory.py                     every case on this CPU, in minutes
    python benchmarks/memory.py --shards 2          of each of two processes that share the weights out
    python benchmarks/memory.py --device cuda       the same on a GPU

A line a case: GiB told, GiB taken beyond what the process holds before, and their ratio. Taken is the peak of torch's
allocator on a GPU; on a CPU of the resident set, with a C library that gives freed memory back at once
(MALLOC_MMAP_THRESHOLD_). As it is by default, its holes add up to a quarter: --holes counts them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.timing import peak_memory, reset_peak_memory
from unmask.models.model import Model
from unmask.recipes.build import build
from unmask.recipes.estimate import estimate
from unmask.recipes.schema import (
    AutoregressiveSettings,
    ConsistencySettings,
    NelboSettings,
    NetworkSettings,
    Recipe,
    SdttSettings,
)
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


def taken(recipe: Recipe, vocab_size: int, device: torch.device) -> int:
    """Bytes at the peak of two updates, beyond what the process holds after the same of a network of nothing."""
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
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
        before = peak_memory(device)
    train(recipe, vocab_size, device)
    return peak_memory(device) - before


def train(recipe: Recipe, vocab_size: int, device: torch.device) -> None:
    """Two updates, of a distillation from a teacher of random weights."""
    distils = recipe.traits.distils
    parts = build(
        replace(recipe, objective=NelboSettings()) if distils else recipe, None, vocab_size
    )
    for weight in parts.student.parameters():
        torch.nn.init.normal_(weight, std=0.02)  # none may be zero, as at first gates and head are
    if distils:
        process = MaskedProcess(vocab_size, vocab_size - 1)
        teacher = Model(parts.student, process, parts.schedule, None)
        parts = build(recipe, None, start=teacher)
        del teacher
    ids = torch.randint(vocab_size - 1, (recipe.batch_size, recipe.network.length))
    engine = launch(str(device), sharded=True) if "WORLD_SIZE" in os.environ else Engine(device)
    state = State.begin(parts.objective, parts.student, recipe.optim, engine)
    updates = fit(parts.objective, state, lambda step: ids, steps=2, accumulation=recipe.accumulation, engine=engine,
                  guard=LossGuard(factor=1e9))  # fmt: skip
    for _ in updates:
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[*CASES])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--holes", action="store_true", help="leave the C library as it is")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    for name in told.cases:
        recipe, vocab_size = CASES[name]
        if told.alone:
            sys.stdout.write(
                f"{taken(recipe, vocab_size, torch.device(told.device))}\n"
            )  # at once: others write too
            return
        torchrun = (
            ["-m", "torch.distributed.run", "--nproc-per-node", str(told.shards)]
            if told.shards > 1
            else []
        )
        command = [
            sys.executable,
            *torchrun,
            __file__,
            "--cases",
            name,
            "--device",
            told.device,
            "--alone",
        ]
        exact = {} if told.holes else {"MALLOC_MMAP_THRESHOLD_": "65536"}
        ran = subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | exact
        )
        peak = max(map(int, ran.stdout.split()))
        expected = estimate(recipe, vocab_size, torch.device(told.device))
        memory = (
            expected["sharded_bytes"][str(told.shards)]
            if told.shards > 1
            else expected["memory_bytes"]
        )
        line = {key: round(expected[f"{key}_bytes"] / 2**30, 3)
                for key in ("weights", "activations", "vocabulary")}  # fmt: skip
        taken_gib, ratio = round(peak / 2**30, 3), round(memory / peak, 3)
        print(
            json.dumps(
                {
                    "case": name,
                    **line,
                    "told": round(memory / 2**30, 3),
                    "taken": taken_gib,
                    "ratio": ratio,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
