"""The N-step bound on the likelihood of text under a sampler of N steps.

Masked diffusion. Take an order that does not read drawn tokens. The levels u, or the predictions
from the visible tokens, fix the positions that a step unmasks. So the likelihood of a text x is
exact, given u:

    log q_N(x | u) = sum_i log p(x_i | z_{k(i)}),     k(i) the step that unmasks token i,

where z_k holds the tokens of x that are visible before step k, and MASKs elsewhere. By Jensen's
inequality -E_u log q_N(x | u) is at least -log q_N(x). For independent levels it is the
discrete-time bound of MDLM (arXiv 2406.07524, Eq. 8) at T = N. At one token a call it is the
any-order likelihood.

Uniform noise. There is no order. The discrete-time bound at T = N is

    KL(q(z_1 | x) || noise) + sum_k E KL(q(z_s | z_t, x) || p(z_s | z_t)),

with the posterior of Duo (arXiv 2506.10892, Eq. 3). For N -> infinity it is `Process.nelbo`.

Both bounds are proper scores: no loss of diversity lowers them, and no temperature lowers the score
of a perfect denoiser. Given u, the score is a sum of cross-entropies of single tokens, and each is
least at the true conditional. So no student with independent tokens has a lower score than a
perfect teacher. A student with an order, a joint head or a noise input can have a lower one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.packing import check_rows
from unmask.diffusion.processes import Process
from unmask.diffusion.trajectory import Trajectory
from unmask.evaluation.measure import Measure, pooled
from unmask.limits import whole
from unmask.models.denoiser import for_inference
from unmask.models.model import not_a_model
from unmask.samplers.categorical import SamplingFilters, check_finite, iter_log_probs
from unmask.samplers.counts import CountRule, uniform_grid
from unmask.samplers.inputs import FREE, AutoregressiveModel, DiffusionModel
from unmask.samplers.latent import draw_latent
from unmask.samplers.options import sampler_of
from unmask.samplers.orders import Statistic
from unmask.samplers.remasking import ancestral
from unmask.samplers.sample import denoise
from unmask.samplers.steps import LogProbs, Query, Sampler, SamplingProblem, Step
from unmask.samplers.unmasking import Unmasking
from unmask.types import Denoiser, PerToken, Tokens


@dataclass(frozen=True)
class StepBound(Measure):
    """The N-step bound of rows: a measure in nats a token, with its value for each row.

    Attributes:
        samples: Nats a token of each row [n].
        nfe: Mean network calls of a row.
    """

    samples: tuple[float, ...] = ()
    nfe: float = 0.0


@dataclass(frozen=True)
class CallScore:
    """The share of one network call in the bounds of n rows.

    Attributes:
        nats: Nats of the tokens that the call unmasks, float64 [n].
        calls: 1 for the rows in the call, else 0: float64 [n].
    """

    nats: Tensor
    calls: Tensor


def few_step_bound(
    model: DiffusionModel,
    ids: Tokens,
    steps: int,
    order: str | Sampler = "random",
    seed: int = 0,
    *,
    passes: int = 1,
    batch_size: int = 64,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> StepBound:
    """The N-step bound of held-out rows: -E log q_N(x | u) / L in nats a token.

    The formula stands at the top of the module. `unmask eval likelihood --steps` prints it.

    Args:
        model: A diffusion model.
        ids: Held-out rows, int64 [n, L], without MASK.
        steps: N, the steps of the sampler on the uniform grid.
        order: The order of unmasking: "random", "spread", "entropy" or "margin", with blocks and
            a count as in `sample`: "spread,count=equal", "random,blocks=16". It may not depend on
            the drawn tokens. Or a `Sampler` that unmasks positions in such an order. Uniform noise
            has no order, and takes "random" only.
        seed: Seed of the levels and of the noise.
        passes: Sets of levels of each row.
        batch_size: Rows in a network call.
        temperature: Divides log p, as in sampling.
        given: Tokens that the sampler is given, bool [n, L]: the bound is of the others. None: all
            tokens are drawn. Masked diffusion only.

    Returns:
        The mean over all drawn tokens, and its standard error over rows.

    Raises:
        ValueError: An argument is out of range, or the order depends on drawn tokens.
    """
    scores = step_bound_batches(
        model, ids, steps, order, seed,
        passes=passes, batch_size=batch_size, temperature=temperature, given=given,
    )  # fmt: skip
    return bound_of(scores, ids, given, passes)


def bound_of(
    scores: Iterable[CallScore], ids: Tokens, given: Tensor | None = None, passes: int = 1
) -> StepBound:
    """Add up the scores of all network calls, in nats a drawn token."""
    nats = torch.zeros(len(ids), dtype=torch.float64)
    calls = torch.zeros_like(nats)
    for score in scores:
        nats += score.nats
        calls += score.calls
    tokens = torch.full_like(nats, ids.shape[1]) if given is None else (~given).sum(1).double()
    mean = pooled(nats.numpy() / passes, tokens.cpu().numpy(), "nats a token")
    samples = tuple((nats / passes / tokens.cpu()).tolist())
    return StepBound(mean.value, mean.unit, mean.n, mean.sem, samples, float(calls.mean()) / passes)


@torch.no_grad()
def step_bound_batches(
    model: DiffusionModel,
    ids: Tokens,
    steps: int,
    order: str | Sampler = "random",
    seed: int = 0,
    *,
    passes: int = 1,
    batch_size: int = 64,
    temperature: float = 1.0,
    given: Tensor | None = None,
) -> Iterator[CallScore]:
    """Yield the share of each network call in the N-step bound: see `few_step_bound`.

    Rows and passes have their own levels, which do not depend on `batch_size`.
    """
    _check_arguments(model, ids, given)
    process = model.process
    check_rows(ids, process.vocab_size, process.mask_id)
    whole("passes", passes, "the sets of levels of each row")
    whole("batch_size", batch_size, "the rows in a network call")
    sampler, alphas = readable_sampler(process, order), uniform_grid(steps, model.schedule)
    if given is None:
        given = torch.zeros_like(ids, dtype=torch.bool)
    elif process.mask_id is None:
        raise ValueError("given has no effect on uniform noise: leave it out")
    elif given.shape != ids.shape or given.dtype != torch.bool or bool(given.all(1).any()):
        raise ValueError(
            f"given is not valid: got {str(given.dtype)[6:]} {list(given.shape)}, want bool "
            f"{list(ids.shape)} with at least one token to draw in each row"
        )
    denoiser, filters = for_inference(model.denoiser), SamplingFilters(temperature)
    (n, length), device = ids.shape, ids.device
    for number in range(passes):
        latent = draw_latent(n, length, seed, first=number * n, device=device)
        for rows in torch.arange(n, device=device).split(batch_size):
            x0, part = ids[rows], latent[rows]
            pins = x0.where(given[rows], FREE)
            problem = SamplingProblem(process, pins, part, alphas, filters, _most_probable)
            calls = (
                uniform_nats(denoiser, problem, x0)
                if process.mask_id is None
                else unmasking_nats(denoiser, problem, sampler, x0)
            )
            for nats, called in calls:
                score = CallScore(*torch.zeros(2, n, dtype=torch.float64).unbind())
                score.nats[rows.cpu()] = nats.sum(1).cpu()
                score.calls[rows[called].cpu()] = 1.0
                yield score


def _check_arguments(model: object, ids: object, given: object) -> None:
    """Raise ValueError for values of the wrong type or shape."""
    if not isinstance(model, DiffusionModel):
        if isinstance(model, AutoregressiveModel):
            raise ValueError(
                f"model is autoregressive: got {type(model).__name__}, want a diffusion model; "
                "`unmask eval likelihood` prints its exact likelihood"
            )
        raise not_a_model(model)
    for name, value in (("ids", ids), ("given", given)):
        if not isinstance(value, Tensor) and not (name == "given" and value is None):
            raise ValueError(
                f"{name} is not a tensor: got a value of type {type(value).__name__}, want [n, L]"
            )
    assert isinstance(ids, Tensor)
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool or not len(ids):
        raise ValueError(
            f"ids is not a table of token ids: got {str(ids.dtype).removeprefix('torch.')} "
            f"{[*ids.shape]}, want integers [n, L] with n >= 1"
        )


def readable_sampler(process: Process, order: str | Sampler) -> Sampler:
    """The sampler of an order; ValueError if it depends on drawn tokens or has no effect."""
    sampler = sampler_of(f"order={order}") if isinstance(order, str) else order
    if process.mask_id is None and sampler not in (Unmasking(), ancestral):
        raise ValueError(
            f"order has no effect: got {order!r}, and uniform noise has none; want random"
        )
    if not has_bound(sampler):
        raise ValueError(
            f"order depends on the drawn tokens: got {order!r}, so the likelihood of its texts is "
            "unknown; want random, spread, entropy or margin, without count=threshold"
        )
    return sampler


def has_bound(sampler: Sampler) -> bool:
    """Whether the positions that a sampler unmasks are known not to depend on drawn tokens.

    The ancestral sampler has the law of the random order, or of uniform noise.
    """
    if not isinstance(sampler, Unmasking):
        return sampler == ancestral
    count = sampler.count
    statistics = [sampler.order, count.statistic if isinstance(count, CountRule) else None]
    return not any(isinstance(part, Statistic) and part.reads_token for part in statistics)


def unmasking_nats(
    denoiser: Denoiser, problem: SamplingProblem, sampler: Sampler, x0: Tokens
) -> Iterator[tuple[PerToken, Tensor]]:
    """Yield (nats [n, L], samples [b]) of each network call of a sampler that unmasks x0 [n, L].

    The sampler runs as in `sample`. Each token that it draws is replaced by the token of x0. The
    positions that a step unmasks may not depend on the tokens that it draws.
    """
    nats = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
    sampler = Unmasking() if sampler == ancestral else sampler

    def forced(problem: SamplingProblem) -> list[Step]:
        return [_ForcedStep(step, x0, nats) for step in sampler(problem)]

    for frame in denoise(denoiser, problem, forced):
        if len(frame.rows):
            yield nats.where(frame.changed, 0.0), frame.rows


@dataclass(frozen=True)
class _ForcedStep:
    """A step that unmasks the tokens of x0 [n, L], and writes their nats into `nats` [n, L]."""

    step: Step
    x0: Tokens
    nats: PerToken

    def query(self, z: Tokens) -> Query:
        return self.step.query(z)

    def __call__(self, z: Tokens, log_probs: LogProbs) -> Tokens:
        return self.x0.where(self.step(z, self._scored(log_probs)) != z, z)

    def _scored(self, log_probs: LogProbs) -> LogProbs:
        for at, log_p in log_probs:
            nats = -log_p.gather(-1, self.x0[at][:, None])[:, 0].double()
            self.nats.index_put_(at, nats)
            yield at, log_p


def _most_probable(log_p: Tensor, state: Tensor) -> Tensor:
    """Any token that is not MASK: the tokens of x0 replace it."""
    return log_p.argmax(-1)


def uniform_nats(
    denoiser: Denoiser, problem: SamplingProblem, x0: Tokens
) -> Iterator[tuple[PerToken, Tensor]]:
    """Yield (nats [n, L], samples [n]) of each network call with uniform noise.

    The first call includes the nats of the prior.
    """
    process, alphas, everyone = problem.process, problem.alphas, torch.arange(len(x0))
    path = Trajectory(x0, problem.canvas(), problem.latent.u)
    prior: PerToken | float = _prior_nats(process.vocab_size, alphas[0])
    where = torch.ones_like(x0, dtype=torch.bool)
    samples, columns = where.nonzero(as_tuple=True)
    temperature = problem.filters.temperature
    broken = torch.zeros((), dtype=torch.bool, device=x0.device)
    for alpha_t, alpha_s in pairwise(alphas.to(x0.device)):
        if alpha_t == alpha_s:
            continue  # the sampler makes no call either
        a_t = alpha_t.expand(len(x0))
        z_t = path.at(a_t)
        prediction = denoiser(z_t, a_t)
        nats = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
        rows = prediction.rows(where)
        for place, log_p in iter_log_probs(
            prediction, rows, (samples, columns), temperature, None, broken
        ):
            kl = _posterior_kl(process, log_p, x0[place], z_t[place], alpha_t, alpha_s)
            nats.index_put_(place, kl)
        yield nats + prior, everyone
        prior = 0.0
    check_finite(broken)


def _posterior_kl(
    process: Process, log_p: Tensor, x0: Tokens, z_t: Tokens, alpha_t: Tensor, alpha_s: Tensor
) -> Tensor:
    """KL(q(z_s | z_t, x0) || q(z_s | z_t, p)) of m tokens with log p [m, V]: nats [m], float64."""
    levels = z_t[None], alpha_t[None], alpha_s[None]
    p = process.posterior(log_p.double().exp()[None], *levels)
    q = process.posterior(F.one_hot(x0, process.vocab_size).double()[None], *levels)
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(-1)[0]


def _prior_nats(vocab_size: int, alpha: Tensor) -> Tensor:
    """KL(alpha x0 + (1 - alpha) / K || uniform noise) of one token at `alpha`, in nats."""
    stays = alpha + (1 - alpha) / vocab_size
    other = (1 - alpha) / vocab_size
    terms = torch.xlogy(stays, stays) + (vocab_size - 1) * torch.xlogy(other, other)
    return terms + torch.log(torch.tensor(float(vocab_size), dtype=torch.float64))
