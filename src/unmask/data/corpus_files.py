"""The files of a corpus: the files of a path, their kind, and the documents of text files.

A file is read whole or refused. Suffixes in capitals count too. A folder must hold documents of one
kind. Its other files, such as pictures, settings and files without a known suffix, are left out.
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

# Text, a JSON object on each line, or one of three formats of data sets.
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
# Refused as a corpus, and left out of a folder, where they are often settings or web pages.
_SYNTAX = (".json", ".xml", ".html", ".htm", ".xhtml")
_REFUSED = ".csv .tsv .feather .orc .gz .bz2 .xz .zst .lz4 .zip .tar .tgz .7z".split()
# Names, without suffix, of files that describe a data set.
_ABOUT = "readme license licence notice citation changelog contributing authors".split()
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = r"(?:[-._ ]?\d+)?(?:[-._ ]of[-._ ]\d+)?(?:-[0-9a-f]{8,})?"  # after the name of a split


def corpus_files(path: Path) -> tuple[Kind, list[Path]]:
    """The kind of a file or folder, and its files in the order of their paths.

    For a folder of `save_to_disk` the list holds only that folder. ValueError if a file cannot be
    read.
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
    """The files of each split of a data set; all files are `train` if no file names a split.

    The name of a file without its shard number, or of a folder above it, can be the name of a
    split. A word inside a longer name, as in `crash-test.parquet`, is not. ValueError if some files
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
            f"corpus {folder} would be read in part: some files name a split, such as {named}, and "
            f"{len(without)} do not ({abbreviated(without)}). Name the others train-1, train-2 and "
            "so on, or move them to another folder"
        )
    groups: dict[str, list[Path]] = {}
    for file, split in zip(files, splits, strict=True):
        groups.setdefault(split or "train", []).append(file)
    return groups


def read_documents(path: Path) -> Iterator[str]:
    """Read the documents of a file or folder of text, unchanged."""
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
    """The first three names of a list, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _split_of(file: Path) -> str | None:
    """The split in a file's own name, else in the name of the nearest folder above it."""
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
        groups.pop("text", None)  # such as a README, which describes the other files
    if not groups:
        remedies = [f"; {_remedy(s)}" for f in ignored if (s := f.suffix.lower()) in _SYNTAX]
        raise ValueError(
            f"corpus {folder} has no file of text: got {_counted(ignored)}, want .txt, .md, .py, "
            f".jsonl or .parquet{''.join(remedies[:1])}"
        )
    if len(groups) > 1:
        mixed = [file for group in groups.values() for file in group]
        raise ValueError(
            f"corpus {folder} has files of several kinds: got {_counted(mixed)}, want one kind; "
            "put each kind into another folder"
        )
    ((group, files),) = groups.items()
    suffix = files[0].suffix.lower()
    if group == "arrow" or group in _REFUSED:
        raise ValueError(
            f"corpus {folder} has files that are not read: got {_counted(files)}; {_remedy(suffix)}"
        )
    return _READ[suffix], files


def _visible_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder. Links are followed; hidden files and folders are left out."""
    resolved = folder.resolve()
    if resolved in above:  # a link to a parent folder would never end
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise ValueError(f"corpus {folder} has a broken link, {entry}: remove or repair it")
        if entry.is_dir():
            yield from _visible_files(entry, above | {resolved})
        elif entry.is_file():
            yield entry


def _counted(files: Sequence[Path]) -> str:
    """A description of files: for each suffix, their number and the name of the first one."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    first = {file.suffix.lower() or "without suffix": file.name for file in reversed(files)}
    parts = [f"{count} {suffix} ({first[suffix]})" for suffix, count in counts.most_common(5)]
    return ", ".join(parts) or "no file at all"


def _remedy(suffix: str) -> str:
    """The advice of an error: how to convert a file of this suffix to a corpus."""
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
            f"corpus {path} is not text: it begins with JSON; rename it to .jsonl if each line is "
            "an object"
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
                    f"{path} is not a JSON lines file of text: in line {number}, want an object "
                    f'with a string "text" ({error!r})'
                ) from error
            yield text


def _sections(text: str) -> list[str]:
    """Cut the text of one file into documents: at <|endoftext|>, else at blank lines or lines.

    Without <|endoftext|> each document but the last has at least `SECTION` characters.
    """
    if END in text:
        return text.split(END)
    gap = r"\n\s*\n" if "\n\n" in text.strip() else r"\n"
    return re.findall(rf"(?s).{{{SECTION},}}?{gap}|.+", text)
