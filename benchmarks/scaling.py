"""Growth of cost with length, vocabulary, steps and weights: one axis at a time, on this machine.

    python benchmarks/scaling.py                 minutes on two cores
    python benchmarks/scaling.py --device cuda

Prints a JSON line for each size. It has the median seconds of 4 texts, and of one step of MCD on 4
rows. It also has the GFLOP of their matrix products, and their rate. A line after each axis has
the exponent b of seconds ~ size^b, by least squares of the logarithms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

import unmask
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.evaluation.timing import timed
from unmask.experiments.bench.ar_speedup import random_network
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import Shape
from unmask.models.model import Model
from unmask.objectives.consistency import Consistency
from unmask.objectives.rounds import Rounds
from unmask.training import AdamW, Engine, LossGuard, State, fit

ROWS = 4
ROUNDS = Rounds(round_steps=10**6, delta0=1 / 32, temperatures=(0.84,))
BASE = Shape(8192, 256, width=256, blocks=4, heads=4, cond_dim=32, dropout=0.0)
STEPS = 16


@dataclass(frozen=True)
class Point:
    """One size on an axis."""

    axis: str
    size: int
    shape: Shape
    steps: int = STEPS


def points() -> Iterator[Point]:
    """All sizes of all axes."""
    for length in (128, 256, 512, 1024):
        yield Point("length", length, replace(BASE, length=length))
    for size in (2048, 8192, 32768, 131072):
        yield Point("vocabulary", size, replace(BASE, vocab_size=size))
    for steps in (4, 8, 16, 32, 64):
        yield Point("steps", steps, BASE, steps)
    for width in (128, 256, 512, 768):
        shape = replace(BASE, width=width)
        yield Point("body weights", 12 * shape.blocks * width**2, shape)


def measure(point: Point, device: str, repeats: int) -> dict[str, float | int | str]:
    """Seconds and GFLOP of a sample and, except on the axis `steps`, of a training step."""
    shape, dtype = point.shape, torch.bfloat16 if device == "cuda" else torch.float32
    process = MaskedProcess(shape.vocab_size, shape.vocab_size - 1)
    student, teacher = (
        NetworkDenoiser(
            random_network(shape, 0, dtype).to(device), process.mask_id, sees_alpha=False
        )
        for _ in range(2)
    )
    tokens = ROWS * shape.length
    body = tokens * shape.blocks * (24 * shape.width**2 + 4 * shape.length * shape.width)
    head = 2 * tokens * shape.vocab_size * shape.width
    model = Model(student.eval(), process, LogLinear(), None)
    drawn = timed(
        lambda: unmask.sample(model, ROWS, shape.length, point.steps, device=device),
        repeats=repeats,
        device=device,
    )
    work = {"sample": (drawn.median, drawn.result.calls * body + head)}
    if point.axis != "steps":
        objective, engine = (
            Consistency(process, LogLinear(), teacher, ROUNDS),
            Engine(torch.device(device)),
        )
        ids = torch.randint(
            process.mask_id, (ROWS, shape.length), generator=torch.Generator().manual_seed(1)
        )
        state = State.begin(objective, student, AdamW(lr=1e-5), engine)
        updates = fit(
            objective,
            state,
            lambda step: ids,
            steps=10**6,
            engine=engine,
            guard=LossGuard(factor=1e9),
        )
        trained = timed(lambda: next(updates), repeats=repeats, device=device)
        work["train"] = trained.median, 4 * body + 2 * head
    line: dict[str, float | int | str] = {"axis": point.axis, "size": point.size}
    for name, (seconds, flops) in work.items():
        line[f"{name}_s"] = round(seconds, 4)
        line[f"{name}_gflop"] = round(flops / 1e9, 1)
        line[f"{name}_gflop_s"] = round(flops / seconds / 1e9, 1)
    return line


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent b of seconds ~ size^b."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--axes", nargs="+", default=["length", "vocabulary", "steps", "body weights"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each size")
    args = parser.parse_args()
    print(
        f"# {torch.get_num_threads()} threads, torch {torch.__version__}, base {BASE}, "
        f"{STEPS} steps, {ROWS} rows"
    )
    for axis in args.axes:
        lines = []
        for point in points():
            if point.axis == axis:
                lines.append(measure(point, args.device, args.repeats))
                print(json.dumps(lines[-1]), flush=True)
        sizes = [float(line["size"]) for line in lines]
        for name in ("sample", "train"):
            if f"{name}_s" in lines[0]:
                growth = exponent(sizes, [float(line[f"{name}_s"]) for line in lines])
                print(
                    json.dumps({"axis": axis, "exponent": name, "b": round(growth, 2)}), flush=True
                )


if __name__ == "__main__":
    main()
