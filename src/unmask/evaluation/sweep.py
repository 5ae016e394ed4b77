"""Rows of a model's texts over step counts and temperatures, and rows of baseline texts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from unmask import __version__
from unmask.data.packing import Rows, evenly_spaced
from unmask.data.tokenizers import start_token
from unmask.evaluation.judges import Judge
from unmask.evaluation.mauve import MIN_MAUVE_TEXTS
from unmask.evaluation.measure import (
    BOUND,
    MAUVE,
    REVERSE,
    SECONDS,
    EvaluationProtocol,
    Measure,
    MeasuredRow,
    Row,
    Setting,
    mean,
)
from unmask.evaluation.metrics import completion_disagreement
from unmask.evaluation.sample_metrics import (
    UNITS,
    baseline_rows,
    decoder,
    draw_and_measure,
    set_metrics_of,
)
from unmask.evaluation.scoring_rules import exact_rule
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.step_bound import few_step_bound, has_bound
from unmask.evaluation.timing import timed
from unmask.models.denoiser import AUTOREGRESSIVE
from unmask.models.model import CausalModel, LanguageModel, Model
from unmask.samplers.categorical import DRAW_LABELS, PRECISION
from unmask.samplers.options import named, sampler_of
from unmask.samplers.sample import Samples, sample
from unmask.types import PerSequence, Tokens

REPORT = "report.json"  # file of a measured frontier


@dataclass(frozen=True)
class EvalContext:
    """Judge, real text and settings that all rows of an evaluation share.

    Attributes:
        study: size and settings
        judge: the judge that gives gen_ppl
        real: held-out rows [m, L]
        data: digest of the documents
        known_rows: rows that were measured earlier, of any model
        products: number format of the networks' matrix products
        wrap: True: real rows begin with BOS and end with EOS
        read_by_judge: share of the held-out documents in the judge's training data; None:
            unknown
    """

    study: EvalSettings
    judge: Judge
    real: Rows
    data: str
    known_rows: Sequence[MeasuredRow] = ()
    products: str = "float32"
    wrap: bool = False
    read_by_judge: float | None = None

    def __post_init__(self) -> None:
        study = self.study
        if study.has_set_metrics and study.samples < MIN_MAUVE_TEXTS:
            raise ValueError(
                f"samples is too small: got {study.samples}, and MAUVE and reverse perplexity need "
                f"at least {MIN_MAUVE_TEXTS} texts; give more, or mauve_seeds = reverse_seeds = 0"
            )
        needed = max(study.samples, study.texts) + study.has_set_metrics * study.samples
        if len(self.real) < needed:
            raise ValueError(
                f"samples or texts is too large: got {needed} texts for a row, want at most "
                f"{len(self.real)}, the held-out rows; give fewer samples, or more text"
            )

    @property
    def protocol(self) -> EvaluationProtocol:
        return EvaluationProtocol(
            self.judge.identity,
            length=self.real.shape[1],
            samples=self.study.samples,
            precision=named("draw", self.study.draw, PRECISION),
            data=self.data,
            version=__version__,
            texts=self.study.texts,
            completions=self.study.completions,
            products=self.products,
            wrap=self.wrap,
            held_out=len(self.real),
            read_by_judge=self.read_by_judge,
        )

    @property
    def texts_to_complete(self) -> Tokens:
        """The real texts that are half masked and completed, [texts, L], spread over all rows."""
        return self.real[evenly_spaced(len(self.real), self.study.texts)]

    @property
    def real_texts(self) -> Tokens:
        """The texts of the row of real text, [samples, L], spread over the held-out rows."""
        total = len(self.real) // 2 if self.study.has_set_metrics else len(self.real)
        return self.real[evenly_spaced(total, self.study.samples)]

    @property
    def reference_texts(self) -> Tokens:
        """Other real texts to compare sets of texts with, [samples, L].

        They come from the second half of the held-out rows, so that a set metric compares
        two halves. The halves share at most one document, so they share hardly any names.
        """
        half = len(self.real) // 2
        return self.real[half + evenly_spaced(len(self.real) - half, self.study.samples)]


def measure(
    name: str,
    model: Model | CausalModel,
    context: EvalContext,
    steps: Sequence[int],
    temperatures: Sequence[float],
    top_p: float = 1.0,
) -> Iterator[MeasuredRow]:
    """Yield a row for each step count and temperature, in this order.

    Rows of `context.known_rows` are not measured again, except for a missing bound. Seconds do not
    depend on the temperature, so all rows measured here at one step count get the median of their
    seconds. Seconds of another machine are not comparable. A shipped row therefore gets this median
    too, or the seconds of one timed draw.

    Args:
        name: name of the rows.
        model: the model that draws the texts.
        context: judge, real text and settings.
        steps: step counts; the length of the texts for an autoregressive model.
        temperatures: temperatures at each step count.
        top_p: probability of the tokens that the sampler keeps.
    """
    context = replace(context, products=model.precision)
    study, length = context.study, context.real.shape[1]
    setting = replace(setting_of(model, study), top_p=top_p)
    set_metrics = set_metrics_of(model, context.judge, study, context.reference_texts)
    warmup = 1  # untimed draws before the first timed draw
    for count in steps:
        rows, seconds = [], []
        for temperature in temperatures:
            row_setting = replace(setting, steps=count, temperature=temperature)
            measured = next(
                (m for m in context.known_rows if _is_complete(m.row, name, row_setting, context)),
                None,
            )
            if measured is None:
                row = draw_and_measure(
                    partial(draw_row, model, study, length, count, temperature, top_p),
                    context.judge,
                    context.protocol,
                    row_setting,
                    name=name,
                    on_real_text=_on_real_text(model, context, row_setting),
                    set_metrics=set_metrics,
                    warmup=warmup,
                    device=model.device,
                )
                measured, warmup = MeasuredRow(row, shipped=False), 0
                seconds.append(row.measures[SECONDS].value)
            rows.append(measured)
        if not seconds and any(m.shipped and not m.timed for m in rows):
            draw = partial(draw_row, model, study, length, count, 1.0, top_p)
            run = timed(draw, repeats=1, warmup=warmup, device=model.device)
            seconds, warmup = [run.measure(per=study.samples, unit="s a sample").value], 0
        for measured in _with_seconds(rows, seconds, context.known_rows):
            yield with_bound(measured, model, context)


def with_bound(
    measured: MeasuredRow, model: Model | CausalModel, context: EvalContext
) -> MeasuredRow:
    """A row with the N-step bound of its sampler at temperature 1, if the sampler has one.

    An autoregressive model has its exact likelihood, one token a call.
    """
    study, row, (total, length) = context.study, measured.row, context.real.shape
    n, known = min(study.bound_texts, total), row.measures.get(BOUND)
    unfiltered = row.setting.temperature == row.setting.top_p == 1
    if not n or not unfiltered or (known is not None and known.n == n):
        return measured
    ids = context.real[evenly_spaced(total, n)].to(model.device)
    if isinstance(model, CausalModel):
        start = start_token(model.tokenizer, model.vocab_size, model.mask_id)
        values = exact_rule(model, start, study.batch_size).scores(ids).nats / length
    elif has_bound(sampler := sampler_of(study.sampler)):
        steps, size = row.setting.steps, study.batch_size
        bound = few_step_bound(model, ids, steps, sampler, study.seed, batch_size=size)
        values = torch.tensor(bound.samples)
    else:
        return measured
    measures = {**row.measures, BOUND: mean(values.numpy(), UNITS[BOUND])}
    samples = {**row.samples, BOUND: values.tolist()}
    return replace(measured, row=replace(row, measures=measures, samples=samples))


def _with_seconds(
    rows: Sequence[MeasuredRow], seconds: Sequence[float], known_rows: Sequence[MeasuredRow]
) -> Iterator[MeasuredRow]:
    """Replace the seconds of new and of shipped rows by the median of `seconds`."""
    if not seconds:
        yield from rows
        return
    median = Measure(statistics.median(seconds), "s a sample", len(seconds))
    for measured in rows:
        earlier = measured in known_rows
        if measured.timed or (earlier and not measured.shipped):
            yield measured
        else:
            row = replace(measured.row, measures={**measured.row.measures, SECONDS: median})
            yield MeasuredRow(row, measured.shipped, timed=True)


def setting_of(model: LanguageModel, study: EvalSettings) -> Setting:
    """The setting of a model's rows, except steps and temperature."""
    sampler, draw = AUTOREGRESSIVE, Setting.draw
    if model.draws_in_steps:
        sampler, draw = study.sampler, named("draw", study.draw, DRAW_LABELS)
    return Setting(model.digest, sampler, steps=0, nfe=0.0, seeds=(study.seed,), draw=draw)


def _is_complete(row: Row, name: str, setting: Setting, context: EvalContext) -> bool:
    """Whether an earlier row matches and has the set metrics of this evaluation."""
    seeds = {MAUVE: context.study.mauve_seeds, REVERSE: context.study.reverse_seeds}
    complete = all(
        key in row.measures and row.measures[key].n == n for key, n in seeds.items() if n
    )
    return complete and matches(row, name, setting, context.protocol)


def matches(row: Row, name: str, setting: Setting, protocol: EvaluationProtocol) -> bool:
    """Whether a row has this name, protocol and setting; `setting.nfe` is 0."""
    return (
        row.name == name and row.protocol == protocol and replace(row.setting, nfe=0.0) == setting
    )


def settings_for(model: LanguageModel, study: EvalSettings) -> EvalSettings:
    """The settings, without completions for a model that cannot complete texts."""
    return study if model.completes_texts else replace(study, texts=0, completions=0)


def draw_row(
    model: Model | CausalModel,
    study: EvalSettings,
    length: int,
    steps: int,
    temperature: float,
    top_p: float = 1.0,
    pinned: Tokens | None = None,
) -> Samples:
    """Draw the texts of a row, or completions that are independent of these texts.

    Args:
        model: the model.
        study: number of texts, seed, sampler and draw.
        length: tokens per text.
        steps: steps of the sampler.
        temperature: temperature of the draw.
        top_p: probability that nucleus sampling keeps.
        pinned: ids [n, L] to complete, -1 at free positions; None draws `study.samples` texts.
    """
    return sample(
        model,
        study.samples if pinned is None else len(pinned),
        length,
        steps,
        study.seed if pinned is None else study.seed + 1,
        temperature,
        top_p,
        pinned=pinned,
        batch_size=study.batch_size,
        sampler=study.sampler if model.draws_in_steps else None,
        draw=study.draw,
        device=model.device,
    )


def _on_real_text(
    model: Model | CausalModel, context: EvalContext, setting: Setting
) -> dict[str, Callable[[], PerSequence]]:
    """The measurements of a model in one setting that use real text, by their columns in a row.

    A measure of a model that does not depend on the drawn texts belongs here. Its unit stands in
    `sample_metrics.UNITS`.
    """
    study = context.study
    if not (model.completes_texts and study.texts):
        return {}

    def complete(pinned: Tokens) -> Tokens:
        length, steps, temperature = pinned.shape[1], setting.steps, setting.temperature
        top_p = setting.top_p
        return draw_row(model, study, length, steps, temperature, top_p, pinned).tokens.cpu()

    texts = context.texts_to_complete
    disagreement = partial(completion_disagreement, complete, texts, study.completions)
    return {"completion_disagreement": disagreement}


def measure_baselines(context: EvalContext, model: LanguageModel) -> list[MeasuredRow]:
    """Rows of uniform tokens, unigram draws, one text repeated and real text (last)."""
    tokenizer = model.tokenizer
    # Duo's vocabulary holds the tokenizer's MASK, although its process has none.
    masks = {model.mask_id, None if tokenizer is None else tokenizer.mask_id}
    rows = baseline_rows(
        context.real_texts,
        model.vocab_size,
        context.judge,
        context.protocol,
        decode=decoder(model),
        never=[mask_id for mask_id in masks if mask_id is not None],
        set_metrics=set_metrics_of(model, context.judge, context.study, context.reference_texts),
    )
    return [MeasuredRow(row, shipped=False) for row in rows]


def perplexity_after_round(model: Model, context: EvalContext) -> MeasuredRow:
    """A row at `round_steps` steps, without completions: cheap enough for every round."""
    context = replace(context, products=model.precision)
    study, steps = context.study, context.study.round_steps
    draw = partial(draw_row, model, study, context.real.shape[1], steps, 1.0)
    setting = replace(setting_of(model, study), steps=steps)
    row = draw_and_measure(
        draw, context.judge, context.protocol, setting, name="round", device=model.device
    )
    return MeasuredRow(row, shipped=False)
