"""How well a model knows held-out text: a bound for diffusion, the likelihood itself for autoregressive models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.packing import check_rows
from unmask.diffusion.processes import MaskedProcess, Process
from unmask.diffusion.trajectory import trajectory
from unmask.evaluation.judges import NextTokenModel, Scores, predictor_nats
from unmask.rng import stratified
from unmask.types import Denoiser, PerSequence, Tokens

Convention: TypeAlias = Literal["bound", "mdlm"]
MDLM_EPS = 1e-3  # of its log-linear schedule, and its least t


def levels(u: PerSequence, convention: Convention) -> tuple[PerSequence, PerSequence]:
    """Uniform numbers u [B] -> (alpha, dalpha), float64, at which the bound's integrand is averaged.

    "bound": alpha = u with time 1 - alpha, so dalpha = -1 and a MASK weighs 1 / (1 - alpha): the whole integral.
    "mdlm": t = 1e-3 + (1 - 1e-3) u under the log-linear schedule with eps = 1e-3 (arXiv 2406.07524, its code), as in
    published tables. Not a bound: it leaves out t < 1e-3 and alpha < 1e-3.
    """
    u = u.double()
    if convention == "bound":
        return u, -torch.ones_like(u)
    if convention == "mdlm":
        t = MDLM_EPS + (1 - MDLM_EPS) * u
        return 1 - (1 - MDLM_EPS) * t, torch.full_like(t, MDLM_EPS - 1)
    raise ValueError(
        f"convention says how noise levels are drawn: want 'bound' or 'mdlm', got {convention!r}"
    )


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
    """The bound on each row of x0 [n, L], one network call at a time: `passes` noise levels a row.

    Yields the nats [n], float64, of this call: n / batch_size calls a pass. Their sum over all calls is the bound. Its
    mean is E over alpha of `process.nelbo`; with a perfect denoiser it is the entropy of the source. Noise levels are
    stratified over the rows of a pass. The noise of a pass is drawn for all rows at once, so that it does not depend on
    `batch_size`. ValueError for ids outside the vocabulary, and for a MASK among them.
    """
    if not (x0.dim() == 2 and x0.numel() and passes >= 1):
        raise ValueError(
            f"want held-out rows [n, L], n >= 1, and passes >= 1, got {tuple(x0.shape)} and {passes}"
        )
    check_rows(
        x0, process.vocab_size, process.mask_id if isinstance(process, MaskedProcess) else None
    )
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
    """The scores of rows with `tokens` counted tokens each, from the nats [n] of each call."""
    nats = reduce(torch.add, batches)
    return Scores(nats, torch.full((len(nats),), tokens))


def unit_of(convention: Convention) -> str:
    """The name of the exponential of a mean bound."""
    return f"perplexity {'bound' if convention == 'bound' else 'by convention mdlm'}"


@torch.no_grad()
def next_token_batches(
    predictor: NextTokenModel, x0: Tokens, *, start: int | None = None, batch_size: int = 8
) -> Iterator[Tensor]:
    """The exact nats of each row of x0 [n, L] under an autoregressive model, one network call at a time, as above.

    start  the token before each row: -log p(x_1 .. x_L | start), L tokens, as in training (`objectives`). None: the
           first token of a row is its start token, and the L - 1 tokens after it are counted.
    """
    if not (x0.dim() == 2 and len(x0) and x0.shape[1] >= (2 if start is None else 1)):
        raise ValueError(
            f"want held-out rows [n, L] with n >= 1 and L >= 2 (L >= 1 behind a start token), got {tuple(x0.shape)}"
        )
    for rows in torch.arange(len(x0), device=x0.device).split(batch_size):
        text = x0[rows] if start is None else F.pad(x0[rows], (1, 0), value=start)
        nats = torch.zeros(len(x0), dtype=torch.float64)
        nats[rows.cpu()] = predictor_nats(predictor, text).double().sum(dim=1).cpu()
        yield nats
