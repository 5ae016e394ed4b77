"""Samplers: how a canvas goes from noise to text. A sampler is a plan of `Step`s, made before the first network call.

`reveal` is the deterministic sampler and the default for masked diffusion: the plan names every position that every
step reads, so cost is known beforehand. `ancestral` is the classic update of any process. `confidence` lets
the model choose the order.

To add one (re-masking, a greedy last step, ...): a function from `Task` to steps. What follows from the latent and the
grid belongs into the plan, what follows from the text into the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess, Process
from unmask.samplers.canvas import FREE
from unmask.samplers.draws import UNFILTERED, Draw, Filters, race
from unmask.samplers.grids import check_levels
from unmask.samplers.latent import Latent
from unmask.types import Tokens

Laws: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # (positions [m], flat in [n, L]; log p [m, V] float64), blocks


@dataclass(frozen=True)
class Task:
    """What is to be drawn, and all that a sampler may look at besides the text.

    pins     [n, L] given tokens, -1 where free; given tokens never change and are never read
    latent   the randomness of the n samples
    alphas   float64 [N + 1], the grid: step k goes from alphas[k] to alphas[k + 1]
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

    def token(self, log_p: Tensor, at: Tensor, occasion: int = 0) -> Tensor:
        """Draw from log p [m, V] of x0 at positions `at` [m]."""
        return self.draw(self.filters.keep(log_p), self.latent.address(at, occasion))


@dataclass(frozen=True)
class Reads:
    """What a network call is for: `rows` [b] of the batch take part, positions `where` [N], flat in [b, L], are read.

    No row: no call.
    """

    rows: Tensor
    where: Tensor

    @staticmethod
    def of(at: Tensor, length: int) -> Reads:
        """Positions [N], flat in [n, L]: samples without one are left out of the call."""
        rows, place = torch.unique(at // length, return_inverse=True)
        return Reads(rows, place * length + at % length)

    def to(self, device: torch.device) -> Reads:
        return Reads(self.rows.to(device), self.where.to(device))


class Step(Protocol):
    """One move z_t -> z_s. First it says what it must read, then it is given the laws of that and moves."""

    def reads(self, z: Tokens) -> Reads: ...

    def __call__(self, z: Tokens, laws: Laws) -> Tokens: ...


Sampler: TypeAlias = Callable[[Task], Sequence[Step]]


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
    return [_Reveal(task, reads) for reads in plan(task.latent, task.alphas, task.free).reads]


def ancestral(task: Task) -> Sequence[Step]:
    """z_s ~ q(z_s | z_t, x0 ~ p) at every position (MDLM, Eq. 6; Duo, arXiv 2506.10892, Eq. 3), for any process.

    A call a step, until nothing is left to change.
    """
    return [_Ancestral(task, k) for k in range(len(task.alphas) - 1)]


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


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"reveal": reveal, "ancestral": ancestral, "confidence": confidence})


@dataclass(frozen=True)
class _Reveal:
    task: Task
    due: Reads

    def reads(self, z: Tokens) -> Reads:
        return self.due

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        for at, log_p in laws:
            z = _put(z, at, self.task.token(log_p, at))
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
            z = _put(z, at, task.draw(p_zs.log(), task.latent.address(at, self.k)))
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
            guess = _put(guess, at, token)
            score = _put(score, at, log_p.gather(-1, token[:, None]).squeeze(-1))
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(rank < self.count[:, None], guess, z)


def _open(task: Task, z: Tokens, candidates: Tensor) -> Reads:
    """The candidates that can still change: in masked diffusion, those under a MASK."""
    if task.mask_id is not None:
        candidates = candidates & (z == task.mask_id)
    return Reads.of(candidates.flatten().nonzero().squeeze(-1), z.shape[1])


def _check_masked(task: Task) -> None:
    if task.mask_id is None:
        process = type(task.process).__name__
        raise ValueError(f"this sampler reveals MASKs, and the noise of {process} is none: use the sampler 'ancestral'")


def _put(table: Tensor, at: Tensor, values: Tensor) -> Tensor:
    return table.flatten().index_copy(0, at, values).view_as(table)
