"""A run goes on with the text, the tokenizer and the weights that it began with, wherever it is started from."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toy_recipes import corpus, shrink
from unmask.data.tokenizers import Tokenizer
from unmask.dataclass_json import to_json
from unmask.models.model import load
from unmask.recipes import start as begun
from unmask.recipes.catalog import recipe
from unmask.recipes.held_out import Text, held_out
from unmask.recipes.run import finished, run
from unmask.recipes.schema import Recipe, recipe_of
from unmask.training import Engine, RunError

STEPS = 4


@pytest.fixture
def plan(tmp_path: Path) -> Recipe:
    """A teacher whose tokenizer is trained on the text."""
    small = shrink(recipe("demo-teacher"), corpus(tmp_path / "text"))
    return replace(small, steps=STEPS, save_every=1, precision="float32")


def some(plan: Recipe, folder: Path, steps: int, said: list[str] | None = None) -> list[float]:
    """Losses of a run that is broken off after some updates."""
    updates: Iterator = run(
        plan, folder, device="cpu", say=[].append if said is None else said.append
    )
    found = [update.loss for _, update in zip(range(steps), updates, strict=False)]
    updates.close()
    return found


def start(folder: Path) -> dict[str, object]:
    return json.loads((folder / "start.json").read_text("utf-8"))


def test_another_text_is_refused_with_both_digests(plan: Recipe, tmp_path: Path) -> None:
    """Of a run that was stopped and of one that is finished; the text put back, it goes on."""
    edited = tmp_path / "text" / "04.txt"
    before = edited.read_text("utf-8")
    for steps, rest in ((2, STEPS - 2), (STEPS + 1, 0)):
        folder = tmp_path / str(steps)
        some(plan, folder, steps)
        want = str(start(folder)["text_digest"])
        edited.write_text(before + " and one more word", "utf-8")
        with pytest.raises(
            RunError,
            match=rf"data\.corpus has another text .* got text [0-9a-f]+ in .* want {want[:12]}",
        ):
            some(plan, folder, 1)
        assert not finished(plan, folder)
        edited.write_text(before, "utf-8")
        assert len(some(plan, folder, STEPS)) == rest and finished(plan, folder)


def test_another_folder_of_the_same_name_is_refused(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is kept in full; from elsewhere the run directory finds its text, and so does a measurement."""
    relative = replace(plan, data=replace(plan.data, corpus="text"))
    monkeypatch.chdir(tmp_path)
    some(relative, tmp_path / "run", 2)
    assert recipe_of(tmp_path / "run").data.corpus == str(tmp_path / "text")
    (tmp_path / "there").mkdir()
    corpus(tmp_path / "there" / "text", 12)
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(
        RunError, match=rf'data\.corpus: "{tmp_path}/text" -> "{tmp_path}/there/text"'
    ):
        some(relative, tmp_path / "run", 1)
    assert len(some(recipe_of(tmp_path / "run"), tmp_path / "run", STEPS)) == STEPS - 2
    measured = held_out(Text(), str(tmp_path / "run"), load(tmp_path / "run"))
    assert (
        measured.data.corpus == str(tmp_path / "text")
        and len(measured.rows)
        and not measured.changed
    )
    (tmp_path / "text" / "000.txt").write_text(
        "a new document, before all others, moves what is held out"
    )
    again = held_out(Text(), str(tmp_path / "run"), load(tmp_path / "run"))
    assert again.words(1).endswith(f" of {tmp_path / 'text'}, changed since the training")


def test_a_run_whose_text_was_moved_goes_on_by_its_new_path(plan: Recipe, tmp_path: Path) -> None:
    """The refusal says where to write it; the digest decides whether it is the same text."""
    some(plan, tmp_path / "run", 2)
    (tmp_path / "text").rename(tmp_path / "moved")
    moved = replace(plan, data=replace(plan.data, corpus=str(tmp_path / "moved")))
    with pytest.raises(
        RunError, match=r"(?s)data\.corpus: .* write their new path into .*/run/recipe\.json"
    ):
        some(moved, tmp_path / "run", 1)
    file = tmp_path / "run" / "recipe.json"
    file.write_text(
        file.read_text("utf-8").replace(f"{tmp_path}/text", f"{tmp_path}/moved"), "utf-8"
    )
    assert len(some(moved, tmp_path / "run", STEPS)) == STEPS - 2


def test_a_resume_uses_the_tokenizer_of_the_run(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not trained a second time; one that is not the run's is refused."""
    straight = some(plan, tmp_path / "straight", STEPS + 1)
    assert some(plan, tmp_path / "run", 2) == straight[:2]
    own = Tokenizer.load(tmp_path / "run" / "tokenizer")
    assert own.behaviour == start(tmp_path / "run")["tokenizer_digest"]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    monkeypatch.setattr("unmask.recipes.data.train_bpe", None)
    assert some(plan, tmp_path / "run", STEPS) == straight[2:]
    assert load(tmp_path / "run" / "model").tokenizer.behaviour == own.behaviour
    file = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    told = json.loads(file.read_text("utf-8"))
    told["model"]["merges"].reverse()
    file.write_text(json.dumps(told), "utf-8")
    with pytest.raises(
        RunError, match=r"data\.tokenizer is another one .*got tokenizer [0-9a-f]+, want [0-9a-f]+"
    ):
        some(plan, tmp_path / "other", 1)


def test_other_rounding_is_said(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Engine(torch.device("cpu")).machine()
    assert here["threads"] == torch.get_num_threads() and here["torch"] == torch.__version__
    plan = replace(plan, steps=9)
    some(plan, tmp_path / "run", 1)
    assert start(tmp_path / "run")["machine"] == here
    said: list[str] = []
    some(plan, tmp_path / "run", 1, said)
    assert said == ["resuming at step 1, matrix products in float32"]
    monkeypatch.setattr(Engine, "machine", lambda self: here | {"threads": 7})
    for _ in range(2):  # at each resume
        said.clear()
        some(plan, tmp_path / "run", 1, said)
        assert said[1].startswith(
            f"what rounding depends on has changed since the run began (threads: {here['threads']} -> 7)"
        )


def test_a_run_of_version_0_1_goes_on_and_says_what_is_not_checked(
    plan: Recipe, tmp_path: Path
) -> None:
    """It has a relative path, no start.json and no tokenizer; from then on all is checked."""
    straight = some(plan, tmp_path / "straight", STEPS + 1)
    some(plan, tmp_path / "run", 2)
    (tmp_path / "run" / "start.json").unlink()
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    said: list[str] = []
    assert some(plan, tmp_path / "run", 1, said) == straight[2:3]
    assert said[1].startswith(
        "this run has no text_digest, tokenizer_digest, machine in its start.json (version 0.1"
    )
    assert start(tmp_path / "run").keys() == {"text_digest", "tokenizer_digest", "machine"}
    assert some(plan, tmp_path / "run", STEPS) == straight[3:]


def test_an_old_relative_path_is_the_same_text_from_the_same_place(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some(plan, tmp_path / "run", 2)
    old = to_json(replace(plan, data=replace(plan.data, corpus="text")))
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(old), "utf-8")
    assert len(some(plan, tmp_path / "run", STEPS)) == STEPS - 2


def test_what_a_start_kept_of_a_streamed_text_is_its_digest(tmp_path: Path) -> None:
    (tmp_path / "start.json").write_text(json.dumps({"text": "abc", "weights": "1"}))
    assert begun.read_start(tmp_path) == {"text_digest": "abc", "weights": "1"}
    for text, fault in {
        "{": r"start\.json is not valid JSON",
        "7": r"start\.json holds no JSON object: got 7",
        '{"text_digest": 3}': r"start\.json holds no digest or no machine: got text_digest = 3",
        '{"machine": []}': r"start\.json holds no digest or no machine: got machine = \[\]",
    }.items():
        (tmp_path / "start.json").write_text(text)
        with pytest.raises(RunError, match=rf"{fault}.*; put it back, or remove it"):
            begun.read_start(tmp_path)


def test_names_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Recipe) -> None:
    """A folder that is called like a corpus is not read, so the name stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sotu").mkdir()
    for name in ("sotu", "hub:a/b", "openwebtext", "nowhere"):
        named = replace(plan, data=replace(plan.data, corpus=name))
        assert begun.resolved(named) == named
    assert begun.resolved(replace(plan, data=replace(plan.data, corpus="text"))) == plan


def test_a_finished_run_keeps_no_states_and_takes_no_more_steps(
    plan: Recipe, masked: Path, tmp_path: Path
) -> None:
    """The model is left as it is; the refusal names the way to train it further."""
    some(plan, tmp_path / "run", STEPS + 1)
    names = {"recipe.json", "start.json", "tokenizer", "metrics.jsonl", "model", ".lock"}
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == names
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "model").iterdir()}
    said: list[str] = []
    assert some(plan, tmp_path / "run", 1, said) == []
    assert said == [
        f"all {STEPS} steps are done; {tmp_path}/run/model holds the model and is left as it is"
    ]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(
        RunError,
        match=rf"steps .*: got 9, and .*/run ended after {STEPS}; .*--objective\.init .*/run",
    ):
        some(replace(plan, steps=9), tmp_path / "run", 1)
    with pytest.raises(RunError, match=r"another recipe.*\n  steps: 4 -> 2"):
        some(replace(plan, steps=2), tmp_path / "run", 1)
    student = replace(
        shrink(recipe("demo-mcd"), tmp_path / "text", masked), precision="float32", save_every=2
    )
    some(student, tmp_path / "student", 3)
    with pytest.raises(RunError, match=r"unmask distill demo-mcd --objective\.teacher .*/student"):
        some(replace(student, steps=9), tmp_path / "student", 1)
    further = replace(plan, objective=replace(plan.objective, init=str(tmp_path / "run")), steps=1)
    assert len(some(further, tmp_path / "further", 2)) == 1


def test_an_unfinished_run_says_how_far_it_is(plan: Recipe, tmp_path: Path) -> None:
    some(plan, tmp_path / "a run", 3)
    with pytest.raises(
        ValueError,
        match=rf"has not ended.*step 3 of {STEPS} is saved; `unmask train '.*/a run'` goes on",
    ):
        load(tmp_path / "a run")
