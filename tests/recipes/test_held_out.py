"""Text to measure on: its held-out part, rows as in the card, a start token as in training."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from unmask.cli.main import main
from unmask.data.corpora import load_corpus
from unmask.data.rows_on_disk import IDS_COLUMN
from unmask.data.tokenizers import start_token
from unmask.evaluation.scoring_rules import bound_rule, exact_rule
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.data import documents, rows
from unmask.recipes.held_out import HeldOut, Text, ends, held_out, scoring_rule, wraps
from unmask.recipes.schema import DataSettings


def carded(model: Path, folder: Path, **data: Any) -> str:
    """A copy of a model with changes to the data in its card; without changes, without a card."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["card"] = {} if not data else config["card"]
    if data:
        config["card"]["recipe"]["data"] |= data
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return str(folder)


def test_some_rows_are_spread_over_all_of_them() -> None:
    rows_of_text = HeldOut(
        torch.arange(100)[:, None], DataSettings("sotu", "first half"), whole=False, digest=""
    )
    assert rows_of_text.some(4).flatten().tolist() == [12, 37, 62, 87]
    assert (
        rows_of_text.some("all").flatten().tolist()
        == rows_of_text.some(100).flatten().tolist()
        == list(range(100))
    )
    source = "held-out part of first half of sotu"
    want = f"4 of 100 rows of 1 tokens, spread evenly; rows are plain crops; {source}"
    assert rows_of_text.words(4) == want
    assert "100 of 100 rows of 1 tokens; rows" in rows_of_text.words(100)


def test_rows_have_the_ends_that_the_card_names(masked: Path, tmp_path: Path) -> None:
    """`data.wrap` of the training, unless the user chooses otherwise."""
    wrapped = carded(masked, tmp_path / "wrapped", wrap=True)
    cases = (
        (str(masked), None, False),
        (wrapped, None, True),
        (wrapped, False, False),
        (str(masked), True, True),
    )
    for name, chosen, want in cases:
        model = load(name)
        measured_text = held_out(Text(wrap=chosen), name, model)
        data = DataSettings(
            **json.loads((Path(name) / "config.json").read_text("utf-8"))["card"]["recipe"]["data"]
        )
        assert model.tokenizer is not None
        same = rows(documents(data).held_out, model.tokenizer, 16, want)
        assert torch.equal(measured_text.some("all"), same[:]) and measured_text.data.wrap is want
        both_ends = measured_text.some("all")[:, [0, -1]].unique().tolist()
        assert (both_ends == [model.tokenizer.eos_id]) is want
        assert ends(want) in measured_text.words(1)
    checkpoint = tmp_path / "checkpoint" / "model.ckpt"  # its card is not in a config.json
    checkpoint.parent.mkdir()
    assert main(["convert", wrapped, str(checkpoint), "--to", "lightning-duo"]) == 0
    model = load(checkpoint, tokenizer=load(masked).tokenizer)
    assert held_out(Text(), str(checkpoint), model).data.wrap
    bare = carded(masked, tmp_path / "bare")
    plain = load(bare)
    assert (wraps(plain, None, True), wraps(plain, None, False), wraps(plain, True, False)) == (
        True,
        False,
        True,
    )


def test_another_text_is_measured_whole(masked: Path, text: Path, tmp_path: Path) -> None:
    name, model = str(masked), load(masked)
    file = tmp_path / "set.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"text": f"{i} the state of the union is what is left"}) for i in range(160)
        )
    )
    measured_text = held_out(Text(str(file)), name, model)
    assert (
        model.tokenizer is not None
        and measured_text.whole
        and "held-out" not in measured_text.words(1)
    )
    assert torch.equal(measured_text.rows[:], rows(load_corpus(file), model.tokenizer, 16)[:])
    tenth = held_out(Text(str(file), held_out=True), name, model)
    assert 8 * len(tenth.rows) < len(
        measured_text.rows
    ) and f"held-out part of {file}" in tenth.words(1)
    half = held_out(Text(str(file), part="first half"), name, model)
    assert half.whole and f"first half of {file}" in half.words(1)
    one = tmp_path / "one.txt"
    one.write_text("a single document of which nothing can be held out, and nothing has to be")
    assert held_out(Text(str(one)), name, model).whole
    own = held_out(Text(), name, model)
    assert not own.whole
    for spelling in (text, text / ".." / text.name):  # the text of the card, whatever its path is
        assert torch.equal(held_out(Text(str(spelling)), name, model).rows[:], own.rows[:])
    everything = held_out(Text(str(text), held_out=False), name, model)
    assert everything.whole and len(everything.rows) > 5 * len(own.rows)


def test_a_text_that_was_moved_is_still_the_models_own(
    masked: Path, text: Path, tmp_path: Path
) -> None:
    """Its file name identifies it, so a training text is never measured as another text."""
    name = carded(masked, tmp_path / "model", corpus=f"elsewhere/{text.name}")
    with pytest.raises(
        ValueError,
        match=rf"text\.corpus .*{name} names the text 'elsewhere/text'",
    ):
        held_out(Text(), name, load(name))
    measured_text = held_out(Text(str(text)), name, load(name))
    assert not measured_text.whole and torch.equal(
        measured_text.rows[:], held_out(Text(), str(masked), load(masked)).rows[:]
    )


def test_the_part_of_the_card_goes_with_its_text(masked: Path, text: Path, tmp_path: Path) -> None:
    """Every tenth document of all is in the training text of a model of the second half."""
    name = carded(masked, tmp_path / "model", part="second half")
    measured_text, model = held_out(Text(str(text)), name, load(name)), load(name)
    assert model.tokenizer is not None and measured_text.data.part == "second half"
    want = documents(DataSettings(str(text), "second half")).held_out
    assert torch.equal(measured_text.rows[:], rows(want, model.tokenizer, 16)[:])


def test_lists_of_ids_are_measured_whole_too(masked: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({IDS_COLUMN: [[i % 200] * 16 for i in range(40)]}).save_to_disk(
        tmp_path / "set"
    )
    name, model = str(masked), load(masked)
    assert len(held_out(Text(str(tmp_path / "set")), name, model).rows) == 40
    assert len(held_out(Text(str(tmp_path / "set"), held_out=True), name, model).rows) == 4


def test_a_published_split_is_what_is_measured(masked: Path, tmp_path: Path) -> None:
    def table(n: int) -> datasets.Dataset:
        return datasets.Dataset.from_dict({IDS_COLUMN: [[i % 200] * 16 for i in range(n)]})

    datasets.DatasetDict({"train": table(40), "test": table(7)}).save_to_disk(tmp_path / "set")
    measured_text = held_out(Text(str(tmp_path / "set")), str(masked), load(masked))
    assert (
        len(measured_text.rows) == 7
        and not measured_text.whole
        and "held-out part of" in measured_text.words(7)
    )


def test_what_cannot_be_measured_is_named(masked: Path, tmp_path: Path) -> None:
    model = load(masked)
    assert isinstance(model, Model)
    ids = [[1] * 15 + [model.denoiser.mask_id], [2] * 16]
    datasets.Dataset.from_dict({IDS_COLUMN: ids}).save_to_disk(tmp_path / "masks")
    with pytest.raises(ValueError, match=rf"MASK \(id {model.denoiser.mask_id}\) 1 times"):
        held_out(Text(str(tmp_path / "masks")), str(masked), model)
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": "a" * n}) for n in (400, 3)))
    with pytest.raises(
        ValueError, match=r"the text '.*short.jsonl/held_out' has \d tokens and a row takes 16"
    ):
        held_out(Text(str(short), held_out=True), str(masked), model)
    bare = carded(masked, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"text\.corpus is missing, .*give --text\.corpus"):
        held_out(Text(), bare, load(bare))
    with pytest.raises(ValueError, match=r"text\.streaming .*--text\.corpus"):
        held_out(Text(streaming=True), str(masked), model)


def test_a_start_token_stands_before_each_row_as_in_training(causal: Path, tmp_path: Path) -> None:
    model = load(causal)
    assert isinstance(model, CausalModel) and model.tokenizer is not None
    start = start_token(model.tokenizer, model.predictor.vocab_size, model.predictor.mask_id)
    bare = carded(causal, tmp_path / "bare")
    rules = [
        scoring_rule(load(name), wrap) for name in (str(causal), bare) for wrap in (False, True)
    ]
    x0 = torch.randint(0, 200, (5, 16), generator=torch.Generator().manual_seed(0))
    scores = exact_rule(model, start, batch_size=2).scores(x0)
    # Rows of MDLM's baselines begin with BOS, without a start token before it.
    wanted = [scores] * 3 + [exact_rule(model).scores(x0)]
    for rule, expected in zip(rules, wanted, strict=True):
        got = rule.scores(x0)
        torch.testing.assert_close(got.nats, expected.nats, rtol=1e-5, atol=0)
        assert torch.equal(got.tokens, expected.tokens)
    table = model.predictor(
        torch.cat([torch.full_like(x0[:, :1], start), x0[:, :-1]], dim=1)
    ).log_p()
    want = -table.gather(2, x0[..., None]).squeeze(2).sum(1)
    torch.testing.assert_close(scores.nats, want.double(), rtol=1e-5, atol=0)
    assert (
        scores.tokens.tolist() == [16] * 5
        and exact_rule(model).scores(x0).tokens.tolist() == [15] * 5
    )


def test_a_reading_knows_its_calls(masked: Path) -> None:
    model = load(masked)
    assert isinstance(model, Model)
    x0 = held_out(Text(), str(masked), model).some(5)
    read = bound_rule(model, passes=3, batch_size=2)
    parts = list(read.batches(x0))
    assert len(parts) == read.calls(len(x0)) == 9
    torch.testing.assert_close(torch.stack(parts).sum(0), read.scores(x0).nats)
    assert all((part > 0).sum() <= 2 for part in parts), "a call scores its own rows"
