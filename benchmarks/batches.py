"""How far a sample depends on its batch: share of equal tokens, against one sample a call, which is exact.

    python benchmarks/batches.py [--n 32] [--steps 16] [--batch-sizes 2 8 32]

Matrix products round by their shape, on some processors more than on others: ATEN_CPU_CAPABILITY=avx2 and =default,
set before, compute as an older one does.
"""

import argparse
import time

import torch

import unmask

SAMPLERS = ("reveal", "ancestral", "confidence", "entropy_bounded:0.1", "blockwise:16")

parser = argparse.ArgumentParser()
parser.add_argument("--n", type=int, default=32)
parser.add_argument("--steps", type=int, default=16)
parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32])
parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
asked = parser.parse_args()

model = unmask.load("unmask:teacher")
length = model.length
print(
    f"unmask:teacher, {asked.n} texts of {length} tokens, {asked.steps} steps, seed 0, torch {torch.__version__}, "
    f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads; against batch_size = 1"
)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    model.network.to(torch.float64 if dtype == torch.float64 else torch.float32)
    model.network.compute_dtype = dtype
    for sampler in asked.samplers:
        drawn, seconds = {}, {}
        for size in (1, *asked.batch_sizes):
            start = time.perf_counter()
            drawn[size] = unmask.sample(
                model, n=asked.n, length=length, steps=asked.steps, sampler=sampler, batch_size=size
            ).tokens
            seconds[size] = time.perf_counter() - start
        found = []
        for size in asked.batch_sizes:
            same = drawn[size] == drawn[1]
            found.append(f"{size}: {same.double().mean():.4f} ({int(same.all(1).sum())} texts)")
        faster = seconds[1] / seconds[asked.batch_sizes[-1]]
        print(
            f"{model.network.precision:8} {sampler:19} equal tokens in batches of {', '.join(found)}; "
            f"one at a time takes {faster:.2f} times as long as {asked.batch_sizes[-1]}",
            flush=True,
        )
