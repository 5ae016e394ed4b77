"""The library against the originals' way, side by side: seconds and memory of a sample and of a training step.

    python benchmarks/speed.py                        every case at 1M and 169M weights, L = 256 (an hour on two cores)
    python benchmarks/speed.py --cases mcd --sizes 1M --repeats 3
    python benchmarks/speed.py --cases mcd --sizes 169M --checkpointing   ours computes activations again: memory
    python benchmarks/speed.py --precision bfloat16   of the products in the blocks, on both sides
    python benchmarks/speed.py --device cuda          169M weights, L = 1024, bfloat16

A line a case: the median over pairs of runs, ours and the baseline's in turns, of seconds and their ratio; the peak of
memory beyond what was held before, each way in a process of its own; and the floors, FLOPs of the matrix products that
the mathematics asks for over the machine's own rate for a large product, and bytes of weights that it has to pass over
at the machine's own rate of copying, both measured at the start (`parts.py` says what the rest is made of). Memory is
that of torch's allocator on a GPU; on a CPU the resident set, with a C library that gives freed memory back at once, so
that it is that of the tensors. A training step is forward, backward, clipping, AdamW and moving average.

    sampling          MDLM's ancestral sampler in 32 steps, with float64 draws (its own code draws in float32: wrong)
    sampling_uniform  Duo's ancestral sampler in 32 steps, likewise
    teacher           a step on the evidence bound
    mcd, sdtt, dcd    a step of each distillation (nobody has published code of MCD: the baseline is the plain way)
    mcd_against_sdtt  our step of MCD, the paper's proposal, against SDTT's as published, which it replaces
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

import baseline_masked
import baseline_uniform
import torch

import unmask
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import GaussianArgmax, LogLinear
from unmask.evaluation.timing import peak_memory, reset_peak_memory, timed
from unmask.experiments.bench.ar_speedup import random_network
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import Shape, small
from unmask.models.model import Model
from unmask.objectives.base import Objective
from unmask.objectives.consistency import Consistency
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import Sdtt
from unmask.training import AdamW, Engine, LossGuard, State, fit

V, MASK = 50258, 50257
ROUNDS = Rounds(
    steps=10**6, delta0=1 / 32, temperatures=(0.84,)
)  # the last round, in which most tokens are revealed
PLAIN = Rounds(steps=10**6, delta0=1 / 64, temperatures=(1.0,))
GAMMA = -4.0, -1.0
CASES = "sampling", "sampling_uniform", "teacher", "mcd", "sdtt", "dcd", "mcd_against_sdtt"
Run = Callable[[], object]
Make = Callable[[NetworkDenoiser], Objective]


@dataclass(frozen=True)
class Size:
    """A network, how many rows are drawn and trained on at a time, and the steps of a sample.

    checkpointing  of our trainings only
    precision      of the products in the blocks
    """

    shape: Shape
    rows: int
    steps: int = 32
    checkpointing: bool = False
    precision: torch.dtype = torch.float32


SIZES = {
    "cpu": {
        "1M": Size(Shape(V, 256, width=128, blocks=5, heads=4, cond_dim=32, dropout=0.0), 8),
        "169M": Size(small(V, 256), 4),
    },
    "cuda": {"169M": Size(small(V, 1024), 8)},
}


def denoiser(size: Size, device: str, uniform: bool = False) -> NetworkDenoiser:
    network = random_network(size.shape, compute_dtype=size.precision).to(device)
    return NetworkDenoiser(network, None if uniform else MASK, sees_alpha=uniform)


def training(
    objective: Callable[[NetworkDenoiser], Objective],
    size: Size,
    device: str,
    uniform: bool = False,
) -> Run:
    """A call is one whole step of the library's own loop."""
    student, teacher = denoiser(size, device, uniform), denoiser(size, device, uniform)
    student.network.checkpointing = size.checkpointing
    made = objective(teacher.eval().requires_grad_(False))
    ids = torch.randint(
        MASK, (size.rows, size.shape.length), generator=torch.Generator().manual_seed(1)
    )
    state = State.begin(
        made, student, AdamW(lr=1e-5, ema_decay=0.999), Engine(torch.device(device))
    )
    steps = fit(made, state, lambda step: ids, steps=10**6, seed=0, engine=Engine(torch.device(device)),
                guard=LossGuard(factor=1e9))  # fmt: skip
    return lambda: next(steps)


def sampling(size: Size, device: str, ours: bool) -> Run:
    role = denoiser(size, device).eval()
    if not ours:
        generator = torch.Generator(device).manual_seed(0)
        draw = baseline_masked.sample
        return lambda: draw(role.network, MASK, size.rows, size.shape.length, size.steps, generator)
    model = Model(role, MaskedProcess(V, MASK), LogLinear(), None)
    return lambda: unmask.sample(model, size.rows, size.shape.length, size.steps, device=device)


def sampling_uniform(size: Size, device: str, ours: bool) -> Run:
    role = denoiser(size, device, uniform=True).eval()
    if not ours:
        generator = torch.Generator(device).manual_seed(0)
        return lambda: baseline_uniform.sample(
            role.network, size.rows, size.shape.length, size.steps, generator
        )
    model = Model(role, UniformProcess(V), LogLinear(), None)
    return lambda: unmask.sample(model, size.rows, size.shape.length, size.steps, device=device)


def bound(teacher: NetworkDenoiser) -> Objective:
    return Nelbo(MaskedProcess(V, MASK), LogLinear())


def sdtt(teacher: NetworkDenoiser) -> Objective:
    return Sdtt(MaskedProcess(V, MASK), LogLinear(), teacher, PLAIN)


def mcd(teacher: NetworkDenoiser) -> Objective:
    return Consistency(MaskedProcess(V, MASK), LogLinear(), teacher, ROUNDS)


def dcd(teacher: NetworkDenoiser) -> Objective:
    return Consistency(UniformProcess(V), GaussianArgmax(V, *GAMMA), teacher, ROUNDS)


def full_dcd(teacher: NetworkDenoiser) -> Objective:
    return baseline_uniform.FullDcd(GaussianArgmax(V, *GAMMA), teacher, ROUNDS)


def ways(case: str, size: Size, device: str) -> tuple[Callable[[], Run], Callable[[], Run]]:
    """Ours and the baseline: each makes what a call then runs."""
    samplers = {"sampling": sampling, "sampling_uniform": sampling_uniform}
    if case in samplers:
        return lambda: samplers[case](size, device, True), lambda: samplers[case](
            size, device, False
        )
    pairs: dict[str, tuple[Make, Make]] = {
        "teacher": (bound, lambda _: baseline_masked.FullBound()),
        "mcd": (mcd, lambda teacher: baseline_masked.FullMcd(teacher, ROUNDS)),
        "sdtt": (sdtt, lambda teacher: baseline_masked.FullSdtt(teacher, PLAIN)),
        "dcd": (dcd, full_dcd),
        "mcd_against_sdtt": (mcd, lambda teacher: baseline_masked.FullSdtt(teacher, PLAIN)),
    }
    if case not in pairs:
        raise ValueError(f"the cases are {', '.join(CASES)}: there is none called {case!r}")
    sizes = size, replace(size, checkpointing=False)
    ours, baseline = (
        partial(training, make, each, device, case == "dcd")
        for make, each in zip(pairs[case], sizes, strict=True)
    )
    return ours, baseline


def floor_flops(case: str, size: Size) -> float:
    """Of the matrix products: body 2 FLOPs a weight and token and its attention, head 2 V D a row that is asked for."""
    shape, tokens = size.shape, size.rows * size.shape.length
    body = tokens * shape.blocks * (24 * shape.width**2 + 4 * shape.length * shape.width)
    head = tokens * 2 * V * shape.width
    if case in ("sampling", "sampling_uniform"):
        return size.steps * body + head * (1 if case == "sampling" else uniform_rows(size.steps))
    asked = head if case == "dcd" else head / 2  # masks: half of the tokens on average
    teacher = {"teacher": 0, "sdtt": 2}.get(
        case, 1
    )  # forward passes; of the head SDTT needs one, all in all
    return (3 + teacher) * body + (
        3 + min(teacher, 1)
    ) * asked  # the student's, and twice as much backward


def floor_bytes(case: str, size: Size) -> float:
    """Of weights in float32: read by each pass forward and each back to the inputs, and each gradient written; in the
    optimizer gradient, weight, two moments and average read, and all but the gradient written again.
    """
    shape = size.shape
    head = V * shape.width
    body = shape.blocks * 12 * shape.width**2
    if case in ("sampling", "sampling_uniform"):
        return 4 * size.steps * (body + head)
    teacher = {"teacher": 0, "sdtt": 2}.get(case, 1)
    return 4 * ((3 + teacher) * (body + head) + 9 * (body + 2 * head))


def uniform_rows(steps: int) -> float:
    """Rows of the head a token in a text from uniform noise: the odds of the levels say which share may move."""
    alphas = [
        *LogLinear().alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()[:-1],
        1.0,
    ]
    return sum(1 - a * (1 - b) / (b * (1 - a)) for a, b in pairwise(alphas))


def rate(device: str, precision: torch.dtype) -> float:
    """FLOPs a second of a large product."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(8))


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(8))


def seconds(run: Run, device: str) -> float:
    return timed(run, repeats=1, warmup=0, device=device).median


def peak(make: Callable[[], Run], device: str) -> int:
    """Bytes beyond what is held after a first run: in a training weights, optimizer and gradients."""
    run = make()
    run()
    gc.collect()
    if sys.platform == "linux" and device == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the first run left in the heap is not held
    if device == "cuda":
        reset_peak_memory(device)
        before = torch.cuda.memory_allocated()
        run()
        return peak_memory(device) - before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak of the resident set begins anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def pairs(
    case: str, size: Size, device: str, repeats: int, warmup: int
) -> Iterator[tuple[float, float]]:
    """Seconds of ours and of the baseline, in turns, after `warmup` of each."""
    ours, baseline = (make() for make in ways(case, size, device))
    for number in range(warmup + repeats):
        pair = seconds(ours, device), seconds(baseline, device)
        if number >= warmup:
            yield pair


def in_its_own_process(case: str, name: str, told: argparse.Namespace, way: int) -> int:
    """The peak of one way."""
    command = [sys.executable, __file__, "--cases", case, "--sizes", name, "--device", told.device]
    command += ["--memory", str(way), "--precision", told.precision] + [
        "--checkpointing"
    ] * told.checkpointing
    exact = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # the C library gives freed memory back at once
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True, env=exact).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[*CASES])
    parser.add_argument("--sizes", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="pairs before those that count")
    parser.add_argument(
        "--checkpointing", action="store_true", help="ours computes its activations again"
    )
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], help="float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    told.precision = told.precision or ("float32" if told.device == "cpu" else "bfloat16")
    names, precision = told.sizes or list(SIZES[told.device]), getattr(torch, told.precision)
    changes = {"checkpointing": told.checkpointing, "precision": precision}
    sizes = {name: replace(SIZES[told.device][name], **changes) for name in names}
    if told.memory is not None:  # of a sampler it does not grow with the steps
        print(
            peak(
                ways(told.cases[0], replace(sizes[names[0]], steps=4), told.device)[told.memory],
                told.device,
            )
        )
        return
    speed, width = rate(told.device, precision), bandwidth(told.device)
    print(
        f"# {torch.get_num_threads()} threads, torch {torch.__version__}, {told.precision}, large: a product at "
        f"{speed / 1e9:.0f} GFLOP/s, a copy at {width / 1e9:.1f} GB/s"
    )
    for name in names:
        for case in told.cases:
            size = sizes[name]
            found = list(pairs(case, size, told.device, told.repeats, told.warmup))
            ours, baseline = (median(column) for column in zip(*found, strict=True))
            held = [in_its_own_process(case, name, told, way) for way in (0, 1)]
            floor = floor_flops(case, size) / speed
            print(json.dumps({
                "case": case, "size": name, "rows": size.rows, "length": size.shape.length,
                "ours_s": round(ours, 4), "baseline_s": round(baseline, 4),
                "ratio": round(median(b / a for a, b in found), 2),
                "floor_s": round(floor, 4), "of_floor": round(floor / ours, 3),
                "bytes_floor_s": round(floor_bytes(case, size) / width, 4),
                "ours_mib": held[0] >> 20, "baseline_mib": held[1] >> 20,
                "memory_ratio": round(held[0] / held[1], 3),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
