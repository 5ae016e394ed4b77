"""Rows of results: all measures of a set of texts, and rows of baseline texts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.evaluation import measure, metrics
from unmask.evaluation.judges import Judge, TextSet, bits_per_byte, perplexity
from unmask.evaluation.mauve import mauve_against
from unmask.evaluation.measure import (
    BOUND,
    GEN_PPL,
    MAUVE,
    NATS,
    REVERSE,
    SECONDS,
    TOKENS,
    UNIGRAM,
    EvaluationProtocol,
    Measure,
    MeasuredRow,
    Row,
    Setting,
    over_seeds,
)
from unmask.evaluation.reverse_perplexity import reverse_perplexity
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.timing import timed
from unmask.models.model import LanguageModel
from unmask.rng import generator
from unmask.samplers.sample import Samples
from unmask.types import PerSequence, Tokens

UNITS = {  # of the columns of a row that become measures
    "entropy": "nats",
    "pooled_entropy": "nats",
    "completion_disagreement": "share of positions",
    BOUND: "nats a token",
}

SetMetric: TypeAlias = Callable[[Samples], Measure]  # compares a set of texts with real texts


def not_drawn(tokens: Tokens, decode: Callable[[Sequence[int]], str] | None) -> Samples:
    """Texts [n, L] that no model drew, as samples without network calls."""
    texts = None if decode is None else [decode(row) for row in tokens.tolist()]
    return Samples(tokens, texts, nfe=torch.zeros(len(tokens), dtype=torch.int64), calls=0)


def decoder(model: LanguageModel) -> Callable[[Sequence[int]], str] | None:
    """The function from ids to text of a model; None without a tokenizer."""
    return None if model.tokenizer is None else model.tokenizer.decode


def set_metrics_of(
    model: LanguageModel, judge: Judge, study: EvalSettings, reference: Tokens
) -> dict[str, SetMetric]:
    """MAUVE and reverse perplexity, each if its number of seeds in the settings is not 0.

    Args:
        model: the model that draws the texts.
        judge: the judge that gives the features of MAUVE.
        study: the settings.
        reference: real texts [n, L] to compare sets of texts with.
    """
    set_metrics: dict[str, SetMetric] = {}
    if study.mauve_seeds:
        real_texts = judge_input(not_drawn(reference, decoder(model)), judge)
        likeness = mauve_against(judge.features, real_texts, study.mauve_seeds)
        set_metrics[MAUVE] = lambda drawn: likeness(judge_input(drawn, judge))
    if study.reverse_seeds:
        size, device = model.vocab_size, model.device
        real = reference.to(device)
        set_metrics[REVERSE] = lambda drawn: reverse_perplexity(
            drawn.tokens.to(device), real, size, study.reverse_seeds
        )
    return set_metrics


def measure_row(
    name: str,
    drawn: Samples,
    judge: Judge,
    protocol: EvaluationProtocol,
    setting: Setting,
    *,
    seconds: Measure | None = None,
    on_real_text: Mapping[str, PerSequence] | None = None,
    set_metrics: Mapping[str, SetMetric] | None = None,
) -> Row:
    """Every measure of a set of texts.

    Args:
        name: the row's name.
        drawn: the texts.
        judge: the judge that gives gen_ppl.
        protocol: the protocol of the row; the texts and the judge must fit it.
        setting: model and options of the draw; the counted calls replace its `nfe`.
        seconds: wall clock time per sample.
        on_real_text: columns of the same model in the same setting, by a name of `UNITS`, with a
            value per real text.
        set_metrics: further measures of the whole set, by name.
    """
    tokens = drawn.tokens.cpu()
    if tuple(tokens.shape) != (protocol.samples, protocol.length):
        raise ValueError(
            f"drawn has a wrong shape: got {tuple(tokens.shape)} for row {name}, want "
            f"{(protocol.samples, protocol.length)}, samples and tokens of the protocol"
        )
    if judge.identity != protocol.judge:
        raise ValueError(
            f"judge differs from the judge of the protocol: got {judge.identity}, want "
            f"{protocol.judge}; build the protocol from `judge.identity`"
        )
    scores = judge(judge_input(drawn, judge))
    columns = {"entropy": metrics.entropy(tokens), "pooled_entropy": metrics.pooled_entropy(tokens)}
    columns |= on_real_text or {}
    measures = {GEN_PPL: perplexity(scores, f"perplexity under {judge.identity.name}")}
    if scores.bytes is not None:
        measures["bits_per_byte"] = bits_per_byte(scores)
    for key, values in columns.items():
        measures[key] = measure.mean(values.numpy(), UNITS[key])
    measures |= _repetition(tokens)
    for key, metric in (set_metrics or {}).items():
        measures[key] = metric(drawn)
    if seconds is not None:
        measures[SECONDS] = seconds
    nats, weights = scores.terms
    samples = {NATS: nats, TOKENS: weights, **columns}
    setting = replace(setting, nfe=float(drawn.nfe.double().mean()))
    per_sample = {key: values.tolist() for key, values in samples.items()}
    return Row(name, protocol, setting, measures, per_sample)


def _repetition(tokens: Tokens) -> dict[str, Measure]:
    """Repeated and distinct n-grams; overlap needs two samples."""
    values = {
        f"repetition_{n}": (metrics.repetition(tokens, n), "share of repeated n-grams")
        for n in (2, 3, 4)
    }
    values |= {
        f"distinct_{n}": (metrics.distinct_n(tokens, n), "share of distinct n-grams")
        for n in (1, 2, 3, 4)
    }
    if len(tokens) > 1:
        values["overlap_4"] = (metrics.overlap(tokens), "share of 4-grams in another sample")
    return {key: measure.mean(table.numpy(), unit) for key, (table, unit) in values.items()}


def judge_input(drawn: Samples, judge: Judge) -> TextSet:
    """The texts or their ids, whichever the judge scores."""
    if not judge.identity.retokenised:
        return drawn.tokens.cpu()
    if drawn.texts is None:
        raise ValueError(
            f"drawn has ids only, and judge {judge.identity.name} scores texts: give the model a "
            "tokenizer"
        )
    return drawn.texts


def draw_and_measure(
    draw: Callable[[], Samples],
    judge: Judge,
    protocol: EvaluationProtocol,
    setting: Setting,
    *,
    name: str,
    on_real_text: Mapping[str, Callable[[], PerSequence]] | None = None,
    set_metrics: Mapping[str, SetMetric] | None = None,
    warmup: int = 0,
    device: torch.device | str = "cpu",
) -> Row:
    """Draw and time the texts of one row, and measure them.

    Args:
        draw: draws the texts; two rows are paired only if both use the same latents.
        judge: the judge that gives gen_ppl.
        protocol: the protocol of the row.
        setting: model and options of `draw`.
        name: the row's name.
        on_real_text: measurements of the same model in the same setting on real text, by the name
            of their column: () -> a value per real text.
        set_metrics: see `measure_row`.
        warmup: draws before the timed one.
        device: device to synchronise with.
    """
    run = timed(draw, repeats=1, warmup=warmup, device=device)
    return measure_row(
        name,
        run.result,
        judge,
        protocol,
        setting,
        seconds=run.measure(per=protocol.samples, unit="s a sample"),
        on_real_text={key: column().cpu() for key, column in (on_real_text or {}).items()},
        set_metrics=set_metrics,
    )


def baseline_rows(
    real: Tokens,
    vocab_size: int,
    judge: Judge,
    protocol: EvaluationProtocol,
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    never: Sequence[int] = (),
    seed: int = 0,
    set_metrics: Mapping[str, SetMetric] | None = None,
) -> list[Row]:
    """Rows of uniform tokens, unigram draws, one real text repeated, and real text (last).

    The first three are bad texts: they show which measures prefer bad texts.

    Args:
        real: real rows [n, L].
        vocab_size: V.
        judge: the judge that gives gen_ppl.
        protocol: the protocol of the rows.
        decode: ids -> text, for a judge of texts.
        never: ids that no text contains, such as MASK.
        seed: seed of the draws.
        set_metrics: see `measure_row`.
    """
    source = generator(seed)
    real = real.cpu()
    allowed = torch.ones(vocab_size, dtype=torch.float64)
    allowed[list(never)] = 0
    count = real.flatten().bincount(minlength=vocab_size).double()
    sets = {
        "uniform tokens": _multinomial(allowed, real, source),
        UNIGRAM: _multinomial(count, real, source),
        "one text repeated": real[:1].expand_as(real),
        "data": real,
    }
    rows = []
    for name, tokens in sets.items():
        drawn = not_drawn(tokens, decode)
        setting = Setting(protocol.data, name, steps=0, nfe=0.0, seeds=(seed,))
        rows.append(measure_row(name, drawn, judge, protocol, setting, set_metrics=set_metrics))
    return rows


def _multinomial(weight: Tensor, like: Tokens, source: torch.Generator) -> Tokens:
    ids = torch.multinomial(weight, like.numel(), replacement=True, generator=source)
    return ids.view_as(like)


def mean_row(rows: Sequence[Row]) -> MeasuredRow:
    """Means of rows that differ only in the seed of their latents, with errors over seeds."""
    first = rows[0]
    setting = replace(
        first.setting,
        nfe=statistics.fmean(row.setting.nfe for row in rows),
        seeds=tuple(seed for row in rows for seed in row.setting.seeds),
    )
    measures = {key: over_seeds([row.measures[key] for row in rows]) for key in first.measures}
    return MeasuredRow(Row(f"{len(rows)} seeds", first.protocol, setting, measures), shipped=False)
