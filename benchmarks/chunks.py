"""How many rows of the vocabulary to hold, and to work on, at a time: reverse KL over 1,024 rows of V = 50,258.

A chunk of rows passes the head, forward and back; between these products a loss goes over it block by block. Forward
and backward, medians of 3 in turns in one run: chunks of 16, 31 and 64 MiB (the library's on a CPU: 31, since from 32
on the C library asks the system for every tensor anew) in blocks of 1 MiB (the library's), of 4 MiB, and whole.
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
    """Of one loss and its gradients."""
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
    clocks = [{way: seconds(student, other, pair, *way) for way in ways} for _ in range(4)][
        1:
    ]  # the first warms up
    for chunk in CHUNKS:
        found = (
            f"{block} MiB {median(clock[chunk, block] for clock in clocks):.2f} s"
            for block in BLOCKS
        )
        print(f"width {width}, chunks of {chunk} MiB, in blocks of " + ", ".join(found))
