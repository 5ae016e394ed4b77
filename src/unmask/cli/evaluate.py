"""`unmask eval samples` and `unmask eval frontier`: measures of drawn texts under a judge."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from unmask import __version__
from unmask.atomic_files import write_text
from unmask.cli.console import emit, parse, progress, result_folder, say, table
from unmask.cli.likelihood import check_length
from unmask.dataclass_json import dumps
from unmask.evaluation import judge_by_name, sweep
from unmask.evaluation.example_texts import example_texts
from unmask.evaluation.frontier import build_report
from unmask.evaluation.frontier import frontier as measure_frontier
from unmask.evaluation.measure import (
    BOUND,
    GEN_PPL,
    MAUVE,
    REVERSE,
    MeasuredRow,
    protocol_words,
)
from unmask.evaluation.sample_metrics import mean_row
from unmask.evaluation.settings import EvalSettings
from unmask.evaluation.sweep import REPORT, EvalContext
from unmask.evaluation.verdict import Finding
from unmask.models.model import LanguageModel, diffusion_model, load
from unmask.recipes.contamination import share_read
from unmask.recipes.held_out import HeldOut, Text, held_out

_DEFAULTS = EvalSettings()


@dataclass(frozen=True)
class SamplesArguments:
    """Draw texts from a model, and measure their generative perplexity and diversity.

    Attributes:
        model: run or model directory, hub id, or unmask:teacher
        judge: run or model directory, unmask:judge, Hugging Face model, "sdtt:MODEL"
            or "smollm2"
        text: real text for completions and for the length of the samples
        steps: step counts, one row for each with each temperature; None: 4 8 16 32. An
            autoregressive model takes no steps and makes one network call for each token
        sampler: sampler of a diffusion model; None: order=spread, or ancestral for uniform noise
        draw: categorical draw of a diffusion model, see `unmask sample --help`
        temperatures: temperatures, one row each with each step count
        samples: texts per row
        seeds: seeds of the latents, one set of rows each; several seeds add rows of their means
        texts: half-masked real texts for the completion disagreement of masked diffusion;
            None: 16
        completions: completions of each half-masked text; None: 4
        bound_texts: held-out rows for the N-step bound of rows at temperature 1 (0: not measured)
        mauve_seeds: starts of k-means for MAUVE against other real texts (0: not measured;
            needs the package mauve-text)
        reverse_seeds: networks fitted per row for the reverse perplexity (0: not measured)
        naive: add rows of uniform tokens, unigram draws, one text repeated, and real text
        batch_size: maximum samples per network call
        device: device of model and judge
        json: print JSON
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    judge: str
    text: Text = field(default_factory=Text)
    steps: tuple[int, ...] | None = None
    sampler: str | None = None
    draw: str = _DEFAULTS.draw
    temperatures: tuple[float, ...] = (1.0,)
    samples: int = _DEFAULTS.samples
    seeds: tuple[int, ...] = (_DEFAULTS.seed,)
    texts: int | None = None
    completions: int | None = None
    bound_texts: int = _DEFAULTS.bound_texts
    mauve_seeds: int = _DEFAULTS.mauve_seeds
    reverse_seeds: int = _DEFAULTS.reverse_seeds
    naive: bool = True
    batch_size: int = _DEFAULTS.batch_size
    device: str = "cpu"
    json: bool = False

    def settings(self, model: LanguageModel) -> EvalSettings:
        """The settings for this model; ValueError for flags that do not apply to its kind."""
        unused: dict[str, object] = {}
        if not model.completes_texts:
            unused |= {"texts": self.texts, "completions": self.completions}
        if not model.draws_in_steps:
            unused |= {"steps": self.steps, "sampler": self.sampler}
        _refuse(unused, self.model, model)
        settings = EvalSettings(
            samples=self.samples,
            seed=self.seeds[0],
            texts=_DEFAULTS.texts if self.texts is None else self.texts,
            completions=_DEFAULTS.completions if self.completions is None else self.completions,
            sampler=self.sampler or (_DEFAULTS.sampler if model.completes_texts else "ancestral"),
            draw=self.draw,
            bound_texts=self.bound_texts,
            mauve_seeds=self.mauve_seeds,
            reverse_seeds=self.reverse_seeds,
            batch_size=self.batch_size,
        )
        return sweep.settings_for(model, settings)


@dataclass(frozen=True)
class Frontier:
    """Compare a student with its teacher by generative perplexity and entropy.

    Both models are measured over steps and temperatures. `unmask report OUT` then writes the page.

    Attributes:
        student: run or model directory, hub id, or unmask:teacher
        teacher: run or model directory, hub id, or unmask:teacher
        judge: run or model directory, unmask:judge, Hugging Face model, "sdtt:MODEL"
            or "smollm2"
        out: directory of report.json
        text: held-out text
        study: size and settings of the evaluation
        device: device of models and judge
        json: print JSON
    """

    student: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT")]
    teacher: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEACHER")]
    judge: str
    out: Path = Path("runs/frontier")
    text: Text = field(default_factory=Text)
    study: EvalSettings = field(default_factory=EvalSettings)
    device: str = "cpu"
    json: bool = False


def samples(verb: str, arguments: Sequence[str]) -> int:
    options = parse(SamplesArguments, verb, arguments)
    if options.steps == () or not (options.temperatures and options.seeds):
        raise ValueError("steps, temperatures or seeds is empty: want at least one of each")
    model = load(options.model, device=options.device)
    settings = options.settings(model)
    real = held_out(options.text, options.model, model)
    context = _context(options.judge, real, model, settings)
    length = context.real.shape[1]
    check_length(options.model, model, length)
    steps = (options.steps or settings.student_steps) if model.draws_in_steps else (length,)
    by_seed: list[list[MeasuredRow]] = []
    with progress() as (advance, _):
        total = len(options.seeds) * len(steps) * len(options.temperatures)
        for seed in options.seeds:
            by_seed.append([])
            of_seed = replace(context, study=replace(settings, seed=seed))
            for row in sweep.measure("samples", model, of_seed, steps, options.temperatures):
                by_seed[-1].append(row)
                advance("measuring", sum(map(len, by_seed)), total)
    rows = [row for of_seed_rows in by_seed for row in of_seed_rows]
    if len(by_seed) > 1:
        rows += [mean_row([m.row for m in same]) for same in zip(*by_seed, strict=True)]
    if options.naive:
        rows += sweep.measure_baselines(context, model)
    if options.json:
        emit([row.to_json() for row in rows])
    else:
        _show("samples", rows)
        say(f"{protocol_words(context.protocol, options.seeds)} {_source_words(real)}")
    return 0


def frontier(verb: str, arguments: Sequence[str]) -> int:
    options = parse(Frontier, verb, arguments)
    student, teacher = (
        diffusion_model(
            load(name, device=options.device),
            f"{name} is autoregressive, and a frontier compares diffusion models: use "
            "`unmask eval samples`",
        )
        for name in (options.student, options.teacher)
    )
    if not teacher.completes_texts:
        changed = {
            f"study.{name}": value
            for name, value in vars(options.study).items()
            if name in ("texts", "completions") and value != vars(_DEFAULTS)[name]
        }
        _refuse(changed, options.teacher, teacher)
    settings = sweep.settings_for(teacher, options.study)
    real = held_out(options.text, options.teacher, teacher)
    context = _context(options.judge, real, teacher, settings)
    check_length(options.teacher, teacher, context.real.shape[1])
    result_folder(options.out)
    rows: Mapping[str, list[MeasuredRow]] = {}
    with progress() as (advance, _):
        for event in measure_frontier(teacher, student, context):
            advance("measuring", event.done, event.total)
            rows = event.rows
    report = build_report(rows, list(_doubts(options, real)))
    report |= example_texts(teacher, student, settings, context.real)
    report |= {
        "title": f"{options.student} against {options.teacher}",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "seed": settings.seed,
        "held_out": _source_words(real),
    }
    write_text(options.out / REPORT, dumps(report, indent=1) + "\n")
    if options.json:
        emit(report)
        return 0
    for name, measured in rows.items():
        _show(name.replace("_", " "), measured)
    say(f"{protocol_words(context.protocol, (settings.seed,))} {report['held_out']}")
    for finding in report["verdict"]:
        say(str(Finding(**finding)))
    say(f"`unmask report {options.out}` writes the page")
    return 0


def _context(
    judge: str, real: HeldOut, model: LanguageModel, settings: EvalSettings
) -> EvalContext:
    """Judge, real rows in a fixed order, and settings."""
    return EvalContext(
        settings,
        judge_by_name.judge(judge, model.tokenizer, real.rows.shape[1], model.device),
        real.rows,
        real.digest,
        wrap=real.data.wrap,
        read_by_judge=share_read(judge, real.data, real.whole),
    )


def _doubts(options: Frontier, real: HeldOut) -> Iterator[str]:
    """Reasons against a claim that follow from the models' cards."""
    for role, name in (("teacher", options.teacher), ("student", options.student)):
        if share := share_read(name, real.data, real.whole):
            yield f"the {role} was trained on {share:.0%} of the held-out documents"


def _refuse(unused: Mapping[str, object], name: str, model: LanguageModel) -> None:
    """ValueError for a flag that does not apply to a model of this kind."""
    kind = "diffusion from uniform noise" if model.draws_in_steps else "autoregressive"
    for flag, value in unused.items():
        if value:
            raise ValueError(
                f"{flag} has no effect: got {value}, and {name} is {kind}; leave --{flag} out"
            )


def _source_words(real: HeldOut) -> str:
    """The source of the real text in a sentence; the protocol has the number of rows."""
    return f"Real text: {real.source}."


def _show(title: str, measured: Sequence[MeasuredRow]) -> None:
    """Print rows as a table."""
    rows = [m.row for m in measured]
    columns = {
        "pooled_entropy": "pooled",
        "completion_disagreement": "disagree",
        "distinct_4": "distinct",
    }
    for key, column in {BOUND: "bound", MAUVE: "MAUVE", REVERSE: "reverse"}.items():
        if any(key in row.measures for row in rows):
            columns[key] = column
    lines: list[list[object]] = []
    for row in rows:
        setting, gen_ppl = row.setting, row.measures[GEN_PPL]
        others = [
            row.measures[key].value if key in row.measures else "" for key in ("entropy", *columns)
        ]
        labels = [row.name, setting.steps, setting.nfe, setting.temperature]
        lines.append([*labels, gen_ppl.value, gen_ppl.sem, *others])
    head = ["", "steps", "calls", "temp.", "gen PPL", "sem", "entropy", *columns.values()]
    table(title, head, lines)
