"""The schema of report.json. A broken report raises ValueError that names the field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unmask import __version__
from unmask.dataclass_json import from_json
from unmask.evaluation.answers import Answers
from unmask.evaluation.measure import (
    ENTROPIES,
    ENTROPY,
    GEN_PPL,
    EvaluationProtocol,
    MeasuredRow,
    protocol_words,
    require_same_protocol,
    row_of,
)
from unmask.evaluation.verdict import ONE_SEED, Finding

TINY, HUGE = 1e-100, 1e100  # the range of a number on an axis
ROW_LISTS = (
    "teacher",
    "student",
    "random_order",
    "top_p_teacher",
    "autoregressive",
    "naive",
    "temperature_teacher",
    "temperature_student",
)


@dataclass(frozen=True)
class RoundRow:
    """The student after a round of distillation, sampled in `steps` steps at temperature 1.

    Attributes:
        delta, temperature: the step size of the round and the teacher's temperature
    """

    round: int
    steps: int
    gen_ppl: float
    entropy: float
    delta: float
    temperature: float


@dataclass(frozen=True)
class TrainingCurve:
    """The loss in nats a token at each recorded step, with its two terms if it has two.

    All columns that are not empty have equal length.
    """

    step: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    distillation: list[float] = field(default_factory=list)
    reconstruction: list[float] = field(default_factory=list)
    round: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class TextPair:
    """Texts of teacher and student from the same latent."""

    latent: int
    steps: int
    teacher: str
    student: str
    temperature: float = 1.0


@dataclass(frozen=True)
class UnmaskingTrace:
    """The unmasking of one text, network call by network call.

    Attributes:
        pieces: the L tokens of the finished text
        frames: positions that each call unmasks; a position in no frame belongs to the prompt
        alphas: alpha at the start of each call, the expected share of visible tokens
    """

    title: str
    pieces: list[str]
    frames: list[list[int]]
    alphas: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class ModelInfo:
    """Size and origin of a model."""

    parameters: int
    source: str


@dataclass(frozen=True)
class CorpusInfo:
    """The data set: training rows, held-out rows, tokens a row, vocabulary size."""

    name: str
    train_rows: int | None = None
    held_out_rows: int | None = None
    length: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class Report:
    """All contents of a report page. A field with a default may be missing from the file."""

    title: str
    version: str
    protocol: EvaluationProtocol
    teacher: list[MeasuredRow]
    student: list[MeasuredRow]
    answers: Answers
    verdict: list[Finding]
    no_claim: list[str] = field(default_factory=list)
    date: str = ""
    seed: int | None = None
    data: MeasuredRow | None = None
    temperature_teacher: list[MeasuredRow] = field(default_factory=list)
    temperature_student: list[MeasuredRow] = field(default_factory=list)
    naive: list[MeasuredRow] = field(default_factory=list)
    autoregressive: list[MeasuredRow] = field(default_factory=list)
    random_order: list[MeasuredRow] = field(default_factory=list)
    top_p_teacher: list[MeasuredRow] = field(default_factory=list)
    rounds: list[RoundRow] = field(default_factory=list)
    training: TrainingCurve = field(default_factory=TrainingCurve)
    samples: list[TextPair] = field(default_factory=list)
    real: list[str] = field(default_factory=list)
    player: list[UnmaskingTrace] = field(default_factory=list)
    seconds: Mapping[str, float] = field(default_factory=dict)
    corpus: CorpusInfo | None = None
    models: Mapping[str, ModelInfo] = field(default_factory=dict)

    @property
    def rows(self) -> Iterator[tuple[str, MeasuredRow]]:
        """Every row with the name of its list, in the order of the tables."""
        for name in ROW_LISTS:
            yield from ((name, row) for row in vars(self)[name])
        if self.data is not None:
            yield "data", self.data

    @property
    def protocol_words(self) -> str:
        """The protocol of every number in one sentence. No number is shown without it."""
        seeds = {seed for _, row in self.rows for seed in row.row.setting.seeds}
        return protocol_words(self.protocol, seeds)


def read_report(data: Mapping[str, Any]) -> Report:
    """Read the value of a report.json.

    Raises:
        ValueError: a field is missing, has another type, or contradicts another field; or the
            report was written by another version. `UnequalProtocols` if the protocols differ.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"report is not a JSON object: got {type(data).__name__}")
    version = data.get("version")
    if not isinstance(version, str) or _release(version) != _release(__version__):
        raise ValueError(
            f"report.version is {version!r}, this is unmask {__version__}: "
            "measure again, or write the page with that version"
        )
    readers = {MeasuredRow: _read_row, Finding: _read_finding}
    report = from_json(Report, data, "report", strict=False, readers=readers)
    _check_rows(report)
    _check_columns(report.answers)
    for where, value, low, high in _axis_values(report):
        if not low <= value <= high:
            got = f"got {value!r:.40}, want {low:g} .. {high:g}"
            raise ValueError(f"{where} is out of range: {got}")
    lengths = {name: len(column) for name, column in vars(report.training).items() if column}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"report.training has columns of different lengths: got {lengths}")
    for i, trace in enumerate(report.player):
        _check_trace(trace, f"report.player[{i}]")
    return report


def rows_by_steps(rows: Sequence[MeasuredRow]) -> dict[int, list[MeasuredRow]]:
    """Group rows by step count and sort each group by temperature, both ascending.

    Of two rows at one step count and temperature the first is kept.
    """
    table: dict[int, dict[float, MeasuredRow]] = {}
    for row in rows:
        table.setdefault(row.steps, {}).setdefault(row.temperature, row)
    return {steps: [table[steps][tau] for tau in sorted(table[steps])] for steps in sorted(table)}


def _release(version: str) -> list[str]:
    """Major and minor version: a patch release reads the reports of another."""
    return version.split(".")[:2]


def _read_row(value: Any, where: str) -> MeasuredRow:
    row = row_of(value, where, strict=False)  # report.json repeats the main figures on top
    shipped = value.get("shipped", False)
    if not isinstance(shipped, bool):
        raise ValueError(f"{where}.shipped is not a bool: got {shipped!r}")
    return MeasuredRow(row, shipped)


def _read_finding(value: Any, where: str) -> Finding:
    """A finding. Old reports hold findings without a kind, or plain sentences."""
    if isinstance(value, str):
        value = {"claim": value}
    finding = from_json(Finding, value, where, strict=False)
    if "kind" in value:
        return finding
    if finding.claim == ONE_SEED.claim:
        return replace(finding, kind="remark")
    is_conclusion = finding.figures and not finding.details
    return replace(finding, kind="conclusion" if is_conclusion else "comparison")


def _check_rows(report: Report) -> None:
    for name in ("teacher", "student", "verdict"):
        if not vars(report)[name]:
            raise ValueError(f"report.{name} is empty: want at least one entry")
    for name, row in report.rows:
        if missing := {GEN_PPL, ENTROPY} - row.measures.keys():
            raise ValueError(
                f"report.{name}: the row at {row.steps} steps lacks measures.{missing.pop()}: "
                f"want both {GEN_PPL} and {ENTROPY}, because neither is shown alone"
            )
    if require_same_protocol(row.row for _, row in report.rows) != report.protocol:
        raise ValueError("report.protocol differs from the protocol of the report's rows")


def _check_columns(answers: Answers) -> None:
    for key in ("equal_entropy", "against_top_p", "speed", "equal_seconds"):
        for i, entry in enumerate(vars(answers)[key]):
            if entry.column not in ENTROPIES:
                allowed = ", ".join(ENTROPIES)
                where = f"report.answers.{key}[{i}].column"
                raise ValueError(f"{where} is unknown: got {entry.column!r}, want one of {allowed}")


def _axis_values(report: Report) -> Iterator[tuple[str, float, float, float]]:
    """Name, value, least and greatest allowed value of each number that a figure or a bar draws.

    A number on a logarithmic axis must be positive. Naive rows are not drawn.
    """
    for name, row in report.rows:
        if name != "naive":
            where = f"report.{name}: the row at {row.steps} steps:"
            yield f"{where} setting.steps", row.steps, 0 if name == "data" else 1, 2**31
            yield f"{where} setting.nfe", row.row.setting.nfe, 0, 2**31
            yield f"{where} setting.temperature", row.temperature, TINY, HUGE
            for key in row.measures.keys() & {GEN_PPL, *ENTROPIES}:
                measure, low = row.measures[key], TINY if key == GEN_PPL else -HUGE
                yield f"{where} measures.{key}.value", measure.value, low, HUGE
                yield f"{where} measures.{key}.sem", measure.sem or 0.0, 0, HUGE
    for i, entry in enumerate(report.rounds):
        for key, low in (("round", 1), ("steps", 1), ("gen_ppl", TINY), ("entropy", -HUGE)):
            yield f"report.rounds[{i}].{key}", vars(entry)[key], low, HUGE
    for key, column in vars(report.training).items():
        for value in column:
            # A loss may be NaN or infinite: the curve has a gap there.
            if isinstance(value, int) or math.isfinite(value):
                yield f"report.training.{key}", value, -HUGE, HUGE
    for key, value in report.seconds.items():
        yield f"report.seconds.{key}", value, 0, HUGE
    for name, model in report.models.items():
        yield f"report.models.{name}.parameters", model.parameters, 0, HUGE
    for key in ("same_steps", "equal_entropy", "against_top_p", "equal_seconds"):
        for i, entry in enumerate(vars(report.answers)[key]):
            for end, value in vars(entry.gain).items() if entry.gain is not None else ():
                if value is not None:
                    yield f"report.answers.{key}[{i}].gain.{end}", value, TINY, HUGE


def _check_trace(trace: UnmaskingTrace, where: str) -> None:
    positions = [position for frame in trace.frames for position in frame]
    valid = set(range(len(trace.pieces)))
    if len(set(positions)) < len(positions) or not set(positions) <= valid:
        raise ValueError(
            f"{where}.frames has repeated or unknown positions: got {positions}, "
            f"want each of 0 .. {len(trace.pieces) - 1} at most once"
        )
    if trace.alphas and len(trace.alphas) != len(trace.frames):
        raise ValueError(
            f"{where}.alphas has {len(trace.alphas)} values: want one for each of the "
            f"{len(trace.frames)} frames, or none"
        )
