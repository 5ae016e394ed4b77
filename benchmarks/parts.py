"""Processor time of the runs of `speed.py` by kind of work, for the library and the baseline.

    python benchmarks/parts.py --cases dcd mcd sampling --sizes 169M

body products   matrix products with the weights of the blocks
head products   matrix products with the weights of the head, forward and backward
tables          other work on rows of V tokens, or on weights [V, D] of embedding and head
attention       softmax(q k^T) v, forward and backward
optimizer       clipping, AdamW and EMA of weights other than [V, D]
rest            normalisation, activation, dropout, rotation, sums of residual streams

Prints one line for the library and one for the baseline. A line has the seconds of each kind
(medians over --repeats) and the rate of the matrix products in GFLOP/s.
"""

from __future__ import annotations

import argparse
from collections import Counter
from math import prod
from statistics import median

import torch
from speed import SIZES, Run, V, ways
from torch.profiler import ProfilerActivity, profile

PARTS = "body products", "head products", "tables", "attention", "optimizer", "rest"
PRODUCTS = "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"
OPTIMIZER = "adam", "lerp", "vector_norm", "foreach"


def part(name: str, shapes: list[list[int]]) -> str:
    """The kind of work of an operation on tensors of these shapes."""
    wide = any(V in shape for shape in shapes)
    if name in PRODUCTS:
        return "head products" if wide else "body products"
    if wide:
        return "tables"
    if "attention" in name:
        return "attention"
    return "optimizer" if any(each in name for each in OPTIMIZER) else "rest"


def measure(run: Run) -> tuple[Counter[str], Counter[str]]:
    """Seconds and FLOPs of a run, by kind of work."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    seconds: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = part(event.key, event.input_shapes)
        seconds[kind] += event.self_cpu_time_total / 1e6
        if event.key in PRODUCTS:
            left, right = [shape for shape in event.input_shapes if len(shape) > 1][-2:]
            flops[kind] += event.count * 2 * prod(left) * right[-1]
    return seconds, flops


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=["mcd", "dcd", "sampling"])
    parser.add_argument("--sizes", nargs="+", default=["1M", "169M"])
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    print(f"# {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in args.sizes:
        for case in args.cases:
            for way, make in zip(
                ("ours", "baseline"), ways(case, SIZES["cpu"][name], "cpu"), strict=True
            ):
                run = make()
                run()
                measured = [measure(run) for _ in range(args.repeats)]
                columns = []
                for kind in PARTS:
                    seconds = median(each[0][kind] for each in measured)
                    flops = measured[0][1][kind]
                    rate = f" ({flops / seconds / 1e9:.0f} GFLOP/s)" if "products" in kind else ""
                    columns.append(f"{kind} {seconds:.2f} s{rate}")
                print(f"{name} {case}, {way}: " + ", ".join(columns), flush=True)


if __name__ == "__main__":
    main()
