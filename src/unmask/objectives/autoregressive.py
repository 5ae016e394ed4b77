"""The objective of an autoregressive baseline or judge: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unmask.diffusion.vocabulary_losses import cross_entropy
from unmask.objectives.base import Loss, no_networks, no_preparation, student_turn
from unmask.prediction import Prediction
from unmask.types import Tokens


@dataclass(frozen=True)
class NextToken:
    """The negative log-likelihood -log p(x_i | x_<i), a mean over all L tokens.

    Attributes:
        start_id: the token that the network reads before the first token of the text
    """

    start_id: int

    networks = frozen = no_networks
    turn = student_turn
    prepare = no_preparation

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
        nats = cross_entropy(prediction, x0, everywhere).view(x0.shape)
        return Loss(nats, torch.ones_like(nats))
