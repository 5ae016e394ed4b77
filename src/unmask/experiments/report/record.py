"""report.json as values: what a report holds, read strictly; a broken one is refused by the name of its field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask import __version__
from unmask.dataclass_json import from_json
from unmask.evaluation.answers import Answers
from unmask.evaluation.measure import (
    ENTROPIES,
    GEN_PPL,
    EvaluationProtocol,
    Measure,
    Row,
    protocol_words,
    require_same_protocol,
    row_of,
)

ENTROPY = "entropy"
TINY, HUGE = 1e-100, 1e100  # of what stands on an axis


@dataclass(frozen=True)
class Line:
    """A row, and whether it was shipped (measured by `make assets` under the same protocol) and not measured now."""

    row: Row
    shipped: bool

    @property
    def steps(self) -> int:
        return self.row.setting.steps

    @property
    def temperature(self) -> float:
        return self.row.setting.temperature

    @property
    def gen_ppl(self) -> Measure:
        return self.row.measures[GEN_PPL]

    @property
    def entropy(self) -> Measure:
        return self.row.measures[ENTROPY]


@dataclass(frozen=True)
class Round:
    """The student after a round of distillation, drawn in `steps` steps at temperature 1; the round's delta and tau."""

    round: int
    steps: int
    gen_ppl: float
    entropy: float
    delta: float
    temperature: float


@dataclass(frozen=True)
class Training:
    """Columns of equal length: the loss and its two terms, where it has two, in nats a token, at each recorded step."""

    step: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    distillation: list[float] = field(default_factory=list)
    reconstruction: list[float] = field(default_factory=list)
    round: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """Teacher and student at one latent."""

    latent: int
    steps: int
    teacher: str
    student: str
    temperature: float = 1.0


@dataclass(frozen=True)
class Film:
    """A text as it is unmasked: its L final pieces, and the positions that each network call reveals.

    A position in no frame was given (a prompt). alphas: the share of text that each call starts from.
    """

    title: str
    pieces: list[str]
    frames: list[list[int]]
    alphas: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """Size and origin of a model."""

    parameters: int
    source: str


@dataclass(frozen=True)
class Corpus:
    """The text: its name, rows to learn from and held out, tokens of a row, size of the vocabulary."""

    name: str
    train_rows: int | None = None
    held_out_rows: int | None = None
    length: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class Report:
    """Everything on the page. What has a default may be missing; its section is then left out."""

    title: str
    version: str
    protocol: EvaluationProtocol
    teacher: list[Line]
    student: list[Line]
    answers: Answers
    verdict: list[str]
    no_claim: list[str] = field(default_factory=list)
    date: str = ""
    seed: int | None = None
    data: Line | None = None
    temperature_teacher: list[Line] = field(default_factory=list)
    temperature_student: list[Line] = field(default_factory=list)
    naive: list[Line] = field(default_factory=list)
    autoregressive: list[Line] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    training: Training = field(default_factory=Training)
    samples: list[Pair] = field(default_factory=list)
    real: list[str] = field(default_factory=list)
    player: list[Film] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    corpus: Corpus | None = None
    models: Mapping[str, Network] = field(default_factory=dict)

    @property
    def lines(self) -> Iterator[tuple[str, Line]]:
        """Every row with the name of its list, in the order of a table."""
        for name in (
            "teacher",
            "student",
            "autoregressive",
            "naive",
            "temperature_teacher",
            "temperature_student",
        ):
            yield from ((name, line) for line in vars(self)[name])
        if self.data is not None:
            yield "data", self.data


def read_report(data: Mapping[str, Any]) -> Report:
    """The report; ValueError names the field that is missing, foreign or contradicts another."""
    if not isinstance(data, Mapping):
        raise ValueError(f"report is the object of a report.json: got {type(data).__name__}")
    version = data.get("version")
    if not isinstance(version, str) or _series(version) != _series(__version__):
        raise ValueError(
            f"report.version is the version of unmask that measured it, and this is {__version__}: got {version!r}. "
            "Measure again, or draw the report with that version"
        )
    report = from_json(Report, data, "report", strict=False, readers={Line: _line})
    _check_rows(report)
    _check_numbers(report)
    _check_answers(report.answers)
    _check_training(report.training)
    for i, film in enumerate(report.player):
        _check_film(film, f"report.player[{i}]")
    return report


def curves(lines: Sequence[Line]) -> dict[int, list[Line]]:
    """Steps -> the rows at those steps by temperature, both ascending; of two at one temperature the first."""
    table: dict[int, dict[float, Line]] = {}
    for line in lines:
        table.setdefault(line.steps, {}).setdefault(line.temperature, line)
    return {steps: [table[steps][tau] for tau in sorted(table[steps])] for steps in sorted(table)}


def words_of(report: Report) -> str:
    """How every number of the report was measured: no number stands without it."""
    return protocol_words(
        report.protocol, {seed for _, line in report.lines for seed in line.row.setting.seeds}
    )


def _series(version: str) -> list[str]:
    """The part of a version that decides whether two understand each other."""
    return version.split(".")[:2]


def _check_rows(report: Report) -> None:
    for name in ("teacher", "student", "verdict"):
        if not vars(report)[name]:
            raise ValueError(
                f"report.{name} is empty: a report compares a teacher with a student, in sentences too"
            )
    for name, line in report.lines:
        missing = {GEN_PPL, ENTROPY} - line.row.measures.keys()
        if missing:
            raise ValueError(
                f"report.{name}: the row at {line.steps} steps lacks measures.{missing.pop()}: "
                f"{GEN_PPL} and {ENTROPY} stand side by side or not at all"
            )
    if require_same_protocol(line.row for _, line in report.lines) != report.protocol:
        raise ValueError(
            "report.protocol is not the one that the report's rows carry: the record was put together wrong"
        )


def _check_numbers(report: Report) -> None:
    """What pictures draw on axes: finite, and above 0 where an axis is logarithmic."""
    drawn = (
        "teacher",
        "student",
        "autoregressive",
        "temperature_teacher",
        "temperature_student",
        "data",
    )
    for name, line in ((name, line) for name, line in report.lines if name in drawn):
        where, setting = f"report.{name}: the row at {line.steps} steps", line.row.setting
        least = 0 if name == "data" else 1
        _within(f"{where}: setting.steps", line.steps, least, 2**31)
        _within(f"{where}: setting.nfe", setting.nfe, 0, 2**31)
        _within(f"{where}: setting.temperature", line.temperature, TINY, HUGE)
        for key, measure in line.row.measures.items():
            if key in (GEN_PPL, *ENTROPIES):
                _within(
                    f"{where}: measures.{key}.value",
                    measure.value,
                    TINY if key == GEN_PPL else -HUGE,
                    HUGE,
                )
                _within(f"{where}: measures.{key}.sem", measure.sem or 0.0, 0, HUGE)
    for i, entry in enumerate(report.rounds):
        for key, low in (("round", 1), ("steps", 1), ("gen_ppl", TINY), ("entropy", -HUGE)):
            _within(f"report.rounds[{i}].{key}", vars(entry)[key], low, HUGE)
    for key, column in vars(report.training).items():
        for value in column:
            if math.isfinite(value):  # a loss may be nan or inf, and leaves a gap
                _within(f"report.training.{key}", value, -HUGE, HUGE)
    for key, value in report.seconds.items():
        _within(f"report.seconds.{key}", value, 0, HUGE)
    for name, network in report.models.items():
        _within(f"report.models.{name}.parameters", network.parameters, 0, HUGE)


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{where} is out of range: got {value!r:.40}, want {low:g} .. {high:g}")


def _check_answers(answers: Answers) -> None:
    for key in ("equal_entropy", "speed", "equal_seconds"):
        for i, entry in enumerate(vars(answers)[key]):
            if entry.column not in ENTROPIES:
                raise ValueError(
                    f"report.answers.{key}[{i}].column is one of {', '.join(ENTROPIES)}: got {entry.column!r}"
                )
    for key in ("same_steps", "equal_entropy", "equal_seconds"):
        for i, entry in enumerate(vars(answers)[key]):
            for end in ("value", "low", "high") if entry.gain is not None else ():
                value = vars(entry.gain)[end]
                if value is not None:
                    _within(f"report.answers.{key}[{i}].gain.{end}", value, TINY, HUGE)


def _check_training(training: Training) -> None:
    lengths = {name: len(column) for name, column in vars(training).items() if column}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"report.training holds columns of equal length: got {lengths}")


def _check_film(film: Film, where: str) -> None:
    positions = [position for frame in film.frames for position in frame]
    if len(set(positions)) < len(positions) or not set(positions) <= set(range(len(film.pieces))):
        raise ValueError(
            f"{where}.frames reveals each of the {len(film.pieces)} pieces at most once: got {positions}"
        )
    if film.alphas and len(film.alphas) != len(film.frames):
        raise ValueError(
            f"{where}.alphas has a value a frame: got {len(film.alphas)} for {len(film.frames)} frames"
        )


def _line(value: Any, where: str) -> Line:
    """A row repeats its figures on top, and says beside them whether it was shipped."""
    row = row_of(value, where, strict=False)
    shipped = value.get("shipped", False)
    if not isinstance(shipped, bool):
        raise ValueError(f"{where}.shipped is a value of type bool: got {shipped!r}")
    return Line(row, shipped)
