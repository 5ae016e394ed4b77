"""`Traits`: facts about an objective that other modules of this folder use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unmask.training.optim import AdamW

Noise = Literal["masked", "uniform"]


@dataclass(frozen=True)
class Traits:
    """Facts about an objective for loading, estimating and running.

    noise              noise process of the student; None: the student is autoregressive
    start              model whose weights the student starts from, a directory or hub id; empty:
                       random weights
    distils            `start` is a teacher: the student is a copy of it, with its sizes, dropout
                       and schedule
    depth_multiplier   blocks of the student for each block of `start`
    round_steps        updates in a round; the last update of a round yields the student
    teacher_passes     forward passes of a frozen teacher in each update
    vocabulary_losses  losses over the vocabulary that are computed before the first backward pass
    optims             optimizer of each trained network other than the student, by its name
    unused             fields of the settings that have no effect, and the reason
    """

    noise: Noise | None
    start: str = ""
    distils: bool = False
    depth_multiplier: int = 1
    round_steps: int | None = None
    teacher_passes: int = 0
    vocabulary_losses: int = 1
    optims: Mapping[str, AdamW] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)

    @property
    def start_field(self) -> str:
        """The field of the settings that names `start`."""
        return "teacher" if self.distils else "init"

    @property
    def verb(self) -> str:
        """The command that runs such a recipe."""
        return "distill" if self.distils else "train"
