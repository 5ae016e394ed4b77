"""What `unmask bench` could have found, without a clock."""

from unmask.evaluation.measure import Measure
from unmask.experiments.bench.throughput import Bench, BenchRow, BenchSettings, Contender, Machine


def bench(
    steps: tuple[int, ...] = (4, 16),
    batches: tuple[int, ...] = (1, 8),
    repeats: int = 3,
    random: bool = True,
) -> Bench:
    plan = BenchSettings(steps, batches, length=32, repeats=repeats)
    table = tuple(row(plan, batch, count) for batch in batches for count in (*steps, None))
    theirs = Contender("a twin", 90, "b" * 16, random)
    return Bench(
        "0",
        Machine("cpu", "a CPU", 1, "2", "float32"),
        plan,
        Contender("ours", 100, "a" * 16),
        theirs,
        table,
    )


def row(plan: BenchSettings, batch: int, steps: int | None) -> BenchRow:
    nfe = float(plan.length) if steps is None else min(steps, plan.length) - 0.25
    seconds = 0.01 * nfe * (1 if steps is None else batch)
    rate = Measure(batch * plan.length / seconds, "tokens/s", plan.repeats, 2.5)
    ratio = None if steps is None else Measure(1.5, "x autoregressive", plan.repeats, 0.1)
    return BenchRow(
        steps,
        batch,
        nfe,
        round(nfe),
        plan.length / nfe,
        rate,
        seconds,
        1.25 * seconds,
        ratio,
        None,
        (seconds,),
    )
