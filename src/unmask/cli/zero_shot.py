"""`unmask eval zero-shot`: perplexity of texts of other kinds, set by set."""

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
from unmask.evaluation.scoring_rules import ScoringRule
from unmask.models.model import load
from unmask.recipes.held_out import Limit, ends, require_tokenizer, wraps

_PACKAGE_CORPORA = "unmask.experiments.package_corpora"  # loaded by name
_packages = import_module(_PACKAGE_CORPORA)
OFFLINE = "offline"  # all sets whose files are present
OFFLINE_SETS: tuple[str, ...] = (*_packages.OFFLINE, _packages.CODE)


@dataclass(frozen=True)
class ZeroShot:
    """Measure the perplexity of texts unlike the training text: exp of the mean nats per token.

    Attributes:
        model: run or model directory, hub id, unmask:teacher or unmask:judge
        sets: names of data sets. From the hub, as in the tables of MDLM and Duo: ptb, wikitext,
            lm1b, lambada, ag_news, pubmed, arxiv. From packages: brown_news, brown_religion,
            brown_science, brown_fiction, wikipedia, austen, kjv, code. offline: all sets from
            packages whose files are present
        texts: directory of the packages that `make texts` fetches
        length: tokens per row; None: the model's
        wrap: True: rows with BOS and EOS at their ends, as in the published tables. False: plain
            crops of L tokens. None: as in the model's card, or True if it has no card
        effort: size and settings of the measurement
        device: device of the model
        json: print JSON
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
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
class SetResult:
    """The result on one set: `rows` of its `of` rows were measured."""

    name: str
    rows: int
    of: int
    perplexity: Measure
    bits_per_byte: Measure
    digest: str

    def __str__(self) -> str:
        read = f"{self.rows} of {self.of} rows; data {self.digest[:8]}"
        return f"{self.name}: {self.perplexity}, {self.bits_per_byte}; {read}"


def main(verb: str, arguments: Sequence[str]) -> int:
    options = parse(ZeroShot, verb, arguments)
    names, missing = resolve_sets(options.sets, options.texts)
    model = load(options.model, device=options.device)
    tokenizer, wrap = require_tokenizer(model), wraps(model, options.wrap, True)
    length = model.length if options.length is None else options.length
    check_length(options.model, model, length)
    rule, limit = options.effort.scoring_rule(model, wrap), options.effort.limit
    rows = "all rows" if limit == "all" else f"at most {limit} rows, spread evenly,"
    protocol = (
        f"{rule.words}; {rows} of each set, {length} tokens each; {ends(wrap)}; "
        "nothing between documents"
    )
    remark(f"measuring {', '.join(names)} [{protocol}]")
    if missing:
        remark(
            f"sets left out: {', '.join(missing)}; their files are not in {options.texts}, "
            "`make texts` fetches them"
        )
    sets, results = load_sets(names, options.texts), list[SetResult]()
    try:
        for result in measure_sets(sets, rule, tokenizer, length, wrap, limit):
            results.append(result)
            if not options.json:
                say(str(result))
    finally:  # also after an interruption
        if results and options.json:
            values = {
                "sets": [asdict(result) for result in results],
                "not measured": names[len(results) :],
                "missing": missing,
                "protocol": protocol,
            }
            emit(values)
        elif results:
            say(f"[{protocol}]")
    return 0


def resolve_sets(sets: Sequence[str], folder: Path) -> tuple[list[str], list[str]]:
    """The names of the sets to measure, and of the offline sets that `folder` lacks."""
    allowed = [*ZERO_SHOT, *OFFLINE_SETS, OFFLINE]
    if unknown := sorted({*sets} - {*allowed}):
        raise ValueError(
            f"sets has unknown names: got {', '.join(unknown)}, want some of {', '.join(allowed)}"
        )
    present = _packages.present(folder) if OFFLINE in sets else []
    names = dict.fromkeys(
        name for given in sets for name in (present if given == OFFLINE else [given])
    )
    return list(names), [name for name in OFFLINE_SETS if OFFLINE in sets and name not in names]


def load_sets(names: Sequence[str], folder: Path) -> list[Corpus]:
    """Load all sets first, so that a missing one fails before hours of measuring."""
    sets: list[Corpus] = []
    with progress() as (advance, _):
        for name in names:
            advance("reading", len(sets), len(names))
            hub = name in ZERO_SHOT
            sets.append(load_zero_shot(name) if hub else _packages.load_offline(name, folder))
        advance("reading", len(names), len(names))
    return sets


def measure_sets(
    sets: Sequence[Corpus],
    rule: ScoringRule,
    tokenizer: Tokenizer,
    length: int,
    wrap: bool,
    limit: Limit,
) -> Iterator[SetResult]:
    """Yield the result on each set.

    Args:
        sets: the sets.
        rule: the scoring rule of the model.
        tokenizer: the model's tokenizer.
        length: tokens per row.
        wrap: rows with BOS and EOS at their ends.
        limit: maximum rows per set.
    """
    for corpus in sets:
        remark(f"{corpus.name}: encoding {len(corpus.documents):,} documents")
        rows = zero_shot_rows(corpus, tokenizer, length, wrap=wrap)
        x0 = rows if limit == "all" else rows[evenly_spaced(len(rows), limit)]
        sizes = text_bytes(x0[:, 1:-1] if wrap else x0, tokenizer)
        scores = replace(scored(rule, x0, corpus.name), bytes=sizes)
        yield SetResult(
            corpus.name,
            len(x0),
            len(rows),
            perplexity(scores, rule.unit),
            bits_per_byte(scores),
            corpus.digest,
        )


def text_bytes(x0: Tensor, tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes of each row's text, int64 [n]."""
    return torch.tensor([len(tokenizer.decode(row).encode()) for row in x0.tolist()])
