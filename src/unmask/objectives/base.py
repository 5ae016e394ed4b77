"""What a method of training is, seen from the loop that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unmask.objectives.rounds import Rounds
from unmask.types import PerToken, Tokens


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch: sum(per_token) / sum(weight), both sums taken over accumulation and ranks.

    per_token  [B, L] nats, differentiable
    weight     [B, L] >= 0: what counts, 1 a token where the mean is over all tokens; all 0 where a batch has nothing to
               learn from, such as no MASK, and then per_token is 0 too
    metrics    detached means over the micro-batch's weight; the loop averages them with that weight
    """

    per_token: PerToken
    weight: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What to learn. Frozen helpers (a teacher) are arguments of its constructor; all noise comes from `generator`."""

    def __call__(
        self, network: Any, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss: ...

    def networks(self) -> dict[str, nn.Module]:
        """Trainable networks besides the student, by name."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """Networks that are not trained but belong to the run's state, by name: the teacher."""
        ...

    def turn(self, step: int) -> str:
        """The name of the network that this step trains."""
        ...

    def prepare(self, step: int, student: nn.Module) -> None:
        """Whatever must happen before `step`; the hard reset of a teacher at the start of a round."""
        ...


class SingleNetwork:
    """The part of an `Objective` that trains one network, the student."""

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def frozen(self) -> dict[str, nn.Module]:
        return {}

    def turn(self, step: int) -> str:
        return "student"

    def prepare(self, step: int, student: nn.Module) -> None:
        """Nothing: there is no other network."""


class Distillation(SingleNetwork):
    """The part of an `Objective` that distils in rounds. Who inherits it has these fields:

    teacher  a denoiser that is a module; overwritten by the student's raw weights at the start of every round
    rounds   when a round starts, and what it changes
    """

    teacher: nn.Module
    rounds: Rounds

    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def prepare(self, step: int, student: nn.Module) -> None:
        """Hard reset at the start of a round: teacher <- stopgrad(student)."""
        if self.rounds.starts(step):
            self.teacher.load_state_dict(student.state_dict())
            self.teacher.eval().requires_grad_(False)
