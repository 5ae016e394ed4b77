"""Made-up results of `unmask bench`, without a clock."""

from unmask.evaluation.measure import Measure
from unmask.experiments.bench.bench_results import (
    Bench,
    BenchRow,
    BenchSettings,
    Contender,
    Machine,
)


def bench(
    steps: tuple[int, ...] = (4, 16),
    batches: tuple[int, ...] = (1, 8),
    repeats: int = 3,
    random: bool = True,
) -> Bench:
    settings = BenchSettings(steps, batches, length=32, repeats=repeats)
    return Bench(
        version="0",
        machine=Machine("cpu", "a CPU", 1, "2", "float32"),
        plan=settings,
        model=Contender("ours", 100, "a" * 16),
        baseline=Contender("a twin", 90, "b" * 16, random),
        rows=tuple(row(settings, batch, count) for batch in batches for count in (*steps, None)),
    )


def row(settings: BenchSettings, batch: int, steps: int | None) -> BenchRow:
    length, repeats = settings.length, settings.repeats
    nfe = float(length) if steps is None else min(steps, length) - 0.25
    seconds = 0.01 * nfe * (1 if steps is None else batch)
    return BenchRow(
        steps=steps,
        batch=batch,
        nfe=nfe,
        calls=round(nfe),
        tokens_per_forward=length / nfe,
        tokens_per_second=Measure(batch * length / seconds, "tokens/s", repeats, 2.5),
        p50_s=seconds,
        p95_s=1.25 * seconds,
        ratio=None if steps is None else Measure(1.5, "x autoregressive", repeats, 0.1),
        memory_bytes=None,
        seconds=(seconds,),
    )
