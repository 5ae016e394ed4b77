"""`unmask eval`: evidence about models."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from unmask import __version__
from unmask.atomic_files import write_text
from unmask.cli.console import emit, parse, progress, result_folder, say, show_usage, table
from unmask.cli.likelihood import check_length, likelihood
from unmask.cli.lm_harness import lm_harness
from unmask.cli.zero_shot import zero_shot
from unmask.dataclass_json import dumps
from unmask.evaluation import sweep as studies
from unmask.evaluation.example_texts import shown
from unmask.evaluation.frontier import conclude
from unmask.evaluation.frontier import frontier as measure_both
from unmask.evaluation.judge_by_name import judge_named
from unmask.evaluation.measure import MAUVE, REVERSE, protocol_words
from unmask.evaluation.sweep import REPORT, EvalContext, EvalSettings, completes
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.contamination import share_read
from unmask.recipes.held_out import HeldOut, Text, held_out

USAGE = """usage: unmask eval likelihood MODEL [...]   perplexity of held-out text (a bound for diffusion models)
       unmask eval zero-shot MODEL [...]   of the papers' seven sets, or of texts from packages
       unmask eval samples MODEL --judge J [...]   generative perplexity with entropy, at some step counts
       unmask eval frontier STUDENT TEACHER --judge J [...]   both, over temperatures
       unmask eval lm-harness MODEL --tasks T [...]   tasks of lm-evaluation-harness"""


@dataclass(frozen=True)
class Samples:
    """Measures of drawn texts under a judge.

    model               a run or model directory, a hub id, or unmask:teacher
    text                real texts: for completions, and whose length the samples have
    temperatures        rows: see steps
    samples             texts a row
    seeds               of the latents: rows for each, and their means where there are several
    json                print JSON
    judge               a run or model directory, unmask:judge, a Hugging Face model, "sdtt:" and one, or "smollm2"
    steps               rows: each step count with each temperature (4 8 16 32; an autoregressive model takes a call a
                        token, and no steps)
    sampler, draw       of a diffusion model: how texts are drawn (reveal, or ancestral from uniform noise; race)
    texts, completions  half-masked real texts, and how often each is completed (completion disagreement, of masked
                        diffusion only; 16 and 4)
    mauve_seeds         starts of k-means behind MAUVE against other real texts (0: left out; package mauve-text)
    reverse_seeds       networks fitted to a row's texts behind its reverse perplexity (0: left out)
    naive               rows of uniform tokens, unigram draws, one text repeated and real text besides
    batch_size          samples a network call at most
    device              where model and judge run
    """

    model: Annotated[str, tyro.conf.Positional]
    judge: str
    text: Text = field(default_factory=Text)
    steps: tuple[int, ...] | None = None
    sampler: str | None = None
    draw: str = EvalSettings().draw
    temperatures: tuple[float, ...] = (1.0,)
    samples: int = EvalSettings().samples
    seeds: tuple[int, ...] = (EvalSettings().seed,)
    texts: int | None = None
    completions: int | None = None
    mauve_seeds: int = EvalSettings().mauve_seeds
    reverse_seeds: int = EvalSettings().reverse_seeds
    naive: bool = True
    batch_size: int = EvalSettings().batch_size
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Frontier:
    """Gen PPL and entropy of student and teacher over steps and temperatures; `unmask report OUT` draws the page.

    student, teacher  a run or model directory, a hub id, or unmask:teacher
    text    held-out text: the target that is drawn beside the teacher's
    study   what is measured
    json    print JSON
    judge   a run or model directory, unmask:judge, a Hugging Face model, "sdtt:" and one, or "smollm2"
    out     where report.json goes
    device  where models and judge run
    """

    student: Annotated[str, tyro.conf.Positional]
    teacher: Annotated[str, tyro.conf.Positional]
    judge: str
    out: Path = Path("runs/frontier")
    text: Text = field(default_factory=Text)
    study: EvalSettings = field(default_factory=EvalSettings)
    device: str = "cpu"
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    verbs = {
        "likelihood": likelihood,
        "zero-shot": zero_shot,
        "samples": samples,
        "frontier": frontier,
        "lm-harness": lm_harness,
    }
    if not arguments or arguments[0] not in verbs:
        return show_usage(verb, USAGE, arguments)
    return verbs[arguments[0]](arguments[1:])


def samples(arguments: Sequence[str]) -> int:
    asked = parse(Samples, "eval samples", arguments)
    if asked.steps == () or not (asked.temperatures and asked.seeds):
        raise ValueError(
            "a row has a step count, a temperature and a seed: want at least one of each"
        )
    model = load(asked.model, device=asked.device)
    study = _study(asked, model)
    real = held_out(asked.text, asked.model, model)
    shared = scene(asked.judge, real, model, study)
    length = shared.real.shape[1]
    check_length(asked.model, model, length)
    steps = (asked.steps or study.student_steps) if isinstance(model, Model) else (length,)
    scenes = [replace(shared, study=replace(study, seed=seed)) for seed in asked.seeds]
    each: list[list[studies.MeasuredRow]] = []
    with progress() as (advance, _):
        total = len(scenes) * len(steps) * len(asked.temperatures)
        for one in scenes:
            each.append([])
            for m in studies.measure("samples", model, one, steps, asked.temperatures):
                each[-1].append(m)
                advance("measuring", sum(map(len, each)), total)
    found = [m for rows in each for m in rows]
    if len(each) > 1:
        found += [studies.over_seeds([m.row for m in rows]) for rows in zip(*each, strict=True)]
    found += studies.naive(shared, model) if asked.naive else []
    if asked.json:
        emit([m.to_json() for m in found])
    else:
        show("samples", found)
        say(f"{protocol_words(shared.protocol, asked.seeds)} {real_words(real)}")
    return 0


def _study(asked: Samples, model: Model | CausalModel) -> EvalSettings:
    """What is measured; ValueError for a flag that this kind of model has no use for."""
    fills, usual = completes(model), EvalSettings()
    unused: dict[str, object] = (
        {} if fills else {"texts": asked.texts, "completions": asked.completions}
    )
    if isinstance(model, CausalModel):
        unused |= {"steps": asked.steps, "sampler": asked.sampler}
    _refuse(unused, asked.model, model)
    study = EvalSettings(
        samples=asked.samples, seed=asked.seeds[0], texts=usual.texts if asked.texts is None else asked.texts,
        completions=usual.completions if asked.completions is None else asked.completions,
        sampler=asked.sampler or (usual.sampler if fills else "ancestral"), draw=asked.draw,
        mauve_seeds=asked.mauve_seeds, reverse_seeds=asked.reverse_seeds, batch_size=asked.batch_size,
    )  # fmt: skip
    return studies.fitting(study, model)


def _refuse(unused: Mapping[str, object], name: str, model: Model | CausalModel) -> None:
    """ValueError for a flag that a model of this kind has no use for."""
    for flag, value in unused.items():
        if value:
            kind = (
                "autoregressive"
                if isinstance(model, CausalModel)
                else "diffusion from uniform noise"
            )
            raise ValueError(
                f"{flag} has no effect: got {value}, and {name} is {kind}; leave --{flag} out"
            )


def frontier(arguments: Sequence[str]) -> int:
    asked = parse(Frontier, "eval frontier", arguments)
    student, teacher = (
        _masked(load(name, device=asked.device), name) for name in (asked.student, asked.teacher)
    )
    if not completes(teacher):
        chosen, usual = vars(asked.study), vars(EvalSettings())
        counts = {
            f"study.{name}": chosen[name]
            for name in ("texts", "completions")
            if chosen[name] != usual[name]
        }
        _refuse(counts, asked.teacher, teacher)
    study = studies.fitting(asked.study, teacher)
    real = held_out(asked.text, asked.teacher, teacher)
    shared = scene(asked.judge, real, teacher, study)
    check_length(asked.teacher, teacher, shared.real.shape[1])
    result_folder(asked.out)
    found: Mapping[str, list[studies.MeasuredRow]] = {}
    with progress() as (advance, _):
        for event in measure_both(teacher, student, shared):
            advance("measuring", event.done, event.total)
            found = event.rows
    doubts = [
        f"the {who} was trained on {share:.0%} of the held-out documents"
        for who, name in (("teacher", asked.teacher), ("student", asked.student))
        if (share := share_read(name, real.data, real.whole))
    ]
    result = conclude(found, doubts) | shown(teacher, student, study, shared.real)
    result |= {
        "title": f"{asked.student} against {asked.teacher}",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "seed": study.seed,
        "held_out": real_words(real),
    }
    write_text(asked.out / REPORT, dumps(result, indent=1) + "\n")
    if asked.json:
        emit(result)
        return 0
    for name, measured in found.items():
        show(name.replace("_", " "), measured)
    say(f"{protocol_words(shared.protocol, (study.seed,))} {result['held_out']}")
    for sentence in result["verdict"]:
        say(sentence)
    say(f"`unmask report {asked.out}` draws the page")
    return 0


def scene(
    judge: str, real: HeldOut, model: Model | CausalModel, study: EvalSettings
) -> EvalContext:
    """What all rows share: judge, real rows in a fixed order, protocol."""
    reads = judge_named(judge, model.tokenizer, real.rows.shape[1], model.device)
    share = share_read(judge, real.data, real.whole)
    return EvalContext(
        study, reads, real.rows, real.digest, wrap=real.data.wrap, read_by_judge=share
    )


def real_words(real: HeldOut) -> str:
    """Where the real text comes from, in a sentence; the protocol has the numbers of its rows."""
    return f"Real text: {real.source}."


def show(title: str, measured: Sequence[studies.MeasuredRow]) -> None:
    """Rows as a table."""
    names = {
        "pooled_entropy": "pooled",
        "completion_disagreement": "disagree",
        "distinct_4": "distinct",
    }
    further = {MAUVE: "MAUVE", REVERSE: "reverse"}
    names |= {
        key: title for key, title in further.items() if any(key in m.row.measures for m in measured)
    }
    lines: list[list[object]] = []
    for row in (m.row for m in measured):
        values = [
            row.measures[name].value if name in row.measures else ""
            for name in ("gen_ppl", "entropy", *names)
        ]
        setting, sem = row.setting, row.measures["gen_ppl"].sem
        lines.append(
            [row.name, setting.steps, setting.nfe, setting.temperature, values[0], sem, *values[1:]]
        )
    table(
        title, ["", "steps", "calls", "temp.", "gen PPL", "sem", "entropy", *names.values()], lines
    )


def _masked(model: Model | CausalModel, name: str) -> Model:
    if not isinstance(model, Model):
        raise ValueError(
            f"a frontier compares diffusion models, and {name} is autoregressive: use `unmask eval samples`"
        )
    return model
