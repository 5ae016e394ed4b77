"""Samplers: how a canvas goes from noise to text. A sampler is a plan of `Step`s, made before the first network call.

`reveal` is the deterministic sampler and the default for masked diffusion: the plan names every position that every
step reads, so cost is known beforehand. `ancestral` is the classic update of any process, `greedy_tail` ends it with an
arg max. `confidence` and `entropy_bounded` let the model choose the order. Those that also write noise are in
`renoising`.

To add one: a function from `Task` to steps. What follows from the latent and the grid belongs into the plan, what
follows from the text into the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess, Process
from unmask.samplers.canvas import FREE
from unmask.samplers.draws import UNFILTERED, Draw, Filters, is_number, race
from unmask.samplers.grids import check_levels
from unmask.samplers.latent import Latent
from unmask.types import Tokens

Laws: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # (positions [m], flat in [n, L]; log p [m, V] float64), blocks

ENTROPY_STEPS = 2**10  # steps in a nat: entropies of one step are equal, far above the rounding of a float32 network


@dataclass(frozen=True)
class Task:
    """What is to be drawn, and all that a sampler may look at besides the text.

    pins     [n, L] given tokens, -1 where free; given tokens never change and are never read
    latent   the randomness of the n samples
    alphas   float64 [moves + 1], the grid: step k goes from alphas[k] to alphas[k + 1]
    filters  applied to p(x0), before any posterior
    draw     from a law to a token
    """

    process: Process
    pins: Tensor
    latent: Latent
    alphas: Tensor
    filters: Filters = UNFILTERED
    draw: Draw = race

    def __post_init__(self) -> None:
        check_levels(self.alphas)

    @cached_property
    def free(self) -> Tensor:
        """Positions to be drawn, bool [n, L]."""
        return self.pins == FREE

    @property
    def mask_id(self) -> int | None:
        """MASK, in masked diffusion."""
        return self.process.mask_id if isinstance(self.process, MaskedProcess) else None

    def canvas(self) -> Tokens:
        """The start: given tokens, and noise that is each sample's own in any batch."""
        if self.mask_id is not None:
            return self.pins.where(~self.free, self.mask_id)
        noise = [
            self.process.prior(row[None], torch.Generator().manual_seed(key))
            for row, key in zip(self.pins.cpu(), self.latent.key.tolist(), strict=True)
        ]
        return self.pins.where(~self.free, torch.cat(noise).to(self.pins.device))

    def level(self, z: Tokens) -> Tensor:
        """The alpha at which a text of masked diffusion is expected to show what z shows: float64 [n].

        alpha_0 + (1 - alpha_0) x (share of the free tokens that are shown); 1 where none is free.
        """
        hidden = (self.free & self.process.open(z)).sum(1)
        return 1 - (1 - self.alphas[0].to(z.device)) * hidden / self.free.sum(1).clamp(min=1)

    def token(self, log_p: Tensor, at: Tensor, occasion: int = 0) -> Tensor:
        """Draw from log p [m, V] of x0 at positions `at` [m]."""
        return self.draw(self.filters.keep(log_p), self.latent.address(at, occasion))


@dataclass(frozen=True)
class Reads:
    """What a network call is for: `rows` [b] of the batch take part, positions `where` [N], flat in [b, L], are read.

    No row: no call. `alpha` [b] is what the network is told; None for the level of the grid that the step starts from.
    """

    rows: Tensor
    where: Tensor
    alpha: Tensor | None = None

    @staticmethod
    def of(at: Tensor, length: int) -> Reads:
        """Positions [N], flat in [n, L]: samples without one are left out of the call."""
        rows, place = torch.unique(at // length, return_inverse=True)
        return Reads(rows, place * length + at % length)

    def to(self, device: torch.device) -> Reads:
        return replace(self, rows=self.rows.to(device), where=self.where.to(device))


class Step(Protocol):
    """One move z_t -> z_s. First it says what it must read, then it is given the laws of that and moves."""

    def reads(self, z: Tokens) -> Reads: ...

    def __call__(self, z: Tokens, laws: Laws) -> Tokens: ...


Sampler: TypeAlias = Callable[[Task], Sequence[Step]]  # a step for each move of the grid, or it says `Reads.alpha`


@dataclass(frozen=True)
class Plan:
    """The whole cost of a batch, known beforehand: what each step reads, calls a sample nfe [n], calls of the batch."""

    reads: tuple[Reads, ...]
    nfe: Tensor
    calls: int


def plan(latent: Latent, alphas: Tensor, free: Tensor) -> Plan:
    """Which free positions [n, L] each step reveals: alpha_k <= alpha_0 + (1 - alpha_0) u < alpha_{k+1}.

    A masked token so is revealed with probability (alpha_{k+1} - alpha_k) / (1 - alpha_k), the ancestral law of masked
    diffusion (MDLM, arXiv 2406.07524, Eq. 6), also where alpha_0 = alpha(1) > 0.
    """
    steps, (n, length) = len(alphas) - 1, free.shape
    level = alphas[0] + (1 - alphas[0]) * latent.u.cpu()
    due = torch.bucketize(level, alphas[1:-1], right=True).flatten()
    at = free.cpu().flatten().nonzero().squeeze(-1)
    at = at[due[at].argsort(stable=True)]
    counts = torch.bincount(due[at], minlength=steps).tolist()
    reads = tuple(Reads.of(part, length) for part in at.split(counts))
    nfe = torch.bincount(torch.cat([part.rows for part in reads]), minlength=n)
    return Plan(tuple(r.to(free.device) for r in reads), nfe.to(free.device), sum(len(r.rows) > 0 for r in reads))


def reveal(task: Task) -> Sequence[Step]:
    """Each token at its own level, by one race of its own: the law of MDLM's ancestral sampler, for L head rows a text.

    The same latent gives coupled texts at different numbers of steps.
    """
    _check_masked(task)
    return [Show(task, reads) for reads in plan(task.latent, task.alphas, task.free).reads]


def ancestral(task: Task) -> Sequence[Step]:
    """z_s ~ q(z_s | z_t, x0 ~ p) at every position (MDLM, Eq. 6; Duo, arXiv 2506.10892, Eq. 3), for any process.

    A call a step, until nothing is left to change.
    """
    return [_Ancestral(task, k) for k in range(len(task.alphas) - 1)]


def greedy_tail(task: Task) -> Sequence[Step]:
    """Ancestral steps, but the last writes arg max p(x0) instead of a draw (Duo, arXiv 2506.10892), for any process.

    On the grid "released" it is the column "greedy-tail" of Duo's tables, and what MDLM's and SDTT's released codes do.
    In masked diffusion the steps are those of `reveal`, ancestral in law, and the last writes at MASKs only. Ties go to
    the smaller id; temperature, top-k and top-p do not move an arg max. It is not the model's law: the fewer steps,
    the more tokens are no draws, and the texts vary less.
    """
    steps = ancestral(task) if task.mask_id is None else reveal(task)
    return [*steps[:-1], _Greedy(task)]


def confidence(task: Task) -> Sequence[Step]:
    """Draw everywhere, keep the tokens of greatest probability (MaskGIT, arXiv 2202.04200); the grid says how many.

    After step k, of F free tokens F (alpha_{k+1} - alpha_0) / (1 - alpha_0) are shown, rounded, halves up. The order
    goes by p(x0) at the temperature, before top-p and top-k; ties go to the earlier position. This is not the model's
    law: it prefers the safe tokens.
    """
    _check_masked(task)
    share = ((task.alphas - task.alphas[0]) / (1 - task.alphas[0])).to(task.pins.device)
    shown = (task.free.sum(1, keepdim=True) * share + 0.5 + 1e-9).long()  # a half is a half, however it was rounded
    return [_Confidence(task, k, count) for k, count in enumerate(shown.diff(dim=1).T)]


def entropy_bounded(bound: float) -> Sampler:
    """Reveal together what is nearly independent: the EB-sampler (Ben-Hamu et al. 2025, arXiv 2505.24857), masked only.

    Each step draws, in order of increasing entropy H of p(x0_i | z), the longest prefix U of the MASKs with

        sum_{l in U} H_l - max_{l in U} H_l <= bound   (nats)

    and always one. The left side bounds what the tokens of U can tell about each other, so it bounds the price of
    drawing them at once. bound = 0: one token a step, and with it those that are certain (H = 0); inf: all in one step.
    Ties go to the earlier position, and a tie is what is equal to 2^-10 nats: over a blank canvas a network with rotary
    positions has one law for all positions, and rounding must not choose. H goes by p(x0) at the temperature, before
    top-p and top-k. A token is drawn by one race at any bound.

    The grid gives alpha(1) only: there are as many steps as the longest text has free tokens, and those behind its end
    cost no call. What is shown does not follow the grid, so the network is told `Task.level`, each sample its own: the
    alpha at which that share of tokens is shown in training. The *choice* of tokens is not that of training all the
    same, so for a network that sees alpha (`sees_alpha`) this is the nearest level, not an exact one. As with
    `confidence` the order prefers safe tokens; with a denoiser that knows p(x0_i | z) exactly, bound = 0 still draws
    from its law of texts.

    ValueError unless bound >= 0.
    """
    if not (is_number(bound) and bound >= 0):
        raise ValueError(
            "bound is the entropy, in nats, that a step may draw at once besides its least certain token: "
            f"want bound >= 0 (inf reveals all at once), got {bound!r}"
        )
    return partial(_entropy_bounded, bound=float(bound))


def _entropy_bounded(task: Task, bound: float) -> Sequence[Step]:
    _check_masked(task)
    return [_EntropyBounded(task, bound)] * int(task.free.sum(1).max())


@dataclass(frozen=True)
class Show:
    """Draw the tokens of the positions that are due, whatever the text says."""

    task: Task
    due: Reads

    def reads(self, z: Tokens) -> Reads:
        return self.due

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        for at, log_p in laws:
            z = put(z, at, self.task.token(log_p, at))
        return z


@dataclass(frozen=True)
class _Ancestral:
    task: Task
    k: int

    def reads(self, z: Tokens) -> Reads:
        return _open(self.task, z, self.task.free)

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        task = self.task
        alpha_t, alpha_s = task.alphas[self.k : self.k + 2].to(z.device).split(1)
        before = z.flatten()
        for at, log_p in laws:
            p_x0 = task.filters.keep(log_p).exp()
            p_zs = task.process.posterior(p_x0[None], before[None, at], alpha_t, alpha_s)[0]
            z = put(z, at, task.draw(p_zs.log(), task.latent.address(at, self.k)))
        return z


@dataclass(frozen=True)
class _Greedy:
    task: Task

    def reads(self, z: Tokens) -> Reads:
        return _open(self.task, z, self.task.free)

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        for at, log_p in laws:
            z = put(z, at, log_p.argmax(dim=-1))
        return z


@dataclass(frozen=True)
class _Confidence:
    task: Task
    k: int
    count: Tensor  # [n] tokens to show in this step

    def reads(self, z: Tokens) -> Reads:
        return _open(self.task, z, self.task.free & (self.count > 0)[:, None])

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        guess, score = z, torch.full(z.shape, -torch.inf, dtype=torch.float64, device=z.device)
        for at, log_p in laws:
            token = self.task.token(log_p, at, self.k)
            guess = put(guess, at, token)
            score = put(score, at, log_p.gather(-1, token[:, None]).squeeze(-1))
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(rank < self.count[:, None], guess, z)


@dataclass(frozen=True)
class _EntropyBounded:
    task: Task
    bound: float

    def reads(self, z: Tokens) -> Reads:
        reads = _open(self.task, z, self.task.free)
        return replace(reads, alpha=self.task.level(z)[reads.rows])

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        guess, entropy = z, torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)
        for at, log_p in laws:
            guess = put(guess, at, self.task.token(log_p, at))  # not kept, not seen: its race is still fresh
            entropy = put(entropy, at, torch.special.entr(log_p.exp()).sum(-1))
        order = (entropy * ENTROPY_STEPS).round().argsort(dim=1, stable=True)
        before = F.pad(entropy.gather(1, order).cumsum(1)[:, :-1], (1, 0))  # the sum without the last, the greatest
        kept = torch.zeros_like(z, dtype=torch.bool).scatter(1, order, before <= self.bound)
        return torch.where(kept, guess, z)


def _open(task: Task, z: Tokens, candidates: Tensor) -> Reads:
    """The candidates that can still change: in masked diffusion, those under a MASK."""
    return Reads.of((candidates & task.process.open(z)).flatten().nonzero().squeeze(-1), z.shape[1])


def _check_masked(task: Task) -> None:
    if task.mask_id is None:
        process = type(task.process).__name__
        raise ValueError(f"this sampler reveals MASKs, and the noise of {process} is none: use the sampler 'ancestral'")


def put(table: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """A copy of `table` [n, L] with `values` [m] at positions `at` [m], flat in [n, L]."""
    return table.flatten().index_copy(0, at, values).view_as(table)
