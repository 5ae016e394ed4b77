"""`unmask eval`: evidence about models."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from unmask import __version__
from unmask.cli.console import emit, parse, progress, say, table
from unmask.evaluation.likelihood import Convention, nelbo_ppl, next_token_ppl
from unmask.evaluation.measure import protocol_words
from unmask.files import write_text
from unmask.models.pretrained import CausalModel, Model, load
from unmask.recipes import study as studies
from unmask.recipes.build import documents, rows, trained_on
from unmask.recipes.experiment import REPORT
from unmask.recipes.judge import judge_named
from unmask.recipes.schema import Data, Part
from unmask.recipes.study import Scene, Study, device_of

USAGE = """usage: unmask eval likelihood MODEL [...]   perplexity of held-out text (a bound for diffusion models)
       unmask eval samples MODEL --judge J [...]   generative perplexity with entropy, at some step counts
       unmask eval frontier STUDENT TEACHER --judge J [...]   both, over temperatures"""


@dataclass(frozen=True)
class Text:
    """Held-out text; by default that of the documents which the model (of two: the teacher) was trained on.

    corpus  a corpus by name, a file or a folder
    part    which documents
    length  tokens of a row (the model's)
    """

    corpus: str | None = None
    part: Part | None = None
    length: int | None = None


@dataclass(frozen=True)
class Likelihood:
    """exp of the mean nats a token of held-out rows.

    model       a run or model directory, a hub id, unmask:teacher or unmask:judge
    text        what it is measured on
    seed        of the noise
    json        print JSON
    convention  "bound": a true bound, alpha ~ U(0, 1); "mdlm": as published tables, t >= 1e-3 (below the bound)
    passes      noise levels a row
    limit       rows at most
    device      where the model runs
    """

    model: Annotated[str, tyro.conf.Positional]
    text: Text = field(default_factory=Text)
    convention: Convention = "bound"
    passes: int = 4
    limit: int = 512
    seed: int = 0
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Samples:
    """Measures of drawn texts under a judge.

    model               a run or model directory, a hub id, or unmask:teacher
    text                real texts: for completions, and whose length the samples have
    temperatures        rows: see steps
    samples             texts a row
    seed                of the latents
    json                print JSON
    judge               a run or model directory, unmask:judge, a Hugging Face model, or "smollm2"
    steps               rows: each step count with each temperature (an autoregressive model takes a call a token)
    texts, completions  half-masked real texts, and how often each is completed (completion disagreement)
    batch_size          samples a network call at most
    device              where model and judge run
    """

    model: Annotated[str, tyro.conf.Positional]
    judge: str
    text: Text = field(default_factory=Text)
    steps: tuple[int, ...] = Study().student_steps
    temperatures: tuple[float, ...] = (1.0,)
    samples: int = Study().samples
    seed: int = Study().seed
    texts: int = Study().texts
    completions: int = Study().completions
    batch_size: int = Study().batch_size
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Frontier:
    """Gen PPL and entropy of student and teacher over steps and temperatures; `unmask report OUT` draws the page.

    student, teacher  a run or model directory, a hub id, or unmask:teacher
    text    held-out text: the target that is drawn beside the teacher's
    study   what is measured
    json    print JSON
    judge   a run or model directory, unmask:judge, a Hugging Face model, or "smollm2"
    out     where report.json goes
    device  where models and judge run
    """

    student: Annotated[str, tyro.conf.Positional]
    teacher: Annotated[str, tyro.conf.Positional]
    judge: str
    out: Path = Path("runs/frontier")
    text: Text = field(default_factory=Text)
    study: Study = field(default_factory=Study)
    device: str = "cpu"
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    verbs = {"likelihood": likelihood, "samples": samples, "frontier": frontier}
    if not arguments or arguments[0] not in verbs:
        say(USAGE)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    return verbs[arguments[0]](arguments[1:])


def likelihood(arguments: Sequence[str]) -> int:
    asked = parse(Likelihood, "eval likelihood", arguments)
    model = load(asked.model, device=asked.device)
    data = text_of(asked.text, asked.model)
    x0 = held_out(data, asked.text.length, model)[0][: asked.limit].to(asked.device)
    if isinstance(model, Model):
        generator = torch.Generator(asked.device).manual_seed(asked.seed)
        value = nelbo_ppl(
            model.denoiser, model.process, x0, convention=asked.convention, passes=asked.passes, batch_size=64,
            generator=generator,
        )  # fmt: skip
        note = "upper bound" if asked.convention == "bound" else "convention of MDLM's tables, not a bound"
    else:
        value, note = next_token_ppl(model.predictor, x0), "exact, after the first token of each row"
    protocol = f"{note}; {len(x0)} rows of {x0.shape[1]} tokens, {data.part} of {data.corpus}, seed {asked.seed}"
    if asked.json:
        emit({"perplexity": asdict(value), "protocol": protocol})
    else:
        say(f"{value} [{protocol}]")
    return 0


def samples(arguments: Sequence[str]) -> int:
    asked = parse(Samples, "eval samples", arguments)
    if not (asked.steps and asked.temperatures):
        raise ValueError("a row has a step count and a temperature: want at least one of both")
    model = load(asked.model, device=asked.device)
    study = Study(
        samples=asked.samples, seed=asked.seed, texts=asked.texts, completions=asked.completions,
        batch_size=asked.batch_size,
    )  # fmt: skip
    shared = scene(asked.judge, text_of(asked.text, asked.model), asked.text.length, model, study)
    steps = asked.steps if isinstance(model, Model) else (shared.real.shape[1],)
    found = []
    with progress() as (advance, _):
        for done, m in enumerate(studies.measure("samples", model, shared, steps, asked.temperatures), start=1):
            found.append(m)
            advance("measuring", done, len(steps) * len(asked.temperatures))
    if asked.json:
        emit([m.to_json() for m in found])
    else:
        show("samples", found)
        say(protocol_words(found[0].row.protocol, found[0].row.setting.seeds))
    return 0


def frontier(arguments: Sequence[str]) -> int:
    asked = parse(Frontier, "eval frontier", arguments)
    student, teacher = (_masked(load(name, device=asked.device), name) for name in (asked.student, asked.teacher))
    shared = scene(asked.judge, text_of(asked.text, asked.teacher), asked.text.length, teacher, asked.study)
    found: Mapping[str, list[studies.Measured]] = {}
    with progress() as (advance, _):
        for event in studies.frontier(teacher, student, shared):
            advance("measuring", event.done, event.total)
            found = event.rows
    result = studies.conclude(found) | {
        "title": f"{asked.student} against {asked.teacher}",
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "seed": asked.study.seed,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    write_text(asked.out / REPORT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if asked.json:
        emit(result)
        return 0
    for name, measured in found.items():
        show(name.replace("_", " "), measured)
    say(protocol_words(shared.protocol, (asked.study.seed,)))
    for sentence in result["verdict"]:
        say(sentence)
    say(f"`unmask report {asked.out}` draws the page")
    return 0


def text_of(text: Text, name: str) -> Data:
    """The documents that a user asks for; by default those that the card of the model names."""
    if text.corpus is not None:
        return Data(text.corpus, text.part or "all")
    told = trained_on(name)
    if told is None:
        raise ValueError(f"{name} does not say which text it was trained on: give --text.corpus (and --text.part)")
    return Data(told.corpus, text.part or told.part)


def held_out(data: Data, length: int | None, model: Model | CausalModel) -> tuple[torch.Tensor, str]:
    """Held-out rows [n, L] in the model's tokens, and the digest of their text."""
    if model.tokenizer is None:
        raise ValueError("text is measured in tokens, and this model's directory has no tokenizer: save it with one")
    part = documents(data).held_out
    return rows(part, model.tokenizer, length or model.network.shape.length), part.digest


def scene(judge: str, data: Data, length: int | None, model: Model | CausalModel, study: Study) -> Scene:
    """What all rows share: judge, real rows in a fixed order, protocol."""
    real, digest = held_out(data, length, model)
    return Scene(study, judge_named(judge, model.tokenizer, real.shape[1], device_of(model)), real, digest)


def show(title: str, measured: Sequence[studies.Measured]) -> None:
    """Rows as a table."""
    names = {"pooled_entropy": "pooled", "completion_disagreement": "disagree", "distinct_4": "distinct"}
    lines: list[list[object]] = []
    for row in (m.row for m in measured):
        values = [row.measures[name].value if name in row.measures else "" for name in ("gen_ppl", "entropy", *names)]
        setting, sem = row.setting, row.measures["gen_ppl"].sem
        lines.append([row.name, setting.steps, setting.nfe, setting.temperature, values[0], sem, *values[1:]])
    table(title, ["", "steps", "calls", "temp.", "gen PPL", "sem", "entropy", *names.values()], lines)


def _masked(model: Model | CausalModel, name: str) -> Model:
    if not isinstance(model, Model):
        raise ValueError(
            f"a frontier compares diffusion models, and {name} is autoregressive: use `unmask eval samples`"
        )
    return model
