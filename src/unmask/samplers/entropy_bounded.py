"""The EB-sampler: as many MASKs at once as know little of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from unmask.samplers.categorical import blocks, is_number
from unmask.samplers.steps import Sampler, Step, Task, can_change, check_masked, in_steps, put
from unmask.samplers.unmasking_schedule import Laws, Reads
from unmask.types import Tokens


def entropy_bounded(bound: float) -> Sampler:
    """Reveal together what is nearly independent: the EB-sampler (Ben-Hamu et al. 2025, arXiv 2505.24857), masked only.

    Each step draws, in order of increasing entropy H of p(x0_i | z), the longest prefix U of the MASKs with

        sum_{l in U} H_l - max_{l in U} H_l <= bound   (nats)

    and always one. The left side bounds what the tokens of U can tell about each other, so it bounds the price of
    drawing them at once. bound = 0: one token a step, and with it those that are certain (H = 0); inf: all in one step.
    Ties (see `in_steps`) go to the earlier position. H goes by p(x0) at the temperature, before top-p and top-k. A
    token is drawn by one race at any bound.

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
    check_masked(task)
    return [_EntropyBounded(task, bound)] * int(task.free.sum(1).max())


@dataclass(frozen=True)
class _EntropyBounded:
    task: Task
    bound: float

    def reads(self, z: Tokens) -> Reads:
        reads = can_change(self.task, z, self.task.free)
        return replace(reads, alpha=self.task.level(z)[reads.rows])

    def __call__(self, z: Tokens, laws: Laws) -> Tokens:
        guess, entropy = z, torch.full(z.shape, torch.inf, dtype=torch.float64, device=z.device)
        for at, log_p in laws:
            guess = put(
                guess, at, self.task.token(log_p, at)
            )  # not kept, not seen: its race is still fresh
            for law, part in blocks(log_p, at):
                entropy = put(entropy, part, torch.special.entr(law.exp()).sum(-1))
        order = in_steps(entropy).argsort(dim=1, stable=True)
        before = F.pad(
            entropy.gather(1, order).cumsum(1)[:, :-1], (1, 0)
        )  # the sum without the last, the greatest
        kept = torch.zeros_like(z, dtype=torch.bool).scatter(1, order, before <= self.bound)
        return torch.where(kept, guess, z)
