"""Data sets on disk as corpora: columns, held-out splits, identities, padding, errors."""

import json
import os
from datetime import datetime
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data import halves, load_corpus, split
from unmask.data.corpora import load_stream
from unmask.data.hf_datasets import AllButEveryKth, DatasetDocuments
from unmask.data.rows_on_disk import IDS_COLUMN, PADDING_COLUMN, TokenLists


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of `datasets`, which converts parquet to Arrow files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def texts(n: int, first: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"id": list(range(n)), "text": [f" {i}" for i in range(first, first + n)]}
    )


def arrow(table: datasets.Dataset, file: Path) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as sheet:
        sheet.write_table(table.data.table)
    return file


def saved(form: str, folder: Path) -> Path:
    """Twelve texts, in each form that a data set has on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    match form:
        case "save_to_disk":
            texts(12).save_to_disk(folder / "set", num_shards=2)
        case "parquet":
            texts(12).to_parquet(folder / "set.parquet")
            return folder / "set.parquet"
        case "folder of parquet":
            for shard in range(2):
                texts(6, 6 * shard).to_parquet(folder / f"part-{shard}.parquet")
            return folder
        case "arrow":
            return arrow(texts(12), folder / "set.arrow")
    return folder / "set"


FORMS = ["save_to_disk", "parquet", "folder of parquet", "arrow"]


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_is_a_corpus_left_on_disk(form: str, tmp_path: Path) -> None:
    corpus = load_corpus(saved(form, tmp_path / "data"))
    assert isinstance(corpus.documents, DatasetDocuments) and list(corpus.documents) == [
        f" {i}" for i in range(12)
    ]
    assert corpus.held_out is None and corpus.identity is not None
    parts = split(corpus)
    assert isinstance(parts.train.documents, DatasetDocuments), "not read into memory"
    assert list(parts.held_out.documents) == [" 9"]
    assert list(parts.train.documents) == [f" {i}" for i in (*range(9), 10, 11)]
    assert [list(half.documents)[:2] for half in halves(corpus)] == [[" 0", " 2"], [" 1", " 3"]]


@given(st.integers(0, 40), st.integers(2, 9), st.tuples(*[st.none() | st.integers(-40, 40)] * 2))
def test_all_but_every_kth(n: int, every: int, ends: tuple[int | None, int | None]) -> None:
    kept = [number for place, number in enumerate(range(0, 2 * n, 2), start=1) if place % every]
    others = AllButEveryKth(range(0, 2 * n, 2), every)
    assert (
        list(others) == kept
        and others[slice(*ends)] == kept[slice(*ends)]
        and len(others) == len(kept)
    )
    assert [others[-i] for i in range(1, len(kept) + 1)] == kept[::-1]


def test_a_split_on_disk_is_the_split_in_memory(tmp_path: Path) -> None:
    """Also of a half, whose documents are not adjacent."""
    texts(2345).save_to_disk(tmp_path / "set")
    (tmp_path / "set.jsonl").write_text(
        "".join(f'{{"text": "{i}"}}\n' for i in range(2345)), "utf-8"
    )
    on_disk, in_memory = load_corpus(tmp_path / "set"), load_corpus(tmp_path / "set.jsonl")
    for one, two in zip((on_disk, *halves(on_disk)), (in_memory, *halves(in_memory)), strict=True):
        for name in ("train", "held_out"):
            stored, expected = (getattr(split(each), name).documents for each in (one, two))
            assert [text.strip() for text in stored] == list(expected)


@pytest.mark.parametrize(
    ("names", "held_out"),
    [(["train", "test", "validation"], "test"), (["train", "validation"], "validation")],
)
@pytest.mark.parametrize("parquet", [True, False])
def test_a_split_of_the_data_set_is_held_out(
    names: list[str], held_out: str, parquet: bool, tmp_path: Path
) -> None:
    splits = datasets.DatasetDict({name: texts(4, 10 * i) for i, name in enumerate(names)})
    if parquet:
        (tmp_path / "set").mkdir()
        for name, table in splits.items():
            table.to_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet")
    else:
        splits.save_to_disk(tmp_path / "set")
    corpus = load_corpus(tmp_path / "set")
    assert list(corpus.documents) == [" 0", " 1", " 2", " 3"]
    assert list(corpus.held_out) == splits[held_out]["text"]
    assert split(corpus).train.documents is corpus.documents


def test_lists_of_ids_are_preferred_to_text_and_their_end_is_held_out(tmp_path: Path) -> None:
    """Rows that were cut from one text are adjacent: every tenth would not be held-out text."""
    table = texts(25).add_column(IDS_COLUMN, [[i, i + 1] for i in range(25)])
    table.with_format("torch").save_to_disk(tmp_path / "set")
    parts = split(load_corpus(tmp_path / "set"))
    assert isinstance(parts.train.documents, TokenLists) and len(parts.train.documents) == 23
    assert [list(ids) for ids in parts.held_out.documents] == [[23, 24], [24, 25]]
    with pytest.raises(ValueError, match="not text: got token ids"):
        _ = parts.train.texts
    assert parts.held_out.digest != parts.train.digest


def test_the_digest_of_ids_is_as_documented(tmp_path: Path) -> None:
    import hashlib

    datasets.Dataset.from_dict({IDS_COLUMN: [[1, 2], [3, 4]]}).save_to_disk(tmp_path / "set")
    data = b"".join((n).to_bytes(8, "little") for n in (16, 3, 4))
    assert load_corpus(tmp_path / "set").held_out is None, (
        "no split is published: `split` holds the last tenth out"
    )
    assert split(load_corpus(tmp_path / "set")).held_out.digest == hashlib.sha256(data).hexdigest()


def test_the_identity_changes_with_the_text(tmp_path: Path) -> None:
    """And with the part; not with the cache files of `datasets` beside it."""
    texts(12).save_to_disk(tmp_path / "set")
    corpus = load_corpus(tmp_path / "set")
    parts = [
        corpus,
        *halves(corpus),
        *(
            getattr(split(each), name)
            for each in (corpus, *halves(corpus))
            for name in ("train", "held_out")
        ),
    ]
    parts += [split(corpus, 3).train]
    assert len({part.identity for part in parts}) == len(parts)
    (tmp_path / "set" / "cache-1234.arrow").write_bytes(b"what map leaves")
    assert load_corpus(tmp_path / "set").identity == corpus.identity
    file = next((tmp_path / "set").glob("data-*.arrow"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert load_corpus(tmp_path / "set").identity != corpus.identity


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow"])
def test_the_saved_format_does_not_matter(form: str, tmp_path: Path) -> None:
    table = texts(3).add_column(IDS_COLUMN, [[1], [2, 3], [4]])
    table.with_format(form).save_to_disk(tmp_path / "ids")
    table.remove_columns(IDS_COLUMN).with_format(form).save_to_disk(tmp_path / "texts")
    strings = list(load_corpus(tmp_path / "texts").documents)
    assert strings == [" 0", " 1", " 2"] and {type(string) for string in strings} == {str}
    assert [ids.tolist() for ids in load_corpus(tmp_path / "ids").documents] == [[1], [2, 3], [4]]


def test_the_identity_covers_every_file_that_is_read(tmp_path: Path) -> None:
    """Also `cache-NAME`, which `map` writes, if the data set names it as its own."""
    (tmp_path / "set").mkdir()
    for name in ("cache-1.parquet", "a.parquet"):
        texts(4).to_parquet(tmp_path / "set" / name)
    saved = tmp_path / "saved"
    texts(4).save_to_disk(saved)
    state = json.loads((saved / "state.json").read_text())
    (saved / state["_data_files"][0]["filename"]).rename(saved / "cache-2.arrow")
    state["_data_files"][0]["filename"] = "cache-2.arrow"
    (saved / "state.json").write_text(json.dumps(state))
    for folder, name in ((tmp_path / "set", "cache-1.parquet"), (saved, "cache-2.arrow")):
        before = load_corpus(folder)
        assert " 0" in list(before.documents)
        os.utime(folder / name, ns=(0, (folder / name).stat().st_mtime_ns + 1))
        assert load_corpus(folder).identity != before.identity


# --- padding


def padded(lists: list[list[int]], length: int, pad: int = 0) -> dict[str, list[list[int]]]:
    """As the tokenizers of transformers write them."""
    return {
        IDS_COLUMN: [ids + [pad] * (length - len(ids)) for ids in lists],
        PADDING_COLUMN: [[1] * len(ids) + [0] * (length - len(ids)) for ids in lists],
    }


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=2, max_size=8),
    st.sampled_from(["int8", "bool", "int64"]),
    st.booleans(),
)
@settings(max_examples=40)
def test_padding_is_left_out(lists: list[list[int]], kind: str, fixed: bool) -> None:
    """On either side of a list and inside it; a list without padding is whole."""
    columns = padded(lists, 6)
    for ids, marks in zip(columns[IDS_COLUMN][::2], columns[PADDING_COLUMN][::2], strict=True):
        ids.reverse(), marks.reverse()
    expected = [ids[:: -1 if i % 2 == 0 else 1] for i, ids in enumerate(lists)]
    if kind == "bool":
        columns[PADDING_COLUMN] = [[*map(bool, marks)] for marks in columns[PADDING_COLUMN]]

    def column(values: list[list[int]], each: pa.DataType) -> pa.ChunkedArray:
        form = pa.list_(each, 6 if fixed else -1)
        return pa.chunked_array([pa.array(some, form) for some in (values[:1], values[1:])])

    ids, marks = (
        column(columns[IDS_COLUMN], pa.int32()),
        column(columns[PADDING_COLUMN], pa.type_for_alias(kind)),
    )
    lists = TokenLists(ids, range(len(lists)), marks)
    assert [one.tolist() for one in lists] == expected
    assert [one.tolist() for one in lists[1:]] == expected[1:]
    whole = all(len(one) == 6 for one in lists)
    assert lists.length == (6 if whole else None), "padded lists are not rows"


def test_a_data_set_with_padding_equals_the_one_without(tmp_path: Path) -> None:
    lists = [[i] * (1 + i % 5) for i in range(20)]
    datasets.Dataset.from_dict(padded(lists, 7)).save_to_disk(tmp_path / "padded")
    datasets.Dataset.from_dict({IDS_COLUMN: lists}).save_to_disk(tmp_path / "plain")
    one, two = (split(load_corpus(tmp_path / name)) for name in ("padded", "plain"))
    assert one.train.digest == two.train.digest and one.held_out.digest == two.held_out.digest


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([[1, 1], [1]], "attention_mask and input_ids .* different lengths"),
        ([[1, 1], None], "attention_mask has missing"),
        ([1, 1], "attention_mask .*got int"),
        ([[[1], [1]], [[1], [1]]], "attention_mask .*got list"),
        ([[0.5, 1.0], [1.0, 1.0]], "attention_mask .*got list"),
    ],
)
def test_invalid_padding_marks_are_refused(
    marks: list[object], message: str, tmp_path: Path
) -> None:
    datasets.Dataset.from_dict({IDS_COLUMN: [[1, 2], [3, 4]], PADDING_COLUMN: marks}).save_to_disk(
        tmp_path / "set"
    )
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path / "set")


# --- columns that are not text


NOT_TEXT = [1, 0.5, True, {"a": "b"}, b"bytes", datetime(2026, 1, 1), ["two", "strings"], None]


@pytest.mark.parametrize("value", NOT_TEXT, ids=lambda value: type(value).__name__)
def test_a_column_without_strings_is_refused(value: object, tmp_path: Path) -> None:
    """Two strings would be read as a pair by a tokenizer."""
    datasets.Dataset.from_dict({"text": [value, value]}).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(
        ValueError, match=r"^column 'text' of .*set\.parquet .*got .*, want a string"
    ):
        load_corpus(tmp_path / "set.parquet")
    with pytest.raises(
        ValueError, match=r"^column 'text' of .*set\.parquet .*got .*, want a string"
    ):
        load_stream(str(tmp_path / "set.parquet"))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_each_kind_of_strings_is_text(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["one", "two"]).cast(kind)})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as sheet,
    ):
        sheet.write_table(table)
    assert list(load_corpus(tmp_path / "a.arrow").documents) == ["one", "two"]


def test_strings_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", "\ud800".encode("utf-8", "surrogatepass")])
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as sheet,
    ):
        sheet.write_table(table)
    with pytest.raises(ValueError, match=r"^column 'text' .*not UTF-8 text in rows 0 to 2"):
        list(load_corpus(tmp_path / "a.arrow").documents)
    with pytest.raises(
        ValueError, match=r"a\.arrow: column 'text' .*not UTF-8 text in rows 0 to 2"
    ):
        load_stream(str(tmp_path / "a.arrow"))


# --- caches that cannot be written


def test_the_error_names_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable, not the data set."""
    texts(4).to_parquet(tmp_path / "set.parquet")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file" / "unmask"))
    with pytest.raises(
        OSError, match=r"^UNMASK_CACHE cannot be written .*file.*; set UNMASK_CACHE"
    ):
        load_stream(str(tmp_path / "set.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "hf")
    with pytest.raises(ValueError, match=r"^HF_HOME cannot be written: .*file/hf"):
        load_corpus(tmp_path / "set.parquet")


def refused(tmp_path: Path, message: str, **columns: list[object]) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        list(load_corpus(tmp_path / "set").documents)


def test_errors_of_data_sets_name_the_fault(tmp_path: Path) -> None:
    refused(
        tmp_path / "1",
        "got body, n, want 'input_ids' .* or 'text'; rename",
        body=["a"],
        n=[1],
    )
    refused(tmp_path / "2", "column 'text' is empty in row 1", text=["a", None])
    refused(tmp_path / "3", "input_ids .*got string", input_ids=["a", "b"])
    refused(tmp_path / "4", "cannot be opened: IndexError.*not empty", text=[])


def test_errors_of_splits_name_the_fault(tmp_path: Path) -> None:
    one, two = texts(3), datasets.Dataset.from_dict({IDS_COLUMN: [[1], [2]]})
    datasets.DatasetDict(a=one, b=one).save_to_disk(tmp_path / "named")
    with pytest.raises(ValueError, match=r"got the splits a, b, want .*train"):
        load_corpus(tmp_path / "named")
    datasets.DatasetDict(train=one, test=two).save_to_disk(tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"mixed .* train and test, .* text .* token ids"):
        load_corpus(tmp_path / "mixed")
    (tmp_path / "broken.arrow").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.arrow is not a complete Arrow file"):
        load_corpus(tmp_path / "broken.arrow")
