"""Likelihood of held-out text: a bound (NELBO) for diffusion, exact for autoregressive models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.packing import check_rows
from unmask.diffusion.processes import Process
from unmask.diffusion.trajectory import trajectory
from unmask.evaluation.judges import NextTokenModel, Scores, predictor_nats
from unmask.rng import stratified
from unmask.types import Denoiser, PerSequence, Tokens

Convention: TypeAlias = Literal["bound", "mdlm"]
MDLM_EPS = 1e-3  # epsilon of MDLM's log-linear schedule, and its smallest t


def levels(u: PerSequence, convention: Convention) -> tuple[PerSequence, PerSequence]:
    """Noise levels (alpha, dalpha), float64 [B], at which the bound's integrand is averaged.

    Args:
        u: uniform numbers [B].
        convention: "bound": alpha = u and t = 1 - alpha, so dalpha = -1 and a MASK has weight
            1 / (1 - alpha): the whole integral. "mdlm": t = 1e-3 + (1 - 1e-3) u under the
            log-linear schedule with eps = 1e-3, as in published tables (arXiv 2406.07524, its
            code). This is not a bound: it leaves out t < 1e-3 and alpha < 1e-3.
    """
    u = u.double()
    if convention == "bound":
        return u, -torch.ones_like(u)
    if convention == "mdlm":
        t = MDLM_EPS + (1 - MDLM_EPS) * u
        return 1 - (1 - MDLM_EPS) * t, torch.full_like(t, MDLM_EPS - 1)
    raise ValueError(f"convention is unknown: got {convention!r}, want 'bound' or 'mdlm'")


@torch.no_grad()
def nelbo_batches(
    denoiser: Denoiser,
    process: Process,
    x0: Tokens,
    *,
    convention: Convention = "bound",
    passes: int = 1,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the contribution of each network call to the bound on each row of x0.

    The sum over all calls is the bound. Its mean is E over alpha of `process.nelbo`; for a perfect
    denoiser this is the entropy of the source. Noise levels are stratified over the rows of a pass.
    The noise of a pass is drawn for all rows at once, so it does not depend on `batch_size`.

    Args:
        denoiser: the network.
        process: its noise process.
        x0: held-out ids [n, L].
        convention: see `levels`.
        passes: noise levels per row.
        batch_size: rows per network call.
        generator: source of the noise.

    Yields:
        Nats [n], float64, of one call; there are ceil(n / batch_size) calls per pass.

    Raises:
        ValueError: for a wrong shape, ids outside the vocabulary, and a MASK among the ids.
    """
    if not (x0.dim() == 2 and x0.numel() and passes >= 1):
        raise ValueError(
            f"x0 or passes is out of range: got {tuple(x0.shape)} and {passes}, want held-out rows "
            "[n, L], n >= 1, and passes >= 1"
        )
    check_rows(x0, process.vocab_size, process.mask_id)
    for _ in range(passes):
        alphas, slopes = levels(stratified(len(x0), generator, x0.device), convention)
        noised = trajectory(process, x0, generator).at(alphas)
        for rows in torch.arange(len(x0), device=x0.device).split(batch_size):
            z, alpha = noised[rows], alphas[rows]
            integrand = process.nelbo(denoiser(z, alpha), x0[rows], z, alpha, slopes[rows])
            nats = torch.zeros(len(x0), dtype=torch.float64)
            nats[rows.cpu()] = integrand.double().sum(dim=1).cpu() / passes
            yield nats


def summed(batches: Iterable[Tensor], tokens: int) -> Scores:
    """Scores of rows with `tokens` scored tokens each, from the nats [n] of each network call."""
    nats = reduce(torch.add, batches)
    return Scores(nats, torch.full((len(nats),), tokens))


@torch.no_grad()
def next_token_batches(
    predictor: NextTokenModel, x0: Tokens, *, start: int | None = None, batch_size: int = 8
) -> Iterator[Tensor]:
    """Yield the exact nats of each row of x0 under an autoregressive model, call by call.

    Args:
        predictor: the model.
        x0: held-out ids [n, L].
        start: token before each row, as in training: -log p(x_1 .. x_L | start), L tokens. None:
            the first token of a row serves as start token, and L - 1 tokens are scored.
        batch_size: rows per network call.

    Yields:
        Nats [n], float64, of one network call; zero for the rows of other calls.

    Raises:
        ValueError: for a wrong shape.
    """
    if not (x0.dim() == 2 and len(x0) and x0.shape[1] >= (2 if start is None else 1)):
        raise ValueError(
            f"x0 has a wrong shape: got {tuple(x0.shape)}, want held-out rows [n, L] with n >= 1 "
            "and L >= 2 (L >= 1 with a start token)"
        )
    for rows in torch.arange(len(x0), device=x0.device).split(batch_size):
        text = x0[rows] if start is None else F.pad(x0[rows], (1, 0), value=start)
        nats = torch.zeros(len(x0), dtype=torch.float64)
        nats[rows.cpu()] = predictor_nats(predictor, text).double().sum(dim=1).cpu()
        yield nats
