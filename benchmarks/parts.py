"""What the seconds of `speed.py` are made of: a run of ours and of the baseline by the kind of work, in processor time.

    python benchmarks/parts.py --cases dcd mcd sampling --sizes 169M

body products   matrix products with the weights of the blocks
head products   with those of the head, forward and back
tables          everything else that goes over rows of V tokens, or over weights [V, D] of embedding and head
attention       softmax(q k^T) v, forward and back
optimizer       clipping, AdamW and moving average of what is not [V, D]
rest            what is left: normalisation, activation, dropout, rotation, sums of residual streams

A line a way: seconds of each, medians over --repeats, and the rate of its products, GFLOP/s.
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


def taken(run: Run) -> tuple[Counter[str], Counter[str]]:
    """Seconds and FLOPs of a run by part."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        run()
    seconds: Counter[str] = Counter()
    flops: Counter[str] = Counter()
    for event in found.key_averages(group_by_input_shape=True):
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
    told = parser.parse_args()
    print(f"# {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in told.sizes:
        for case in told.cases:
            for way, make in zip(
                ("ours", "baseline"), ways(case, SIZES["cpu"][name], "cpu"), strict=True
            ):
                run = make()
                run()
                found = [taken(run) for _ in range(told.repeats)]
                told_parts = []
                for kind in PARTS:
                    seconds = median(each[0][kind] for each in found)
                    rate = (
                        f" ({found[0][1][kind] / seconds / 1e9:.0f} GFLOP/s)"
                        if "products" in kind
                        else ""
                    )
                    told_parts.append(f"{kind} {seconds:.2f} s{rate}")
                print(f"{name} {case}, {way}: " + ", ".join(told_parts), flush=True)


if __name__ == "__main__":
    main()
