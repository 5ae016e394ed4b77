"""Duo's curriculum input: a token that fades into Gaussian noise, softened by a temperature.

Duo (arXiv 2506.10892, section 4.1) trains its uniform-state denoiser first on softmax(w / tau), w = alpha~ onehot(x0) +
sigma~ eps (Eq. 2), and takes z = arg max w for the noisy token of the bound: at tau -> 0 the input is z itself.

`dense_input` is that definition, K Gaussians a token. `sparse_input` draws the same law from a handful of numbers a
token: only the k greatest of the K - 1 rivals can weigh anything, and the order statistics of independent normals have
a closed form, whatever K is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.diffusion.duality import coefficients, ddim_path
from unmask.types import PerSequence, SoftTokens, Tokens


def dense_input(
    x0: Tokens, eps: Tensor, snr_root: PerSequence, temperature: float
) -> tuple[Tokens, Tensor]:
    """(z, logits) of noise eps [B, L, K] at snr_root [B]: z = arg max w [B, L], logits = w / tau [B, L, K] float64.

    A network that reads floating-point input takes their softmax: the tempered Gaussian of Duo.
    """
    _check(temperature)
    w = ddim_path(
        x0.flatten(), eps.flatten(0, 1), snr_root[:, None].expand(x0.shape).flatten()
    ).view(eps.shape)
    return w.argmax(-1), w / temperature


def sparse_input(
    x0: Tokens,
    snr_root: PerSequence,
    vocab_size: int,
    temperature: float,
    top_k: int,
    generator: torch.Generator | None = None,
) -> tuple[Tokens, SoftTokens]:
    """(z, input) in the law of `dense_input`, up to the weight of all but x0 and its `top_k` greatest rivals.

    x0 [B, L]; snr_root [B]; 1 <= top_k < vocab_size = K. The input is a mixture of top_k + 1 tokens, x0 first, then
    its rivals as they fall: weights softmax(w / tau), normalised over these. With top_k = K - 1 nothing is left out.
    z is exact at any top_k.
    """
    check_sparse_input(temperature, top_k, vocab_size)
    n, device = x0.numel(), x0.device
    own = torch.randn(n, 1, generator=generator, dtype=torch.float64, device=device)
    rivals = largest_normals(n, top_k, vocab_size - 1, generator, device)
    others = distinct(n, top_k, vocab_size - 1, generator, device)
    others = others + (others >= x0.flatten()[:, None])  # the tokens but x0
    alpha, sigma = (
        part.repeat_interleave(x0.shape[1])[:, None] for part in coefficients(snr_root.to(device))
    )
    w = torch.cat([alpha + sigma * own, sigma * rivals], dim=1)
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
    """The k greatest of `size` independent standard normals, falling: float64 [n, k], in O(k) numbers a row.

    Renyi (1953): -log of the falling uniform order statistics is a sum of exponentials, -log U_(j) = sum_{i<=j}
    E_i / (size + 1 - i); the normal of U is -Phi^{-1}(1 - U), and 1 - U keeps its digits near U = 1.
    """
    uniform = torch.rand(n, k, generator=generator, dtype=torch.float64, device=device)
    exponential = -torch.log1p(-uniform).clamp(
        max=-(2.0**-60)
    )  # never 0: the greatest would be infinite
    below = (
        exponential / torch.arange(size, size - k, -1, dtype=torch.float64, device=device)
    ).cumsum(1)
    above: Tensor = torch.special.ndtri(-torch.expm1(-below))
    return -above


def distinct(
    n: int,
    k: int,
    size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """k different numbers of 0 .. size - 1 in random order, uniformly: int64 [n, k], in O(k^2) work a row.

    The j-th is drawn from the size - j that are left and moved past those that were taken before, in rising order.
    """
    taken = torch.empty(n, 0, dtype=torch.int64, device=device)  # rising
    found = torch.empty(n, k, dtype=torch.int64, device=device)
    for j in range(k):
        number = torch.randint(size - j, (n,), generator=generator, device=device)
        for i in range(j):
            number = number + (number >= taken[:, i])
        found[:, j] = number
        taken = torch.cat([taken, number[:, None]], dim=1).sort(dim=1).values
    return found


def check_sparse_input(temperature: float, top_k: int, vocab_size: int) -> None:
    """ValueError where `sparse_input` has no such law."""
    _check(temperature)
    if not 1 <= top_k < vocab_size:
        raise ValueError(
            f"top_k counts the rivals of x0 that are kept: want 1 <= top_k < vocab_size = {vocab_size}, got {top_k}"
        )


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"temperature softens the Gaussian input: want temperature > 0, got {temperature}"
        )
