"""KL(student || teacher) over 512 rows of V = 50,258, forward and backward, in three ways.

whole           two tables [N, V] and autograd
checkpointed    64 MiB of a table at a time, computed again in the backward pass: the usual form of
                chunked losses
library         `vocabulary_losses.reverse_kl`: value and gradient in one pass
products alone  the necessary matrix products: two heads forward, one backward to rows and weights

Prints medians of 3 runs in turns, on one thread.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.diffusion.vocabulary_losses import reverse_kl
from unmask.models.layers import Linear
from unmask.prediction import Prediction

V, ROWS, TAU, CHUNK = 50258, 512, 0.9, 2**24 // 50258


def divergence(rows: Tensor, theirs: Tensor, head: Linear, teacher: Linear) -> Tensor:
    log_p = torch.log_softmax(head(rows), dim=-1)
    with torch.no_grad():
        log_q = torch.log_softmax(teacher(theirs) / TAU, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def ways(width: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    head, teacher = Linear(width, V), Linear(width, V)
    for each in (head, teacher):
        torch.nn.init.normal_(each.weight, std=0.05, generator=generator)
    rows = torch.randn(1, ROWS, width, generator=generator, requires_grad=True)
    theirs = rows.detach() + 0.1 * torch.randn(1, ROWS, width, generator=generator)

    def library() -> Tensor:
        pair = (Prediction(hidden, one, V) for hidden, one in ((rows, head), (theirs, teacher)))
        return reverse_kl(*pair, torch.ones(1, ROWS, dtype=torch.bool), TAU)

    def checkpointed() -> Tensor:
        parts = zip(rows[0].split(CHUNK), theirs[0].split(CHUNK), strict=True)
        return torch.cat(
            [checkpoint(divergence, a, b, head, teacher, use_reentrant=False) for a, b in parts]
        )

    def products() -> None:
        with torch.no_grad():
            table, _ = head(rows[0]), teacher(theirs[0])
            _ = table @ head.weight, table.T @ rows[0]

    def both_ways(loss: Callable[[], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(loss().sum(), [rows, *head.parameters()]))

    whole = lambda: divergence(rows[0], theirs[0], head, teacher)  # noqa: E731
    gradients = [both_ways(loss) for loss in (whole, checkpointed, library)]
    difference = max(
        float((a - b).norm() / a.norm())
        for other in gradients[1:]
        for a, b in zip(gradients[0], other, strict=True)
    )
    print(f"width {width}: gradients differ by {difference:.1e} of their norm at most")
    return {
        "whole": lambda: both_ways(whole),
        "checkpointed": lambda: both_ways(checkpointed),
        "library": lambda: both_ways(library),
        "products alone": products,
    }


torch.set_num_threads(1)
for width in (128, 768):
    clocks: dict[str, list[float]] = {}
    runs = ways(width)
    for _ in range(3):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            clocks.setdefault(name, []).append(time.perf_counter() - started)
    seconds = {name: median(times) for name, times in clocks.items()}
    for name, value in seconds.items():
        print(f"  {name}: {value:.2f} s, {value / seconds['library']:.2f} x the library's")
