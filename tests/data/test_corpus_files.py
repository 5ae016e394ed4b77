"""Files of a corpus: all files of one kind are read, or the path is refused."""

import bz2
import gzip
import json
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data import load_corpus
from unmask.data.corpora import load_stream
from unmask.data.corpus_files import corpus_files, group_by_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `datasets` and of streamed text, in an empty directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))


def parquet(file: Path, *texts: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"text": list(texts)}).to_parquet(file)
    return file


def write(folder: Path, *names: str, text: str = "some text") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


# --- other syntax is not text


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jl", ".JSONL", ".Ndjson"])
def test_json_lines_are_parsed_under_each_of_their_names(suffix: str, tmp_path: Path) -> None:
    write(tmp_path, f"set/a{suffix}", f"set/deep/b{suffix}", text=lines("one", "two"))
    assert load_corpus(tmp_path / "set" / f"a{suffix}").documents == ["one", "two"]
    assert load_corpus(tmp_path / "set").documents == ["one", "two", "one", "two"]


OTHER = (
    "a.json a.JSON a.csv a.tsv a.CSV a.xml a.html a.htm "
    "a.txt.gz a.jsonl.zst a.tar a.zip a.txt.BZ2 a.xz"
)


@pytest.mark.parametrize("name", OTHER.split())
def test_other_syntax_is_refused_as_a_file_and_in_a_folder(name: str, tmp_path: Path) -> None:
    """The error names the corpus and the suffix, and does not call it empty."""
    data = lines("one", "two").encode()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(
        {".gz": gzip.compress, ".BZ2": bz2.compress}.get(Path(name).suffix, bytes)(data)
    )
    for path in (tmp_path / "set" / name, tmp_path / "set"):
        with pytest.raises(ValueError, match=rf"^corpus .*{Path(name).suffix.lower()}") as caught:
            load_corpus(path)
        assert "empty" not in str(caught.value)


@pytest.mark.parametrize("name", ["data", "set.jsonlines", "set.jsonl.1", "set.txt"])
@pytest.mark.parametrize(
    "text", [lines("one", "two"), "\n  " + lines("one"), json.dumps([{"text": "one"}])]
)
def test_json_under_another_name_is_refused(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, name, text=text)
    with pytest.raises(ValueError, match=rf"{name} .* begins with JSON.* \.jsonl"):
        load_corpus(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["{ this is no JSON }", "12 years ago", '"quoted"', "[1] a footnote", "null"]
)
def test_text_that_resembles_json_is_text(text: str, tmp_path: Path) -> None:
    assert load_corpus(write(tmp_path, "a.txt", text=text) / "a.txt").documents == [text]


@pytest.mark.parametrize("data", [b"P\0A\0R\0", "wide".encode("utf-16"), b"caf\xe9"])
def test_bytes_that_are_not_text_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match=r"a\.txt is not (UTF-8 )?text \("):
            load_corpus(path)


# --- a folder is read whole or refused


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.txt", "b.jsonl"), r"1 \.txt \(a\.txt\), 1 \.jsonl \(b\.jsonl\)"),
        (("a.txt", "b.txt", "c.parquet"), r"2 \.txt \(a\.txt\), 1 \.parquet"),
        (("a.md", "b.csv"), r"1 \.md \(a\.md\), 1 \.csv \(b\.csv\)"),
        (("a.jsonl", "b.jsonl.gz"), r"1 \.jsonl \(a\.jsonl\), 1 \.gz"),
        (("a.parquet", "b.arrow"), r"1 \.parquet .* 1 \.arrow"),
        (("a.arrow", "b.arrow"), r"2 \.arrow \(a\.arrow\)"),
        (
            ("a.png", "b.json"),
            r"no file of text: got 1 \.png \(a\.png\), 1 \.json \(b\.json\).*to_parquet",
        ),
        ((), "no file at all"),
        ((".a.txt", ".git/b.txt"), "no file at all"),
    ],
)
def test_a_folder_that_would_be_read_in_part_is_refused(
    names: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", *names)
    with pytest.raises(ValueError, match=rf"^corpus .*{expected}"):
        load_corpus(tmp_path / "set")


def test_a_readme_beside_data_is_not_read(tmp_path: Path) -> None:
    """As in repositories of the hub; alone it is text."""
    write(tmp_path / "a", "README.md", "LICENSE.txt", "LICENSE", "dataset_infos.json", "x.png")
    assert load_corpus(tmp_path / "a").documents == ["some text"] * 2
    write(tmp_path / "a", "data.jsonl", text=lines("one"))
    assert load_corpus(tmp_path / "a").documents == ["one"]
    write(tmp_path / "b", "README.md")
    parquet(tmp_path / "b" / "set.PARQUET", " one")
    assert list(load_corpus(tmp_path / "b").documents) == [" one"]


def test_suffixes_of_text_have_any_case(tmp_path: Path) -> None:
    assert len(load_corpus(write(tmp_path, "A.TXT", "b.Md", "c.PY")).documents) == 3


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Also a link to a folder, and to the folder of the link."""
    write(tmp_path, "elsewhere/a.txt", "set/b.txt")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "self").symlink_to(tmp_path / "set")
    assert len(load_corpus(tmp_path / "set").documents) == 2
    (tmp_path / "set" / "c.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"a broken link, .*c\.txt"):
        load_corpus(tmp_path / "set")


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_an_empty_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path it would be the working directory."""
    monkeypatch.chdir(write(tmp_path, "a.txt"))
    for load in (load_corpus, load_stream):
        with pytest.raises(ValueError, match=r"^corpus .*got "):
            load(name)
    assert load_corpus(".").documents == ["some text"]


# --- files of a data set: all of them


@pytest.mark.parametrize(
    "names",
    [
        ("physics", "crash-test-reports"),
        ("test-of-time", "train-stations", "valid-arguments", "dev-ops", "eval.of.things"),
        ("a", "deep/crash test/b", "my-test/c", "training-camp/d"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_no_file_is_left_out_for_a_word_in_its_name(
    names: tuple[str, ...], streaming: bool, tmp_path: Path
) -> None:
    texts = {
        parquet(tmp_path / "set" / f"{name}.parquet", f" {name}"): f" {name}" for name in names
    }
    expected = [texts[file] for file in sorted(texts)]
    if streaming:
        split = load_stream(str(tmp_path / "set"))
        assert [*split.held_out.documents] == expected, "the first documents, all of them here"
    else:
        corpus = load_corpus(tmp_path / "set")
        assert [*corpus.documents] == expected and corpus.held_out is None


LAYOUTS = {
    "files": ("train.parquet", "test.parquet", "validation.parquet"),
    "shards": (
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "test-00000-of-00001.parquet",
    ),
    "hashes": (
        "data/train-00000-of-00001-0123456789abcdef.parquet",
        "data/test-00000-of-00001-fedcba9876543210.parquet",
    ),
    "folders": ("train/a.parquet", "train/crash-test.parquet", "test/b.parquet"),
    "configurations": ("en/train/0000.parquet", "de/train/0000.parquet", "en/test/0000.parquet"),
    "numbers": ("Train_0.parquet", "train.1.parquet", "TEST 1.parquet"),
    "other words": ("training.parquet", "evaluation.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_documented_layouts_keep_their_splits(layout: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in LAYOUTS[layout]]
    splits = group_by_split(tmp_path, files)
    assert {"train", "test"} <= {*splits} <= {"train", "test", "validation"}
    assert sorted(file for group in splits.values() for file in group) == sorted(files)
    for name, group in splits.items():
        short = {"train": "train", "test": ("test", "eval"), "validation": "valid"}[name]
        assert all(
            any(part.lower().startswith(short) for part in file.relative_to(tmp_path).parts)
            for file in group
        )


def test_splits_of_other_names_are_read_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    files = [tmp_path / f"data/{name}-00000-of-00001.parquet" for name in ("train_sft", "test_sft")]
    assert group_by_split(tmp_path, files) == {"train_sft": files[:1], "test_sft": files[1:]}


@given(
    st.lists(
        st.sampled_from(["train", "test", "a", "b-test", "dev", "x/train", "test/c"]),
        min_size=1,
        unique=True,
    )
)
def test_splits_hold_each_file_once_or_the_folder_is_refused(names: list[str]) -> None:
    folder = Path("/set")
    files = [folder / f"{name}.parquet" for name in names]
    named = [name for name in names if name not in ("a", "b-test")]
    if 0 < len(named) < len(names):
        with pytest.raises(ValueError, match=r"do not \((a|b-test)\.parquet"):
            group_by_split(folder, files)
    else:
        assert sorted(
            file for some in group_by_split(folder, files).values() for file in some
        ) == sorted(files)


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^corpus /dev/null "):
        corpus_files(Path("/dev/null"))


# --- names are not patterns

ODD = ["news[1]", "what?", "a*", "**", "[!a]", "{a,b}", "a]b[", "100%", "#1", "~x", "train*"]


@pytest.mark.parametrize("name", ODD)
def test_a_pattern_in_a_name_is_part_of_the_name(name: str, tmp_path: Path) -> None:
    """Files that the pattern would match are not read, in any form, streamed or not."""
    for other in ("news1", "what1", "ab", "b", "a", "trains"):
        parquet(tmp_path / "sets" / other / f"{other}.parquet", "another")
        write(tmp_path / "texts" / other, "a.txt", text="another")
    file = parquet(tmp_path / "sets" / name / f"{name}.parquet", "mine", "too")
    datasets.Dataset.from_dict({"text": ["mine", "too"]}).save_to_disk(tmp_path / "saved" / name)
    for path in (file, file.parent, tmp_path / "saved" / name):
        assert [*load_corpus(path).documents] == ["mine", "too"]
        assert [*load_stream(str(path)).held_out.documents] == ["mine", "too"]
    write(tmp_path / "texts" / name, f"{name}.txt", text="mine")
    write(tmp_path / "texts", f"{name}.jsonl", text=lines("mine"))
    for path in (
        tmp_path / "texts" / name,
        tmp_path / "texts" / name / f"{name}.txt",
        tmp_path / "texts" / f"{name}.jsonl",
    ):
        assert load_corpus(path).documents == ["mine"]
