"""Train an autoregressive baseline or judge: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unmask.diffusion.row_losses import scatter_rows
from unmask.diffusion.vocabulary_losses import cross_entropy
from unmask.objectives.base import Loss, SingleNetwork
from unmask.prediction import Prediction
from unmask.types import Tokens


@dataclass(frozen=True)
class NextToken(SingleNetwork):
    """-log p(x_i | x_<i), mean over all L tokens; `start_id` is fed before the first and is no part of the text."""

    start_id: int

    def __call__(
        self,
        network: Callable[[Tokens], Prediction],
        x0: Tokens,
        *,
        step: int,
        generator: torch.Generator | None = None,
    ) -> Loss:
        start = torch.full_like(x0[:, :1], self.start_id)
        prediction = network(torch.cat([start, x0[:, :-1]], dim=1))
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        surprise = scatter_rows(cross_entropy(prediction, x0, everywhere), everywhere)
        return Loss(surprise, torch.ones_like(surprise))
