"""The role of the settings of an objective (`ObjectiveSettings`), and their `Traits`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from unmask.data.tokenizers import Tokenizer
from unmask.diffusion.schedules import NoiseSchedule
from unmask.models.denoiser import DenoiserModule, PredictorModule
from unmask.objectives.base import Objective
from unmask.training.optim import AdamW

Noise = Literal["masked", "uniform"]
Student: TypeAlias = DenoiserModule | PredictorModule


@dataclass(frozen=True)
class Traits:
    """Facts about an objective for loading, estimating and running.

    Attributes:
        noise: noise process of the student; None: the student is autoregressive
        start: model whose weights the student starts from, a directory or hub id; empty: random
            weights
        distils: `start` is a teacher: the student is a copy of it, with its sizes, dropout and
            schedule
        depth_multiplier: blocks of the student for each block of `start`
        round_steps: updates in a round; the last update of a round yields the student
        teacher_passes: forward passes of a frozen teacher in each update
        vocabulary_losses: losses over the vocabulary that are computed before the first backward
            pass
        optims: optimizer of each trained network other than the student, by its name
        unused: fields of the settings that have no effect, and the reason
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


@runtime_checkable
class ObjectiveSettings(Protocol):
    """The settings of an objective: a frozen dataclass with a name and two methods.

    The rest of the recipe layer uses nothing else, so it does not depend on the kind of objective.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def kind(self) -> str:
        """The name of the objective in recipe.json."""
        ...

    def traits(self) -> Traits:
        """The facts about the objective."""
        ...

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        """Make the objective.

        Args:
            student: the network to train.
            schedule: the noise schedule.
            tokenizer: the tokenizer of the rows; None: they have none.
        """
        ...
