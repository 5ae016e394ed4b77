"""Rows of a study: a model's texts over steps and temperatures, and naive rows beside them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unmask import __version__
from unmask.data.packing import Rows, evenly_spaced
from unmask.diffusion.processes import MaskedProcess
from unmask.evaluation.judges import Judge
from unmask.evaluation.mauve import LEAST, mauve_against
from unmask.evaluation.measure import (
    MAUVE,
    REVERSE,
    SECONDS,
    EvaluationProtocol,
    Measure,
    Row,
    Setting,
)
from unmask.evaluation.measure import over_seeds as mean_over_seeds
from unmask.evaluation.reverse_perplexity import reverse_perplexity
from unmask.evaluation.sample_metrics import (
    DrawnTexts,
    SetMetric,
    as_read,
    measure_frontier,
    naive_rows,
)
from unmask.evaluation.timing import timed
from unmask.limits import MOST_STEPS, seed_number, whole
from unmask.models.model import CausalModel, Model
from unmask.samplers.categorical import DRAW_LABELS, PRECISION
from unmask.samplers.options import named
from unmask.samplers.sample import Samples, sample
from unmask.types import Tokens

REPORT = "report.json"  # of a directory that holds a measured frontier


@dataclass(frozen=True)
class EvalSettings:
    """What is measured.

    samples               texts a row
    seed                  of the latents of all texts
    teacher_steps, student_steps                step counts, a row each
    teacher_temperatures, student_temperatures  besides 1, at each step count
    texts, completions    half-masked real texts, spread over the held-out rows, and how often each is completed
                          (completion disagreement)
    mauve_seeds           starts of k-means behind MAUVE against other real texts (0: it is left out)
    reverse_seeds         networks fitted to a row's texts behind its reverse perplexity (0: it is left out)
    batch_size            samples a network call at most
    sampler               of both diffusion models, by name; greedy_tail and others for uniform diffusion
    draw                  race couples texts at different steps; inverse_cdf has the same law and is cheaper
    round_steps           steps of the student in the table of rounds
    shown                 texts of teacher and student side by side
    player_steps          steps of the texts in the player

    ValueError for counts outside their range.
    """

    samples: int = 64
    seed: int = 0
    teacher_steps: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    student_steps: tuple[int, ...] = (4, 8, 16, 32)
    teacher_temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.1)
    student_temperatures: tuple[float, ...] = (1.15, 1.3, 1.45)
    texts: int = 16
    completions: int = 4
    mauve_seeds: int = 0
    reverse_seeds: int = 0
    batch_size: int = 64
    sampler: str = "reveal"
    draw: str = "race"
    round_steps: int = 8
    shown: int = 3
    player_steps: int = 16

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "round_steps", "player_steps"):
            whole(name, getattr(self, name), "a count of the study", 1, MOST_STEPS)
        for name in ("texts", "completions", "mauve_seeds", "reverse_seeds", "shown"):
            whole(name, getattr(self, name), "a count of the study", 0, MOST_STEPS)
        seed_number("seed", self.seed)

    @property
    def compared(self) -> bool:
        """Whether sets of texts are compared with real ones."""
        return bool(self.mauve_seeds or self.reverse_seeds)


@dataclass(frozen=True)
class MeasuredRow:
    """A row, whether it was shipped: measured on another machine, and if so whether its seconds are of this one."""

    row: Row
    shipped: bool
    timed: bool = False

    def to_json(self) -> dict[str, Any]:
        return self.row.to_json() | {"shipped": self.shipped}


@dataclass(frozen=True)
class EvalContext:
    """What all rows of a study share: the judge, real held-out rows [m, L], and rows that were measured before.

    products       precision of the networks' matrix products
    wrap           whether real rows have BOS and EOS at their ends
    read_by_judge  share of the held-out documents that the judge was trained on; None: not known
    """

    study: EvalSettings
    judge: Judge
    real: Rows
    data: str
    known: Sequence[MeasuredRow] = ()
    products: str = "float32"
    wrap: bool = False
    read_by_judge: float | None = None

    def __post_init__(self) -> None:
        study = self.study
        if study.compared and study.samples < LEAST:
            raise ValueError(
                f"MAUVE and reverse perplexity compare at least {LEAST} texts with as many: want more samples, or "
                "mauve_seeds = reverse_seeds = 0"
            )
        wanted = max(study.samples, study.texts) + (study.samples if study.compared else 0)
        if len(self.real) < wanted:
            raise ValueError(
                f"a row measures {wanted} texts and only {len(self.real)} real ones are held out: "
                "measure fewer samples, or give more text"
            )

    @property
    def protocol(self) -> EvaluationProtocol:
        study, length = self.study, self.real.shape[1]
        return EvaluationProtocol(
            self.judge.stamp, length, study.samples, named("draw", study.draw, PRECISION), self.data, __version__,
            study.texts, study.completions, self.products, self.wrap, len(self.real), self.read_by_judge,
        )  # fmt: skip

    @property
    def completed(self) -> Tokens:
        """The real texts that are half masked and completed, [texts, L]: spread over all held-out rows."""
        return self.real[evenly_spaced(len(self.real), self.study.texts)]


def measure(
    name: str,
    model: Model | CausalModel,
    scene: EvalContext,
    steps: Sequence[int],
    temperatures: Sequence[float],
) -> Iterator[MeasuredRow]:
    """A row for each step count and temperature, in this order.

    A row that `scene.known` holds is not measured again. Seconds do not depend on the temperature: those of the rows
    that are measured here, at one step count, become their median. A shipped row gets the same, since another machine's
    clock compares with nothing, or is timed by a draw of its own.
    """
    scene = replace(scene, products=model.precision)
    study, length = scene.study, scene.real.shape[1]
    setting = _setting(model, study)
    if isinstance(model, CausalModel):
        setting = replace(setting, sampler="autoregressive")
    draw = partial(draw_row, model, study, length)
    fills = isinstance(model, Model) and completes(model) and study.texts > 0
    complete = partial(_complete, model, study) if isinstance(model, Model) and fills else None
    gauges = _gauges(scene, model)
    cold = 1  # draws for warming up, once
    for count in steps:
        rows, clock = [], []
        for temperature in temperatures:
            wanted = replace(setting, steps=count, temperature=temperature)
            found = next((m for m in scene.known if _answers(m.row, name, wanted, scene)), None)
            if found is None:
                measured = measure_frontier(
                    draw, scene.judge, scene.protocol, setting, name=name, steps=[count], temperatures=[temperature],
                    complete=complete, texts=None if complete is None else scene.completed,
                    completions=study.completions, gauges=gauges, warmup=cold,
                )  # fmt: skip
                found, cold = MeasuredRow(next(iter(measured)), shipped=False), 0
                clock.append(found.row.measures[SECONDS].value)
            rows.append(found)
        if not clock and any(found.shipped and not found.timed for found in rows):
            run = timed(partial(draw, count, 1.0), repeats=1, warmup=cold)
            clock, cold = [run.measure(per=study.samples, unit="s a sample").value], 0
        seconds = Measure(statistics.median(clock), "s a sample", len(clock)) if clock else None
        for found in rows:
            before = any(found is known for known in scene.known)
            if seconds is None or found.timed or (before and not found.shipped):
                yield found
            else:
                row = replace(found.row, measures={**found.row.measures, SECONDS: seconds})
                yield MeasuredRow(row, found.shipped, timed=True)


def _setting(model: Model | CausalModel, study: EvalSettings) -> Setting:
    """What labels the rows of a model, but for steps and temperature."""
    draw = named("draw", study.draw, DRAW_LABELS)
    sampler = study.sampler if draw == "race" else f"{study.sampler}, {draw}"
    return Setting(model.digest, sampler, steps=0, nfe=0.0, seeds=(study.seed,))


def _answers(row: Row, name: str, wanted: Setting, scene: EvalContext) -> bool:
    seeds = {MAUVE: scene.study.mauve_seeds, REVERSE: scene.study.reverse_seeds}
    complete = all(
        key in row.measures and row.measures[key].n == n for key, n in seeds.items() if n
    )
    return complete and answers(row, name, wanted, scene.protocol)


def answers(row: Row, name: str, wanted: Setting, protocol: EvaluationProtocol) -> bool:
    """Whether a row is the one of this name, setting (its nfe 0, since that is measured) and protocol."""
    return row.name == name and row.protocol == protocol and replace(row.setting, nfe=0.0) == wanted


def _real(scene: EvalContext) -> tuple[Tensor, Tensor]:
    """Real rows to be measured as a row of the table, and other ones to compare sets of texts with: spread evenly.

    The others come from other documents, but for one that may lie across the middle: no model knows the names of the
    very texts that it is compared with.
    """
    study, total = scene.study, len(scene.real)
    if not study.compared:
        return scene.real[evenly_spaced(total, study.samples)], scene.real[:0]
    half = total // 2
    return scene.real[evenly_spaced(half, study.samples)], scene.real[
        half + evenly_spaced(total - half, study.samples)
    ]


def _gauges(scene: EvalContext, model: Model | CausalModel) -> dict[str, SetMetric]:
    """MAUVE and reverse perplexity, where asked for."""
    study, judge, tokenizer = scene.study, scene.judge, model.tokenizer
    _, other = _real(scene)
    gauges: dict[str, SetMetric] = {}
    if study.mauve_seeds:
        texts = None if tokenizer is None else [tokenizer.decode(row) for row in other.tolist()]
        likeness = mauve_against(
            judge.features,
            as_read(DrawnTexts(other, texts, torch.zeros(len(other))), judge),
            study.mauve_seeds,
        )
        gauges[MAUVE] = lambda drawn: likeness(as_read(drawn, judge))
    if study.reverse_seeds:
        size, device = model.vocab_size, model.device
        gauges[REVERSE] = lambda drawn: reverse_perplexity(
            drawn.tokens.to(device), other.to(device), size, study.reverse_seeds
        )
    return gauges


def completes(model: Model | CausalModel) -> bool:
    """Whether a model completes half-masked texts: masked diffusion does.

    A denoiser of uniform noise gets one alpha for all tokens, and doubts the given ones.
    """
    return isinstance(model, Model) and isinstance(model.process, MaskedProcess)


def fitting(study: EvalSettings, model: Model | CausalModel) -> EvalSettings:
    """The study, without completions for a model that makes none."""
    return study if completes(model) else replace(study, texts=0, completions=0)


def draw_row(
    model: Model | CausalModel,
    study: EvalSettings,
    length: int,
    steps: int,
    temperature: float,
    top_p: float = 1.0,
) -> Samples:
    """The texts of a row."""
    return sample(
        model, study.samples, length, steps, study.seed, temperature, top_p, batch_size=study.batch_size,
        sampler=study.sampler if isinstance(model, Model) else None, draw=study.draw, device=model.device,
    )  # fmt: skip


def _complete(
    model: Model, study: EvalSettings, pinned: Tokens, /, *, steps: int, temperature: float
) -> Tokens:
    # A seed of its own: completions are independent of the samples.
    drawn = sample(
        model, len(pinned), pinned.shape[1], steps, study.seed + 1, temperature, pinned=pinned, sampler=study.sampler,
        draw=study.draw, batch_size=study.batch_size, device=model.device,
    )  # fmt: skip
    return drawn.tokens.cpu()


def naive(scene: EvalContext, model: Model | CausalModel) -> list[MeasuredRow]:
    """Uniform tokens, unigram draws, one text repeated, and real text (last), in the tokens of `model`."""
    masks = {
        model.mask_id,
        None if model.tokenizer is None else model.tokenizer.mask_id,
    }  # a judge's, for Duo
    rows = naive_rows(
        _real(scene)[0],
        model.vocab_size,
        scene.judge,
        scene.protocol,
        decode=None if model.tokenizer is None else model.tokenizer.decode,
        never=[mask_id for mask_id in masks if mask_id is not None],
        gauges=_gauges(scene, model),
    )
    return [MeasuredRow(row, shipped=False) for row in rows]


def over_seeds(rows: Sequence[Row]) -> MeasuredRow:
    """The means of rows that differ in the seed of their latents only; errors are of the spread over seeds."""
    first = rows[0]
    setting = replace(
        first.setting,
        nfe=statistics.fmean(row.setting.nfe for row in rows),
        seeds=tuple(seed for row in rows for seed in row.setting.seeds),
    )
    measures = {key: mean_over_seeds([row.measures[key] for row in rows]) for key in first.measures}
    return MeasuredRow(Row(f"{len(rows)} seeds", first.protocol, setting, measures), shipped=False)


def perplexity_after_round(model: Model, scene: EvalContext) -> MeasuredRow:
    """One row at the step count of the round table, without completions: cheap enough to draw after every round."""
    scene = replace(scene, products=model.precision)
    study, length = scene.study, scene.real.shape[1]
    setting = _setting(model, study)
    rows = measure_frontier(
        partial(draw_row, model, study, length), scene.judge, scene.protocol, setting,
        name="round", steps=[study.round_steps], temperatures=[1.0], warmup=0,
    )  # fmt: skip
    return MeasuredRow(next(iter(rows)), shipped=False)
