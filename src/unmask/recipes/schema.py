"""`Recipe`: a training run as frozen data.

The file recipe.json of a run directory holds exactly this. The card of a finished model also holds
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.data.hub import local_or_hub
from unmask.dataclass_json import check_plain, from_json, read_json
from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.limits import check_range
from unmask.models.dit import Shape
from unmask.recipes.objective_settings import NelboSettings
from unmask.recipes.traits import ObjectiveSettings as SettingsRole
from unmask.recipes.traits import Traits
from unmask.training.optim import AdamW

if TYPE_CHECKING:
    from unmask.recipes.traits import ObjectiveSettings
else:
    # Files and flags can name these only. Python code may give settings of its own.
    from unmask.recipes.objective_settings import BuiltInSettings as ObjectiveSettings

Precision = Literal["float32", "bfloat16", "fastest"]
Part = Literal["all", "first half", "second half"]
NAME_BYTES = 200  # file systems allow 255, and temporary names are longer than the run's
HELD_OUT = "held_out_digest"  # card entry: digest of the documents that the training held out


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the diffusion transformer. The vocabulary size comes from the tokenizer.

    Attributes:
        length: L, tokens in a row
        width: channels, a multiple of 2 x heads
        blocks: number of layers
        heads: number of attention heads
        cond_dim: channels of the noise-level conditioning
        dropout: fraction of channels dropped in training
        sees_alpha: condition the network on the noise level; MDLM, SDTT and MCD do not
    """

    length: int = 1024
    width: int = 768
    blocks: int = 12
    heads: int = 12
    cond_dim: int = 128
    dropout: float = 0.1
    sees_alpha: bool = False

    def __post_init__(self) -> None:
        self.shape(vocab_size=2)  # raises for sizes that do not fit

    def shape(self, vocab_size: int, causal: bool = False) -> Shape:
        """The sizes of the network for a vocabulary."""
        return Shape(
            vocab_size,
            self.length,
            self.width,
            self.blocks,
            self.heads,
            self.cond_dim,
            self.dropout,
            causal=causal,
        )


@dataclass(frozen=True)
class DataSettings:
    """Source of the rows.

    Rows of a data set are made once, cached on disk and memory-mapped.

    Attributes:
        corpus: name ("sotu", "pydocs", "openwebtext", "lm1b"), file, folder, or data set: a
            directory of `datasets.save_to_disk`, parquet files of text or token ids, or
            hub:OWNER/NAME[:CONFIGURATION][@REVISION] (`data/corpora.py:load_corpus`)
        part: documents to use: all, or one of two disjoint halves (alternating documents)
        tokenizer: directory or hub id, or "bpe:V": train a byte-level BPE tokenizer of V tokens
            on the corpus. If weights start from a model, "bpe:V" means that model's tokenizer
        wrap: make rows of [BOS] + L - 2 tokens + [EOS], as MDLM does; else crops of L tokens
        streaming: read a data set in order during training, only as far as the run needs. Rows
            are shuffled in windows of 2^24 tokens. The first documents are held out and
            train "bpe:V" (`data/corpora.py:load_stream`)
    """

    corpus: str = "sotu"
    part: Part = "all"
    tokenizer: str = "bpe:1024"
    wrap: bool = False
    streaming: bool = False


@dataclass(frozen=True)
class Schedule:
    """Noise schedule.

    Attributes:
        name: formula of alpha(t)
        eps: share of tokens without noise at t = 1
        power: exponent of the polynomial schedule, 1 - t^power
    """

    name: Literal["log-linear", "cosine", "polynomial"] = "log-linear"
    eps: float = 1e-3
    power: float = 1.0

    def __post_init__(self) -> None:
        check_range("eps", self.eps, 0 <= self.eps < 1, "0 <= eps < 1")
        check_range("power", self.power, self.power > 0, "power > 0")

    def build(self) -> NoiseSchedule:
        """The schedule as a function of time."""
        match self.name:
            case "log-linear":
                return LogLinear(self.eps)
            case "cosine":
                return Cosine(self.eps)
            case "polynomial":
                return Polynomial(self.power, self.eps)


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: name of the run; without --out its directory is runs/NAME
        objective: the training objective and its settings
        network: sizes of the network
        data: source of the rows
        schedule: noise schedule
        optim: optimizer of the student
        batch_size: rows in an update, over all processes and micro-batches
        accumulation: micro-batches in an update, divided among the processes. Noise depends on
            the micro-batch, not on the process
        checkpointing: recompute the activations of each block in the backward pass: same
            numbers, less memory, up to a third more time
        steps: total number of updates
        seed: seed of batches, noise, dropout and initial weights
        precision: precision of matrix products in the network; weights, normalizations and
            losses stay float32. "fastest": bfloat16 if it is faster on this machine, else
            float32; the choice is made at the start and written to recipe.json
        save_every: updates between two saved states
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
        if not isinstance(self.objective, SettingsRole):
            raise TypeError(
                f"objective of the recipe {self.name!r} has a wrong type: got "
                f"{type(self.objective).__name__}, want a dataclass with kind, traits() and "
                "build(), such as unmask.recipe('demo-mcd').objective"
            )
        check_plain(self)
        check_name(self.name)
        for name in ("batch_size", "accumulation", "steps", "save_every"):
            value = getattr(self, name)
            check_range(f"{name} of the recipe {self.name!r}", value, value >= 1, f"{name} >= 1")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation does not divide batch_size: got accumulation = {self.accumulation} "
                f"and batch_size = {self.batch_size}, want equal micro-batches"
            )

    @property
    def traits(self) -> Traits:
        """The facts about its objective."""
        return self.objective.traits()


def check_name(name: str) -> None:
    """Raise ValueError for a name that a directory cannot have."""
    size = len(name.encode())
    if name in ("", ".", "..") or {"/", "\0"} & {*name} or size > NAME_BYTES:
        raise ValueError(
            f"name is not valid for a directory: got {name[:40]!r}, {size} bytes, want 1 to "
            f"{NAME_BYTES} bytes without slash or NUL, not '.' or '..'; give another --name"
        )


def recipe_of(run: Path, objective: ObjectiveSettings | None = None) -> Recipe:
    """The recipe of a run directory; `recipe_from_json` describes `objective`."""
    return recipe_from_json(read_json(run / "recipe.json"), objective=objective)


def recipe_from_json(
    content: Any, where: str = "recipe", objective: ObjectiveSettings | None = None
) -> Recipe:
    """The recipe of a JSON value. Two old forms of the objective are read.

    `faithful` of SDTT is `time_grid`. An empty `structure` of MCD is independent levels.

    Args:
        content: the JSON value.
        where: the name of the value in errors.
        objective: settings of a user's own. A content of the same kind is read by their class.

    Raises:
        ValueError: names the field that is missing, unknown or of the wrong type.
    """
    match content:
        case {"objective": {"kind": "sdtt", "faithful": grid, **rest}}:
            content = {**content, "objective": {"kind": "sdtt", **rest, "time_grid": grid}}
        case {"objective": {"kind": "consistency", "structure": "" | "none", **rest}}:
            content = {**content, "objective": {"kind": "consistency", **rest}}
        case {"objective": {"kind": kind, **rest}, **others} if (
            objective is not None and kind == objective.kind
        ):
            own = from_json(type(objective), {"kind": kind, **rest}, f"{where}.objective")
            return replace(from_json(Recipe, others, where), objective=own)
    return from_json(Recipe, content, where)


def trained_on(name: str) -> DataSettings | None:
    """The training text that the card of a model names; None if it names none.

    The model is given by its directory, hub id or unmask:NAME.
    """
    file = local_or_hub(name, ("config.json",)) / "config.json"
    config = read_json(file) if file.exists() else None
    card = config.get("card") if isinstance(config, dict) else None
    return text_of(card, name) if isinstance(card, dict) else None


def text_of(card: Mapping[str, object], name: str) -> DataSettings | None:
    """The training text that a card names, or None. Errors call the model `name`."""
    recipe = card.get("recipe")
    if not isinstance(recipe, Mapping) or "data" not in recipe:
        return None
    return from_json(DataSettings, recipe["data"], f"data in the card of {name}")
