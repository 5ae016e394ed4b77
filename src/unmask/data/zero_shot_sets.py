"""The seven data sets for zero-shot perplexity of models trained on OpenWebText.

Splits, detokenisers and rows are those of Duo's code (arXiv 2506.10892) with one process. Documents
are joined in batches of 1000 with nothing between them, and cut into rows of [BOS] + L - 2 tokens +
[EOS]. The rest of a batch is dropped, and both ends of a row are scored. With more processes Duo's
code drops more text, up to all of PTB. The published tables do not state their number of processes.
(MDLM's public code puts EOS between documents. Its published table was made without EOS.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.data.corpora import HUB_CORPORA, Corpus
from unmask.data.hf_datasets import text_documents
from unmask.data.packing import pack
from unmask.data.tokenizers import Tokenizer

BATCH = 1000  # documents that are joined: the batch size of `datasets.map`
# Pairs of a string or pattern and its replacement, applied in order.
Rules: TypeAlias = tuple[tuple[str | re.Pattern[str], str], ...]


def detokenised(text: str, rules: Rules) -> str:
    """Restore the usual spacing of a text that was divided into words for another tokenizer.

    >>> detokenised("the cat 's tail , red .", PTB)
    "the cat's tail , red ."
    """
    for old, new in rules:
        text = text.replace(old, new) if isinstance(old, str) else old.sub(new, text)
    return text


WIKITEXT: Rules = (
    ("s '", "s'"),
    # A mistake of all published codes: they meant the second string to be a pattern.
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),
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
    *(((" N ", " 1 "),) * 10),  # adjacent N share a space
    ("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?"),
)  # fmt: skip
LM1B: Rules = (
    ("http : / / ", "http://"), ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "), (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "), (re.compile(r" \?$"), "?"), (" ! ", "! "), (re.compile(r" !$"), "!"),
    (" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/"),
    *((re.compile(rf"{a} ([^{b}]+) {c}"), rf"{d}\1{e}")
      for a, b, c, d, e in (('"', '"', '"', '"', '"'), ("'", "'", "'", "'", "'"),
                            (r"\(", r"\(\)", r"\)", "(", ")"), (r"\[", r"\[\]", r"\]", "[", "]"))),
    ("$ ", "$"), ("£ ", "£"),
)  # fmt: skip


@dataclass(frozen=True)
class ZeroShotSet:
    """A data set, and the rules for reading its text.

    Attributes:
        path: an argument of `datasets.load_dataset`, like `split`, `name`, `revision` and `files`.
        column: the column of the text.
        rules: the replacements of its detokeniser.
        before: put before each document, which is stripped first; None: documents are unchanged.
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
        """The detokenised text of a document, with `before`."""
        plain = detokenised(document, self.rules)
        return plain if self.before is None else self.before + plain.strip()


def _converted(path: str, split: str, column: str, rules: Rules, files: str) -> ZeroShotSet:
    """A set whose loading script no longer runs. The hub holds CONFIG/SPLIT/*.parquet of it."""
    pattern = {split: f"{files}/*{split}/*.parquet"}
    return ZeroShotSet(path, split, column, rules, revision="refs/convert/parquet", files=pattern)


_LM1B, _PAPERS = HUB_CORPORA["lm1b"], ("armanc/scientific_papers", "validation", "article")
_LAMBADA = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
_QUOTES = (("“", '"'), ("”", '"'))
ZERO_SHOT: Mapping[str, ZeroShotSet] = MappingProxyType(
    {
        "ptb": _converted(
            "ptb-text-only/ptb_text_only", "validation", "sentence", PTB, "penn_treebank"
        ),
        "wikitext": ZeroShotSet(
            "Salesforce/wikitext", "validation", "text", WIKITEXT, name="wikitext-103-raw-v1"
        ),
        "lm1b": ZeroShotSet(_LM1B.path, "test", "text", LM1B, revision=_LM1B.revision),
        "lambada": ZeroShotSet("json", "train", "text", _QUOTES, files=_LAMBADA, before="\n"),
        "ag_news": ZeroShotSet("fancyzhx/ag_news", "test", "text"),
        "pubmed": _converted(*_PAPERS, WIKITEXT + LM1B, "pubmed"),
        "arxiv": _converted(*_PAPERS, WIKITEXT + LM1B, "arxiv"),
    }
)


def load_zero_shot(name: str) -> Corpus:
    """Load the documents of one of the seven sets; ValueError if that fails."""
    from datasets import load_dataset

    if name not in ZERO_SHOT:
        raise ValueError(f"zero-shot set {name!r} is unknown: want one of {', '.join(ZERO_SHOT)}")
    source = ZERO_SHOT[name]
    try:
        table = load_dataset(
            source.path,
            source.name,
            split=source.split,
            revision=source.revision,
            data_files=source.files,
        )
    except Exception as error:  # `datasets` passes on all errors of its readers and transports
        where = source.files if isinstance(source.files, str) else source.path
        raise ValueError(
            f"the zero-shot set {name!r} ({where}, split {source.split}) could not be loaded: "
            f"{error}. Check the network, or measure on the sets of `--sets offline`"
        ) from error
    if source.column not in table.column_names:
        raise ValueError(
            f"the zero-shot set {name!r} ({source.path}) has no column {source.column!r}: got "
            f"{', '.join(table.column_names)}; its format may have changed"
        )
    documents = text_documents(table, source.column, f"the zero-shot set {name!r}")
    return Corpus(name, [source.text(document) for document in documents])


def zero_shot_rows(
    corpus: Corpus, tokenizer: Tokenizer, length: int, batch: int = BATCH, wrap: bool = True
) -> Tensor:
    """Make the rows of a set as in the published tables, int64 [n, L].

    Args:
        corpus: the documents.
        tokenizer: the tokenizer of the model.
        length: L.
        batch: number of documents that are joined.
        wrap: put BOS and EOS at the ends of a row; False: for models trained without them.

    Raises:
        ValueError: the set does not fill one row, or the tokenizer has no EOS for `wrap`.
    """
    if wrap and tokenizer.eos_id is None:
        raise ValueError(
            "wrap needs EOS at the ends of rows, but this tokenizer has no EOS: use wrap=False"
        )
    body = length - 2 if wrap else length
    rows = []
    for documents in _batches(corpus.texts, batch):
        ids = list(chain.from_iterable(tokenizer.encode_batch(documents)))
        if len(ids) >= body:
            rows.append(pack([ids], length, tokenizer.eos_id, wrap, tokenizer.bos_id))
    if not rows:
        raise ValueError(
            f"length is too large: got {length}, but no {batch} adjacent documents of "
            f"{corpus.name} have {body} tokens; give a smaller length"
        )
    return torch.cat(rows)


def _batches(documents: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, size)):
        yield batch
