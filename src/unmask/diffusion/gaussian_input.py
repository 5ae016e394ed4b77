"""Duo's curriculum input: a softmax of a one-hot token mixed with Gaussian noise.

Duo (arXiv 2506.10892, section 4.1) first trains its uniform-state denoiser on soft input:

    input = softmax(w / tau),    w = alpha~ onehot(x0) + sigma~ eps    (Eq. 2)

The noisy token of the bound is z = arg max w. As tau -> 0 the input becomes z itself.

The definition needs K Gaussians a token. `sparse_input` draws from the same law with 2 k + 1 random
numbers a token. Only the k greatest of the K - 1 other coordinates have noticeable weight. The
order statistics of independent normals have a closed form for any K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.diffusion.duality import coefficients
from unmask.types import PerSequence, SoftTokens, Tokens


def sparse_input(
    x0: Tokens,
    snr_root: PerSequence,
    vocab_size: int,
    temperature: float,
    top_k: int,
    generator: torch.Generator | None = None,
) -> tuple[Tokens, SoftTokens]:
    """The curriculum input, restricted to x0 and the `top_k` greatest other coordinates.

    The law is that of the definition, except that the weights softmax(w / tau) are normalised over
    these top_k + 1 tokens. With top_k = K - 1 it is exactly that law. z is exact for any top_k.

    Args:
        x0: token ids [B, L].
        snr_root: alpha~/sigma~, [B].
        vocab_size: K.
        temperature: tau > 0.
        top_k: 1 <= top_k < K.
        generator: the source of randomness; None: torch's global generator.

    Returns:
        z = arg max w, [B, L], and the soft tokens [B, L, top_k + 1]: x0 first, then the others in
        decreasing order of w.
    """
    check_sparse_input(temperature, top_k, vocab_size)
    n, device = x0.numel(), x0.device
    own = torch.randn(n, 1, generator=generator, dtype=torch.float64, device=device)
    largest = largest_normals(n, top_k, vocab_size - 1, generator, device)
    others = distinct(n, top_k, vocab_size - 1, generator, device)
    others = others + (others >= x0.flatten()[:, None])  # skip x0
    alpha, sigma = (
        part.repeat_interleave(x0.shape[1])[:, None] for part in coefficients(snr_root.to(device))
    )
    w = torch.cat([alpha + sigma * own, sigma * largest], dim=1)
    tokens = torch.cat([x0.flatten()[:, None], others], dim=1)
    z = torch.where(w[:, 0] > w[:, 1], tokens[:, 0], tokens[:, 1])
    weights = torch.softmax(w / temperature, dim=1).float()
    return z.view(x0.shape), SoftTokens(tokens.view(*x0.shape, -1), weights.view(*x0.shape, -1))


def largest_normals(
    n: int,
    k: int,
    size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw the k greatest of `size` independent standard normals, in decreasing order.

    float64 [n, k], from k random numbers a row. By Renyi (1953) the decreasing uniform order
    statistics satisfy -log U_(j) = sum_{i<=j} E_i / (size + 1 - i) with exponential E_i. A normal
    number is Phi^{-1}(U) = -Phi^{-1}(1 - U). The form with 1 - U is precise near U = 1.
    """
    uniform = torch.rand(n, k, generator=generator, dtype=torch.float64, device=device)
    # Not 0, because the greatest normal would then be infinite.
    exponential = -torch.log1p(-uniform).clamp(max=-(2.0**-60))
    remaining = torch.arange(size, size - k, -1, dtype=torch.float64, device=device)
    minus_log_u = (exponential / remaining).cumsum(1)
    minus_normal: Tensor = torch.special.ndtri(-torch.expm1(-minus_log_u))
    return -minus_normal


def distinct(
    n: int,
    k: int,
    size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw k distinct numbers of 0 .. size - 1 in random order, uniformly.

    int64 [n, k], with O(k^2) work a row. The j-th draw is a rank among the size - j numbers that
    are left. Each smaller number that was taken before raises the draw by one.
    """
    taken = torch.empty(n, 0, dtype=torch.int64, device=device)  # in increasing order
    numbers = torch.empty(n, k, dtype=torch.int64, device=device)
    for j in range(k):
        number = torch.randint(size - j, (n,), generator=generator, device=device)
        for i in range(j):
            number = number + (number >= taken[:, i])
        numbers[:, j] = number
        taken = torch.cat([taken, number[:, None]], dim=1).sort(dim=1).values
    return numbers


def check_sparse_input(temperature: float, top_k: int, vocab_size: int) -> None:
    """Raise ValueError for arguments that `sparse_input` does not accept."""
    if not temperature > 0:
        raise ValueError(f"temperature is out of range: got {temperature}, want temperature > 0")
    if not 1 <= top_k < vocab_size:
        raise ValueError(
            f"top_k is out of range: got {top_k}, want 1 <= top_k < {vocab_size} (vocab_size)"
        )
