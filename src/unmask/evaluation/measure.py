"""A measured number with its spread, and the labels that make it comparable.

Two rows are comparable if their `EvaluationProtocol` is equal. `Setting` holds the model that drew
the texts of a row, and the options of the draw. This module does not import torch, so that the
report and the command line can read results without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from unmask.dataclass_json import from_json
from unmask.evaluation.bootstrap import Floats, pooled_mean, resamples

GEN_PPL, ENTROPY, MAUVE, REVERSE = "gen_ppl", "entropy", "mauve", "reverse_ppl"
BOUND = "bound"  # the N-step bound
NATS, TOKENS = "nats", "tokens"  # per-sample columns that give gen_ppl
SECONDS = "seconds"  # wall clock time per sample
UNIGRAM = "unigram draws"  # name of a row of baseline texts
ENTROPIES = {  # column -> its name in a sentence
    ENTROPY: "unigram entropy",
    "pooled_entropy": "pooled 4-gram entropy",
    "completion_disagreement": "completion disagreement",
}


class UnequalProtocols(ValueError):
    """Raised for rows that were measured under different protocols."""


@dataclass(frozen=True)
class Measure:
    """A value, its unit, its number of samples n, and its standard error (None if n = 1)."""

    value: float
    unit: str
    n: int
    sem: float | None = None

    def __str__(self) -> str:
        """
        >>> print(Measure(41.23, "perplexity", 800, 0.17))
        41.23 ± 0.17 perplexity (n = 800)
        """
        if self.sem is None:
            return f"{self.value:.4g} {self.unit} (n = {self.n})"
        decimals = 2 if self.sem == 0 else min(max(0, 1 - int(np.floor(np.log10(self.sem)))), 6)
        return f"{self.value:.{decimals}f} ± {self.sem:.{decimals}f} {self.unit} (n = {self.n})"


@dataclass(frozen=True)
class JudgeId:
    """Name, weights and scoring rule of a judge; equal identities give comparable scores.

    Attributes:
        revision: digest of its weights
        context: tokens in one window
        retokenised: True: the judge encodes texts with its own tokenizer; False: it scores
            token ids
        prefixed: True: a start token precedes each text, so the first token is scored too
        eos_rule: "first": only the first EOS of a text is scored (the rule of MDLM and
            Duo); "all": every EOS is scored; "removed": EOS strings are removed first (SDTT)
        average: "tokens": mean nats over all tokens of all texts; "texts": mean over the texts'
            own means
    """

    name: str
    revision: str
    dtype: str
    context: int
    retokenised: bool
    prefixed: bool
    eos_rule: str
    average: str = "tokens"


@dataclass(frozen=True)
class EvaluationProtocol:
    """The conditions of a measurement; equal for all rows of a table or figure.

    Attributes:
        length: L, tokens per sample
        samples: samples per row
        precision: number format of the categorical draw
        data: digest of the data set
        version: version of unmask
        texts: real texts for the completion disagreement (0: not measured)
        completions: completions of each of these texts
        products: number format of the networks' matrix products
        wrap: True: real rows begin with BOS and end with EOS, like the training rows
        held_out: number of held-out rows; measured rows are spread evenly over them (0:
            unknown)
        read_by_judge: share of the held-out documents in the judge's training data; None:
            unknown
    """

    judge: JudgeId
    length: int
    samples: int
    precision: str
    data: str
    version: str
    texts: int = 0
    completions: int = 0
    products: str = "float32"
    wrap: bool = False
    held_out: int = 0
    read_by_judge: float | None = None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EvaluationProtocol:
        """Read the output of `asdict`; ValueError names a missing, unknown or mistyped field."""
        return from_json(EvaluationProtocol, data, "protocol")


@dataclass(frozen=True)
class Setting:
    """The model that drew the texts of a row, and its sampling options.

    Attributes:
        model: digest of the model's weights
        nfe: measured: mean network calls per sample
        draw: categorical draw by its name in version 0.1, see `samplers.categorical.DRAW_LABELS`
    """

    model: str
    sampler: str
    steps: int
    nfe: float
    temperature: float = 1.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (0,)
    draw: str = "race"


@dataclass(frozen=True)
class Row:
    """One row of a table of results.

    Attributes:
        name: such as "teacher", "student" or "data"
        measures: by name: "gen_ppl", "entropy", "seconds", ...
        samples: per-sample values by name ("nats", "tokens", "entropy", ...) for a paired
            bootstrap. Columns of equal length are paired: entry i belongs to latent i in every
            row.
    """

    name: str
    protocol: EvaluationProtocol
    setting: Setting
    measures: Mapping[str, Measure]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values. The most important figures are repeated at the top level for readers."""
        gen_ppl = self.measures.get(GEN_PPL)
        top = {
            "name": self.name,
            "steps": self.setting.steps,
            "nfe": self.setting.nfe,
            "temperature": self.setting.temperature,
            **{key: measure.value for key, measure in self.measures.items()},
            "sem": None if gen_ppl is None else gen_ppl.sem,
        }
        return top | {
            "protocol": asdict(self.protocol),
            "setting": asdict(self.setting) | {"seeds": list(self.setting.seeds)},
            "measures": {key: asdict(measure) for key, measure in self.measures.items()},
            "samples": {key: list(map(float, values)) for key, values in self.samples.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Row:
        """Read the output of `to_json`; ValueError names a missing or unknown field.

        A JSON null replaces a value that is not finite. The null is read as NaN.
        """
        try:
            return row_of(data, "row")
        except ValueError as error:
            raise ValueError(
                f"not a row that this version of unmask wrote: {error}. Measure it again"
            ) from error


@dataclass(frozen=True)
class MeasuredRow:
    """A row and its origin.

    Attributes:
        shipped: True for a row that came with the package (`make assets` measured it)
        timed: True for a shipped row whose seconds were measured on this machine
    """

    row: Row
    shipped: bool
    timed: bool = False

    def to_json(self) -> dict[str, Any]:
        return self.row.to_json() | {"shipped": self.shipped}

    @property
    def steps(self) -> int:
        return self.row.setting.steps

    @property
    def temperature(self) -> float:
        return self.row.setting.temperature

    @property
    def measures(self) -> Mapping[str, Measure]:
        return self.row.measures

    @property
    def gen_ppl(self) -> Measure:
        return self.row.measures[GEN_PPL]

    @property
    def entropy(self) -> Measure:
        return self.row.measures[ENTROPY]


def row_of(value: Any, where: str, strict: bool = True) -> Row:
    """Read a row from JSON values.

    Args:
        value: the output of `Row.to_json`, perhaps of an earlier version.
        where: the row's place in its file, for error messages.
        strict: False ignores fields of labels that this version does not know.

    Raises:
        ValueError: names the faulty field.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is not a row: got {value!r:.40}, want a JSON object")
    values = {one.name: value[one.name] for one in fields(Row) if one.name in value}
    if isinstance(samples := values.get("samples"), Mapping):
        values["samples"] = {
            key: [_nan_for_null(item) for item in column] if isinstance(column, list) else column
            for key, column in samples.items()
        }
    if isinstance(setting := values.get("setting"), Mapping):
        values["setting"] = _with_draw(setting)
    return from_json(Row, values, where, strict=strict, readers={Measure: _measure})


def _with_draw(setting: Mapping[str, Any]) -> Mapping[str, Any]:
    """Earlier versions wrote a draw other than "race" after the sampler: "SAMPLER, DRAW"."""
    sampler = setting.get("sampler")
    if "draw" in setting or not isinstance(sampler, str) or ", " not in sampler:
        return setting
    name, _, draw = sampler.rpartition(", ")
    return {**setting, "sampler": name, "draw": draw}


def _measure(value: Any, where: str) -> Measure:
    if isinstance(value, Mapping) and "value" in value:
        value = {**value, "value": _nan_for_null(value["value"])}
    return from_json(Measure, value, where)


def _nan_for_null(value: Any) -> Any:
    return np.nan if value is None else value


def require_same_protocol(rows: Iterable[Row]) -> EvaluationProtocol:
    """The protocol that all rows share; `UnequalProtocols` names each differing field."""
    rows = list(rows)
    if not rows:
        raise ValueError("rows is empty: a table needs at least one row")
    table = [_flat(asdict(row.protocol)) for row in rows]
    differing = [name for name in table[0] if any(line[name] != table[0][name] for line in table)]
    if differing:
        faults = [
            f"{name}: {', '.join(_groups(rows, [line[name] for line in table]))}"
            for name in differing
        ]
        raise UnequalProtocols(
            "these rows were measured under different protocols and may not share a table: "
            f"{'; '.join(faults)}. Measure them again under one protocol"
        )
    return rows[0].protocol


def protocol_words(protocol: EvaluationProtocol, seeds: Iterable[int]) -> str:
    """The protocol of a table in one sentence."""
    judge = protocol.judge
    removed = judge.eos_rule == "removed"
    rules = [
        "its own tokens of the text" if judge.retokenised else "token ids as they are",
        "start token before the text" if judge.prefixed else "first token not scored",
        f"EOS {'' if removed else 'counted: '}{judge.eos_rule}",
    ]
    if judge.average == "texts":
        rules.append("mean over texts")
    if protocol.read_by_judge:
        rules.append(f"trained on {protocol.read_by_judge:.0%} of the held-out documents")
    of = f" of {protocol.held_out:,} held-out rows" if protocol.held_out else ""
    parts = [
        f"Judge {judge.name} ({judge.revision[:8]}, {judge.dtype}, context {judge.context}, "
        f"{', '.join(rules)})",
        f"n = {protocol.samples} texts of L = {protocol.length} tokens a row"
        + (", real ones with BOS and EOS at their ends" if protocol.wrap else ""),
    ]
    if of:
        parts.append(f"real text: {protocol.samples:,}{of}, spread evenly")
    if protocol.texts:
        parts.append(
            f"completions by masked diffusion: {protocol.completions} of each of "
            f"{protocol.texts} real texts{of}"
        )
    parts += [
        f"draws in {protocol.precision}, products in {protocol.products}",
        f"seed {', '.join(map(str, sorted(set(seeds))))}",
        f"data {protocol.data[:8]}",
        f"unmask {protocol.version}.",
    ]
    return "; ".join(parts)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _groups(rows: Sequence[Row], values: Sequence[object]) -> list[str]:
    """Each distinct value with the names of its rows."""
    names: dict[str, list[str]] = {}
    for row, value in zip(rows, values, strict=True):
        names.setdefault(json.dumps(value), []).append(row.name)
    return [f"{value} ({', '.join(dict.fromkeys(owners))})" for value, owners in names.items()]


def pooled(
    total: ArrayLike,
    count: ArrayLike,
    unit: str,
    of: Callable[[Floats], Floats] = lambda mean: mean,
) -> Measure:
    """of(sum(total) / sum(count)) over samples, with a bootstrap standard error over samples.

    Args:
        total: sums per sample, [n].
        count: counts per sample, [n].
        unit: unit of the result.
        of: function of the mean; `np.exp` turns nats and tokens into a perplexity.
    """
    totals, counts = np.asarray(total, np.float64), np.asarray(count, np.float64)
    n = len(totals)
    if not counts.sum() > 0:
        raise ValueError(f"{unit}: got {n} samples without a counted token, want at least one")
    value = float(of(pooled_mean(totals, counts, np.arange(n)[None]))[0])
    sem = float(np.nanstd(of(pooled_mean(totals, counts, resamples(n))))) if n > 1 else None
    return Measure(value, unit, n, sem)


def mean(values: ArrayLike, unit: str) -> Measure:
    """The mean of values [n] and its bootstrap standard error."""
    table = np.asarray(values, np.float64)
    return pooled(table, np.ones_like(table), unit)


def median(values: ArrayLike, unit: str) -> Measure:
    """The median of values [n], robust to a single outlier, and its bootstrap standard error."""
    table = np.asarray(values, np.float64)
    n = len(table)
    sem = float(np.median(table[resamples(n)], axis=-1).std()) if n > 1 else None
    return Measure(float(np.median(table)), unit, n, sem)


def perplexity(nats: ArrayLike, tokens: ArrayLike, unit: str = "perplexity") -> Measure:
    """exp of the pooled mean nats per token; nats [n] and tokens [n] are sums per sample."""
    return pooled(nats, tokens, unit, of=np.exp)


def over_seeds(measures: Sequence[Measure]) -> Measure:
    """Mean of one measure over training seeds, with the standard error of their spread.

    The result's n counts seeds. A verdict needs at least two.
    """
    units = {measure.unit for measure in measures}
    if len(units) != 1:
        raise ValueError(f"measures have several units: got {sorted(units) or 'none'}, want one")
    values = np.array([measure.value for measure in measures])
    n = len(values)
    sem = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return Measure(float(values.mean()), units.pop(), n, sem)
