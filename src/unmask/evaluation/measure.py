"""A number with its spread, and the two labels without which it means nothing: `EvaluationProtocol` and `Setting`.

No torch here: whoever reads results (the report, the command line) reads them through this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask.dataclass_json import from_json

Floats: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.int64]

DRAWS = 1000  # bootstrap resamples

GEN_PPL, MAUVE, REVERSE = "gen_ppl", "mauve", "reverse_ppl"
NATS, TOKENS = "nats", "tokens"  # per-sample columns behind gen_ppl
SECONDS = "seconds"  # wall clock a sample
ENTROPIES = {  # column -> what it is called in a sentence
    "entropy": "unigram entropy",
    "pooled_entropy": "pooled 4-gram entropy",
    "completion_disagreement": "completion disagreement",
}


class UnequalProtocols(ValueError):
    """Rows measured under different protocols were about to share a table."""


@dataclass(frozen=True)
class Measure:
    """A value, its unit, the number n of samples behind it, and its standard error (None where n = 1 tells nothing)."""

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
    """What of a judge decides the number it gives.

    revision     digest of its weights
    context      tokens that it reads at a time
    retokenised  True: texts, in the judge's own tokens; False: the model's ids as they are
    prefixed     True: a start token is put before the text, so that the first token counts too
    eos_rule     "first": an EOS counts only the first time (the rule of MDLM and Duo); "all": every token counts;
                 "removed": the spelling of EOS is taken out of a text before (SDTT)
    average      nats "tokens": over all tokens of all texts; "texts": of each text, then over texts
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
    """What must be equal before two rows may share a table or a figure.

    length L and number of samples of each row; precision of the categorical draw; digest of the data; unmask version;
    texts, completions: real texts, and how often each was completed, behind the completion disagreement (0: none);
    products: precision of the networks' matrix products; wrap: real rows have BOS and EOS at their ends, as the
    model's training rows had.
    held_out       rows of real text; those that are measured or completed are spread evenly over them (0: not known)
    read_by_judge  share of the held-out documents that the judge was trained on; None where its card does not say
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
        """The protocol that `asdict` gave; ValueError names a field that is missing, foreign or of another type."""
        return from_json(EvaluationProtocol, data, "protocol")


@dataclass(frozen=True)
class Setting:
    """What labels a row: the model's digest, and how its texts were drawn. `nfe` is measured: mean calls a sample."""

    model: str
    sampler: str
    steps: int
    nfe: float
    temperature: float = 1.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    name      whose line: "teacher", "student", "data", ...
    measures  by name: "gen_ppl", "entropy", "seconds", ...
    samples   per-sample values by name ("nats", "tokens", "entropy", ...): what a paired bootstrap needs. Columns of
              equal length are paired: entry i belongs to latent i, of whichever model.
    """

    name: str
    protocol: EvaluationProtocol
    setting: Setting
    measures: Mapping[str, Measure]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data. The figures that a reader looks for stand on top; `from_json` reads the rest."""
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
        """The row that `to_json` wrote; ValueError names what is missing or foreign.

        In a file null is a value that is not finite (`plain.dumps`); here it is NaN.
        """
        try:
            return row_of(data, "row")
        except ValueError as error:
            raise ValueError(
                f"not a row that this version of unmask wrote: {error}. Measure it again"
            ) from error


def row_of(value: Any, where: str, strict: bool = True) -> Row:
    """A row from JSON; ValueError names a field, from `where` on. Null is a value that is not finite: here NaN.

    strict  False: labels that this version does not know are left alone
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} holds the fields of a row: want an object, got {value!r:.40}")
    known = {one.name: value[one.name] for one in fields(Row) if one.name in value}
    if isinstance(samples := known.get("samples"), Mapping):
        known["samples"] = {
            key: [_number(item) for item in column] if isinstance(column, list) else column
            for key, column in samples.items()
        }
    return from_json(Row, known, where, strict=strict, readers={Measure: _measure})


def _measure(value: Any, where: str) -> Measure:
    if isinstance(value, Mapping) and "value" in value:
        value = {**value, "value": _number(value["value"])}
    return from_json(Measure, value, where)


def _number(value: Any) -> Any:
    return np.nan if value is None else value


def require_same_protocol(rows: Iterable[Row]) -> EvaluationProtocol:
    """The protocol that all rows share; `UnequalProtocols` names each field that differs, with its values."""
    rows = list(rows)
    if not rows:
        raise ValueError("no rows: a table needs at least one")
    table = [_flat(asdict(row.protocol)) for row in rows]
    differing = [
        name for name in table[0] if any(fields[name] != table[0][name] for fields in table)
    ]
    if differing:
        lines = [
            f"{name}: {', '.join(_groups(rows, [fields[name] for fields in table]))}"
            for name in differing
        ]
        raise UnequalProtocols(
            "these rows were measured under different protocols and may not share a table. "
            + "; ".join(lines)
            + ". Measure them again under one protocol"
        )
    return rows[0].protocol


def protocol_words(protocol: EvaluationProtocol, seeds: Iterable[int]) -> str:
    """How numbers were measured, in a sentence."""
    judge = protocol.judge
    how = ["its own tokens of the text" if judge.retokenised else "token ids as they are"]
    how += [
        "start token before the text" if judge.prefixed else "first token not scored",
        f"EOS {judge.eos_rule}"
        if judge.eos_rule == "removed"
        else f"EOS counted: {judge.eos_rule}",
    ]
    how += ["mean over texts"] if judge.average == "texts" else []
    how += (
        [f"trained on {protocol.read_by_judge:.0%} of the held-out documents"]
        if protocol.read_by_judge
        else []
    )
    of = f" of {protocol.held_out:,} held-out rows" if protocol.held_out else ""
    real = f"real text: {protocol.samples:,}{of}, spread evenly; " if of else ""
    completed = (
        f"completions by masked diffusion: {protocol.completions} of each of {protocol.texts} real texts{of}; "
        if protocol.texts
        else ""
    )
    ends = ", real ones with BOS and EOS at their ends" if protocol.wrap else ""
    return (
        f"Judge {judge.name} ({judge.revision[:8]}, {judge.dtype}, context {judge.context}, {', '.join(how)}); "
        f"n = {protocol.samples} texts of L = {protocol.length} tokens a row{ends}; {real}{completed}"
        f"draws in {protocol.precision}, products in {protocol.products}; "
        f"seed {', '.join(map(str, sorted(set(seeds))))}; data {protocol.data[:8]}; unmask {protocol.version}."
    )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _groups(rows: Sequence[Row], values: Sequence[object]) -> list[str]:
    names: dict[str, list[str]] = {}
    for row, value in zip(rows, values, strict=True):
        names.setdefault(json.dumps(value), []).append(row.name)
    return [f"{value} ({', '.join(dict.fromkeys(owners))})" for value, owners in names.items()]


def resamples(n: int, draws: int = DRAWS, seed: int = 0) -> Index:
    """Bootstrap indices [draws, n]. The same n and seed give the same indices: that is what pairs two rows."""
    return np.random.default_rng(seed % 2**64).integers(n, size=(draws, n))


def pooled_mean(total: Floats, count: Floats, index: Index) -> Floats:
    """sum(total) / sum(count) within each resample of `index` [D, n] -> [D]; nan where nothing was counted."""
    counted: Floats = count[index].sum(-1)
    mean: Floats = np.divide(
        total[index].sum(-1), counted, out=np.full(counted.shape, np.nan), where=counted > 0
    )
    return mean


def pooled(
    total: ArrayLike,
    count: ArrayLike,
    unit: str,
    of: Callable[[Floats], Floats] = lambda mean: mean,
) -> Measure:
    """of(sum(total) / sum(count)) over samples, with a bootstrap standard error over samples.

    total, count [n]: of each sample. `of=np.exp` makes a perplexity of nats and tokens.
    """
    totals, counts = np.asarray(total, np.float64), np.asarray(count, np.float64)
    n = len(totals)
    if not counts.sum() > 0:
        raise ValueError(
            f"{unit} is a mean over counted tokens: want at least one, got {n} samples without any"
        )
    value = float(of(pooled_mean(totals, counts, np.arange(n)[None]))[0])
    return Measure(
        value,
        unit,
        n,
        float(np.nanstd(of(pooled_mean(totals, counts, resamples(n))))) if n > 1 else None,
    )


def mean(values: ArrayLike, unit: str) -> Measure:
    """The mean of values [n] and its bootstrap standard error."""
    table = np.asarray(values, np.float64)
    return pooled(table, np.ones_like(table), unit)


def median(values: ArrayLike, unit: str) -> Measure:
    """The median of values [n], which does not mind one that is off, and its bootstrap standard error."""
    table = np.asarray(values, np.float64)
    n = len(table)
    sem = float(np.median(table[resamples(n)], axis=-1).std()) if n > 1 else None
    return Measure(float(np.median(table)), unit, n, sem)


def perplexity(nats: ArrayLike, tokens: ArrayLike, unit: str = "perplexity") -> Measure:
    """exp of the pooled mean nats a token; nats, tokens [n] of each sample."""
    return pooled(nats, tokens, unit, of=np.exp)


def over_seeds(measures: Sequence[Measure]) -> Measure:
    """One measure from the same one at several training seeds: their mean, and the standard error from their spread.

    n counts seeds. Two at least before any verdict.
    """
    units = {measure.unit for measure in measures}
    if len(units) != 1:
        raise ValueError(f"seeds of one measure share a unit, got {sorted(units) or 'no measure'}")
    values = np.array([measure.value for measure in measures])
    n = len(values)
    return Measure(
        float(values.mean()),
        units.pop(),
        n,
        float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
    )
