"""Duo's curriculum input at V = 50,258: K Gaussians a token against k + 1 numbers a token.

Measures the input and its embedding (width 768), forward and backward, for 4 rows of 128 tokens on
one thread. Prints medians of 3 passes, and the resident memory that the forward pass adds. Each
form runs in its own process. The dense form is float32, as in the released code. Then prints the
mean weight that the sparse input leaves out, by temperature and top_k.
"""

import subprocess
import sys
import time
from statistics import median

import torch
from torch import Tensor

from unmask.diffusion.duality import ddim_path
from unmask.diffusion.gaussian_input import sparse_input
from unmask.diffusion.schedules import GaussianArgmax
from unmask.evaluation.timing import peak_memory
from unmask.models.layers import Embedding

K, ROWS, LENGTH, WIDTH, TAU, TOP_K = 50258, 4, 128, 768, 1e-3, 8
X0 = torch.randint(K, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
ROOT = GaussianArgmax(K, -3.55, -1.85).snr_root(torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64))


def dense() -> Tensor:
    """Logits for the embedding: (alpha~ onehot(x0) + sigma~ eps) / tau, float32 [B, L, K]."""
    sigma = (1 / torch.hypot(torch.ones_like(ROOT), ROOT)).float()[:, None, None]
    w = torch.randn(ROWS, LENGTH, K).mul_(sigma)
    w.scatter_add_(2, X0[..., None], (ROOT.float()[:, None, None] * sigma).expand(-1, LENGTH, 1))
    w.argmax(-1)
    return w.div_(TAU)


def sparse():
    """Soft tokens for the embedding: x0 and the k greatest others, [B, L, k + 1]."""
    return sparse_input(X0, ROOT, K, TAU, TOP_K)[1]


def run(way: str) -> tuple[float, float]:
    """Median seconds forward and backward, and MiB that the forward pass adds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    embedding, make = Embedding(K, WIDTH), {"dense": dense, "sparse": sparse}[way]
    before = peak_memory()
    with torch.no_grad():
        embedding(make())
    risen = (peak_memory() - before) / 2**20
    clock = []
    for _ in range(3):
        started = time.perf_counter()
        embedding(make()).sum().backward()
        clock.append(time.perf_counter() - started)
    return median(clock), risen


def left_out() -> None:
    """Print the weight of all tokens but x0 and the k next ones, by the dense form in float64."""
    eps = torch.randn(1, 64, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    root = GaussianArgmax(K, -3.55, -1.85).snr_root(torch.tensor([0.5], dtype=torch.float64))
    for tau in (1e-3, 1e-2, 1e-1):
        w = ddim_path(X0[0, :64], eps[0], root.expand(64))  # [64, K]
        logits = (w / tau)[None]
        weight = (
            logits.softmax(-1).scatter(-1, X0[:1, :64, None], 0.0).sort(-1, descending=True).values
        )
        rest = ", ".join(
            f"{float(weight[..., k:].sum(-1).mean()):.1e} at top_k {k}" for k in (2, 8, 32)
        )
        print(f"temperature {tau:g}: mean weight left out {rest}")


if len(sys.argv) > 1:
    print(*run(sys.argv[1]))
else:
    costs = {}
    for way in ("dense", "sparse"):
        out = subprocess.run(
            [sys.executable, __file__, way], capture_output=True, text=True, check=True
        ).stdout
        costs[way] = [float(value) for value in out.split()]
        print(f"{way}: {1e3 * costs[way][0]:.1f} ms, {costs[way][1]:.0f} MiB")
    (t0, m0), (t1, m1) = costs["dense"], costs["sparse"]
    print(f"ratio dense / sparse: time {t0 / t1:.1f}, memory {m0 / m1:.1f}")
    left_out()
