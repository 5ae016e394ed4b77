"""Recipes on streamed text: rows of all documents but the held-out ones, exact resume."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch

import unmask.data.prefetch
import unmask.data.streaming
from toy_recipes import LENGTH, corpus, shrink
from unmask.data import load_corpus, pack
from unmask.data.packing import StreamedRows
from unmask.data.rows_on_disk import IDS_COLUMN
from unmask.models.model import load
from unmask.recipes.catalog import recipe
from unmask.recipes.data import PARTS, documents, training_data
from unmask.recipes.held_out import Text, held_out
from unmask.recipes.run import run
from unmask.recipes.schema import Recipe
from unmask.training.run_directory import RunError

DOCUMENTS, HELD_OUT, W = 120, 8, 16


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, four documents at a time, two such steps held out; no thread is left."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(unmask.data.streaming, "DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr(unmask.data.streaming, "HEAD_SIZE", 1200)
    monkeypatch.setattr(unmask.data.prefetch, "WINDOW_TOKENS", W * LENGTH)
    yield tmp_path / "cache"
    assert not [thread for thread in threading.enumerate() if "unmask-prefetch" in thread.name]


@pytest.fixture(scope="module")
def all_texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return list(load_corpus(corpus(tmp_path_factory.mktemp("text") / "text", DOCUMENTS)).texts)


@pytest.fixture
def tables(all_texts: list[str]) -> datasets.DatasetDict:
    split = {"train": all_texts[:100], "test": all_texts[100:]}
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": some}) for name, some in split.items()}
    )


@pytest.fixture
def plan(tmp_path: Path, tables: datasets.DatasetDict, masked: Path) -> Recipe:
    """On 100 documents without a split that is held out."""
    tables["train"].save_to_disk(tmp_path / "set")
    small = replace(
        shrink(recipe("demo-teacher"), tmp_path / "set", tokens=masked), precision="float32"
    )
    return replace(
        small,
        data=replace(small.data, part="all", streaming=True),
        steps=40,
        batch_size=56,
        save_every=7,
    )


def on(plan: Recipe, corpus: object, **changes: object) -> Recipe:
    return replace(plan, data=replace(plan.data, corpus=str(corpus), **changes))


def everything(rows: Any) -> torch.Tensor:
    assert isinstance(rows, StreamedRows)
    all_texts = rows.at_least(10**6)[:]
    rows.close()
    return all_texts


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("wrap", [True, False])
def test_streamed_rows_are_the_stored_rows_without_the_held_out_ones(
    plan: Recipe, all_texts: list[str], part: str, wrap: bool
) -> None:
    """The first documents; halves are every other document of both."""
    data = training_data(on(plan, plan.data.corpus, part=part, wrap=wrap))
    code, eos = data.tokenizer.encode_batch, data.tokenizer.eos_id
    chosen = range(100)[PARTS[part]]
    first = [i for i in chosen if i < HELD_OUT]
    assert (
        1200
        <= sum(map(len, all_texts[:HELD_OUT]))
        < 1200 + sum(map(len, all_texts[HELD_OUT - 4 : HELD_OUT]))
    )
    assert list(documents(on(plan, plan.data.corpus, part=part).data).held_out.documents) == [
        all_texts[i] for i in first
    ]
    assert torch.equal(
        data.held_out[:], pack(code([all_texts[i] for i in first]), LENGTH, eos, wrap=wrap)
    )
    learnt = code([all_texts[i] for i in chosen if i >= HELD_OUT])
    assert torch.equal(everything(data.train), pack(learnt, LENGTH, eos, wrap=wrap))


def forms(tables: datasets.DatasetDict, folder: Path) -> dict[str, Path]:
    """Data sets with a split `test`, in the forms that they have on disk."""
    tables.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    for name, table in tables.items():
        for shard in range(2):
            part = table.shard(2, shard, contiguous=True)
            part.to_parquet(folder / "parquet" / f"{name}-0000{shard}-of-00002.parquet")
    return {"saved": folder / "saved", "parquet": folder / "parquet"}


def test_with_a_split_to_hold_out_all_else_is_learnt(
    plan: Recipe, all_texts: list[str], tables: datasets.DatasetDict, tmp_path: Path
) -> None:
    """No more of the split is read than is kept, and the rows equal the stored ones."""
    for path in forms(tables, tmp_path).values():
        data, stored = training_data(on(plan, path)), training_data(on(plan, path, streaming=False))
        assert torch.equal(everything(data.train), stored.train[:])
        assert list(documents(on(plan, path).data).held_out.documents) == all_texts[100:108]
        assert data.digest != stored.digest and 0 < len(data.held_out) < len(stored.held_out)


@pytest.mark.parametrize("streaming", [True, False])
def test_any_data_set_of_the_hub(
    plan: Recipe,
    tables: datasets.DatasetDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,
) -> None:
    """By name, configuration and revision (resolved to a commit), in the layout of the hub."""
    folder, asked, commit, real = (
        forms(tables, tmp_path)["parquet"],
        [],
        ["0" * 40],
        datasets.load_dataset,
    )
    files = SimpleNamespace(
        config=SimpleNamespace(
            data_files={"train": [f"hf://datasets/some/text/{f.name}" for f in folder.iterdir()]}
        )
    )
    siblings = [
        SimpleNamespace(rfilename=name)
        for name in ("README.md", *(file.name for file in folder.iterdir()))
    ]

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if path == "parquet":
            return real(path, name, **options)
        asked.append((path, name, options["revision"], options["streaming"]))
        return real(str(folder), streaming=options["streaming"])

    def dataset_info(self: object, path: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(sha=commit[0], siblings=siblings, card_data=None)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *arguments, **options: files)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    parts = documents(on(plan, "hub:some/text:large@v2", streaming=streaming).data)
    assert set(asked) == {("some/text", "large", "0" * 40, streaming)}
    commit[0] = "1" * 40
    other = documents(on(plan, "hub:some/text", streaming=streaming).data)
    assert asked[-1] == ("some/text", None, "1" * 40, streaming)
    assert (
        len({part.identity for part in (parts.train, parts.held_out, other.train, other.held_out)})
        == 4
    )
    expected = training_data(on(plan, folder, streaming=streaming))
    named = training_data(on(plan, "hub:some/text@" + "2" * 40, streaming=streaming))
    assert named.digest == expected.digest and asked[-1][2] == "2" * 40
    if streaming:
        assert torch.equal(everything(named.train), everything(expected.train))
        openwebtext = documents(on(plan, "openwebtext", streaming=True).data)
        assert (
            asked[-1][:2] == ("Skylion007/openwebtext", None)
            and openwebtext.train.chosen.start == 0
        )


@pytest.mark.parametrize("streaming", [True, False])
def test_files_of_the_hub_that_would_be_left_out_are_named(
    plan: Recipe, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """The splits follow the card of the data set, and files of an earlier download are used."""
    read: dict[str, list[str]] = {"test": ["hf://datasets/some/text@0/crash-test.parquet"]}
    card: list[dict[str, object] | None] = [None]
    names = "README.md", "crash-test.parquet", "physics.parquet", "deep/x.parquet"
    siblings = [SimpleNamespace(rfilename=name) for name in names]

    def load_dataset(*arguments: object, **options: object) -> None:
        raise RuntimeError("all files are read")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda *_, **__: SimpleNamespace(config=SimpleNamespace(data_files=read)),
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda *_, **__: SimpleNamespace(sha="0" * 40, siblings=siblings, card_data=card[0]),
    )
    data = on(plan, "hub:some/text", streaming=streaming).data
    with pytest.raises(
        ValueError,
        match=r"some/text .* leaves out 2 files \(physics\.parquet, deep/x\.parquet\)",
    ):
        documents(data)
    with pytest.raises(ValueError, match="leaves out"):
        documents(replace(data, corpus="hub:some/text@" + "1" * 40))
    card[0] = {"configs": [{"config_name": "default"}]}
    with pytest.raises(ValueError, match="all files are read"):
        documents(data)
    card[0] = None
    read["test"] += [f"hf://datasets/some/text@0/{name}" for name in names[2:]]
    with pytest.raises(ValueError, match="all files are read"):
        documents(data)
    read.clear()
    with pytest.raises(ValueError, match="all files are read"):
        documents(data)


def test_a_folder_is_not_read_in_the_place_of_the_hub(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` would take a path of that name in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, repository in (
        ("hub:some/text", "some/text"),
        ("openwebtext", "Skylion007/openwebtext"),
    ):
        (tmp_path / repository).mkdir(parents=True)
        for streaming in (True, False):
            with pytest.raises(
                ValueError,
                match=f"data set {repository} of the hub .* path in the working",
            ):
                documents(on(plan, name, streaming=streaming).data)


def test_a_tokenizer_is_trained_on_the_beginning(
    plan: Recipe, all_texts: list[str], small: Path
) -> None:
    """Of what is learnt from, and once."""
    data = replace(plan.data, tokenizer="bpe:262")
    parts = documents(data)
    assert list(parts.train.texts) == all_texts[HELD_OUT : 2 * HELD_OUT]
    first = training_data(replace(plan, data=data)).tokenizer
    assert (
        first.vocab_size == 262
        and training_data(replace(plan, data=data)).tokenizer.digest == first.digest
    )
    assert len(list((small / "tokenizers").glob("[0-9a-f]*"))) == 1


def test_lists_of_ids_are_packed_or_are_rows(
    plan: Recipe, all_texts: list[str], tmp_path: Path
) -> None:
    tokenizer = training_data(plan).tokenizer
    ids = tokenizer.encode_batch(all_texts[:100])
    datasets.Dataset.from_dict({IDS_COLUMN: ids}).save_to_disk(tmp_path / "lists")
    data = training_data(on(plan, tmp_path / "lists"))
    held = len(documents(on(plan, tmp_path / "lists").data).held_out.documents)
    assert 1200 <= sum(map(len, ids[:held])) and held % 4 == 0
    assert torch.equal(everything(data.train), pack(ids[held:], LENGTH, tokenizer.eos_id))

    rows = pack(ids, LENGTH, tokenizer.eos_id)
    datasets.Dataset.from_dict({IDS_COLUMN: rows.tolist()}).save_to_disk(tmp_path / "rows")
    data = training_data(on(plan, tmp_path / "rows"))
    assert torch.equal(torch.cat([data.held_out[:], everything(data.train)]), rows)
    with pytest.raises(ValueError, match=rf"network\.length .*got 9, .*have {LENGTH} tokens"):
        training_data(replace(on(plan, tmp_path / "rows"), network=replace(plan.network, length=9)))

    datasets.Dataset.from_dict({IDS_COLUMN: [*rows.tolist(), [1, 2]]}).save_to_disk(
        tmp_path / "mixed"
    )
    with pytest.raises(ValueError, match=f"have {LENGTH} tokens, later ones do not"):
        everything(training_data(on(plan, tmp_path / "mixed")).train)
    with pytest.raises(ValueError, match="not text: got token ids"):
        training_data(on(plan, tmp_path / "rows", tokenizer="bpe:262"))


def test_what_cannot_be_streamed_says_why(plan: Recipe, text: Path, tmp_path: Path) -> None:
    for name in ("sotu", str(text)):
        with pytest.raises(
            ValueError, match=r"data\.streaming cannot read .* give --data\.no-streaming"
        ):
            training_data(on(plan, name))
    datasets.Dataset.from_dict({"text": ["the text"] * 9}).save_to_disk(tmp_path / "short")
    short = training_data(on(plan, tmp_path / "short"))
    with pytest.raises(ValueError, match=r"does not fill one row.* leave data\.streaming out"):
        short.train.at_least(1)
    datasets.Dataset.from_dict({"text": ["the text " * 9] * 40 + [None]}).save_to_disk(
        tmp_path / "gap"
    )
    with pytest.raises(ValueError, match="column 'text' is empty in row 40"):
        everything(training_data(on(plan, tmp_path / "gap")).train)
    datasets.Dataset.from_dict({IDS_COLUMN: [[1] * 99, [1] * 98] * 10 + [[999] * 50]}).save_to_disk(
        tmp_path / "foreign"
    )
    with pytest.raises(ValueError, match=r"got 0 to 999, .*vocab_size = 262"):
        list(run(on(plan, tmp_path / "foreign"), tmp_path / "run", device="cpu"))


# --- training on it


def losses(plan: Recipe, folder: Path, steps: int | None = None) -> list[float]:
    """Of the updates of a run, broken off after some."""
    updates, all_texts = run(plan, folder, device="cpu"), []
    for update in updates:
        all_texts.append(update.loss)
        if update.step == steps:
            break
    updates.close()
    return all_texts


def test_a_training_on_a_stream_resumes_bit_for_bit(
    plan: Recipe, tmp_path: Path, small: Path
) -> None:
    """Stopped in the first window, then in a later one with an empty cache.

    With 100 documents the run ends in the third epoch. The same rows in memory, in the order of the
    windows, give the same losses.
    """
    straight = losses(plan, tmp_path / "straight")
    assert len(straight) == 40
    for steps, begins in ((1, 0), (17, 0), (18, 14)):  # every seventh state is saved
        assert losses(plan, tmp_path / "stopped", steps) == straight[begins:steps]
    shutil.rmtree(small)
    assert losses(plan, tmp_path / "stopped") == straight[14:]
    digests = training_data(plan)
    whole = everything(digests.train)
    assert len(whole) * 2 < 40 * 56 < len(whole) * 3
    at_once = replace(digests, train=StreamedRows(W, lambda n: whole, lambda: None))
    assert [
        update.loss for update in run(plan, tmp_path / "at once", data=at_once, device="cpu")
    ] == straight
    weights = [
        load(tmp_path / name / "model").network.state_dict() for name in ("straight", "stopped")
    ]
    assert all(
        torch.equal(one, two)
        for one, two in zip(*(all_texts.values() for all_texts in weights), strict=True)
    )


def test_a_training_does_not_resume_on_another_text(
    plan: Recipe, tables: datasets.DatasetDict, tmp_path: Path
) -> None:
    stopped = run(plan, tmp_path / "run")
    for _ in range(2):
        next(stopped)
    stopped.close()
    shutil.rmtree(tmp_path / "set")
    tables["train"].select(range(99)).save_to_disk(tmp_path / "set")
    with pytest.raises(RunError, match=r"has another text than .* name the commit"):
        next(run(plan, tmp_path / "run"))


def test_held_out_text_of_a_model_is_that_of_its_training(plan: Recipe, tmp_path: Path) -> None:
    list(run(replace(plan, steps=1), tmp_path / "run", device="cpu"))
    measured = held_out(Text(), str(tmp_path / "run"), load(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"text.held_out .*got False"):
        held_out(Text(held_out=False), str(tmp_path / "run"), load(tmp_path / "run"))
    assert replace(measured.data, tokenizer=plan.data.tokenizer) == plan.data
    assert torch.equal(measured.rows[:], training_data(plan).held_out[:])
