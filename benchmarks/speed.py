"""The library against the original codes: seconds and memory of a sample and of a training step.

    python benchmarks/speed.py                  all cases, 1M and 169M weights, L = 256: an hour
    python benchmarks/speed.py --cases mcd --sizes 1M --repeats 3
    python benchmarks/speed.py --cases mcd --sizes 169M --checkpointing    less memory in ours
    python benchmarks/speed.py --precision bfloat16    of the products in the blocks, on both sides
    python benchmarks/speed.py --device cuda    169M weights, L = 1024, bfloat16

    sampling          MDLM's ancestral sampler in 32 steps, with float64 draws. MDLM's released
                      code draws in float32, which is biased.
    sampling_uniform  Duo's ancestral sampler in 32 steps, with float64 draws
    teacher           a step on the evidence bound
    mcd, sdtt, dcd    a step of each distillation. MCD has no published code: the baseline is a
                      direct implementation.
    mcd_against_sdtt  our step of MCD against SDTT's step as published

A training step is forward, backward, clipping, AdamW and EMA. Prints a JSON line for each case:

    seconds  medians over pairs of runs, ours and the baseline in turns; the median of their ratios
    floor    lower bounds of our seconds: the necessary FLOPs at the rate of a large matrix product,
             and the necessary bytes of weights at the rate of a large copy. Both rates are measured
             at the start. `parts.py` divides the rest by kind of work.
    memory   the peak minus the memory before, each side in its own process. On a GPU it is that of
             torch's allocator. On a CPU it is the resident set, with a C library that returns freed
             memory at once.
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
# The last round: it has the largest delta, so most revealed tokens.
ROUNDS = Rounds(round_steps=10**6, delta0=1 / 32, temperatures=(0.84,))
PLAIN = Rounds(round_steps=10**6, delta0=1 / 64, temperatures=(1.0,))
GAMMA = -4.0, -1.0
CASES = "sampling", "sampling_uniform", "teacher", "mcd", "sdtt", "dcd", "mcd_against_sdtt"
Run = Callable[[], object]
Make = Callable[[NetworkDenoiser], Objective]


@dataclass(frozen=True)
class Size:
    """A network and the sizes of its runs.

    shape          the network
    rows           texts of a sample, and rows of a training step
    steps          steps of a sample
    checkpointing  activation checkpointing, in our trainings only
    precision      precision of the matrix products in the blocks
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
    """A denoiser with random weights."""
    network = random_network(size.shape, compute_dtype=size.precision).to(device)
    return NetworkDenoiser(network, None if uniform else MASK, sees_alpha=uniform)


def training(
    objective: Callable[[NetworkDenoiser], Objective],
    size: Size,
    device: str,
    uniform: bool = False,
) -> Run:
    """A function that makes one training step of the library's loop."""
    student, teacher = denoiser(size, device, uniform), denoiser(size, device, uniform)
    student.network.checkpointing = size.checkpointing
    loss = objective(teacher.eval().requires_grad_(False))
    ids = torch.randint(
        MASK, (size.rows, size.shape.length), generator=torch.Generator().manual_seed(1)
    )
    state = State.begin(
        loss, student, AdamW(lr=1e-5, ema_decay=0.999), Engine(torch.device(device))
    )
    steps = fit(
        loss,
        state,
        lambda step: ids,
        steps=10**6,
        seed=0,
        engine=Engine(torch.device(device)),
        guard=LossGuard(factor=1e9),
    )
    return lambda: next(steps)


def sampling(size: Size, device: str, ours: bool) -> Run:
    """A function that draws texts in masked diffusion."""
    role = denoiser(size, device).eval()
    if not ours:
        generator = torch.Generator(device).manual_seed(0)
        draw = baseline_masked.sample
        return lambda: draw(role.network, MASK, size.rows, size.shape.length, size.steps, generator)
    model = Model(role, MaskedProcess(V, MASK), LogLinear(), None)
    return lambda: unmask.sample(model, size.rows, size.shape.length, size.steps, device=device)


def sampling_uniform(size: Size, device: str, ours: bool) -> Run:
    """A function that draws texts from uniform noise."""
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
    """Two functions that prepare a run, ours and the baseline's."""
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
        raise ValueError(f"case is unknown: got {case!r}, want one of {', '.join(CASES)}")
    sizes = size, replace(size, checkpointing=False)
    ours, baseline = (
        partial(training, make, each, device, case == "dcd")
        for make, each in zip(pairs[case], sizes, strict=True)
    )
    return ours, baseline


def floor_flops(case: str, size: Size) -> float:
    """FLOPs of the necessary matrix products.

    The body needs 2 FLOPs for each weight and token, and attention. The head needs 2 V D for each
    of its rows.
    """
    shape, tokens = size.shape, size.rows * size.shape.length
    body = tokens * shape.blocks * (24 * shape.width**2 + 4 * shape.length * shape.width)
    head = tokens * 2 * V * shape.width
    if case in ("sampling", "sampling_uniform"):
        return size.steps * body + head * (1 if case == "sampling" else uniform_rows(size.steps))
    rows = head if case == "dcd" else head / 2  # half of the tokens are MASK on average
    teacher = {"teacher": 0, "sdtt": 2}.get(case, 1)  # forward passes; SDTT's head needs one in all
    # The student's forward pass counts once, its backward pass twice.
    return (3 + teacher) * body + (3 + min(teacher, 1)) * rows


def floor_bytes(case: str, size: Size) -> float:
    """Bytes of float32 weights that must be read or written.

    Each forward pass and each backward pass to the inputs reads the weights, and each gradient is
    written. The optimizer reads gradient, weight, two moments and EMA, and writes all but the
    gradient.
    """
    shape = size.shape
    head = V * shape.width
    body = shape.blocks * 12 * shape.width**2
    if case in ("sampling", "sampling_uniform"):
        return 4 * size.steps * (body + head)
    teacher = {"teacher": 0, "sdtt": 2}.get(case, 1)
    return 4 * ((3 + teacher) * (body + head) + 9 * (body + 2 * head))


def uniform_rows(steps: int) -> float:
    """Rows of the head for each token of a text from uniform noise.

    The alphas of a step give the fraction of tokens that it may change.
    """
    alphas = [
        *LogLinear().alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()[:-1],
        1.0,
    ]
    return sum(1 - a * (1 - b) / (b * (1 - a)) for a, b in pairwise(alphas))


def rate(device: str, precision: torch.dtype) -> float:
    """FLOPs a second of a large matrix product."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(8))


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, counted when read and when written."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(8))


def seconds(run: Run, device: str) -> float:
    """Seconds of one run."""
    return timed(run, repeats=1, warmup=0, device=device).median


def peak(make: Callable[[], Run], device: str) -> int:
    """Peak bytes of a second run, minus the memory after the first.

    So weights, optimizer and gradients of a training do not count.
    """
    run = make()
    run()
    gc.collect()
    if sys.platform == "linux" and device == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # free heap memory must not count
    if device == "cuda":
        reset_peak_memory(device)
        before = torch.cuda.memory_allocated()
        run()
        return peak_memory(device) - before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak of the resident set
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def pairs(
    case: str, size: Size, device: str, repeats: int, warmup: int
) -> Iterator[tuple[float, float]]:
    """Seconds of ours and of the baseline, in turns, after `warmup` pairs."""
    ours, baseline = (make() for make in ways(case, size, device))
    for number in range(warmup + repeats):
        pair = seconds(ours, device), seconds(baseline, device)
        if number >= warmup:
            yield pair


def in_its_own_process(case: str, name: str, args: argparse.Namespace, way: int) -> int:
    """Peak bytes of our run (way 0) or the baseline's (way 1)."""
    command = [sys.executable, __file__, "--cases", case, "--sizes", name, "--device", args.device]
    command += ["--memory", str(way), "--precision", args.precision]
    command += ["--checkpointing"] * args.checkpointing
    # The C library then returns freed memory at once.
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=exact)
    return int(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=[*CASES])
    parser.add_argument("--sizes", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="timed pairs of runs")
    parser.add_argument("--warmup", type=int, default=1, help="untimed pairs before them")
    parser.add_argument(
        "--checkpointing", action="store_true", help="activation checkpointing in our trainings"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="of the matrix products in the blocks (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = args.precision or ("float32" if args.device == "cpu" else "bfloat16")
    names, precision = args.sizes or list(SIZES[args.device]), getattr(torch, args.precision)
    changes = {"checkpointing": args.checkpointing, "precision": precision}
    sizes = {name: replace(SIZES[args.device][name], **changes) for name in names}
    if args.memory is not None:
        # Four steps are enough: a sampler's memory does not grow with the steps.
        way = ways(args.cases[0], replace(sizes[names[0]], steps=4), args.device)[args.memory]
        print(peak(way, args.device))
        return
    speed, width = rate(args.device, precision), bandwidth(args.device)
    print(
        f"# {torch.get_num_threads()} threads, torch {torch.__version__}, {args.precision}, "
        f"large matrix product {speed / 1e9:.0f} GFLOP/s, large copy {width / 1e9:.1f} GB/s"
    )
    for name in names:
        for case in args.cases:
            size = sizes[name]
            timings = list(pairs(case, size, args.device, args.repeats, args.warmup))
            ours, baseline = (median(column) for column in zip(*timings, strict=True))
            peaks = [in_its_own_process(case, name, args, way) for way in (0, 1)]
            floor = floor_flops(case, size) / speed
            print(json.dumps({
                "case": case, "size": name, "rows": size.rows, "length": size.shape.length,
                "ours_s": round(ours, 4), "baseline_s": round(baseline, 4),
                "ratio": round(median(b / a for a, b in timings), 2),
                "floor_s": round(floor, 4), "of_floor": round(floor / ours, 3),
                "bytes_floor_s": round(floor_bytes(case, size) / width, 4),
                "ours_mib": peaks[0] >> 20, "baseline_mib": peaks[1] >> 20,
                "memory_ratio": round(peaks[0] / peaks[1], 3),
            }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
