"""What a step reads of the text before it moves; for steps that follow from the latent, all of it beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.samplers.latent import Latent

Laws: TypeAlias = Iterable[
    tuple[Tensor, Tensor]
]  # (positions [m], flat in [n, L]; log p [m, V]), chunks


@dataclass(frozen=True)
class Reads:
    """What a network call is for: `rows` [b] of the batch take part, positions `where` [N], flat in [b, L], are read.

    No row: no call. `alpha` [b] is what the network is told; None for the level of the grid that the step starts from.
    `places` [b, W]: the same positions, row by row, the last of a row repeated; None where they follow from the text.
    """

    rows: Tensor
    where: Tensor
    alpha: Tensor | None = None
    places: Tensor | None = None

    @staticmethod
    def of(at: Tensor, length: int) -> Reads:
        """Positions [N], flat in [n, L]: samples without one are left out of the call."""
        rows, place = torch.unique(at // length, return_inverse=True)
        return Reads(rows, place * length + at % length)

    def at(self, length: int) -> Tensor:
        """The positions that are read, flat in [n, L]: [N]."""
        return self.rows[self.where // length] * length + self.where % length

    def to(self, device: torch.device) -> Reads:
        places = None if self.places is None else self.places.to(device)
        return replace(self, rows=self.rows.to(device), where=self.where.to(device), places=places)

    def placed(self, length: int) -> Reads:
        """With `places`; for positions in rising order."""
        counts = torch.bincount(self.where // length, minlength=len(self.rows))
        first = counts.cumsum(0) - counts
        rank = torch.arange(int(counts.max()) if len(counts) else 0).minimum(counts[:, None] - 1)
        return replace(self, places=self.where[first[:, None] + rank] % length)


@dataclass(frozen=True)
class UnmaskingSchedule:
    """The whole cost of a batch, known beforehand: what each step reads, calls a sample nfe [n], calls of the batch."""

    reads: tuple[Reads, ...]
    nfe: Tensor
    calls: int


def plan(latent: Latent, alphas: Tensor, free: Tensor) -> UnmaskingSchedule:
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
    reads = tuple(Reads.of(part, length).placed(length) for part in at.split(counts))
    nfe = torch.bincount(torch.cat([part.rows for part in reads]), minlength=n)
    return UnmaskingSchedule(
        tuple(r.to(free.device) for r in reads),
        nfe.to(free.device),
        sum(len(r.rows) > 0 for r in reads),
    )
