"""The files of a path that make up a corpus, and their kind, by their names.

A file is read whole or refused, whatever the case of its suffix. A folder holds documents of one kind. Other files
(pictures, settings, documents without a suffix of text) are left out of a folder of text.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["text", "lines", "parquet", "arrow", "saved"]

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
_READ: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".jl": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_SYNTAX = (
    ".json",
    ".xml",
    ".html",
    ".htm",
    ".xhtml",
)  # beside text they are settings and pages, and left out
_UNREAD = (
    ".csv",
    ".tsv",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".lz4",
    ".zip",
    ".tar",
    ".tgz",
    ".7z",
    ".feather",
    ".orc",
)
_ABOUT = (
    "readme",
    "license",
    "licence",
    "notice",
    "citation",
    "changelog",
    "contributing",
    "authors",
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = r"(?:[-._ ]?\d+)?(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]{8,})?"  # behind the name of a split


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus in the order of their paths, and their kind.

    kind  text, lines (a JSON object each), parquet, arrow, or saved (what `save_to_disk` made)
    """

    kind: Kind
    files: Sequence[Path]


def corpus_files(path: Path) -> CorpusFiles:
    """The contents of a file or folder; ValueError where it cannot be read, or only in part."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(
            f"corpus {path} is no file and no folder: give the text as a file, or a folder of files"
        )
    suffix = path.suffix.lower()
    if suffix in (*_SYNTAX, *_UNREAD):
        raise ValueError(
            f"corpus {path} is a {suffix} file, which is not read as text: {_remedy(suffix)}"
        )
    return CorpusFiles(_READ.get(suffix, "text"), [path])


def group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split: a split is the whole name of a file without its shard number, or of a folder above it.

    A word inside a longer name, such as `crash-test.parquet`, names no split. Where no file names a split, all of them
    are `train`. ValueError where some files name a split and others do not.
    """
    inside = [file.relative_to(folder) for file in files]
    named = [re.fullmatch(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*", os.fspath(file)) for file in inside]
    found = [
        match[1] if match and all(named) else _split(file)
        for match, file in zip(named, inside, strict=True)
    ]
    without = [os.fspath(file) for file, split in zip(inside, found, strict=True) if split is None]
    if 0 < len(without) < len(files):
        which = next(
            os.fspath(file) for file, split in zip(inside, found, strict=True) if split is not None
        )
        raise ValueError(
            f"corpus {folder} has files with the name of a split, such as {which}, and {len(without)} without one that "
            f"would be left out: {abbreviated(without)}; name these train-1, train-2 and so on, or move them elsewhere"
        )
    splits: dict[str, list[Path]] = {}
    for file, split in zip(files, found, strict=True):
        splits.setdefault(split or "train", []).append(file)
    return splits


def abbreviated(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _split(file: Path) -> str | None:
    """The split that a file belongs to by its own name, else by the nearest folder with such a name."""
    own = re.fullmatch(rf"({'|'.join(_SPLITS)}){_SHARD}", file.stem, re.IGNORECASE)
    if own:
        return _SPLITS[own[1].lower()]
    return next(
        (_SPLITS[part.lower()] for part in reversed(file.parts[:-1]) if part.lower() in _SPLITS),
        None,
    )


def _folder(folder: Path) -> CorpusFiles:
    if any((folder / name).exists() for name in SAVED):
        return CorpusFiles("saved", [folder])
    try:
        files = sorted(_visible(folder))
    except OSError as error:
        raise ValueError(f"corpus {folder} cannot be read: {error}") from error
    groups: dict[str, list[Path]] = {}
    for file in files:
        suffix = file.suffix.lower()
        groups.setdefault(_READ.get(suffix) or (suffix if suffix in _UNREAD else ""), []).append(
            file
        )
    beside = groups.pop("", [])
    about = [file for file in groups.get("text", []) if file.stem.lower() in _ABOUT]
    if len(groups) > 1 and about == groups.get("text"):
        del groups["text"]  # a README describes the other files
    if not groups:
        held = _counted(beside) if beside else "no file at all"
        syntax = next(
            (suffix for file in beside if (suffix := file.suffix.lower()) in _SYNTAX), None
        )
        raise ValueError(
            f"corpus {folder} has no file that is read (.txt, .md, .py, .jsonl, .parquet): it holds {held}"
            + (f"; {_remedy(syntax)}" if syntax else "")
        )
    if len(groups) > 1:
        raise ValueError(
            f"corpus {folder} mixes files of several kinds, and files of one kind are read: "
            f"{_counted([*chain.from_iterable(groups.values())])}; give each kind a folder of its own"
        )
    ((kind, found),) = groups.items()
    suffix = found[0].suffix.lower()
    if kind == "arrow" or kind in _UNREAD:
        raise ValueError(
            f"corpus {folder} holds {_counted(found)}, which is not read: {_remedy(suffix)}"
        )
    return CorpusFiles(_READ[suffix], found)


def _visible(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and the folders below it, also behind links; hidden ones are left out."""
    here = folder.resolve()
    for entry in (
        sorted(folder.iterdir()) if here not in above else ()
    ):  # a link to a folder above ends nowhere
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise ValueError(
                f"corpus {folder} has a link to nothing, {entry}: remove it, or fetch the file"
            )
        if entry.is_dir():
            yield from _visible(entry, above | {here})
        elif entry.is_file():
            yield entry


def _counted(files: Sequence[Path]) -> str:
    """How many files of each suffix there are, the first of them by name."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    first = {file.suffix.lower() or "without suffix": file.name for file in reversed(files)}
    return ", ".join(f"{n} {suffix} ({first[suffix]})" for suffix, n in counts.most_common(5))


def _remedy(suffix: str) -> str:
    """How such a file becomes a corpus."""
    if suffix in (".csv", ".tsv", ".json"):
        reader = "json" if suffix == ".json" else "csv"
        more = ', sep="\\t"' if suffix == ".tsv" else ""
        return (
            f"write a JSON object with a field text a line (.jsonl), or a parquet file, with "
            f'`datasets.load_dataset("{reader}", data_files=FILE{more}, split="train").to_parquet("text.parquet")`'
        )
    if suffix == ".arrow":
        return "give one .arrow file, parquet files, or what `datasets.save_to_disk` makes"
    if suffix in (".xml", ".html", ".htm", ".xhtml"):
        return "take the text out of its marks first, and write .txt or .jsonl"
    return "unpack it, and give its files (.txt, .jsonl or .parquet)"
