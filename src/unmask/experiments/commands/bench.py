"""`unmask bench`: sampling speed on this machine, against an autoregressive model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask import __version__
from unmask.cli.console import emit, parse, progress, result_folder, say, table
from unmask.dataclass_json import to_json
from unmask.experiments.bench import ar_speedup
from unmask.experiments.bench.bench_results import Bench, BenchRow, BenchSettings, Contender
from unmask.experiments.report.bench_figure import write_figure
from unmask.models.denoiser import set_compute
from unmask.models.model import CausalModel, Model, causal_model, diffusion_model, load
from unmask.recipes.build import DTYPES

RANDOM = "a twin of the same sizes"


@dataclass(frozen=True)
class Arguments:
    """Time a diffusion model against an autoregressive one with KV cache.

    Calls of the two models alternate. Latency is the time of one call of `sample`: network calls,
    drawing of tokens, decoding. The results are bench.json, bench.png and bench.svg.

    Attributes:
        model: a run directory, a model directory, a .ckpt file, a hub id, or unmask:teacher
        baseline: an autoregressive model; None: random weights of the same sizes
        steps: step counts, one row for each; at equal steps a student is as fast as its teacher
        batches: numbers of texts in a call of sample, one row for each
        length: tokens in a text; None: the model's length
        repeats: timed pairs for a row, after one warm-up pair; p95 needs 21 or more
        seed: seed of the texts, and of the random weights
        device: device of both models: cpu, cuda, cuda:1
        precision: precision of the matrix products in the blocks of both networks
        out: directory of bench.json and the figure
        json: print bench.json
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "unmask:teacher"
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
    options = parse(Arguments, verb, arguments)
    model, baseline = _load_models(options)
    length = model.length if options.length is None else options.length
    settings = BenchSettings(options.steps, options.batches, length, options.repeats, options.seed)
    out = result_folder(options.out)
    pairs, total = [], len(settings.batches) * len(settings.steps) * settings.repeats
    with progress() as (advance, _):
        advance("timing", 0, total)
        for pair in ar_speedup.time_pairs(model, baseline, settings, options.device):
            pairs.append(pair)
            advance("timing", len(pairs), total)
    bench = Bench(
        version=__version__,
        machine=ar_speedup.this_machine(options.device, options.precision),
        plan=settings,
        model=Contender(options.model, model.parameters, model.digest),
        baseline=Contender(
            options.baseline or RANDOM,
            baseline.parameters,
            baseline.digest,
            random=options.baseline is None,
        ),
        rows=tuple(ar_speedup.bench_rows(pairs, length)),
    )
    file = bench.save(out)
    png, _ = write_figure(bench, out)
    if options.json:
        emit(to_json(bench))
        return 0
    _print_table(bench)
    say(bench.protocol_words)
    say(f"numbers: {file}   figure: {png}")
    return 0


def _load_models(options: Arguments) -> tuple[Model, CausalModel]:
    """Both models, on their device and in their precision.

    Raises:
        ValueError: `model` is autoregressive, or `baseline` is not.
    """
    model = diffusion_model(
        load(options.model, device=options.device),
        f"model is of the wrong kind: {options.model} is autoregressive, want a diffusion "
        f"model such as unmask:teacher; give {options.model} as --baseline",
    )
    set_compute(model.module, DTYPES[options.precision])
    if options.baseline is None:
        return model, ar_speedup.autoregressive_twin(model, options.seed, options.device)
    baseline = causal_model(
        load(options.baseline, device=options.device),
        f"baseline is of the wrong kind: {options.baseline} is a diffusion model, want an "
        "autoregressive one such as unmask:judge; or leave --baseline out for random weights",
    )
    set_compute(baseline.module, DTYPES[options.precision])
    return model, baseline


def _print_table(bench: Bench) -> None:
    rows = [_cells(row) for row in bench.rows]
    title = "tokens a second, and latency of one call of sample"
    table(title, list(rows[0]), [list(row.values()) for row in rows])


def _cells(row: BenchRow) -> dict[str, object]:
    """Heading -> cell."""
    rate, ratio = row.tokens_per_second, row.ratio
    cells = {
        "": row.name,
        "batch": row.batch,
        "nfe": row.nfe,
        "calls": row.calls,
        "tokens/forward": row.tokens_per_forward,
        "tokens/s": f"{rate.value:.4g}",
        "±": _error_text(rate.sem),
        "p50, s": row.p50_s,
        "p95, s": row.p95_s,
        "x AR": "" if ratio is None else f"{ratio.value:.3g}",
        "± x AR": "" if ratio is None else _error_text(ratio.sem),
    }
    return cells if row.memory_bytes is None else cells | {"MiB": row.memory_bytes >> 20}


def _error_text(sem: float | None) -> str:
    return "" if sem is None else f"{sem:.2g}"
