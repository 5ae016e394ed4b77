"""Dependence of a sample on its batch: the share of tokens equal to those of one sample a call.

    python benchmarks/batches.py [--n 32] [--steps 16] [--batch-sizes 2 8 32]

One sample a call is exact. The rounding of a matrix product depends on its shape and on the
processor. The environment variable ATEN_CPU_CAPABILITY=avx2 or =default selects the instructions of
an older processor.
"""

import argparse
import time

import torch

import unmask

SAMPLERS = ("reveal", "ancestral", "confidence", "entropy_bounded:0.1", "blockwise:16")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--n", type=int, default=32, help="number of texts")
parser.add_argument("--steps", type=int, default=16, help="steps from noise to text")
parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32])
parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
args = parser.parse_args()

model = unmask.load("unmask:teacher")
length = model.length
print(
    f"unmask:teacher, {args.n} texts of {length} tokens, {args.steps} steps, seed 0, "
    f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
    f"{torch.get_num_threads()} threads; compared with batch_size = 1"
)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    model.network.to(torch.float64 if dtype == torch.float64 else torch.float32)
    model.network.compute_dtype = dtype
    for sampler in args.samplers:
        drawn, seconds = {}, {}
        for size in (1, *args.batch_sizes):
            start = time.perf_counter()
            drawn[size] = unmask.sample(
                model, n=args.n, length=length, steps=args.steps, sampler=sampler, batch_size=size
            ).tokens
            seconds[size] = time.perf_counter() - start
        shares = []
        for size in args.batch_sizes:
            same = drawn[size] == drawn[1]
            shares.append(f"{size}: {same.double().mean():.4f} ({int(same.all(1).sum())} texts)")
        ratio = seconds[1] / seconds[args.batch_sizes[-1]]
        print(
            f"{model.network.precision:8} {sampler:19} "
            f"equal tokens in batches of {', '.join(shares)}; "
            f"one at a time takes {ratio:.2f} times as long as {args.batch_sizes[-1]}",
            flush=True,
        )
