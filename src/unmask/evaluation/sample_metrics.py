"""Measuring: drawn texts in, rows out; and the naive rows that show which measure can be gamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from unmask.evaluation import measure, metrics
from unmask.evaluation.judges import Judge, TextSet, bits_per_byte, perplexity
from unmask.evaluation.measure import (
    GEN_PPL,
    NATS,
    SECONDS,
    TOKENS,
    EvaluationProtocol,
    Measure,
    Row,
    Setting,
)
from unmask.evaluation.timing import timed
from unmask.rng import generator
from unmask.types import PerSequence, Tokens


class SampleSet(Protocol):
    """What a row asks of `samplers.loop.Samples`: ids [n, L], their texts where there is a tokenizer, calls [n]."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def texts(self) -> list[str] | None: ...

    @property
    def nfe(self) -> Tensor: ...


class Complete(Protocol):
    """Pinned ids [k, L], -1 where free -> ids [k, L], independent draws."""

    def __call__(self, pinned: Tokens, /, *, steps: int, temperature: float) -> Tokens: ...


SetMetric: TypeAlias = Callable[[SampleSet], Measure]  # of a whole set of texts, against real ones


@dataclass(frozen=True)
class DrawnTexts:
    """A set of texts that no model drew."""

    tokens: Tokens
    texts: list[str] | None
    nfe: Tensor


def measure_row(
    name: str,
    drawn: SampleSet,
    judge: Judge,
    protocol: EvaluationProtocol,
    setting: Setting,
    *,
    seconds: Measure | None = None,
    disagreement: PerSequence | None = None,
    gauges: Mapping[str, SetMetric] | None = None,
) -> Row:
    """Every measure of a set of texts. `setting.nfe` is overwritten by what was counted.

    seconds       wall clock a sample
    disagreement  `metrics.completion_disagreement` of the same model in the same setting, a value a real text
    gauges        further measures of the set, by name
    """
    tokens = drawn.tokens.cpu()
    if tuple(tokens.shape) != (protocol.samples, protocol.length):
        raise ValueError(
            f"the protocol measures {protocol.samples} samples of {protocol.length} tokens: row {name} has "
            f"{tuple(tokens.shape)}"
        )
    if judge.stamp != protocol.judge:
        raise ValueError(
            f"the protocol's judge is {protocol.judge}, not {judge.stamp}: build it from `judge.stamp`"
        )
    scores = judge(as_read(drawn, judge))
    columns: dict[str, Tensor] = {
        "entropy": metrics.entropy(tokens),
        "pooled_entropy": metrics.pooled_entropy(tokens),
        **({} if disagreement is None else {"completion_disagreement": disagreement}),
    }
    others = {
        **{
            f"repetition_{n}": (metrics.repetition(tokens, n), "share of repeated n-grams")
            for n in (2, 3, 4)
        },
        **{
            f"distinct_{n}": (metrics.distinct_n(tokens, n), "share of distinct n-grams")
            for n in (1, 2, 3, 4)
        },
        **(
            {"overlap_4": (metrics.overlap(tokens), "share of 4-grams in another sample")}
            if len(tokens) > 1
            else {}
        ),
    }
    measures = {
        GEN_PPL: perplexity(scores, f"perplexity under {judge.stamp.name}"),
        **({} if scores.bytes is None else {"bits_per_byte": bits_per_byte(scores)}),
        **{key: measure.mean(values.numpy(), _UNITS[key]) for key, values in columns.items()},
        **{key: measure.mean(values.numpy(), unit) for key, (values, unit) in others.items()},
        **{key: gauge(drawn) for key, gauge in (gauges or {}).items()},
        **({} if seconds is None else {SECONDS: seconds}),
    }
    samples = {**dict(zip((NATS, TOKENS), scores.terms, strict=True)), **columns}
    return Row(
        name,
        protocol,
        replace(setting, nfe=float(drawn.nfe.double().mean())),
        measures,
        {key: values.tolist() for key, values in samples.items()},
    )


def as_read(drawn: SampleSet, judge: Judge) -> TextSet:
    """The texts, or their ids, whichever the judge reads."""
    if not judge.stamp.retokenised:
        return drawn.tokens.cpu()
    if drawn.texts is None:
        raise ValueError(
            f"judge {judge.stamp.name} reads texts and this set has none, only ids: give the model a tokenizer"
        )
    return drawn.texts


_UNITS = {
    "entropy": "nats",
    "pooled_entropy": "nats",
    "completion_disagreement": "share of positions",
}


def measure_frontier(
    draw: Callable[[int, float], SampleSet],
    judge: Judge,
    protocol: EvaluationProtocol,
    setting: Setting,
    *,
    name: str,
    steps: Iterable[int],
    temperatures: Iterable[float],
    complete: Complete | None = None,
    texts: Tokens | None = None,
    completions: int = 16,
    gauges: Mapping[str, SetMetric] | None = None,
    repeats: int = 1,
    warmup: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Row]:
    """Yield a row for each step count and temperature.

    draw      (steps, temperature) -> texts: the same latents each time, or nothing is paired
    complete  fills in the real `texts` [T, L], half masked
    gauges    as in `measure_row`
    repeats   timed draws a row, after `warmup` draws in all
    """
    if (complete is None) != (texts is None):
        raise ValueError(
            "completion disagreement takes both `complete` and real `texts` [T, L]: give both or neither"
        )
    temperatures = list(temperatures)
    for count in steps:
        for temperature in temperatures:
            run = timed(
                partial(draw, count, temperature), repeats=repeats, warmup=warmup, device=device
            )
            warmup = 0
            disagreement = None
            if complete is not None and texts is not None:
                here = partial(complete, steps=count, temperature=temperature)
                disagreement = metrics.completion_disagreement(here, texts, completions).cpu()
            yield measure_row(
                name,
                run.result,
                judge,
                protocol,
                replace(setting, steps=count, temperature=temperature),
                seconds=run.measure(per=protocol.samples, unit="s a sample"),
                disagreement=disagreement,
                gauges=gauges,
            )


def naive_rows(
    real: Tokens,
    vocab_size: int,
    judge: Judge,
    protocol: EvaluationProtocol,
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    never: Sequence[int] = (),
    seed: int = 0,
    gauges: Mapping[str, SetMetric] | None = None,
) -> list[Row]:
    """Uniform tokens, unigram draws, one real text repeated, and real data: from real rows [n, L].

    decode  ids -> text, for a judge that reads texts
    never   ids that no text holds, such as MASK
    """
    dice = generator(seed)
    real = real.cpu()
    allowed = torch.ones(vocab_size, dtype=torch.float64)
    allowed[list(never)] = 0
    count = real.flatten().bincount(minlength=vocab_size).double()
    sets: Mapping[str, Tokens] = {
        "uniform tokens": _draw(allowed, real, dice),
        "unigram draws": _draw(count, real, dice),
        "one text repeated": real[:1].expand_as(real),
        "data": real,
    }
    return [
        measure_row(
            name,
            DrawnTexts(
                tokens,
                decode and [decode(row) for row in tokens.tolist()],
                torch.zeros(len(tokens)),
            ),
            judge,
            protocol,
            Setting(protocol.data, name, steps=0, nfe=0.0, seeds=(seed,)),
            gauges=gauges,
        )
        for name, tokens in sets.items()
    ]


def _draw(weight: Tensor, like: Tokens, generator: torch.Generator) -> Tokens:
    return torch.multinomial(weight, like.numel(), replacement=True, generator=generator).view_as(
        like
    )
