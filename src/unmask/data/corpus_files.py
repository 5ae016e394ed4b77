"""The files of a corpus: the files of a path, their kind, and the documents of text files.

A file is read whole or refused, whatever the case of its suffix. A folder holds documents of one
kind; other files (pictures, settings, documents without a suffix of text) are left out of it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from unmask.data.tokenizer_files import END

# Text, a JSON object on each line, or a data set of one of three forms.
Kind: TypeAlias = Literal["text", "lines", "parquet", "arrow", "saved"]

SECTION = 4096  # characters: least size of the documents that a single text file is cut into
_SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes
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
# Refused as a corpus; left out of a folder of text, where they are settings and pages.
_SYNTAX = (".json", ".xml", ".html", ".htm", ".xhtml")
_REFUSED = ".csv .tsv .feather .orc .gz .bz2 .xz .zst .lz4 .zip .tar .tgz .7z".split()
# Files about a data set, by their names without suffix.
_ABOUT = "readme license licence notice citation changelog contributing authors".split()
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = r"(?:[-._ ]?\d+)?(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]{8,})?"  # after the name of a split


def corpus_files(path: Path) -> tuple[Kind, list[Path]]:
    """The kind of a file or folder, and its files in the order of their paths.

    The folder of `save_to_disk` is its own only file. ValueError if something cannot be read.
    """
    if path.is_dir():
        return _folder_files(path)
    if not path.is_file():
        raise ValueError(f"corpus {path} is neither a file nor a folder: give one of them")
    suffix = path.suffix.lower()
    if suffix in (*_SYNTAX, *_REFUSED):
        raise ValueError(f"corpus {path}: {suffix} files are not read as text; {_remedy(suffix)}")
    return _READ.get(suffix, "text"), [path]


def group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split of a data set; all are `train` if no file names a split.

    A split is the whole name of a file without its shard number, or of a folder above it. A word
    inside a longer name, such as `crash-test.parquet`, is not a split. ValueError if some files
    name a split and others do not.
    """
    names = [os.fspath(file.relative_to(folder)) for file in files]
    matches = [re.fullmatch(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*", name) for name in names]
    hub = [match[1] for match in matches if match]  # the layout of the hub, whatever its splits
    splits = hub if len(hub) == len(files) else [_split_of(Path(name)) for name in names]
    without = [name for name, split in zip(names, splits, strict=True) if split is None]
    if 0 < len(without) < len(files):
        named = next(name for name in names if name not in without)
        raise ValueError(
            f"corpus {folder}: some files name a split, such as {named}, and {len(without)} do not "
            f"and would be left out: {abbreviated(without)}; name these train-1, train-2 and so "
            "on, or move them elsewhere"
        )
    groups: dict[str, list[Path]] = {}
    for file, split in zip(files, splits, strict=True):
        groups.setdefault(split or "train", []).append(file)
    return groups


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file or folder of text, as they are in the files."""
    kind, files = corpus_files(path)
    if kind == "text" and not path.is_dir():
        yield from _sections(_text_not_json(path))
        return
    for file in files:
        if kind == "lines":
            yield from _json_lines(file)
        else:
            yield _read(file)


def abbreviated(names: Sequence[str]) -> str:
    """The first three names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _split_of(file: Path) -> str | None:
    """The split that a file's own name states, else the nearest folder of such a name."""
    own = re.fullmatch(rf"({'|'.join(_SPLITS)}){_SHARD}", file.stem, re.IGNORECASE)
    names = [own[1]] if own else reversed(file.parts[:-1])
    return next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), None)


def _folder_files(folder: Path) -> tuple[Kind, list[Path]]:
    if any((folder / name).exists() for name in _SAVED):
        return "saved", [folder]
    try:
        files = sorted(_visible_files(folder))
    except OSError as error:
        raise ValueError(f"corpus {folder} cannot be read: {error}") from error
    groups: dict[str, list[Path]] = {}  # by kind, or by suffix if it is refused
    for file in files:
        suffix = file.suffix.lower()
        group = _READ.get(suffix) or (suffix if suffix in _REFUSED else "")
        groups.setdefault(group, []).append(file)
    ignored = groups.pop("", [])
    if len(groups) > 1 and all(file.stem.lower() in _ABOUT for file in groups.get("text", ())):
        groups.pop("text", None)  # a README describes the other files
    if not groups:
        remedies = [f"; {_remedy(s)}" for f in ignored if (s := f.suffix.lower()) in _SYNTAX]
        raise ValueError(
            f"corpus {folder} has no file that is read (.txt, .md, .py, .jsonl, .parquet): "
            f"it holds {_counted(ignored)}{''.join(remedies[:1])}"
        )
    if len(groups) > 1:
        mixed = [file for group in groups.values() for file in group]
        raise ValueError(
            f"corpus {folder} mixes files of several kinds: {_counted(mixed)}; give each kind a "
            "folder of its own"
        )
    ((group, files),) = groups.items()
    suffix = files[0].suffix.lower()
    if group == "arrow" or group in _REFUSED:
        raise ValueError(
            f"corpus {folder} holds {_counted(files)}, which is not read: {_remedy(suffix)}"
        )
    return _READ[suffix], files


def _visible_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder, links followed; hidden files and folders are left out."""
    resolved = folder.resolve()
    if resolved in above:  # a link to a parent folder would never end
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise ValueError(f"corpus {folder}: {entry} is a broken link; remove or mend it")
        if entry.is_dir():
            yield from _visible_files(entry, above | {resolved})
        elif entry.is_file():
            yield entry


def _counted(files: Sequence[Path]) -> str:
    """The number of files of each suffix, and the name of the first one."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    first = {file.suffix.lower() or "without suffix": file.name for file in reversed(files)}
    parts = [f"{count} {suffix} ({first[suffix]})" for suffix, count in counts.most_common(5)]
    return ", ".join(parts) or "no file at all"


def _remedy(suffix: str) -> str:
    """How to make a corpus of a file of this suffix."""
    if suffix in (".csv", ".tsv", ".json"):
        reader = "json" if suffix == ".json" else "csv"
        separator = ', sep="\\t"' if suffix == ".tsv" else ""
        return (
            "write .jsonl, a JSON object with a field text on each line, or a parquet file, with "
            f'`datasets.load_dataset("{reader}", data_files=FILE{separator}, split="train")'
            '.to_parquet("text.parquet")`'
        )
    if suffix == ".arrow":
        return "give one .arrow file, parquet files, or the folder of `datasets.save_to_disk`"
    if suffix in _SYNTAX:
        return "extract its text first, and write .txt or .jsonl"
    return "unpack it, and give its files (.txt, .jsonl or .parquet)"


def _read(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 text (byte {error.start})"
    else:
        if "\0" not in text:
            return text
        fault = "is not text (it has a zero byte)"
    raise ValueError(f"{path} {fault}: convert it, or leave it out of the corpus")


def _text_not_json(path: Path) -> str:
    """The text of a file; ValueError if it is JSON under another name."""
    text = _read(path)
    try:
        first = json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return text
    entries = first if isinstance(first, list) else [first]
    if any(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"corpus {path} begins with JSON, which is not read as text: rename it to .jsonl if "
            "each line is an object"
        )
    return text


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                text: str = json.loads(line)["text"]
                text.encode()  # fails for a lone surrogate
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number}: want a JSON object with a string "text" ({error!r})'
                ) from error
            yield text


def _sections(text: str) -> list[str]:
    """Documents of one file: cut at <|endoftext|>, else at blank lines, else at line ends."""
    if END in text:
        return text.split(END)
    gap = r"\n\s*\n" if "\n\n" in text.strip() else r"\n"
    return re.findall(rf"(?s).{{{SECTION},}}?{gap}|.+", text)
