"""`unmask bench`: how fast a model draws on this machine, beside an autoregressive one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask import __version__
from unmask.cli.console import emit, parse, progress, result_folder, say, table
from unmask.dataclass_json import to_json
from unmask.experiments.bench import ar_speedup as side_by_side
from unmask.experiments.bench.throughput import Bench, BenchSettings, Contender, words
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.build import DTYPES

RANDOM = "a twin of the same sizes"


@dataclass(frozen=True)
class Arguments:
    """Time a diffusion model beside an autoregressive one with KV cache; write bench.json, bench.png and bench.svg.

    Ours and the other draw in turns. Latency is that of one call of `sample`: network calls, draws, decoding.

    model      a run directory, a model directory, a .ckpt file, a hub id, or unmask:teacher
    baseline   an autoregressive model (one of the same sizes, its weights drawn at random)
    steps      moves from noise to text, a row each; the speed of a distilled student is that of its teacher in fewer
    batches    texts a call of sample, a row each
    length     tokens of a text (the model's length)
    repeats    timed pairs behind a row, after one that warms up; p95 wants 21 or more to be other than the longest two
    seed       of the texts, and of the random weights
    device     where both run: cpu, cuda, cuda:1
    precision  of the matrix products in the blocks of both networks
    out        where bench.json and the figure go
    json       print bench.json
    """

    model: Annotated[str, tyro.conf.Positional] = "unmask:teacher"
    baseline: str | None = None
    steps: tuple[int, ...] = (8, 16, 32)
    batches: tuple[int, ...] = (1, 8, 32)
    length: int | None = None
    repeats: int = 7
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("runs/bench")
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    asked = parse(Arguments, verb, arguments)
    model, baseline = _models(asked)
    length = model.length if asked.length is None else asked.length
    plan = BenchSettings(asked.steps, asked.batches, length, asked.repeats, asked.seed)
    out = result_folder(asked.out)
    found, total = [], len(plan.batches) * len(plan.steps) * plan.repeats
    with progress() as (advance, _):
        advance("timing", 0, total)
        for pair in side_by_side.pairs(model, baseline, plan, asked.device):
            found.append(pair)
            advance("timing", len(found), total)
    bench = Bench(
        version=__version__,
        machine=side_by_side.machine(asked.device, asked.precision),
        plan=plan,
        model=_contender(asked.model, model),
        baseline=_contender(asked.baseline or RANDOM, baseline, random=asked.baseline is None),
        rows=tuple(side_by_side.rows(found, length)),
    )
    file = bench.save(out)
    from unmask.experiments.bench.figure import write_figure

    png, _ = write_figure(bench, out)
    if asked.json:
        emit(to_json(bench))
        return 0
    _show(bench)
    say(words(bench))
    say(f"numbers: {file}   figure: {png}")
    return 0


def _models(asked: Arguments) -> tuple[Model, CausalModel]:
    """The two, on their device and in their precision; ValueError where one is of the other's kind."""
    model = load(asked.model, device=asked.device)
    if not isinstance(model, Model):
        raise ValueError(
            f"model is the diffusion model that is timed, and {asked.model} is autoregressive: want one of masked or "
            f"uniform diffusion, say unmask:teacher, and give {asked.model} as --baseline"
        )
    model.network.compute_dtype = DTYPES[asked.precision]
    if asked.baseline is None:
        return model, side_by_side.causal_twin(model, asked.seed, asked.device)
    baseline = load(asked.baseline, device=asked.device)
    if not isinstance(baseline, CausalModel):
        raise ValueError(
            f"baseline is the autoregressive model that is timed beside {asked.model}, and {asked.baseline} is one of "
            "diffusion: want an autoregressive one, say unmask:judge, or leave --baseline out for one of random weights"
        )
    baseline.network.compute_dtype = DTYPES[asked.precision]
    return model, baseline


def _contender(name: str, model: Model | CausalModel, random: bool = False) -> Contender:
    return Contender(name, model.parameters, model.digest, random)


def _show(bench: Bench) -> None:
    on_gpu = any(row.memory_bytes is not None for row in bench.rows)
    heads = [
        "",
        "batch",
        "nfe",
        "calls",
        "tokens/forward",
        "tokens/s",
        "±",
        "p50, s",
        "p95, s",
        "x AR",
        "±",
    ]
    lines: list[list[object]] = []
    for row in bench.rows:
        name = "autoregressive" if row.steps is None else f"{row.steps} steps"
        rate, ratio = row.tokens_per_second, row.ratio
        times = ["", ""] if ratio is None else [f"{ratio.value:.3g}", _error(ratio.sem)]
        line: list[object] = [
            name,
            row.batch,
            row.nfe,
            row.calls,
            row.tokens_per_forward,
            f"{rate.value:.4g}",
        ]
        line += [_error(rate.sem), row.p50_s, row.p95_s, *times]
        lines.append(line + ([] if row.memory_bytes is None else [row.memory_bytes >> 20]))
    title = "tokens a second, and latency of one call of sample"
    table(title, heads + (["MiB"] if on_gpu else []), lines)


def _error(sem: float | None) -> str:
    return "" if sem is None else f"{sem:.2g}"
