"""Sizes of chunks and blocks in the loss over the vocabulary: reverse KL, 1,024 rows of V = 50,258.

The head computes a chunk of rows at a time, forward and backward. Between these matrix products the
loss computes the chunk block by block. Prints medians of 3 forward and backward passes in turns.
Chunks have 16, 31 and 64 MiB, in blocks of 1 MiB, of 4 MiB, and whole. The library uses 31 MiB and
1 MiB on a CPU: glibc maps new memory for every tensor of 32 MiB or more.
"""

from __future__ import annotations

import time
from itertools import product
from statistics import median

import torch
from torch import Tensor

from unmask import prediction
from unmask.diffusion.vocabulary_losses import reverse_kl
from unmask.models.layers import Linear
from unmask.prediction import Prediction

V, B, L = 50258, 4, 256
CHUNKS, BLOCKS = (16, 31, 64), (1, 4, 64)  # MiB


def seconds(
    hidden: Tensor, teacher: Tensor, heads: tuple[Linear, Linear], chunk: int, block: int
) -> float:
    """Seconds of one loss and its gradients."""
    prediction.CPU_CHUNK_ELEMENTS, prediction.CPU_BLOCK_ELEMENTS = chunk * 2**18, block * 2**18
    rows = hidden.clone().requires_grad_()
    started = time.perf_counter()
    loss = reverse_kl(
        Prediction(rows, heads[0], V),
        Prediction(teacher, heads[1], V),
        torch.ones(B, L, dtype=torch.bool),
    )
    torch.autograd.grad(loss.sum(), [rows, *heads[0].parameters()])
    return time.perf_counter() - started


ways = list(product(CHUNKS, BLOCKS))
for width in (128, 768):
    torch.manual_seed(0)
    pair = Linear(width, V), Linear(width, V)
    student, other = torch.randn(B, L, width), torch.randn(B, L, width)
    clocks = [{way: seconds(student, other, pair, *way) for way in ways} for _ in range(4)]
    for chunk in CHUNKS:
        parts = []
        for block in BLOCKS:
            value = median(clock[chunk, block] for clock in clocks[1:])  # the first is a warm-up
            parts.append(f"{block} MiB {value:.2f} s")
        print(f"width {width}, chunks of {chunk} MiB, in blocks of " + ", ".join(parts))
