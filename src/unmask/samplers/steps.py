"""Samplers: how a canvas goes from noise to text. A sampler is a plan of `Step`s, made before the first network call.

`reveal` is the deterministic sampler and the default for masked diffusion: the plan names every position that every
step reads, so cost is known beforehand. `ancestral` is the classic update of any process, `greedy_tail` ends it with an
arg max. `confidence` lets the model choose the order, as does that of `entropy_bounded`. Those that also write noise
are in `renoising`.

To add one: a function from `Task` to steps. What follows from the latent and the grid belongs into the plan, what
follows from the text into the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.diffusion.processes import MaskedProcess, Process
from unmask.rng import uniform
from unmask.samplers.categorical import EXACT, UNFILTERED, Draw, Filters, blocks, draw_rows, race
from unmask.samplers.grids import check_levels
from unmask.samplers.inputs import FREE
from unmask.samplers.latent import BEFORE, Latent
from unmask.samplers.unmasking_schedule import Laws, Reads, plan
from unmask.types import Tokens


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

    @cached_property
    def alike(self) -> bool:
        """Whether all samples start from the same text."""
        return self.mask_id is not None and bool((self.pins == self.pins[:1]).all())

    def canvas(self) -> Tokens:
        """The start: given tokens, and noise that is each sample's own in any batch."""
        if self.mask_id is not None:
            return self.pins.where(~self.free, self.mask_id)
        at = torch.arange(self.pins.numel(), device=self.pins.device)
        noise = self.process.noise(uniform(self.latent.address(at, BEFORE)))
        return self.pins.where(~self.free, noise.view_as(self.pins))

    def level(self, z: Tokens) -> Tensor:
        """The alpha at which a text of masked diffusion is expected to show what z shows: float64 [n].

        alpha_0 + (1 - alpha_0) x (share of the free tokens that are shown); 1 where none is free.
        """
        hidden = (self.free & self.process.is_noised(z)).sum(1)
        return 1 - (1 - self.alphas[0].to(z.device)) * hidden / self.free.sum(1).clamp(min=1)

    def token(self, log_p: Tensor, at: Tensor, occasion: int = 0) -> Tensor:
        """Draw from log p [m, V] of x0 at positions `at` [m]."""
        return draw_rows(self.draw, self.filters, log_p, self.latent.address(at, occasion))


class Step(Protocol):
    """One move z_t -> z_s. First it says what it must read, then it is given the laws of that and moves."""

    def reads(self, z: Tokens) -> Reads: ...

    def __call__(self, z: Tokens, laws: Laws) -> Tokens: ...


Sampler: TypeAlias = Callable[
    [Task], Sequence[Step]
]  # a step for each move of the grid, or it says `Reads.alpha`


def reveal(task: Task) -> Sequence[Step]:
    """Each token at its own level, by one race of its own: the law of MDLM's ancestral sampler, for L head rows a text.

    The same latent gives coupled texts at different numbers of steps.
    """
    check_masked(task)
    return [RevealStep(task, reads) for reads in plan(task.latent, task.alphas, task.free).reads]


def ancestral(task: Task) -> Sequence[Step]:
    """z_s ~ q(z_s | z_t, x0 ~ p) at every position (MDLM, Eq. 6; Duo, arXiv 2506.10892, Eq. 3), for any process.

    A call a step at most, until nothing is left to change. In masked diffusion one draw over all tokens and MASK, the
    textbook's way; elsewhere branch by branch (`MixturePosteriorStep`), but by a table for draws that are not exact.
    """
    move = (
        MixturePosteriorStep if task.mask_id is None and task.draw in EXACT else TablePosteriorStep
    )
    return [move(task, k) for k in range(len(task.alphas) - 1)]


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
    goes by p(x0) at the temperature, before top-p and top-k; ties (see `in_steps`) go to the earlier position. This is
    not the model's law: it prefers the safe tokens.
    """
    check_masked(task)
    share = ((task.alphas - task.alphas[0]) / (1 - task.alphas[0])).to(task.pins.device)
    shown = (
        task.free.sum(1, keepdim=True) * share + 0.5 + 1e-9
    ).long()  # a half is a half, however it was rounded
    return [_Confidence(task, k, count) for k, count in enumerate(shown.diff(dim=1).T)]


@dataclass(frozen=True)
class RevealStep:
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
class MixturePosteriorStep:
    """Renoising with weight kappa (see `renoising`; 1: the ancestral step), drawn branch by branch.

    A coin < fresh sends a position to a draw from p, a coin < fresh + stray to a token of noise; else it stays. The
    coin is known before the text, and both weights fall with p(x0 = z_t): so the network and its head are asked only
    where the coin may change something, and only a draw from p needs a race.
    """

    task: Task
    k: int
    kappa: float = 1.0

    def reads(self, z: Tokens) -> Reads:
        fresh, stray = self._weights(z, torch.zeros_like(z, dtype=torch.float64))
        coin, noise = self._numbers()
        return can_change(
            self.task, z, self.task.free & (coin < fresh + stray.where(noise != z, 0.0))
        )

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        task, (coin, noise) = self.task, self._numbers()
        _, stray = self._weights(z, torch.ones_like(z, dtype=torch.float64))
        known = task.free & ~task.process.is_noised(z)  # p(x0 = z_t) = 1
        z = noise.where(known & (coin < stray), z)
        before, coin, noise = z.flatten(), coin.flatten(), noise.flatten()
        for at, log_p in laws:
            z_t = before[at]
            fresh, stray = (
                weight[0]
                for weight in self._weights(z_t[None], task.filters.chance(log_p, z_t)[None])
            )
            token = noise[at].where(coin[at] < fresh + stray, z_t)
            drawn = (
                (coin[at] < fresh).nonzero().squeeze(-1)
            )  # an accelerator waits here: less than racing at all rows
            token[drawn] = task.token(log_p[drawn], at[drawn], self.k)
            z = put(z, at, token)
        return z

    def _numbers(self) -> tuple[Tensor, Tensor]:
        """Coins and tokens of noise [n, L]: the coin is used by no draw; noise and the draw exclude each other."""
        task = self.task
        at = torch.arange(task.pins.numel(), device=task.pins.device)
        coin, noise = (
            uniform(task.latent.address(at, occasion)) for occasion in (-1 - self.k, self.k)
        )
        return coin.view_as(task.pins), task.process.noise(noise).view_as(task.pins)

    def _weights(self, z: Tokens, p_z: Tensor) -> tuple[Tensor, Tensor]:
        """Of fresh and stray, at tokens [b, l] with p(x0 = z) [b, l]."""
        branches = self.task.process.posterior_mixture
        alpha_t, alpha_s = self.task.alphas[self.k : self.k + 2].to(z.device).split(1)
        _, fresh, stray = branches(z, p_z, alpha_t, alpha_s)
        if self.kappa == 1:
            return fresh, stray
        _, guess, lost = branches(
            z, p_z, alpha_t, torch.ones_like(alpha_t)
        )  # of x0, which then is noised anew
        fresh = self.kappa * fresh + (1 - self.kappa) * (alpha_s * guess)
        return fresh, self.kappa * stray + (1 - self.kappa) * (alpha_s * lost + 1 - alpha_s)


@dataclass(frozen=True)
class TablePosteriorStep:
    """The law of `MixturePosteriorStep` as a table, for one draw over all tokens: for draws that are not exact, and what they drew."""

    task: Task
    k: int
    kappa: float = 1.0

    def reads(self, z: Tokens) -> Reads:
        return can_change(self.task, z, self.task.free)

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        task, before = self.task, z.flatten()
        alpha_t, alpha_s = task.alphas[self.k : self.k + 2].to(z.device).split(1)
        for log_p, at in (block for rows, table in laws for block in blocks(table, rows)):
            p_x0, z_t = task.filters.keep(log_p).exp()[None], before[None, at]
            law = task.process.posterior(p_x0, z_t, alpha_t, alpha_s)
            if self.kappa != 1:
                known = task.process.posterior(p_x0, z_t, alpha_t, torch.ones_like(alpha_t))
                law = self.kappa * law + (1 - self.kappa) * task.process.marginal(known, alpha_s)
            z = put(z, at, task.draw(law[0].log(), task.latent.address(at, self.k)))
        return z


@dataclass(frozen=True)
class _Greedy:
    task: Task

    def reads(self, z: Tokens) -> Reads:
        return can_change(self.task, z, self.task.free)

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
        return can_change(self.task, z, self.task.free & (self.count > 0)[:, None])

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        guess, score = z, torch.full(z.shape, -torch.inf, dtype=torch.float64, device=z.device)
        for at, log_p in laws:
            token = self.task.token(log_p, at, self.k)
            guess = put(guess, at, token)
            score = put(score, at, log_p.gather(-1, token[:, None]).squeeze(-1).double())
        rank = in_steps(score).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return torch.where(rank < self.count[:, None], guess, z)


def in_steps(nats: Tensor) -> Tensor:
    """Whole numbers that order `nats` by size, equal for a tie: for what is equal to 2^-10 nats.

    Over a blank canvas a network with rotary positions has one law at all positions, and rounding must not choose one.
    """
    return (nats * 2**10).round()


def can_change(task: Task, z: Tokens, candidates: Tensor) -> Reads:
    """The candidates that can still change: in masked diffusion, those under a MASK."""
    return Reads.of(
        (candidates & task.process.is_noised(z)).flatten().nonzero().squeeze(-1), z.shape[1]
    )


def check_masked(task: Task) -> None:
    if task.mask_id is None:
        process = type(task.process).__name__
        raise ValueError(
            f"this sampler reveals MASKs, and the noise of {process} is none: use the sampler 'ancestral'"
        )


def put(table: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """A copy of `table` [n, L] with `values` [m] at positions `at` [m], flat in [n, L]."""
    return table.flatten().index_copy(0, at, values).view_as(table)
