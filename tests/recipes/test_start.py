"""A run resumes only with the text, tokenizer and weights that it started with."""

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
from unmask.recipes.catalog import recipe
from unmask.recipes.held_out import Text, held_out
from unmask.recipes.run import finished, run
from unmask.recipes.schema import Recipe, recipe_of
from unmask.recipes.start import with_absolute_paths
from unmask.training import Engine, RunError
from unmask.training.run_files import read_start

STEPS = 4


@pytest.fixture
def plan(tmp_path: Path) -> Recipe:
    """A teacher whose tokenizer is trained on the text."""
    small = shrink(recipe("demo-teacher"), corpus(tmp_path / "text"))
    return replace(small, steps=STEPS, save_every=1, precision="float32")


def some(plan: Recipe, folder: Path, steps: int, messages: list[str] | None = None) -> list[float]:
    """Losses of a run that is stopped after some updates."""
    updates: Iterator = run(
        plan, folder, device="cpu", say=[].append if messages is None else messages.append
    )
    losses = [update.loss for _, update in zip(range(steps), updates, strict=False)]
    updates.close()
    return losses


def start(folder: Path) -> dict[str, object]:
    return json.loads((folder / "start.json").read_text("utf-8"))


def test_another_text_is_refused_with_both_digests(plan: Recipe, tmp_path: Path) -> None:
    """For a stopped and for a finished run; with the old text restored, it resumes."""
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
    """Paths are saved as absolute: resume and measurement find the text from any directory."""
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


def test_a_run_whose_text_was_moved_resumes_with_its_new_path(plan: Recipe, tmp_path: Path) -> None:
    """The error says where to write the path; the digest decides if it is the same text."""
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
    """It is not trained again, and another tokenizer is refused."""
    straight = some(plan, tmp_path / "straight", STEPS + 1)
    assert some(plan, tmp_path / "run", 2) == straight[:2]
    own = Tokenizer.load(tmp_path / "run" / "tokenizer")
    assert own.behaviour == start(tmp_path / "run")["tokenizer_digest"]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    monkeypatch.setattr("unmask.recipes.data.train_bpe", None)
    assert some(plan, tmp_path / "run", STEPS) == straight[2:]
    assert load(tmp_path / "run" / "model").tokenizer.behaviour == own.behaviour
    file = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["merges"].reverse()
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(
        RunError, match=r"data\.tokenizer .*got tokenizer [0-9a-f]+, want [0-9a-f]+"
    ):
        some(plan, tmp_path / "other", 1)


def test_another_machine_is_reported(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Engine(torch.device("cpu")).machine()
    assert here["threads"] == torch.get_num_threads() and here["torch"] == torch.__version__
    plan = replace(plan, steps=9)
    some(plan, tmp_path / "run", 1)
    assert start(tmp_path / "run")["machine"] == here
    messages: list[str] = []
    some(plan, tmp_path / "run", 1, messages)
    assert messages == ["resuming at step 1, matrix products in float32"]
    monkeypatch.setattr(Engine, "machine", lambda self: here | {"threads": 7})
    for _ in range(2):  # at each resume
        messages.clear()
        some(plan, tmp_path / "run", 1, messages)
        assert f"(threads: {here['threads']} -> 7)" in messages[1]


def test_a_run_of_version_0_1_resumes_and_reports_what_is_not_checked(
    plan: Recipe, tmp_path: Path
) -> None:
    """It has a relative path, no start.json and no tokenizer; later resumes check all."""
    straight = some(plan, tmp_path / "straight", STEPS + 1)
    some(plan, tmp_path / "run", 2)
    (tmp_path / "run" / "start.json").unlink()
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    messages: list[str] = []
    assert some(plan, tmp_path / "run", 1, messages) == straight[2:3]
    assert messages[1].startswith(
        "start.json of this run lacks text_digest, tokenizer_digest, machine"
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


def test_start_json_is_read_strictly_and_in_the_form_of_version_0_1(tmp_path: Path) -> None:
    (tmp_path / "start.json").write_text(json.dumps({"text": "abc", "weights": "1"}))
    assert read_start(tmp_path) == {"text_digest": "abc", "weights": "1"}
    for text, fault in {
        "{": r"start\.json is not valid JSON",
        "7": r"start\.json is not a JSON object: got 7",
        '{"text_digest": 3}': r"start\.json .* wrong type: got text_digest = 3",
        '{"machine": []}': r"start\.json .* wrong type: got machine = \[\]",
    }.items():
        (tmp_path / "start.json").write_text(text)
        with pytest.raises(RunError, match=rf"{fault}.*; restore it, or remove it"):
            read_start(tmp_path)


def test_names_are_not_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Recipe) -> None:
    """A folder with the name of a corpus is not read, so the name stays."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sotu").mkdir()
    for name in ("sotu", "hub:a/b", "openwebtext", "nowhere"):
        named = replace(plan, data=replace(plan.data, corpus=name))
        assert with_absolute_paths(named) == named
    assert with_absolute_paths(replace(plan, data=replace(plan.data, corpus="text"))) == plan


def test_a_finished_run_keeps_no_states_and_takes_no_more_steps(
    plan: Recipe, masked: Path, tmp_path: Path
) -> None:
    """The model is unchanged, and the error names the command that trains it further."""
    some(plan, tmp_path / "run", STEPS + 1)
    names = {"recipe.json", "start.json", "tokenizer", "metrics.jsonl", "model", ".lock"}
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == names
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "model").iterdir()}
    messages: list[str] = []
    assert some(plan, tmp_path / "run", 1, messages) == []
    assert messages == [
        f"all {STEPS} steps are done; {tmp_path}/run/model holds the model and is unchanged"
    ]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(
        RunError,
        match=rf"steps .*got 9, and .*/run ended after {STEPS}.*--objective\.init .*/run",
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
        match=rf"has not ended.*step 3 of {STEPS} is saved; `unmask train '.*/a run'` continues",
    ):
        load(tmp_path / "a run")
