"""Duo's bound, value and derivative, on 8,192 rows of V = 1,024: all in float64, or by the library.

The library uses float64 for numbers of a row, and sums float32 terms in float64. Prints medians of
7 runs on one thread, their ratio, and the greatest difference of the two results.
"""

import time
from statistics import median

import torch
from torch import Tensor

from unmask.diffusion.uniform_nelbo import uniform_nelbo

ROWS, K = 8192, 1024


def plain(
    log_p: Tensor, x0: Tensor, z: Tensor, alpha: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Duo's bound (arXiv 2506.10892, Eq. 12) in float64.

    Returns the value [N] and its derivative in the logits [N, K].
    """
    p = log_p.double().exp()
    y = K * alpha[:, None] * p + 1 - alpha[:, None]
    log_y = y.log()
    same = x0 == z
    kappa = (1 - alpha) / (K * alpha + 1 - alpha)
    own, other = torch.where(same, kappa, 1.0), torch.where(same, 0.0, K * alpha / (1 - alpha))
    y_z, y_x = (y.gather(1, i[:, None])[:, 0] for i in (z, x0))
    truth = torch.where(same, K * alpha + 1 - alpha, 1 - alpha)
    constant = torch.where(same, (K - 1) * kappa, -1 / kappa) * kappa.log()
    scale = slope / (K * alpha)
    rate = (
        K / y_z
        - K / truth
        + own * (K * y_z.log() - log_y.sum(1))
        + other * (y_z.log() - y_x.log())
        + constant
    )
    slopes = -own[:, None] / y
    slopes.scatter_add_(1, z[:, None], ((own * K + other) / y_z - K / y_z**2)[:, None])
    slopes.scatter_add_(1, x0[:, None], -(other / y_x)[:, None])
    slopes = slopes * (scale * K * alpha)[:, None]
    return scale * rate, p * (slopes - (p * slopes).sum(1, keepdim=True))


def clock(call) -> float:
    """Median seconds of 7 calls."""
    times = []
    for _ in range(7):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
log_p = torch.randn(ROWS, K, generator=generator).mul(3).log_softmax(1)
x0, noise = (torch.randint(K, (ROWS,), generator=generator) for _ in range(2))
alpha = torch.rand(ROWS, dtype=torch.float64, generator=generator) * 0.998 + 1e-3
z = torch.where(torch.rand(ROWS, generator=generator) < alpha, x0, noise)
loss, every = uniform_nelbo(x0, z, alpha, torch.ones_like(alpha), K), slice(None)
value, derivative = plain(log_p, x0, z, alpha, torch.ones_like(alpha))
slow = clock(lambda: plain(log_p, x0, z, alpha, torch.ones_like(alpha)))
fast = clock(lambda: loss(log_p.clone(), every)[1]())  # overwrites log p
print(f"float64 {1e3 * slow:.0f} ms, library {1e3 * fast:.0f} ms, ratio {slow / fast:.1f}")
ours, gradient = loss(log_p.clone(), every)
for name, result, exact in (("value", ours, value), ("derivative", gradient(), derivative)):
    difference, largest = float((result - exact).abs().max()), float(exact.abs().max())
    print(f"{name}: greatest difference {difference:.1e} of {largest:.0f}")
