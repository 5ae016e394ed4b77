"""Which of the documents that measure a model it was trained on, by cards."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from toy_recipes import corpus
from unmask.data.rows_on_disk import IDS_COLUMN
from unmask.recipes.contamination import share_read
from unmask.recipes.data import documents
from unmask.recipes.schema import DataSettings


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return corpus(tmp_path / "text", documents=40)


def model(folder: Path, name: str, text: object, part: str, streaming: bool = False) -> str:
    data = {"corpus": str(text), "part": part, "streaming": streaming}
    (folder / name).mkdir()
    card = {"format": "unmask", "card": {"recipe": {"data": data}}}
    (folder / name / "config.json").write_text(json.dumps(card))
    return str(folder / name)


@pytest.mark.parametrize("read", ["all", "first half", "second half"])
@pytest.mark.parametrize("measured", ["all", "first half", "second half"])
def test_the_share_is_that_of_the_documents_themselves(
    text: Path, tmp_path: Path, read: str, measured: str
) -> None:
    share = share_read(model(tmp_path, "judge", text, read), DataSettings(str(text), measured))
    learnt = set(documents(DataSettings(str(text), read)).train.texts)
    held_out = documents(DataSettings(str(text), measured)).held_out.texts
    assert share == sum(document in learnt for document in held_out) / len(held_out)
    if (read, measured) == ("all", "first half"):
        assert share == 1, (
            "every 10th document has an odd number, and the first half has the even ones"
        )
    if read == measured or {read, measured} == {"first half", "second half"}:
        assert share == 0


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("measured", ["all", "first half", "second half"])
@pytest.mark.parametrize("read", ["all", "first half", "second half"])
def test_of_token_ids_the_last_tenth_is_held_out(
    tmp_path: Path, read: str, measured: str, whole: bool
) -> None:
    """As in training; every tenth list of ids once counted as held out."""
    Dataset.from_dict({IDS_COLUMN: [[i] * 4 for i in range(40)]}).save_to_disk(tmp_path / "ids")
    share = share_read(
        model(tmp_path, "judge", tmp_path / "ids", read),
        DataSettings(str(tmp_path / "ids"), measured),
        whole,
    )
    learnt = documents(DataSettings(str(tmp_path / "ids"), read)).train.documents[:]
    parts = documents(DataSettings(str(tmp_path / "ids"), measured))
    texts = [*(parts.train.documents if whole else ()), *parts.held_out.documents]
    first = {int(ids[0]) for ids in learnt}
    assert share == sum(int(ids[0]) in first for ids in texts) / len(texts)
    assert whole or share == 0


def test_what_cards_do_not_say_is_not_known(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = model(tmp_path, "judge", text, "second half")
    assert share_read(judge, DataSettings("pydocs", "first half")) is None
    assert share_read(judge, DataSettings(str(text), "first half", streaming=True)) is None
    assert (
        share_read("gpt2-large", DataSettings(str(text))) is None
        and share_read("smollm2", DataSettings(str(text))) is None
    )
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    assert share_read(str(tmp_path / "foreign"), DataSettings(str(text))) is None
    monkeypatch.chdir(tmp_path)
    assert share_read(judge, DataSettings("text", "first half")) == 0, (
        "one folder, however it is written"
    )
    assert share_read("unmask:judge", DataSettings("sotu", "first half")) == 0
    moved = model(tmp_path, "moved", tmp_path / "elsewhere" / "text", "all")
    assert share_read(moved, DataSettings(str(text), "first half")) == 1, (
        "a text that was moved is known by its file name"
    )
