"""How many rows of the vocabulary to hold at a time: reverse KL over 1,024 rows of V = 50,258, forward and backward.

Medians of 3 in turns in one run, two threads, for tables of 8, 16 (the library's on a CPU), 32 and 64 MiB.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor

from unmask import prediction
from unmask.diffusion.divergences import reverse_kl
from unmask.models.layers import Linear
from unmask.prediction import Prediction

V, B, L = 50258, 4, 256
MIB = 8, 16, 32, 64


def seconds(hidden: Tensor, teacher: Tensor, heads: tuple[Linear, Linear], mib: int) -> float:
    """Of one loss and its gradients, in tables of at most `mib`."""
    prediction.CPU_CHUNK_ELEMENTS = mib * 2**18
    rows = hidden.clone().requires_grad_()
    started = time.perf_counter()
    loss = reverse_kl(
        Prediction(rows, heads[0], V), Prediction(teacher, heads[1], V), torch.ones(B, L, dtype=torch.bool)
    )
    torch.autograd.grad(loss.sum(), [rows, *heads[0].parameters()])
    return time.perf_counter() - started


torch.set_num_threads(2)
for width in (128, 768):
    torch.manual_seed(0)
    pair = Linear(width, V), Linear(width, V)
    student, other = torch.randn(B, L, width), torch.randn(B, L, width)
    clocks = [{mib: seconds(student, other, pair, mib) for mib in MIB} for _ in range(4)][1:]  # the first warms up
    print(f"width {width}: " + ", ".join(f"{mib} MiB {median(clock[mib] for clock in clocks):.2f} s" for mib in MIB))
