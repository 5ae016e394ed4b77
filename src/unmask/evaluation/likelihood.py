"""How well a model knows held-out text: a bound for diffusion, the likelihood itself for autoregressive models."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import Process
from unmask.diffusion.trajectory import trajectory
from unmask.evaluation.judges import NextToken, Scores, perplexity, predictor_nats
from unmask.evaluation.measure import Measure
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
    raise ValueError(f"convention says how noise levels are drawn: want 'bound' or 'mdlm', got {convention!r}")


@torch.no_grad()
def nelbo(
    denoiser: Denoiser,
    process: Process,
    x0: Tokens,
    *,
    convention: Convention = "bound",
    passes: int = 1,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
) -> Scores:
    """The bound on each row of x0 [n, L], nats: `passes` noise levels a row, stratified over the rows of a pass.

    Its mean is E over alpha of `process.nelbo`; with a perfect denoiser it is the entropy of the source.
    """
    if not (x0.dim() == 2 and x0.numel() and passes >= 1):
        raise ValueError(f"want held-out rows [n, L], n >= 1, and passes >= 1, got {tuple(x0.shape)} and {passes}")
    nats = torch.zeros(len(x0), dtype=torch.float64)
    for _ in range(passes):
        alphas, slopes = levels(stratified(len(x0), generator, x0.device), convention)
        for rows in torch.arange(len(x0), device=x0.device).split(batch_size):
            path = trajectory(process, x0[rows], generator)
            z = path.at(alphas[rows])
            integrand = process.nelbo(denoiser(z, alphas[rows]), x0[rows], z, alphas[rows], slopes[rows])
            nats[rows.cpu()] += integrand.double().sum(dim=1).cpu() / passes
    return Scores(nats, torch.full((len(x0),), x0.shape[1]))


def nelbo_ppl(
    denoiser: Denoiser,
    process: Process,
    x0: Tokens,
    *,
    convention: Convention = "bound",
    passes: int = 1,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
) -> Measure:
    """exp(nelbo / L): an upper bound on the perplexity of held-out rows, in expectation; error over rows and noise."""
    scores = nelbo(
        denoiser, process, x0, convention=convention, passes=passes, batch_size=batch_size, generator=generator
    )
    return perplexity(scores, unit_of(convention))


def unit_of(convention: Convention) -> str:
    """What the exponential of a mean of `nelbo` is called."""
    return f"perplexity {'bound' if convention == 'bound' else 'by convention mdlm'}"


def next_token(predictor: NextToken, x0: Tokens, *, batch_size: int = 8) -> Scores:
    """Exact nats of each row of x0 [n, L] after its first token, which stands for BOS: L - 1 tokens, EOS or not."""
    if not (x0.dim() == 2 and len(x0) and x0.shape[1] >= 2):
        raise ValueError(f"want held-out rows [n, L] with n >= 1 and L >= 2, got {tuple(x0.shape)}")
    nats: Tensor = torch.cat([predictor_nats(predictor, rows).double().sum(dim=1) for rows in x0.split(batch_size)])
    return Scores(nats.cpu(), torch.full((len(x0),), x0.shape[1] - 1))


def next_token_ppl(predictor: NextToken, x0: Tokens, *, batch_size: int = 8) -> Measure:
    """exp of the exact mean nats a token of held-out rows under an autoregressive model."""
    return perplexity(next_token(predictor, x0, batch_size=batch_size))
