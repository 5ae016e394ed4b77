"""`unmask eval`: evidence about models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from unmask.cli.console import emit, parse, progress, say, table
from unmask.evaluation.likelihood import Convention, nelbo_ppl, next_token_ppl
from unmask.models.pretrained import CausalModel, Model, load
from unmask.recipes import study as studies
from unmask.recipes.build import documents, rows
from unmask.recipes.judge import judge_named
from unmask.recipes.schema import Data, Part
from unmask.recipes.study import Scene, Study

USAGE = """usage: unmask eval likelihood MODEL [...]   perplexity of held-out text (a bound for diffusion models)
       unmask eval samples MODEL --judge J [...]   generative perplexity with entropy, at some step counts
       unmask eval frontier STUDENT TEACHER --judge J [...]   both, over temperatures"""


@dataclass(frozen=True)
class Text:
    """Held-out text: a corpus by name, file or folder; `part` of its documents; rows of `length` (the model's)."""

    corpus: str = "sotu"
    part: Part = "all"
    length: int | None = None


@dataclass(frozen=True)
class Likelihood:
    """exp of the mean nats a token of held-out rows.

    convention  "bound": a true bound, alpha ~ U(0, 1); "mdlm": as published tables, t >= 1e-3 (below the bound)
    passes      noise levels a row
    """

    model: Annotated[str, tyro.conf.Positional]
    text: Text = field(default_factory=Text)
    convention: Convention = "bound"
    passes: int = 4
    limit: int = 512
    seed: int = 0
    json: bool = False


@dataclass(frozen=True)
class Samples:
    """Measures of drawn texts under a judge: a run or model directory, a Hugging Face model, or "smollm2"."""

    model: Annotated[str, tyro.conf.Positional]
    judge: str
    text: Text = field(default_factory=Text)
    study: Study = field(default_factory=Study)
    temperatures: tuple[float, ...] = (1.0,)
    json: bool = False


@dataclass(frozen=True)
class Frontier:
    """Gen PPL and entropy of student and teacher over steps and temperatures; writes frontier.json to `out`."""

    student: Annotated[str, tyro.conf.Positional]
    teacher: Annotated[str, tyro.conf.Positional]
    judge: str
    out: Path = Path("runs/frontier")
    text: Text = field(default_factory=Text)
    study: Study = field(default_factory=Study)
    json: bool = False


def main(verb: str, arguments: Sequence[str]) -> int:
    verbs = {"likelihood": likelihood, "samples": samples, "frontier": frontier}
    if not arguments or arguments[0] not in verbs:
        say(USAGE)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    return verbs[arguments[0]](arguments[1:])


def likelihood(arguments: Sequence[str]) -> int:
    asked = parse(Likelihood, "eval likelihood", arguments)
    model = load(asked.model)
    x0 = held_out(asked.text, model)[0][: asked.limit]
    if isinstance(model, Model):
        generator = torch.Generator().manual_seed(asked.seed)
        value = nelbo_ppl(
            model.denoiser, model.process, x0, convention=asked.convention, passes=asked.passes, generator=generator
        )
        note = "upper bound" if asked.convention == "bound" else "convention of MDLM's tables, not a bound"
    else:
        value, note = next_token_ppl(model.predictor, x0), "exact, after the first token of each row"
    protocol = f"{note}; {len(x0)} rows of {x0.shape[1]} tokens, {asked.text.corpus}, seed {asked.seed}"
    if asked.json:
        emit({"perplexity": asdict(value), "protocol": protocol})
    else:
        say(f"{value} [{protocol}]")
    return 0


def samples(arguments: Sequence[str]) -> int:
    asked = parse(Samples, "eval samples", arguments)
    model = load(asked.model)
    found = []
    with progress() as (advance, _):
        measured = studies.measure(
            "samples",
            model,
            scene(asked.judge, asked.text, model, asked.study),
            asked.study.student_steps,
            asked.temperatures,
        )
        for done, m in enumerate(measured, start=1):
            found.append(m)
            advance("measuring", done, len(asked.study.student_steps) * len(asked.temperatures))
    if asked.json:
        emit([m.to_json() for m in found])
    else:
        show("samples", found)
    return 0


def frontier(arguments: Sequence[str]) -> int:
    asked = parse(Frontier, "eval frontier", arguments)
    student, teacher = (_masked(load(name), name) for name in (asked.student, asked.teacher))
    shared = scene(asked.judge, asked.text, teacher, asked.study)
    found: Mapping[str, list[studies.Measured]] = {}
    with progress() as (advance, _):
        for event in studies.frontier(teacher, student, shared):
            advance("measuring", event.done, event.total)
            found = event.rows
    result = studies.conclude(found)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "frontier.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if asked.json:
        emit(result)
        return 0
    for name, measured in found.items():
        show(name.replace("_", " "), measured)
    for sentence in result["verdict"]:
        say(sentence)
    return 0


def held_out(text: Text, model: Model | CausalModel) -> tuple[torch.Tensor, str]:
    """Held-out rows [n, L] in the model's tokens, and the digest of their text."""
    if model.tokenizer is None:
        raise ValueError("text is measured in tokens, and this model's directory has no tokenizer: save it with one")
    part = documents(Data(text.corpus, text.part)).held_out
    return rows(part, model.tokenizer, text.length or model.network.shape.length), part.digest


def scene(judge: str, text: Text, model: Model | CausalModel, study: Study) -> Scene:
    """What all rows share: judge, real rows in a fixed order, protocol."""
    real, digest = held_out(text, model)
    return Scene(study, judge_named(judge, model.tokenizer, real.shape[1]), real, digest)


def show(title: str, measured: Sequence[studies.Measured]) -> None:
    """Rows as a table, with the protocol that they share."""
    names = ("gen_ppl", "entropy", "pooled_entropy", "completion_disagreement", "repetition_4", "distinct_4")
    lines: list[list[object]] = []
    for row in (m.row for m in measured):
        values = [row.measures[name].value if name in row.measures else "" for name in names]
        sem = row.measures["gen_ppl"].sem
        lines.append([row.setting.steps, row.setting.nfe, row.setting.temperature, values[0], sem, *values[1:]])
    table(title, ["steps", "calls", "temperature", names[0], "sem", *names[1:]], lines)
    protocol = measured[0].row.protocol
    say(
        f"judge {protocol.judge.name} {protocol.judge.revision}, n = {protocol.samples}, L = {protocol.length}, "
        f"draws in {protocol.precision}, data {protocol.data[:12]}, seeds {measured[0].row.setting.seeds}"
    )


def _masked(model: Model | CausalModel, name: str) -> Model:
    if not isinstance(model, Model):
        raise ValueError(
            f"a frontier compares diffusion models, and {name} is autoregressive: use `unmask eval samples`"
        )
    return model
