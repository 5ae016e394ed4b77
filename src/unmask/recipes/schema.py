"""A run as frozen data: what is trained, on what, how; `recipe.json` is this and nothing else."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from unmask.objectives.consistency import Coupling, Direction, Reduction, Revealed
from unmask.objectives.rounds import PAPER_TEMPERATURES, Rounds
from unmask.training.schedule import AdamW

T = TypeVar("T")

Precision = Literal["float32", "bfloat16", "fastest"]
Part = Literal["all", "first half", "second half"]


@dataclass(frozen=True)
class Network:
    """Sizes of the diffusion transformer; V comes from the tokenizer.

    length      L, tokens of a row
    sees_alpha  tell the network how much noise there is; MDLM, SDTT and MCD do not
    """

    length: int = 1024
    width: int = 768
    blocks: int = 12
    heads: int = 12
    cond_dim: int = 128
    dropout: float = 0.1
    sees_alpha: bool = False


@dataclass(frozen=True)
class Data:
    """Where the rows come from.

    corpus     a name ("sotu", "pydocs", "openwebtext", "lm1b"), a file or a folder
    part       which documents: all, or one of two disjoint halves (documents alternate)
    tokenizer  a directory or hub id, or "bpe:V": train a byte-level BPE of V tokens on this text
               (where the weights start from a model: that model's own)
    wrap       MDLM's rows: [BOS] + L - 2 tokens + [EOS]; else plain crops of the text
    """

    corpus: str = "sotu"
    part: Part = "all"
    tokenizer: str = "bpe:1024"
    wrap: bool = False


@dataclass(frozen=True)
class Schedule:
    """The noise schedule by name: "log-linear", "cosine", "polynomial" (with `power`)."""

    name: Literal["log-linear", "cosine", "polynomial"] = "log-linear"
    eps: float = 1e-3
    power: float = 1.0


@dataclass(frozen=True)
class Nelbo:
    """Train a masked-diffusion teacher on its evidence bound.

    init  a model to go on from, a run directory, model directory or hub id: its sizes and its MASK are kept, the
          length of a row and dropout are the recipe's; empty: random weights
    """

    kind: Literal["nelbo"] = "nelbo"
    t_min: float = 1e-3
    init: str = ""


@dataclass(frozen=True)
class NextToken:
    """Train an autoregressive baseline or judge; `init` as in `Nelbo`."""

    kind: Literal["next-token"] = "next-token"
    init: str = ""


@dataclass(frozen=True)
class Consistency:
    """Masked Consistency Distillation of `teacher`, a run directory, model directory or hub id."""

    kind: Literal["consistency"] = "consistency"
    teacher: str = ""
    round_steps: int = 10_000
    delta0: float = 1 / 512
    temperatures: tuple[float, ...] = PAPER_TEMPERATURES
    direction: Direction = "reverse"
    revealed: Revealed = "cross_entropy"
    coupling: Coupling = "locked"
    reduction: Reduction = "tokens"

    def rounds(self) -> Rounds:
        """Step size and temperature as functions of the step."""
        return Rounds(self.round_steps, self.delta0, self.temperatures)


Objective = Nelbo | NextToken | Consistency


@dataclass(frozen=True)
class Recipe:
    """One training run.

    batch_size    sequences an update, over all processes and micro-batches
    accumulation  micro-batches an update on each process
    precision     of the matrix products inside the network; weights, normalisations and losses stay float32.
                  "fastest": bfloat16 where the machine multiplies it faster, else float32; decided at the start of a
                  run and written into its recipe.json
    save_every    updates between two saved states
    """

    name: str
    objective: Objective = field(default_factory=Nelbo)
    network: Network = field(default_factory=Network)
    data: Data = field(default_factory=Data)
    schedule: Schedule = field(default_factory=Schedule)
    optim: AdamW = field(default_factory=AdamW)
    batch_size: int = 512
    accumulation: int = 1
    steps: int = 1_000_000
    seed: int = 1
    precision: Precision = "bfloat16"
    save_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "steps", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a count of the recipe {self.name!r}: want >= 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation splits batch_size = {self.batch_size} into equal micro-batches, "
                f"and {self.accumulation} does not divide it"
            )


def to_json(value: Any) -> Any:
    """Dataclasses and tuples to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: Any, where: str = "recipe") -> T:
    """The dataclass `kind` from JSON; an unknown or missing field is an error that names it and its neighbours."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds the fields of {kind.__name__}: want an object, got {value!r}")
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise ValueError(
                f"{where} has no field {name!r}"
                + (f", did you mean {near[0]!r}?" if near else f": it has {', '.join(fields)}")
            )
    needed = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise ValueError(f"{where} lacks {', '.join(missing)}: want an object with all of {', '.join(needed)}")
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} is one of {', '.join(map(repr, arguments))}: got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        records = [a for a in arguments if dataclasses.is_dataclass(a)]
        if not records:
            return _read(next(a for a in arguments if a is not type(None)), value, where)
        return _read_union(records, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is a list: got {value!r}")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where} is a list of {len(inner)}: got {value!r}")
        return tuple(_read(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(inner, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} is a value of type {hint.__name__}: got {value!r}")
    return value


def _read_union(records: list[Any], value: Any, where: str) -> Any:
    """One of several records, told apart by their field `kind`."""
    kinds = {typing.get_args(typing.get_type_hints(record)["kind"])[0]: record for record in records}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in kinds:
        raise ValueError(f"{where}.kind is one of {', '.join(map(repr, kinds))}: got {kind!r}")
    return from_json(kinds[kind], value, where)
