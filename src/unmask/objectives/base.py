"""The role of a training objective, and the methods that most objectives share.

An objective is a frozen dataclass with a call and four methods. Most objectives train only the
student, and assign these functions as their methods:

    networks = frozen = no_networks
    turn = student_turn
    prepare = no_preparation

A distillation in rounds has the fields `teacher` and `rounds`, and assigns

    networks, frozen = no_networks, teacher_network
    turn = student_turn
    prepare = reset_teacher
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unmask.objectives.rounds import Rounds
from unmask.types import PerToken, Tokens

# The network that every objective trains. `Objective.networks()` names the others.
STUDENT = "student"


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch: sum(per_token) / sum(weight).

    Both sums run over all micro-batches of an update and over all ranks.

    Attributes:
        per_token: [B, L] nats, differentiable
        weight: [B, L] >= 0, the weight of each token in the mean; 1 for a mean over all tokens.
            Weight and per_token are 0 if no token has a loss, as in a batch without MASK
        metrics: detached means over the micro-batch, weighted by `weight`; the loop averages them
            over micro-batches with the same weights
    """

    per_token: PerToken
    weight: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("per_token", self.per_token), ("weight", self.weight)):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} of a Loss is not a tensor: got a value of type "
                    f"{type(value).__name__}, want a tensor [B, L]"
                )
        rows, weights = self.per_token.shape, self.weight.shape
        if len(rows) != 2 or weights not in (rows, ()):
            raise ValueError(
                f"per_token or weight of a Loss has the wrong shape: got {[*rows]} and "
                f"{[*weights]}, want [B, L] for both"
            )


class Objective(Protocol):
    """A loss to minimise, and the networks that it needs in addition to the student.

    The constructor takes the frozen networks, such as a teacher. All randomness comes from
    `generator`.
    """

    def __call__(
        self, network: Any, x0: Tokens, *, step: int, generator: torch.Generator | None = None
    ) -> Loss:
        """The loss of a micro-batch.

        Args:
            network: the student, even if this step trains another network.
            x0: token ids [B, L].
            step: the number of the training step.
            generator: the source of randomness; None: torch's global generator.
        """
        ...

    def networks(self) -> dict[str, nn.Module]:
        """The trainable networks except the student, by name."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """The networks that are saved with a run but not trained, by name, such as the teacher."""
        ...

    def turn(self, step: int) -> str:
        """The name of the network that this step trains."""
        ...

    def prepare(self, step: int, student: nn.Module) -> None:
        """Run before `step`, for example to reset the teacher at the start of a round."""
        ...


class Distillation(Protocol):
    """The fields of an objective that distils in rounds."""

    @property
    def teacher(self) -> nn.Module:
        """A denoiser that gets the student's weights at the start of every round."""
        ...

    @property
    def rounds(self) -> Rounds:
        """The rounds of the distillation."""
        ...


def no_networks(self: object) -> dict[str, nn.Module]:
    """Return an empty dict: the objective has no other networks of this kind."""
    return {}


def student_turn(self: object, step: int) -> str:
    """Return the name of the student, because every step trains it."""
    return STUDENT


def no_preparation(self: object, step: int, student: nn.Module) -> None:
    """Do nothing, because a step needs no preparation."""


def teacher_network(self: Distillation) -> dict[str, nn.Module]:
    """Return the teacher, which is saved with the run."""
    return {"teacher": self.teacher}


def reset_teacher(self: Distillation, step: int, student: nn.Module) -> None:
    """Copy the student's raw weights into the teacher at the start of a round (hard reset)."""
    if self.rounds.starts(step):
        self.teacher.load_state_dict(student.state_dict())
        self.teacher.eval().requires_grad_(False)
