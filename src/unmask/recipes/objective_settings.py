"""The settings of the objectives of this library, one frozen dataclass each.

`recipes/traits.py:ObjectiveSettings` describes their role. A new objective adds one class here, and
adds it to `BuiltInSettings`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from unmask.data.tokenizers import Tokenizer, start_token
from unmask.diffusion.levels import LEVEL_ORDERS
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess, noise_process
from unmask.diffusion.schedules import GaussianArgmax, NoiseSchedule
from unmask.limits import check_range
from unmask.models.denoiser import PredictorModule
from unmask.objectives.autoregressive import NextToken
from unmask.objectives.base import Objective
from unmask.objectives.consistency import Consistency, Coupling, Direction, Reduction, Revealed
from unmask.objectives.curriculum import Curriculum
from unmask.objectives.moments import CRITIC, Moments, Renoising, Reward
from unmask.objectives.nelbo import Nelbo
from unmask.objectives.rounds import PAPER_TEMPERATURES, Rounds, check_rounds
from unmask.objectives.sdtt import Distance, Sdtt, TimeGrid
from unmask.recipes.traits import Noise, Student, Traits
from unmask.training.optim import AdamW

Order = Literal["random", "spread"]  # the names of LEVEL_ORDERS


@dataclass(frozen=True)
class NelboSettings:
    """Train a diffusion teacher on its negative evidence lower bound (MDLM, arXiv 2406.07524).

    Attributes:
        process: noise that replaces a token: MASK, or a uniform random token (Duo)
        t_min: smallest time t that is drawn (MDLM, Duo: 1e-3)
        init: model to continue from: a run directory, model directory or hub id. Its sizes and
            its MASK are kept; row length and dropout are the recipe's. Empty: random weights
        deeper: depth multiplier. After each block of `init`, deeper - 1 new blocks are inserted
            that start as the identity
        order: tokens of a row become noise independently (random), or those that are far apart
            become noise together (spread). The loss is a bound for random only
    """

    kind: Literal["nelbo"] = "nelbo"
    process: Noise = "masked"
    t_min: float = 1e-3
    init: str = ""
    deeper: int = 1
    order: Order = "random"

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)
        inside = self.deeper == 1 or (self.deeper > 1 and self.init != "")
        want = "deeper >= 1, and deeper = 1 if init is empty"
        check_range("deeper", f"{self.deeper} with init = {self.init!r}", inside, want)

    def traits(self) -> Traits:
        return Traits(self.process, self.init, depth_multiplier=self.deeper)

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        return Nelbo(process_of(student), schedule, self.t_min, LEVEL_ORDERS[self.order])


@dataclass(frozen=True)
class CurriculumSettings:
    """Train a uniform-state teacher as Duo does (arXiv 2506.10892): soft Gaussian input first.

    Attributes:
        soft_steps: number of first updates, which use soft input; later ones use the plain bound
        gamma: range of gamma, which is minus the log signal-to-noise ratio of the soft input
        temperature: temperature of the softmax that makes the soft input
        top_k: number of tokens that the soft input keeps in addition to the true one
        t_min: smallest time t that is drawn (1e-3)
        init: model to continue from, as in `NelboSettings`; empty: random weights
    """

    kind: Literal["curriculum"] = "curriculum"
    soft_steps: int = 500_000
    gamma: tuple[float, float] = (-3.55, -1.85)
    temperature: float = 1e-3
    top_k: int = 8
    t_min: float = 1e-3
    init: str = ""

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)
        check_range("soft_steps", self.soft_steps, self.soft_steps >= 0, "soft_steps >= 0")
        check_range("temperature", self.temperature, self.temperature > 0, "temperature > 0")
        check_range("top_k", self.top_k, self.top_k >= 1, "1 <= top_k < vocabulary size")
        _check_increasing("gamma", self.gamma)

    def traits(self) -> Traits:
        soft = ("gamma", "temperature", "top_k") if self.soft_steps == 0 else ()
        unused = dict.fromkeys(soft, "soft_steps is 0, so no input is soft")
        return Traits("uniform", self.init, unused=unused)

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        path = GaussianArgmax(student.vocab_size, *self.gamma)
        process = UniformProcess(student.vocab_size)
        return Curriculum(
            process, schedule, path, self.soft_steps, self.temperature, self.top_k, self.t_min
        )


@dataclass(frozen=True)
class AutoregressiveSettings:
    """Train an autoregressive baseline or judge.

    Attributes:
        init: model to continue from, as in `NelboSettings`; empty: random weights
    """

    kind: Literal["next-token"] = "next-token"
    init: str = ""

    def traits(self) -> Traits:
        return Traits(None, self.init)

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        return NextToken(start_token(tokenizer, student.vocab_size, None))


@dataclass(frozen=True)
class ConsistencySettings:
    """Consistency distillation: MCD (masked, arXiv 2602.00792) or DCD (uniform, arXiv 2506.10892).

    Attributes:
        teacher: run directory, model directory, hub id (with @revision), or unmask:teacher
        process: noise process of the teacher: masked is MCD, uniform is DCD
        round_steps: updates in a round; at its start the teacher gets the student's weights
        delta0: time between student and teacher in the first round, doubled each round
        temperatures: the teacher's temperature, one value for each round
        direction: KL divergence at tokens that are masked for both; reverse is
            KL(student || teacher)
        revealed: loss at tokens that are visible to the teacher only
        revealed_weight: weight of the loss `revealed`; the divergence has weight 1
        coupling: locked: student and teacher read one trajectory (Theorem 3.3); independent: each
            has its own noise
        order: tokens of a row become noise independently (random), or those that are far apart
            become noise together (spread)
        reduction: divide the loss by the number of all tokens, or of the masked tokens
        gamma: range of gamma of Duo's Gaussian path to train on; None: the teacher's schedule
    """

    kind: Literal["consistency"] = "consistency"
    teacher: str = ""
    process: Noise = "masked"
    round_steps: int = 10_000
    delta0: float = 1 / 512
    temperatures: tuple[float, ...] = PAPER_TEMPERATURES
    direction: Direction = "reverse"
    revealed: Revealed = "cross_entropy"
    revealed_weight: float = 1.0
    coupling: Coupling = "locked"
    order: Order = "random"
    reduction: Reduction = "tokens"
    gamma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.rounds()  # raises for values out of range
        weight = self.revealed_weight
        check_range("revealed_weight", weight, 0 <= weight < math.inf, "a finite weight >= 0")
        if self.gamma is not None:
            _check_increasing("gamma", self.gamma)
        defaults = {"revealed": "cross_entropy", "revealed_weight": 1.0, "reduction": "tokens"}
        changed = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.process == "uniform" and changed:
            raise ValueError(
                f"{', '.join(changed)} has no effect with process = 'uniform': uniform noise has "
                "no visible tokens, so the loss has one term, over all tokens. Omit it, or use "
                "process = 'masked'"
            )

    def rounds(self) -> Rounds:
        """Step size and temperature as functions of the step."""
        return Rounds(self.round_steps, self.delta0, self.temperatures)

    def traits(self) -> Traits:
        reason = {"revealed_weight": "revealed is 'none', which omits that loss"}
        two_losses = self.process == "masked" and self.revealed == "cross_entropy"
        return Traits(
            self.process,
            self.teacher,
            distils=True,
            round_steps=self.round_steps,
            teacher_passes=1,
            vocabulary_losses=2 if two_losses else 1,
            unused=reason if self.revealed == "none" else {},
        )

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        path = schedule if self.gamma is None else GaussianArgmax(student.vocab_size, *self.gamma)
        return Consistency(
            process_of(student),
            path,
            frozen_copy(student),
            self.rounds(),
            direction=self.direction,
            revealed=self.revealed,
            coupling=self.coupling,
            reduction=self.reduction,
            revealed_weight=self.revealed_weight,
            order=LEVEL_ORDERS[self.order],
        )


@dataclass(frozen=True)
class SdttSettings:
    """Self-Distillation Through Time of a masked-diffusion model (arXiv 2410.21035).

    Attributes:
        teacher: as in `ConsistencySettings`
        round_steps: updates in a round; at its start the teacher gets the student's weights
        delta0: time step of the teacher in the first round, doubled each round
        count: number of rounds
        teacher_steps: teacher steps that one student step imitates
        divergence: distance to the target: reverse KL(student || target), forward
            KL(target || student), mse or tvd of the probabilities
        time_grid: teacher steps of the paper, or of the released code, which differs by mistake
    """

    kind: Literal["sdtt"] = "sdtt"
    teacher: str = ""
    round_steps: int = 10_000
    delta0: float = 1 / 1024
    count: int = 7
    teacher_steps: int = 2
    divergence: Distance = "reverse"
    time_grid: TimeGrid = "paper"

    def __post_init__(self) -> None:
        check_range("teacher_steps", self.teacher_steps, self.teacher_steps >= 1, "at least 1")
        check_rounds("count", self.round_steps, self.delta0, self.count)

    def rounds(self) -> Rounds:
        """Step size as a function of the step; the teacher's temperature stays 1."""
        return Rounds(self.round_steps, self.delta0, (1.0,) * self.count)

    def traits(self) -> Traits:
        reason = "teacher_steps is 1, so the teacher takes no step"
        unused = ("delta0", "time_grid") if self.teacher_steps == 1 else ()
        return Traits(
            "masked",
            self.teacher,
            distils=True,
            round_steps=self.round_steps,
            teacher_passes=self.teacher_steps,
            vocabulary_losses=self.teacher_steps,
            unused=dict.fromkeys(unused, reason),
        )

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        process = process_of(student)
        if not isinstance(process, MaskedProcess):
            raise TypeError(
                f"teacher has the wrong noise process: got {process}, want masked noise, which "
                "SDTT needs; give another teacher"
            )
        return Sdtt(
            process,
            schedule,
            frozen_copy(student),
            self.rounds(),
            self.teacher_steps,
            self.divergence,
            self.time_grid,
        )


@dataclass(frozen=True)
class MomentsSettings:
    """Moment matching with a critic, after D-MMD (arXiv 2603.20155) and IDLM (arXiv 2602.19066).

    Attributes:
        teacher: as in `ConsistencySettings`
        process: noise process of the teacher
        critic_start: first updates, in which only the critic is trained
        critic_steps: updates of the critic for each later update of the student
        critic_optim: optimizer of the critic
        reach: greatest share of text that a bridge adds, 0 < reach <= 1
        renoising: bridge: the student's tokens replace some of the noise; fresh: new noise on all
            tokens; mixed: half of the rows each
        anchor: weight of the divergence of the student from the teacher
        teacher_share: share of the teacher in the target of the critic
        reward: soft: expectation over all tokens; leave-one-out: REINFORCE with `draws` tokens
        draws: tokens of leave-one-out
        order: tokens of a row become noise independently (random), or those that are far apart
            become noise together (spread)
    """

    kind: Literal["moments"] = "moments"
    teacher: str = ""
    process: Noise = "masked"
    critic_start: int = 40
    critic_steps: int = 1
    critic_optim: AdamW = field(
        default_factory=lambda: AdamW(lr=3e-4, betas=(0.9, 0.99), warmup_steps=20, ema_decay=None)
    )
    reach: float = 0.25
    renoising: Renoising = "bridge"
    anchor: float = 0.1
    teacher_share: float = 0.5
    reward: Reward = "soft"
    draws: int = 2
    order: Order = "random"

    def __post_init__(self) -> None:
        empty = nn.Module()
        self._objective(UniformProcess(2), empty, empty)  # raises for values out of range

    def traits(self) -> Traits:
        return Traits(
            self.process,
            self.teacher,
            distils=True,
            teacher_passes=2,
            vocabulary_losses=2,
            optims={CRITIC: self.critic_optim},
            unused={} if self.reward == "leave-one-out" else {"draws": "reward is 'soft'"},
        )

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        teacher, critic = frozen_copy(student), copy.deepcopy(student)
        return self._objective(process_of(student), teacher, critic)

    def _objective(self, process: Process, teacher: nn.Module, critic: nn.Module) -> Moments:
        return Moments(
            process,
            teacher,
            critic,
            self.critic_start,
            self.critic_steps,
            self.reach,
            self.renoising,
            self.anchor,
            self.teacher_share,
            self.reward,
            self.draws,
            LEVEL_ORDERS[self.order],
        )


DistillationSettings = ConsistencySettings | SdttSettings
# The field `objective` of a recipe.json or of a command line is one of these classes.
BuiltInSettings = (
    NelboSettings
    | CurriculumSettings
    | AutoregressiveSettings
    | ConsistencySettings
    | SdttSettings
    | MomentsSettings
)


def process_of(student: Student) -> Process:
    """The noise process of a denoiser: masked if its vocabulary has a MASK, else uniform."""
    if isinstance(student, PredictorModule):
        raise TypeError("student is autoregressive and has no noise process: want a denoiser")
    return noise_process(student.vocab_size, student.mask_id)


def frozen_copy(student: Student) -> Student:
    """A copy in eval mode without gradients: the teacher at the start of a distillation."""
    return copy.deepcopy(student).eval().requires_grad_(False)


def _check_t_min(t_min: float) -> None:
    check_range("t_min", t_min, 0 <= t_min < 1, "0 <= t_min < 1")


def _check_increasing(name: str, ends: tuple[float, float]) -> None:
    if not ends[0] < ends[1]:
        raise ValueError(f"{name} is not a range: got {ends}, want the smaller value first")
