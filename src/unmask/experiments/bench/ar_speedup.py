"""A diffusion model and an autoregressive one with KV cache, timed in turns: pairs of calls, and their rows."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch.nn import init

from unmask.evaluation.measure import Measure, median
from unmask.evaluation.timing import Timed, peak_memory, reset_peak_memory, timed
from unmask.experiments.bench.throughput import BenchRow, BenchSettings, Machine
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model
from unmask.rng import generator, global_generators
from unmask.samplers.sample import AutoregressiveModel, DiffusionModel, sample


@dataclass(frozen=True)
class Call:
    """One call of `sample`: mean nfe of its texts, its network calls, its wall clock, and `Row.memory_bytes`."""

    nfe: float
    calls: int
    seconds: float
    memory_bytes: int | None


@dataclass(frozen=True)
class SpeedPair:
    """Ours in `steps` steps and the autoregressive call that came after it, of equally many texts."""

    batch: int
    steps: int
    ours: Call
    baseline: Call


def pairs(
    model: DiffusionModel,
    baseline: AutoregressiveModel,
    plan: BenchSettings,
    device: torch.device | str = "cpu",
) -> Iterator[SpeedPair]:
    """Time `plan.repeats` pairs for each batch and step count, in turns: what slows the machine down slows both.

    A pair before them warms up and is not shown. Temperature 1, the default sampler and grid of `sample`.
    """
    for batch in plan.batches:
        for steps in plan.steps:
            for number in range(plan.repeats + 1):
                ours, theirs = (
                    _call(each, plan, batch, steps, device) for each in (model, baseline)
                )
                if number:
                    yield SpeedPair(batch, steps, ours, theirs)


def _call(
    model: DiffusionModel | AutoregressiveModel,
    plan: BenchSettings,
    batch: int,
    steps: int,
    device: torch.device | str,
) -> Call:
    draw = partial(
        sample, model, n=batch, length=plan.length, steps=steps, seed=plan.seed, device=device
    )
    gpu = torch.device(device).type == "cuda"
    reset_peak_memory(device)
    held = torch.cuda.memory_allocated(device) if gpu else 0
    clock = timed(draw, repeats=1, warmup=0, device=device)
    memory = peak_memory(device) - held if gpu else None
    return Call(float(clock.result.nfe.double().mean()), clock.result.calls, clock.median, memory)


def rows(found: Iterable[SpeedPair], length: int) -> list[BenchRow]:
    """A row for each batch and step count, and behind those of a batch its autoregressive one, of all its pairs."""
    groups: dict[int, dict[int, list[SpeedPair]]] = {}
    for pair in found:
        groups.setdefault(pair.batch, {}).setdefault(pair.steps, []).append(pair)
    table = []
    for batch, by_steps in groups.items():
        for steps, group in by_steps.items():
            ratio = median(
                [pair.baseline.seconds / pair.ours.seconds for pair in group], "x autoregressive"
            )
            table.append(_row(steps, batch, length, [pair.ours for pair in group], ratio))
        theirs = [pair.baseline for group in by_steps.values() for pair in group]
        table.append(_row(None, batch, length, theirs, None))
    return table


def _row(
    steps: int | None, batch: int, length: int, calls: Sequence[Call], ratio: Measure | None
) -> BenchRow:
    clock = Timed(None, tuple(call.seconds for call in calls))
    nfe = fmean(call.nfe for call in calls)
    memory = [call.memory_bytes for call in calls if call.memory_bytes is not None]
    return BenchRow(
        steps=steps,
        batch=batch,
        nfe=nfe,
        calls=calls[0].calls,
        tokens_per_forward=length / nfe,
        tokens_per_second=clock.rate(batch * length),
        p50_s=clock.quantile(0.5),
        p95_s=clock.quantile(0.95),
        ratio=ratio,
        memory_bytes=max(memory) if memory else None,
        seconds=clock.seconds,
    )


def random_network(shape: Shape, seed: int = 0, compute_dtype: torch.dtype = torch.float32) -> DiT:
    """A network whose matrices are drawn at random, none of them zero: in a new one gates and head are."""
    with global_generators(seed, 0):  # of biases
        made = DiT(shape, compute_dtype)
    dice = generator(seed, 1)
    for weight in made.parameters():
        if weight.dim() == 2:
            init.normal_(weight, std=0.02, generator=dice)
    return made


def causal_twin(model: Model, seed: int = 0, device: torch.device | str = "cpu") -> CausalModel:
    """An autoregressive model of random weights with the sizes, the vocabulary and the tokenizer of `model`.

    It has no noise conditioning, and so a few weights less.
    """
    shape = replace(model.network.shape, causal=True, dropout=0.0)
    network = (
        random_network(shape, seed, model.network.compute_dtype).to(device).requires_grad_(False)
    )
    return CausalModel.of(network, model.tokenizer, model.denoiser.mask_id)


def machine(device: torch.device | str, precision: str) -> Machine:
    """The machine that this process runs on."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _processor()
    return Machine(str(device), name, torch.get_num_threads(), torch.__version__, precision)


def _processor() -> str:
    told = Path("/proc/cpuinfo")  # of Linux, whose `platform.processor` is empty
    for line in told.read_text("utf-8").splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
