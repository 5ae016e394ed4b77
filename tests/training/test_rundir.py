"""The run directory survives what can happen to it: damage, a full disk, a crash, a second process, another recipe."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy_training import CPU, RECIPE, Chase, Net, begin, contents, run, updates
from unmask.training import AdamW, RunDir, RunError, State, TrainingError, recorded, rundir, storage


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    run(tmp_path, 7)
    state = ["cursor.json", "frozen/teacher.safetensors"]
    state += [f"student/{part}.safetensors" for part in ("ema", "model", "optimizer")]
    saved = [f"state/step-0000000{step}/{file}" for step in (6, 7) for file in state]  # two good states, no more
    assert files(tmp_path) == sorted([".lock", "metrics.jsonl", "recipe.json", *saved])
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    assert lines(tmp_path)[5].keys() >= {"loss", "grad_norm", "lr", "tokens", "seconds", "turn", "round", "error"}
    assert json.loads((tmp_path / "recipe.json").read_text()) == RECIPE


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("part", ["cursor.json", "frozen/teacher.safetensors", "student/optimizer.safetensors"])
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda file: os.truncate(file, 20)], ids=["bit", "gone", "torn"])
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, part: str, harm: Callable[[Path], None]
) -> None:
    run(tmp_path, 6)
    harm(tmp_path / "state" / "step-00000006" / part)
    state = begin()
    with RunDir.open(tmp_path, RECIPE) as directory, pytest.warns(RuntimeWarning, match=r"step-00000006 is damaged"):
        restored = directory.restore(state)
    assert (state.step, restored.step, restored.lost) == (3, 3, 3)
    assert "resuming at step 3; 3 steps" in str(restored)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    harm(tmp_path / "state" / "step-00000003" / part)
    with (
        RunDir.open(tmp_path, RECIPE) as directory,
        pytest.warns(RuntimeWarning),
        pytest.raises(RunError, match="no good"),
    ):
        directory.restore(state)
    assert len(list((tmp_path / "state").glob("*.damaged"))) == 2  # set aside, not thrown away


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"), [(storage, "save_file"), (rundir, "sha256"), (os, "fsync"), (Path, "rename")]
)
def test_a_full_disk_keeps_the_old_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    state, _ = run(tmp_path, 6)
    before = files(tmp_path)
    state.step = 7
    with RunDir.open(tmp_path, RECIPE) as directory:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(RunError, match=r"step 7 was not saved: .*No space left.*good state, step 6, is kept"):
                directory.save(state)
        assert files(tmp_path) == before
        directory.save(state)
        assert directory.steps() == [6, 7]


def test_a_full_disk_under_the_log_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, 3)
    with RunDir.open(tmp_path, RECIPE) as directory:
        monkeypatch.setattr(Path, "open", fail)
        with pytest.raises(RunError, match=r"metrics.jsonl was not written.*step 3, is kept"):
            directory.log({"step": 4})


def test_an_exploding_run_keeps_and_names_its_last_good_state(tmp_path: Path) -> None:
    objective = Chase()
    state = begin(objective)
    with RunDir.open(tmp_path, RECIPE) as directory:
        with pytest.raises(
            TrainingError, match=r"step 5.*loss is nan.*The last good state, step 4, is kept in .*step-00000004"
        ):
            for update in recorded(updates(state, objective, 9), directory, state, every=2):
                if update.step == 5:
                    with torch.no_grad():
                        next(state.student.parameters()).fill_(float("nan"))
        fresh = begin()
        directory.restore(fresh)
    assert all(torch.isfinite(value).all() for value in contents(fresh).values())


def test_another_recipe_is_refused_with_the_fields(tmp_path: Path) -> None:
    run(tmp_path, 1)
    before = files(tmp_path)
    other = {"optim": {"lr": 0.02, "betas": (0.9, 0.999)}, "round": 3}
    with pytest.raises(
        RunError, match=r"optim\.lr: 0\.01 -> 0\.02\n  seed: 1 -> absent\n  round: absent -> 3\n"
    ) as caught:
        RunDir.open(tmp_path, other)
    assert "betas" not in str(caught.value)  # a tuple is a list in JSON
    assert files(tmp_path) == before


def test_what_is_not_a_run_or_is_already_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"not a run directory: it holds \['thesis\.tex'\]"):
        RunDir.open(tmp_path, RECIPE)
    run(tmp_path / "run", 1)
    with pytest.raises(RunError, match=r"already holds a run.*step 1, is kept"):
        RunDir.open(tmp_path / "run", RECIPE, resume=False)
    (tmp_path / "run" / "recipe.json").write_text("{")
    with pytest.raises(RunError, match=r"recipe\.json is not JSON"):
        RunDir.open(tmp_path / "run", RECIPE)


def test_a_second_process_is_locked_out(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE):
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            RunDir.open(tmp_path, RECIPE)
        reader = RunDir.open(tmp_path, RECIPE, engine=replace(CPU, rank=1, world=2))
        reader.log({"step": 1})
        assert files(tmp_path) == [".lock", "recipe.json"]
    RunDir.open(tmp_path, RECIPE).close()


def test_states_of_other_networks_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 1)
    wide = Net()
    wide.inner = torch.nn.Linear(4, 9)
    for state in (
        begin(Chase(), wide),
        State.begin(Chase(), Net(), AdamW(ema_decay=None), CPU),
        State({**begin().learners, "critic": begin().learners["student"]}, {}),
    ):
        with RunDir.open(tmp_path, RECIPE) as directory, pytest.raises(RunError, match="is one of other networks"):
            directory.restore(state)


def test_a_line_torn_by_a_kill_and_lines_of_lost_steps_go(tmp_path: Path) -> None:
    run(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    assert [update.step for update in run(tmp_path, 5)[1]] == [4, 5]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    with RunDir.open(tmp_path, RECIPE) as directory, pytest.raises(ValueError, match="needs a step"):
        directory.log({"loss": 1.0})


def test_the_model_is_replaced_whole(tmp_path: Path) -> None:
    def write(text: str) -> Callable[[Path], object]:
        return lambda folder: (folder / "weights").write_text(text)

    with RunDir.open(tmp_path, RECIPE) as directory:
        directory.publish(write("old"))
        with pytest.raises(RunError, match=r"No space left.*What was there is kept"):
            directory.publish(lambda folder: (write("half")(folder), fail()))
        assert (directory.model / "weights").read_text() == "old"
        directory.publish(write("new"))
    assert (tmp_path / "model" / "weights").read_text() == "new"
    (tmp_path / "model").rename(tmp_path / ".old-model")  # a crash between the two renames
    shutil.copytree(tmp_path / ".old-model", tmp_path / ".tmp-model")
    RunDir.open(tmp_path, RECIPE).close()
    assert (tmp_path / "model" / "weights").read_text() == "new" and files(tmp_path) == [
        ".lock",
        "model/weights",
        "recipe.json",
    ]


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_parts_that_cannot_be_written_or_read_end_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `torch.distributed.checkpoint` raises is no Exception; the state before is kept, and comes back whole."""
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    state, shards = begin(), replace(CPU, sharded=True)
    with RunDir.open(tmp_path, RECIPE, engine=shards) as directory:
        next(updates(state, Chase(), 2))
        directory.save(state)
        before = {name: value.clone() for name, value in contents(state).items()}
        next(updates(state, Chase(), 2))
        with monkeypatch.context() as patch:
            patch.setattr(FileSystemWriter, "write_data", full)
            with pytest.raises(RunError, match=r"(?s)step 2 was not saved: .*No space left.* step 1, is kept"):
                directory.save(state)
        fresh = begin()
        with monkeypatch.context() as patch:
            patch.setattr(FileSystemReader, "read_data", full)
            with pytest.raises(RunError, match=r"(?s)step-00000001 could not be read: .*No space left"):
                directory.restore(fresh)
        assert directory.restore(fresh).step == 1
    assert all(torch.equal(value, contents(fresh)[name]) for name, value in before.items())
