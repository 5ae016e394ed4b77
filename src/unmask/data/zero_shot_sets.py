"""The seven sets of text on which models of OpenWebText are measured without having learnt from them.

Splits, detokenisers and rows are those of Duo's code (arXiv 2506.10892) with one process: documents are joined in
batches of 1000 with nothing between them, cut into rows of [BOS] + L - 2 tokens + [EOS], what is left over at the end
of a batch is dropped, and both ends of a row are scored. With more processes that code drops more, up to all of PTB;
how many made the published tables is not known. (MDLM's public code puts an EOS between documents, its table did not.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.data.corpora import HUB_CORPORA, Corpus
from unmask.data.hf_datasets import DatasetDocuments, check_text
from unmask.data.packing import pack
from unmask.data.tokenizers import Tokenizer

BATCH = 1000  # documents that are joined: of `datasets.map`
Rules: TypeAlias = tuple[
    tuple[str | re.Pattern[str], str], ...
]  # (what, by what), one after the other


def detokenised(text: str, rules: Rules) -> str:
    """A text whose words were set apart for another tokenizer, written as people write.

    >>> detokenised("the cat 's tail , red .", PTB)
    "the cat's tail , red ."
    """
    for what, by in rules:
        text = text.replace(what, by) if isinstance(what, str) else what.sub(by, text)
    return text


WIKITEXT: Rules = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),  # a slip that all these codes share: it was to be a pattern
    (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    *((re.compile(rf"{a}\s*([^{b}]*?)\s*{b}"), rf"{c}\1{d}")
      for a, b, c, d in ((r"\(", r"\)", "(", ")"), (r"\[", r"\]", "[", "]"), ("{", "}", "{", "}"),
                         ('"', '"', '"', '"'), ("'", "'", "'", "'"))),
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip
PTB: Rules = (
    (" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/"),
    *(((" N ", " 1 "),) * 10),  # neighbours share a blank
    ("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?"),
)  # fmt: skip
LM1B: Rules = (
    ("http : / / ", "http://"), ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"), (re.compile(r" (\w+) \. "), r" \1. "), (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "), (re.compile(r" \?$"), "?"), (" ! ", "! "), (re.compile(r" !$"), "!"),
    (" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/"),
    *((re.compile(rf"{a} ([^{b}]+) {c}"), rf"{d}\1{e}")
      for a, b, c, d, e in (('"', '"', '"', '"', '"'), ("'", "'", "'", "'", "'"),
                            (r"\(", r"\(\)", r"\)", "(", ")"), (r"\[", r"\[\]", r"\]", "[", "]"))),
    ("$ ", "$"), ("£ ", "£"),
)  # fmt: skip


@dataclass(frozen=True)
class ZeroShotSet:
    """Where a set is, and how its text is read.

    path, name, revision, split, files  arguments of `datasets.load_dataset`; files by pattern where only they are read
    column  of the text
    rules   of its detokeniser; `before` stands in front of each stripped document (None: it is not stripped)
    """

    path: str
    split: str
    column: str
    rules: Rules = ()
    name: str | None = None
    revision: str | None = None
    files: str | Mapping[str, str] | None = None
    before: str | None = None

    def text(self, document: str) -> str:
        """A document as it is tokenized."""
        plain = detokenised(document, self.rules)
        return plain if self.before is None else self.before + plain.strip()


PARQUET = "refs/convert/parquet"  # CONFIG/SPLIT/*.parquet: the hub's copy of sets that were scripts, which no longer run
ZERO_SHOT: Mapping[str, ZeroShotSet] = MappingProxyType(
    {
        "ptb": ZeroShotSet("ptb-text-only/ptb_text_only", "validation", "sentence", PTB, revision=PARQUET,
                            files={"validation": "penn_treebank/*validation/*.parquet"}),
        "wikitext": ZeroShotSet("Salesforce/wikitext", "validation", "text", WIKITEXT, name="wikitext-103-raw-v1"),
        "lm1b": ZeroShotSet(HUB_CORPORA["lm1b"].path, "test", "text", LM1B, revision=HUB_CORPORA["lm1b"].revision),
        "lambada": ZeroShotSet(
            "json", "train", "text", (("“", '"'), ("”", '"')), before="\n",
            files="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        ),
        "ag_news": ZeroShotSet("fancyzhx/ag_news", "test", "text"),
        "pubmed": ZeroShotSet(
            "armanc/scientific_papers", "validation", "article", WIKITEXT + LM1B, revision=PARQUET,
            files={"validation": "pubmed/*validation/*.parquet"},
        ),
        "arxiv": ZeroShotSet(
            "armanc/scientific_papers", "validation", "article", WIKITEXT + LM1B, revision=PARQUET,
            files={"validation": "arxiv/*validation/*.parquet"},
        ),
    }
)  # fmt: skip


def load_zero_shot(name: str) -> Corpus:
    """The documents of one of the seven sets, through `datasets`; ValueError in plain words where it cannot be had."""
    from datasets import load_dataset

    if name not in ZERO_SHOT:
        raise ValueError(f"no zero-shot set is called {name!r}: want one of {', '.join(ZERO_SHOT)}")
    wanted = ZERO_SHOT[name]
    try:
        table = load_dataset(
            wanted.path,
            wanted.name,
            split=wanted.split,
            revision=wanted.revision,
            data_files=wanted.files,
        )
    except Exception as error:  # `datasets` passes on whatever its readers and transports raise
        where = wanted.files if isinstance(wanted.files, str) else wanted.path
        raise ValueError(
            f"the zero-shot set {name!r} ({where}, split {wanted.split}) could not be loaded: {error}. Is there a "
            "network? Without one, measure on the sets of `--sets offline`"
        ) from error
    if wanted.column not in table.column_names:
        raise ValueError(
            f"the zero-shot set {name!r} ({wanted.path}) has the columns {', '.join(table.column_names)}: want its "
            f"text in {wanted.column!r}; was it published again in another form?"
        )
    check_text(
        table.data.schema.field(wanted.column).type, wanted.column, f"the zero-shot set {name!r}"
    )
    documents = DatasetDocuments(table, wanted.column, range(len(table)))
    return Corpus(name, [wanted.text(document) for document in documents])


def zero_shot_rows(
    corpus: Corpus, tokenizer: Tokenizer, length: int, batch: int = BATCH, wrap: bool = True
) -> Tensor:
    """Rows int64 [n, L] of a set, as the published tables are made. ValueError where it does not fill one.

    wrap  False: plain crops of L tokens, for models that never read rows with BOS and EOS at their ends
    """
    if wrap and tokenizer.eos_id is None:
        raise ValueError(
            "wrap ends a row of a zero-shot set with EOS, and this tokenizer has none: give wrap = False"
        )
    body = length - 2 if wrap else length
    rows = []
    for documents in _batches(corpus.texts, batch):
        ids = tokenizer.encode_batch(documents)
        if sum(map(len, ids)) >= body:
            rows.append(
                pack(
                    ids, length, tokenizer.eos_id, wrap=wrap, bos_id=tokenizer.bos_id, between=False
                )
            )
    if not rows:
        raise ValueError(
            f"{corpus.name} has no {batch} documents in a row with {body} tokens: give a smaller length"
        )
    return torch.cat(rows)


def _batches(documents: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    left = iter(documents)
    while batch := list(islice(left, size)):
        yield batch
