"""Time a diffusion model against an autoregressive one with KV cache, in pairs of calls."""

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
from unmask.experiments.bench.bench_results import BenchRow, BenchSettings, Machine
from unmask.models.denoiser import CausalPredictor
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model, own_network
from unmask.rng import generator, global_generators
from unmask.samplers.inputs import AutoregressiveModel, DiffusionModel
from unmask.samplers.sample import sample


@dataclass(frozen=True)
class TimedCall:
    """One call of `sample`.

    Attributes:
        nfe: network calls a text takes part in, mean over texts
        calls: network calls of the whole batch
        seconds: wall clock
        memory_bytes: see `BenchRow`
    """

    nfe: float
    calls: int
    seconds: float
    memory_bytes: int | None


@dataclass(frozen=True)
class SpeedPair:
    """A call of the diffusion model in `steps` steps, and the baseline's call after it."""

    batch: int
    steps: int
    ours: TimedCall
    baseline: TimedCall


def time_pairs(
    model: DiffusionModel,
    baseline: AutoregressiveModel,
    settings: BenchSettings,
    device: torch.device | str = "cpu",
) -> Iterator[SpeedPair]:
    """Time `settings.repeats` pairs for each batch and step count.

    The models take turns, so a disturbance of the machine slows both. One warm-up pair comes
    first. Temperature 1, random order in masked diffusion, the uniform grid.

    Args:
        model: the diffusion model.
        baseline: the autoregressive model.
        settings: batches, step counts, length, repeats and seed.
        device: of both models.
    """
    for batch in settings.batches:
        for steps in settings.steps:
            for number in range(settings.repeats + 1):
                ours = _time_call(model, settings, batch, steps, device)
                theirs = _time_call(baseline, settings, batch, steps, device)
                if number > 0:
                    yield SpeedPair(batch, steps, ours, theirs)


def _time_call(
    model: DiffusionModel | AutoregressiveModel,
    settings: BenchSettings,
    batch: int,
    steps: int,
    device: torch.device | str,
) -> TimedCall:
    length, seed = settings.length, settings.seed
    masked = isinstance(model, DiffusionModel) and model.process.mask_id is not None
    order = "random" if masked else None
    draw = partial(
        sample, model, n=batch, length=length, steps=steps, seed=seed, device=device, order=order
    )
    on_gpu = torch.device(device).type == "cuda"
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    clock = timed(draw, repeats=1, warmup=0, device=device)
    memory = peak_memory(device) - before if on_gpu else None
    samples = clock.result
    return TimedCall(float(samples.nfe.double().mean()), samples.calls, clock.median, memory)


def bench_rows(pairs: Iterable[SpeedPair], length: int) -> list[BenchRow]:
    """A row for each batch and step count; after those of a batch its autoregressive row.

    The autoregressive row takes the calls of all pairs of its batch. `length` is in tokens.
    """
    groups: dict[int, dict[int, list[SpeedPair]]] = {}
    for pair in pairs:
        groups.setdefault(pair.batch, {}).setdefault(pair.steps, []).append(pair)
    table = []
    for batch, by_steps in groups.items():
        for steps, group in by_steps.items():
            ratios = [pair.baseline.seconds / pair.ours.seconds for pair in group]
            ours = [pair.ours for pair in group]
            table.append(_row(steps, batch, length, ours, median(ratios, "x autoregressive")))
        theirs = [pair.baseline for group in by_steps.values() for pair in group]
        table.append(_row(None, batch, length, theirs, None))
    return table


def _row(
    steps: int | None, batch: int, length: int, calls: Sequence[TimedCall], ratio: Measure | None
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
    """A network with random matrices, all of them nonzero.

    A new `DiT` has zero gates and a zero head.
    """
    with global_generators(seed, 0):  # torch draws initial biases from the global generator
        network = DiT(shape, compute_dtype)
    rng = generator(seed, 1)
    for weight in network.parameters():
        if weight.dim() == 2:
            init.normal_(weight, std=0.02, generator=rng)
    return network


def autoregressive_twin(
    model: Model, seed: int = 0, device: torch.device | str = "cpu"
) -> CausalModel:
    """An autoregressive model with random weights and the sizes and tokenizer of `model`.

    It has slightly fewer weights, because it has no noise conditioning.
    """
    own = own_network(model)
    shape = replace(own.shape, causal=True, dropout=0.0)
    network = random_network(shape, seed, own.compute_dtype).to(device).requires_grad_(False)
    return CausalModel.of(CausalPredictor(network, model.mask_id), model.tokenizer)


def this_machine(device: torch.device | str, precision: str) -> Machine:
    """The machine of this process."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(str(device), name, torch.get_num_threads(), torch.__version__, precision)


def _processor() -> str:
    """The processor's name; on Linux `platform.processor` is empty."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
