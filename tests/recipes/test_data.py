"""The text of a recipe as rows: equal from memory and disk, tokenized once, piece by piece."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import tokenizers as hf
import torch

import unmask
import unmask.data.streaming
import unmask.recipes.data
from toy_recipes import LENGTH, VOCABULARY, shrink
from unmask.data import load_corpus
from unmask.data.corpora import Corpus
from unmask.data.rows_on_disk import IDS_COLUMN, PADDING_COLUMN, StoredRows
from unmask.data.tokenizers import Tokenizer, check_ids, tokenizer_named, train_bpe
from unmask.dataclass_json import to_json
from unmask.models.model import load
from unmask.recipes.catalog import recipe
from unmask.recipes.data import (
    DOCUMENTS_AT_ONCE,
    documents,
    iter_encoded,
    rows,
    tokenizer_of,
    training_data,
)
from unmask.recipes.estimate import vocabulary
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe


@pytest.fixture(scope="module")
def small(text: Path) -> Recipe:
    plan = shrink(recipe("demo-teacher"), text)
    return replace(plan, data=replace(plan.data, part="all"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def on_disk(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts as `text`, as a data set."""
    folder = tmp_path_factory.mktemp("on_disk") / "set"
    datasets.Dataset.from_dict({"text": list(load_corpus(text).texts)}).save_to_disk(folder)
    return folder


PARTS = "all", "first half", "second half"


def on(plan: Recipe, corpus: Path, **changes: object) -> Recipe:
    return replace(plan, data=replace(plan.data, corpus=str(corpus), **changes))


def test_halves_and_held_out_documents_are_apart(small: Recipe) -> None:
    parts = [
        documents(replace(small.data, part=part)) for part in ("all", "first half", "second half")
    ]
    everything, first, second = (
        {*part.train.documents, *part.held_out.documents} for part in parts
    )
    assert first | second == everything and not first & second and len(first) == len(second) == 12
    assert all(not {*part.train.documents} & {*part.held_out.documents} for part in parts)


def test_rows_are_tokens_of_the_documents(small: Recipe) -> None:
    rows = training_data(small)
    assert (
        rows.train.shape[1] == rows.held_out.shape[1] == LENGTH
        and len(rows.train) > len(rows.held_out) > 0
    )
    assert rows.tokenizer.vocab_size == VOCABULARY and rows.train.dtype == torch.int64
    beginning = documents(small.data).train.documents[0]
    assert beginning.startswith(rows.tokenizer.decode(rows.train[0].tolist()))
    assert rows.digest == documents(small.data).held_out.digest
    again = training_data(small)
    assert torch.equal(again.train, rows.train) and again.tokenizer.digest == rows.tokenizer.digest


def test_wrapped_rows_begin_and_end_with_their_own_marks(small: Recipe, tmp_path: Path) -> None:
    """[BOS] .. [EOS]; BERT has two of them, [CLS] and [SEP]."""
    marks = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}
    backend = hf.Tokenizer(
        hf.models.WordLevel(marks | {w: i + 3 for i, w in enumerate("abcd")}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    Tokenizer(backend, {"bos": "[CLS]", "eos": "[SEP]"}).save(tmp_path)
    wrapped = training_data(
        replace(small, data=replace(small.data, tokenizer=str(tmp_path), wrap=True))
    )
    assert wrapped.train[:, 0].unique().tolist() == [0] and wrapped.train[
        :, -1
    ].unique().tolist() == [1]
    assert wrapped.train.shape[1] == LENGTH


def test_tokenizers_by_name(small: Recipe, text: Path, tmp_path: Path) -> None:
    train = documents(small.data).train
    trained = tokenizer_of(small.data, train)
    trained.save(tmp_path / "model")
    assert (
        tokenizer_of(replace(small.data, tokenizer=str(tmp_path / "model")), train).digest
        == trained.digest
    )
    with pytest.raises(ValueError, match="has no tokenizer file"):
        tokenizer_of(replace(small.data, tokenizer=str(text)), train)


# --- on disk


@pytest.mark.parametrize(("stored", "streaming"), [(False, False), (True, False), (True, True)])
def test_a_text_and_a_tokenizer_have_digests_that_change_when_they_do(
    stored: bool,
    streaming: bool,
    small: Recipe,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text that is trained on, not only the held-out part of it."""
    monkeypatch.setattr(unmask.data.streaming, "HEAD_SIZE", 200)
    documents = [f"{number}. the state of the union, {number}" for number in range(99)]

    def facts(
        changed: int | None, name: str = "corpus", tokenizer: str = "bpe:258"
    ) -> tuple[str, str, str]:
        some = [
            text.upper() if number == changed else text for number, text in enumerate(documents)
        ]
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        if stored:
            datasets.Dataset.from_dict({"text": some}).save_to_disk(tmp_path / name)
        else:
            (tmp_path / name).mkdir()
            for number, text in enumerate(some):
                (tmp_path / name / f"{number:02}.txt").write_text(text, "utf-8")
        plan = on(small, tmp_path / name, streaming=streaming, tokenizer=tokenizer)
        result = training_data(replace(plan, network=replace(plan.network, length=4)))
        result.close()
        return result.digest, result.text_digest, result.tokenizer.behaviour

    first = facts(None)
    assert all(first), "none is empty"
    changed = facts(97)
    assert changed[1] != first[1] and changed[2] == first[2], (
        "document 97 is trained on, and merges nothing"
    )
    assert facts(None, tokenizer="bpe:259")[2] != first[2]


@pytest.mark.parametrize("wrap", [True, False])
def test_rows_on_disk_are_those_in_memory(
    small: Recipe, on_disk: Path, cache: Path, wrap: bool
) -> None:
    """Equal tokenizer, training rows, held-out rows and digest; each part has its own cache."""
    for part in (*PARTS, *PARTS):  # made, then read
        plan = on(small, Path(small.data.corpus), part=part, wrap=wrap)
        expected, result = training_data(plan), training_data(on(plan, on_disk))
        assert isinstance(result.train, StoredRows) and isinstance(result.held_out, StoredRows)
        assert torch.equal(result.train[:], expected.train) and torch.equal(
            result.held_out[:], expected.held_out
        )
        assert (
            result.digest == expected.digest
            and result.tokenizer.digest == expected.tokenizer.digest
        )


def test_a_text_is_tokenized_once(
    small: Recipe, on_disk: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = on(small, on_disk)
    first = training_data(plan)

    def refuse(*arguments: object) -> None:
        raise AssertionError("it is there")

    monkeypatch.setattr(unmask.recipes.data, "iter_encoded", refuse)
    monkeypatch.setattr(unmask.recipes.data, "train_bpe", refuse)
    monkeypatch.setattr(Corpus, "digest", property(refuse))
    again = training_data(plan)
    assert (
        torch.equal(again.train[:], first.train[:])
        and again.tokenizer.digest == first.tokenizer.digest
    )
    for other in (
        replace(plan, network=replace(plan.network, length=LENGTH + 1)),
        on(plan, on_disk, wrap=True),
        on(plan, on_disk, part="second half"),
        on(plan, on_disk, tokenizer=f"bpe:{VOCABULARY + 1}"),
    ):
        with pytest.raises(AssertionError, match="it is there"):
            training_data(other)


def test_tokenizers_of_one_vocabulary_that_cut_differently_do_not_share_rows(
    on_disk: Path, cache: Path
) -> None:
    """Their digests are equal: vocabulary, merges and normaliser are."""
    tokenizers = []
    for prefix in (False, True):
        backend = hf.Tokenizer(
            hf.models.BPE(
                {c: i for i, c in enumerate(sorted(hf.pre_tokenizers.ByteLevel.alphabet()))}, []
            )
        )
        backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        tokenizers.append(Tokenizer(backend, {}))
    assert (
        tokenizers[0].digest == tokenizers[1].digest
        and tokenizers[0].behaviour != tokenizers[1].behaviour
    )
    corpus = load_corpus(on_disk)
    one, two = (rows(corpus, tokenizer, 8)[:] for tokenizer in tokenizers)
    assert one.shape != two.shape or not torch.equal(one, two)


def test_documents_are_not_read_ahead(small: Recipe) -> None:
    """One batch of them at a time, and rows begin to come before the last document is read."""
    tokenizer, read = tokenizer_of(small.data, documents(small.data).train), 0

    class Endless(list[str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal read
            while True:
                read += 1
                yield "the state of the union"

    ids = iter_encoded(Corpus("endless", Endless(["x"])), tokenizer)
    for number in range(1, 3 * DOCUMENTS_AT_ONCE):
        next(ids)
        assert number <= read < number + DOCUMENTS_AT_ONCE


def test_a_long_tokenization_is_reported(
    small: Recipe, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmask.recipes.data, "REPORT_EVERY", -1)
    messages: list[str] = []
    corpus = load_corpus(on_disk)
    list(
        iter_encoded(corpus, tokenizer_of(small.data, documents(small.data).train), messages.append)
    )
    assert messages == [f"tokenizing {on_disk}: 24 of 24 documents"]


# --- ids that somebody else made


def ids_of(plan: Recipe, folder: Path, **columns: list[object]) -> Recipe:
    """The plan on a data set of ids, with a tokenizer from a directory."""
    tokenizer_of(plan.data, documents(plan.data).train).save(folder / "tokens")
    datasets.Dataset.from_dict(columns).save_to_disk(folder / "set")
    return on(plan, folder / "set", tokenizer=str(folder / "tokens"))


def test_rows_that_are_there_are_taken_where_they_are(
    small: Recipe, tmp_path: Path, cache: Path
) -> None:
    own = training_data(small).train
    result = training_data(ids_of(small, tmp_path, **{IDS_COLUMN: own.tolist()}))
    most = len(own) - len(own) // 10
    assert torch.equal(result.train[:], own[:most]) and torch.equal(result.held_out[:], own[most:])
    assert not (cache / "rows").exists(), "nothing is copied"


def test_lists_of_any_length_are_packed(small: Recipe, tmp_path: Path, cache: Path) -> None:
    """The documents of a corpus, tokenized by somebody else: the same rows."""
    parts = documents(small.data)
    tokenizer = tokenizer_of(small.data, parts.train)
    lists = datasets.DatasetDict({
        name: datasets.Dataset.from_dict({IDS_COLUMN: tokenizer.encode_batch(part.texts)})
        for name, part in (("train", parts.train), ("validation", parts.held_out))
    })  # fmt: skip
    lists.save_to_disk(tmp_path / "set")
    tokenizer.save(tmp_path / "tokens")
    for wrap in (True, False):
        expected = training_data(on(small, Path(small.data.corpus), wrap=wrap))
        result = training_data(
            on(small, tmp_path / "set", tokenizer=str(tmp_path / "tokens"), wrap=wrap)
        )
        assert torch.equal(result.train[:], expected.train) and torch.equal(
            result.held_out[:], expected.held_out
        )


def test_wrapped_rows_are_taken_if_they_are_wrapped(
    small: Recipe, tmp_path: Path, cache: Path
) -> None:
    wrapped = training_data(on(small, Path(small.data.corpus), wrap=True)).train
    plan = on(
        ids_of(small, tmp_path / "1", **{IDS_COLUMN: wrapped.tolist()}),
        tmp_path / "1" / "set",
        wrap=True,
    )
    assert torch.equal(training_data(plan).train[:], wrapped[: len(wrapped) - len(wrapped) // 10])
    plan = on(
        ids_of(small, tmp_path / "2", **{IDS_COLUMN: (wrapped + 1).tolist()}),
        tmp_path / "2" / "set",
        wrap=True,
    )
    with pytest.raises(ValueError, match=r"data\.wrap .* begin .* \[\[1, 1\]\], want BOS \(id 0\)"):
        training_data(plan)


def test_ids_that_cannot_be_rows_are_refused(small: Recipe, tmp_path: Path, cache: Path) -> None:
    short = ids_of(small, tmp_path / "short", **{IDS_COLUMN: [[1] * 9] * 20})
    with pytest.raises(
        ValueError,
        match=f"network.length .*got {LENGTH}, .*have 9 tokens.*--network.length 9",
    ):
        training_data(short)
    foreign = ids_of(small, tmp_path / "foreign", **{IDS_COLUMN: [[1] * 20, [999] * 30, [1] * 50]})
    with pytest.raises(ValueError, match=f"got 0 to 999, .*vocab_size = {VOCABULARY}"):
        training_data(foreign)
    rows_of_others = ids_of(small, tmp_path / "rows", **{IDS_COLUMN: [[999] * LENGTH] * 20})
    with pytest.raises(ValueError, match=f"got 999 to 999, .*vocab_size = {VOCABULARY}"):
        list(run(rows_of_others, tmp_path / "run", device="cpu"))
    no_tokens = on(rows_of_others, tmp_path / "rows" / "set", tokenizer="bpe:300")
    with pytest.raises(ValueError, match="not text: got token ids"):
        training_data(no_tokens)


@pytest.mark.parametrize("streaming", [True, False])
def test_padded_rows_are_the_documents_without_padding(
    small: Recipe, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Lists of network.length ids are rows already, but lists with padding are packed."""
    monkeypatch.setattr(unmask.data.streaming, "DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr(unmask.data.streaming, "HEAD_SIZE", 40)
    tokenizer = tokenizer_of(small.data, documents(small.data).train)
    lists = [
        ids[: 1 + number % LENGTH]
        for number, ids in enumerate(tokenizer.encode_batch(load_corpus(small.data.corpus).texts))
    ]
    full = [[*ids, *[0] * (LENGTH - len(ids))] for ids in lists]
    marks = [[1] * len(ids) + [0] * (LENGTH - len(ids)) for ids in lists]
    plain = ids_of(small, tmp_path / "1", **{IDS_COLUMN: lists})
    padded = ids_of(
        small,
        tmp_path / "2",
        **{IDS_COLUMN: full, PADDING_COLUMN: marks, "token_type_ids": marks, "labels": full},
    )
    result, expected = (
        training_data(replace(plan, data=replace(plan.data, streaming=streaming)))
        for plan in (padded, plain)
    )
    one, two = (
        each.train.at_least(1000)[:] if streaming else each.train[:] for each in (result, expected)
    )
    assert torch.equal(one, two) and torch.equal(result.held_out[:], expected.held_out[:])
    assert result.digest == expected.digest
    for each in (result, expected):
        each.close()


def test_padding_behind_the_beginning_of_a_stream_of_rows_is_refused(
    small: Recipe, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lists are rows, which are not packed: a shorter one has no place among them."""
    monkeypatch.setattr(unmask.data.streaming, "DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr(unmask.data.streaming, "HEAD_SIZE", 40)
    marks = [[1] * LENGTH] * 19 + [[1] * (LENGTH - 1) + [0]]
    plan = on(
        ids_of(small, tmp_path, **{IDS_COLUMN: [[5] * LENGTH] * 20, PADDING_COLUMN: marks}),
        tmp_path / "set",
        streaming=True,
    )
    result = training_data(plan)
    with pytest.raises(ValueError, match=f"have {LENGTH} tokens, later ones do not"):
        result.train.at_least(1000)
    result.close()


# --- ids beside the text that they encode


@pytest.fixture(scope="module")
def foreign(text: Path) -> Tokenizer:
    """Another tokenizer of as many tokens: the same bytes and merges of another text."""
    return train_bpe(
        ["the state of the onion is a matter of taste, they say, and they ought to know " * 4],
        VOCABULARY,
    )


def beside(
    plan: Recipe, folder: Path, tokenizer: Tokenizer, change: Callable[[list[int]], list[int]]
) -> Recipe:
    result = list(load_corpus(plan.data.corpus).texts)
    return ids_of(
        plan,
        folder,
        text=result,
        **{IDS_COLUMN: [change(ids) for ids in tokenizer.encode_batch(result)]},
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_ids_of_another_tokenizer_are_refused(
    small: Recipe, tmp_path: Path, cache: Path, foreign: Tokenizer, streaming: bool
) -> None:
    """All of them are in the vocabulary, so nothing else would tell."""
    plan = beside(small, tmp_path, foreign, lambda ids: ids)
    with pytest.raises(
        ValueError, match=r"^input_ids of .* contradicts the column text in \d+ of \d+ rows"
    ):
        training_data(replace(plan, data=replace(plan.data, streaming=streaming)))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids,
        lambda ids: [0, *ids, 0],
        lambda ids: ids[: len(ids) // 2],
        lambda ids: ids[len(ids) // 3 :],
        lambda ids: ids[:3],
        lambda ids: ids + [7] * 40,
        lambda ids: [ids[0] + 1, *ids[1:]],
        lambda ids: ids if len(ids) % 2 else [],
    ],
    ids=["whole", "with ends", "cut", "its end", "three", "padded", "a blank before", "empty"],
)
def test_ids_of_the_tokenizer_are_taken_in_each_form(
    small: Recipe, tmp_path: Path, cache: Path, change: Callable[[list[int]], list[int]]
) -> None:
    tokenizer = tokenizer_of(small.data, documents(small.data).train)
    plan = beside(small, tmp_path, tokenizer, change)
    lists = load_corpus(plan.data.corpus).documents
    check_ids("set", lists.beside_text(16), tokenizer)
    assert (
        len(lists.beside_text(16)) == 16 and len({text for text, _ in lists.beside_text(16)}) == 16
    ), "spread"


def test_one_part_that_another_tokenizer_made_is_found(
    small: Recipe, tmp_path: Path, foreign: Tokenizer
) -> None:
    """Rows are compared all over the set, not at its beginning."""
    tokenizer = tokenizer_of(small.data, documents(small.data).train)
    result = list(load_corpus(small.data.corpus).texts)
    ids = [
        (foreign if 15 <= number < 18 else tokenizer).encode(text)
        for number, text in enumerate(result)
    ]
    lists = load_corpus(
        ids_of(small, tmp_path, text=result, **{IDS_COLUMN: ids}).data.corpus
    ).documents
    with pytest.raises(ValueError, match="contradicts"):
        check_ids("set", lists.beside_text(16), tokenizer)


# --- names of tokenizers


@pytest.mark.parametrize(
    "size", ["abc", "0", "-5", "1e3", "", " 300", "300.0", "1_000", "257", "16777217", "9" * 30,
             "\u0663\u0660\u0660"]
)  # fmt: skip
def test_a_wrong_vocabulary_size_is_named(small: Recipe, size: str) -> None:
    name = f"bpe:{size}"
    plan = replace(small, data=replace(small.data, tokenizer=name))
    for find in (training_data, vocabulary):
        with pytest.raises(
            ValueError,
            match=rf"^data\.tokenizer .* got '{re.escape(name)}', .* 258 \.\. 16777216",
        ):
            find(plan)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_a_tokenizer(
    name: str, masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path it would be the working directory, which has a tokenizer here."""
    monkeypatch.chdir(masked)
    with pytest.raises(ValueError, match=f"^tokenizer .*got '{name}'"):
        tokenizer_named(name)
    assert tokenizer_named(".").vocab_size == VOCABULARY


# --- training on them


def test_training_on_disk_equals_training_in_memory_and_resumes_bit_for_bit(
    small: Recipe, on_disk: Path, tmp_path: Path, cache: Path
) -> None:
    """Stopped after step 5 of 8, in the second epoch; its rows are made again before the resume."""
    plan = replace(small, steps=8, save_every=2, batch_size=8, precision="float32")
    there = on(plan, on_disk)
    in_memory = [update.loss for update in run(plan, tmp_path / "memory", device="cpu")]
    straight = [update.loss for update in run(there, tmp_path / "straight", device="cpu")]
    broken = run(there, tmp_path / "stopped", device="cpu")
    first = [next(broken).loss for _ in range(5)]
    broken.close()
    shutil.rmtree(cache)
    rest = [update.loss for update in run(there, tmp_path / "stopped", device="cpu")]
    assert in_memory == straight == [*first[:4], *rest] and len(set(straight)) == 8
    weights = [
        load(tmp_path / name / "model").network.state_dict()
        for name in ("memory", "straight", "stopped")
    ]
    assert all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(*(w.values() for w in weights), strict=True)
    )


RANK = """
import json, os, sys
from pathlib import Path
from unmask.recipes.estimate import vocabulary
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe
from unmask.dataclass_json import from_json
import unmask.data.streaming, unmask.data.prefetch
unmask.data.streaming.DOCUMENTS_AT_ONCE, unmask.data.streaming.HEAD_SIZE = 4, 1200
unmask.data.prefetch.WINDOW_TOKENS = 256
plans, folder, rank = json.loads(sys.argv[1]), Path(sys.argv[2]), os.environ["RANK"]
losses = []
for number, plan in enumerate(plans):
    updates = run(from_json(Recipe, plan, "recipe"), folder / f"run-{number}", device="cpu")
    losses.append([update.loss for update in updates])
(folder / f"{rank}.json").write_text(json.dumps(losses))
"""


@pytest.mark.slow
def test_two_processes_tokenize_once_and_train_as_one(
    small: Recipe, on_disk: Path, tmp_path: Path, cache: Path
) -> None:
    """Started as `torchrun` does, on stored text, then on streamed text."""
    stored = on(replace(small, steps=2, precision="float32"), on_disk)
    plans = stored, on(replace(stored, steps=9), on_disk, streaming=True)
    launcher = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "PYTHONPATH": str(Path(unmask.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [
        sys.executable,
        "-c",
        RANK,
        json.dumps([to_json(plan) for plan in plans]),
        str(tmp_path),
    ]
    ranks = [
        subprocess.Popen(
            command, env=os.environ | launcher | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in ranks] == [0, 0]
    losses = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert losses[0] == losses[1] and [len(each) for each in losses[0]] == [2, 9]
    made = {
        "tokenizers": 2,
        "rows": 3,
        "windows": 1,
        "beginnings": 1,
    }  # held-out rows are stored in both
    assert {name: len(list((cache / name).glob("[0-9a-f]*"))) for name in made} == made


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
