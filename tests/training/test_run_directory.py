"""The run directory survives damage, a full disk, a crash, a second process and another recipe."""

import errno
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toy_training import CPU, RECIPE, Chase, Net, begin, contents, differing, run, updates
from unmask.training import (
    AdamW,
    RunDir,
    RunError,
    State,
    TrainingError,
    checkpoint,
    with_checkpoints,
)
from unmask.training.run_files import logged_lines


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    run(tmp_path, 7)
    state = ["cursor.json", "frozen/teacher.safetensors"]
    state += [f"student/{part}.safetensors" for part in ("ema", "model", "optimizer")]
    saved = [
        f"state/step-0000000{step}/{file}" for step in (6, 7) for file in state
    ]  # two good states, no more
    assert files(tmp_path) == sorted([".lock", "metrics.jsonl", "recipe.json", *saved])
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    assert lines(tmp_path)[5].keys() >= {
        "loss",
        "grad_norm",
        "lr",
        "tokens",
        "seconds",
        "turn",
        "round",
        "error",
    }
    assert json.loads((tmp_path / "recipe.json").read_text()) == RECIPE


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "part", ["cursor.json", "frozen/teacher.safetensors", "student/optimizer.safetensors"]
)
@pytest.mark.parametrize(
    "harm", [flip, Path.unlink, lambda file: os.truncate(file, 20)], ids=["bit", "gone", "torn"]
)
def test_a_damaged_state_falls_back_to_the_previous_one_with_a_warning(
    tmp_path: Path, part: str, harm: Callable[[Path], None]
) -> None:
    run(tmp_path, 6)
    harm(tmp_path / "state" / "step-00000006" / part)
    state = begin()
    with (
        RunDir.open(tmp_path, RECIPE) as directory,
        pytest.warns(RuntimeWarning, match=r"step-00000006 is damaged"),
    ):
        restored = directory.restore(state)
    assert (state.step, restored.step, restored.lost) == (3, 3, 3)
    assert "resuming at step 3; 3 steps" in str(restored)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    harm(tmp_path / "state" / "step-00000003" / part)
    before = snapshot(tmp_path)
    for _ in range(3):  # each time, and nothing is lost
        with RunDir.open(tmp_path, RECIPE) as directory:
            with pytest.raises(
                RunError,
                match=r"no good state.*step-00000003: .*; step-00000006\.damaged: set aside",
            ):
                directory.restore(state)
    assert snapshot(tmp_path) == before


def test_removed_states_are_an_error(tmp_path: Path) -> None:
    """A run that logged more steps than `every` had a state; a run killed earlier had none."""
    run(tmp_path, 4)
    shutil.rmtree(tmp_path / "state")
    before = snapshot(tmp_path)
    for _ in range(2):
        with RunDir.open(tmp_path, RECIPE) as directory:
            with pytest.raises(
                RunError, match=r"has no state, but metrics\.jsonl logged 4 steps.* every 3"
            ):
                directory.restore(begin(), every=3)
    assert snapshot(tmp_path) == before
    with RunDir.open(tmp_path, RECIPE) as directory:
        assert directory.restore(begin(), every=4).lost == 4


def swap(state: Path) -> None:
    """Exchange two states."""
    state.rename(state.with_name("x"))
    state.with_name("step-00000003").rename(state)
    state.with_name("x").rename(state.with_name("step-00000003"))


def change(old: str, new: str, cursor: str = "cursor.json") -> Callable[[Path], None]:
    """Replace text in a cursor, which stays JSON."""

    def harm(state: Path) -> None:
        text = (state / cursor).read_text()
        assert old in text
        (state / cursor).write_text(text.replace(old, new))

    return harm


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (swap, "it is the state of step 3"),
        (change('"step": 6', '"step": 3'), "does not match its checksum"),
        (change('"updates": 6', '"updates": 7'), "does not match its checksum"),
        (change('"format": 2', '"format": 3'), "has format 3"),
        (lambda state: (state / "cursor.json").write_text("[]"), "not the cursor of a state"),
        (lambda state: (state / "extra").touch(), "extra does not belong to it"),
        (lambda state: os.mkfifo(state / "student" / "pipe"), "student/pipe does not belong to it"),
    ],
)
def test_every_digit_of_a_state_is_checked(
    tmp_path: Path, harm: Callable[[Path], None], problem: str
) -> None:
    run(tmp_path, 6)
    harm(tmp_path / "state" / "step-00000006")
    assert problem in str(checkpoint.damage(tmp_path / "state" / "step-00000006", 6))


def test_a_state_of_version_0_1_is_read_and_reported(tmp_path: Path) -> None:
    """Its cursor has no digest, but step and files are checked."""
    straight, _ = run(tmp_path / "straight", 6)
    run(tmp_path / "old", 3)
    folder = tmp_path / "old" / "state" / "step-00000003"
    cursor = json.loads((folder / "cursor.json").read_text())
    del cursor["digest"]
    (folder / "cursor.json").write_text(json.dumps(cursor | {"format": 1}))
    with RunDir.open(tmp_path / "old", RECIPE) as directory:
        line = str(directory.restore(begin()))
    assert line.startswith("resuming at step 3; version 0.1 wrote this state")
    assert checkpoint.damage(folder, 4) == "it is the state of step 3"
    resumed, _ = run(tmp_path / "old", 6)
    assert differing(straight, resumed) == []


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"),
    [(checkpoint, "save_file"), (checkpoint, "sha256"), (os, "fsync"), (Path, "rename")],
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
            with pytest.raises(
                RunError,
                match=r"step 7 was not saved: .*No space left.*good state, step 6, is kept",
            ):
                directory.save(state)
        assert files(tmp_path) == before
        directory.save(state)
        assert directory.steps() == [6, 7]


def test_a_full_disk_during_logging_is_an_error_that_names_the_log(tmp_path: Path) -> None:
    """Closing the file adds no error, and the next start cuts the incomplete line."""
    run(tmp_path, 3)
    size, limit = (
        (tmp_path / "metrics.jsonl").stat().st_size,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    with pytest.raises(
        RunError, match=r"metrics\.jsonl was not written.*too large.*step 3, is kept"
    ):
        with RunDir.open(tmp_path, RECIPE) as directory:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limit[1]))
            try:
                directory.log({"step": 4, "loss": 0.123456789})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size + 9
    assert run(tmp_path, 4)[1][0].step == 4
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_is_an_error_that_names_the_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation of a start and an end names its failure; nothing is lost."""
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file .*File exists"):
        RunDir.open(tmp_path / "file", RECIPE)
    run(tmp_path / "run", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(RunError, match=r"new cannot be a run directory: .*No space left"):
            RunDir.open(tmp_path / "new", RECIPE)
        with RunDir.open(tmp_path / "run", RECIPE) as directory:
            with pytest.raises(
                RunError, match=r"metrics\.jsonl was not cut .*No space left.*step 4, is kept"
            ):
                directory.restore(begin())
    with RunDir.open(tmp_path / "run", RECIPE) as directory:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(RunError, match=r"holds the model, but .*state was not removed"):
                directory.drop_states()
        assert directory.restore(begin()).step == 4 and len(lines(tmp_path / "run")) == 4
    flip(tmp_path / "run" / "state" / "step-00000004" / "cursor.json")
    with RunDir.open(tmp_path / "run", RECIPE) as directory, monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(
            RunError, match=r"a damaged state in .* was not set aside: .*No space left"
        ):
            directory.restore(begin())


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
@pytest.mark.parametrize("again", [False, True])
def test_a_run_directory_that_vanishes_ends_the_training(
    tmp_path: Path, gone: Callable[[Path], None], again: bool
) -> None:
    """It is not created again, and a directory of another process is not touched."""
    state, _ = run(tmp_path / "run", 3)
    with RunDir.open(tmp_path / "run", RECIPE) as directory:
        gone(tmp_path / "run")
        if again:
            RunDir.open(tmp_path / "run", RECIPE).close()
        state.step = 4
        for act in (
            lambda: directory.log({"step": 4}),
            lambda: directory.save(state),
            lambda: directory.publish("model", fail),
        ):
            with pytest.raises(RunError, match=r"run was removed, moved or replaced"):
                act()
    assert (files(tmp_path / "run") if again else not (tmp_path / "run").exists()) == (
        [".lock", "recipe.json"] if again else True
    )


def test_an_exploding_run_keeps_and_names_its_last_good_state(tmp_path: Path) -> None:
    objective = Chase()
    state = begin(objective)
    with RunDir.open(tmp_path, RECIPE) as directory:
        with pytest.raises(
            TrainingError,
            match=r"step 5.*loss is nan.*The last good state, step 4, is kept in .*step-00000004",
        ):
            for update in with_checkpoints(updates(state, objective, 9), directory, state, every=2):
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


def test_other_directories_and_existing_runs_are_refused(tmp_path: Path) -> None:
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
        State({**begin().trained, "critic": begin().trained["student"]}, {}),
    ):
        with (
            RunDir.open(tmp_path, RECIPE) as directory,
            pytest.raises(RunError, match="other networks"),
        ):
            directory.restore(state)


def test_a_line_torn_by_a_kill_and_lines_of_lost_steps_go(tmp_path: Path) -> None:
    run(tmp_path, 3)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    assert [update.step for update in run(tmp_path, 5)[1]] == [4, 5]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    with (
        RunDir.open(tmp_path, RECIPE) as directory,
        pytest.raises(ValueError, match="step"),
    ):
        directory.log({"loss": 1.0})


def test_the_model_is_replaced_whole(tmp_path: Path) -> None:
    def write(text: str) -> Callable[[Path], object]:
        return lambda folder: (folder / "weights").write_text(text)

    with RunDir.open(tmp_path, RECIPE) as directory:
        directory.publish("model", write("old"))
        with pytest.raises(RunError, match=r"model was not written: .*No space left.*kept"):
            directory.publish("model", lambda folder: (write("half")(folder), fail()))
        assert (directory.model / "weights").read_text() == "old"
        directory.publish("model", write("new"))
    assert (tmp_path / "model" / "weights").read_text() == "new"
    (tmp_path / "model").rename(tmp_path / ".old-model")  # a crash between the two renames
    shutil.copytree(tmp_path / ".old-model", tmp_path / ".tmp-model")
    RunDir.open(tmp_path, RECIPE).close()
    assert (tmp_path / "model" / "weights").read_text() == "new" and files(tmp_path) == [
        ".lock",
        "model/weights",
        "recipe.json",
    ]


def test_unwritable_or_unreadable_parts_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous state is kept, and is restored intact."""
    state, shards = begin(), replace(CPU, sharded=True)
    with RunDir.open(tmp_path, RECIPE, engine=shards) as directory:
        next(updates(state, Chase(), 2))
        directory.save(state)
        before = {name: value.clone() for name, value in contents(state).items()}
        next(updates(state, Chase(), 2))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", fail)
            with pytest.raises(
                RunError,
                match=r"step 2 was not saved: a process could not .*No space left.* step 1, is",
            ):
                directory.save(state)
        fresh = begin()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "safe_open", fail)
            with pytest.raises(
                RunError,
                match=r"step-00000001 could not be read: a process could not .*No space left",
            ):
                directory.restore(fresh)
        assert directory.restore(fresh).step == 1
    assert all(torch.equal(value, contents(fresh)[name]) for name, value in before.items())


class Program:
    """A pickle that leaves a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", [".metadata", "00000.safetensors", "__0_0.distcp"])
def test_no_file_of_a_state_is_run(tmp_path: Path, name: str) -> None:
    """A run directory of unknown origin with valid checksums, and a program instead of numbers."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Program(trace)))
    assert trace.exists(), "the program works"
    trace.unlink()
    state, engine = begin(), replace(CPU, sharded=True)
    with RunDir.open(tmp_path / "run", RECIPE, engine=engine) as directory:
        next(updates(state, Chase(), 1))
        directory.save(state)
        folder = tmp_path / "run" / "state" / "step-00000001"
        (folder / "parts" / name).write_bytes(pickle.dumps(Program(trace)))
        cursor = json.loads((folder / "cursor.json").read_text())
        (folder / "cursor.json").unlink()
        checkpoint.seal(folder, 1, {fact: cursor[fact] for fact in ("learners", "frozen")})
        with pytest.raises(RunError, match=r"is a pickle, which could run code|could not read"):
            directory.restore(begin())
    assert not trace.exists()


@pytest.mark.parametrize(
    ("sharded", "rows"),
    [(False, ""), (True, ""), (True, "[]"), (True, '{"student/model/inner.weight": 3}')],
)
def test_a_sealed_state_of_other_content_is_an_error(
    tmp_path: Path, sharded: bool, rows: str
) -> None:
    """A run directory of unknown origin with valid checksums."""
    state, engine = begin(), replace(CPU, sharded=sharded)
    with RunDir.open(tmp_path, RECIPE, engine=engine) as directory:
        next(updates(state, Chase(), 1))
        directory.save(state)
        folder = tmp_path / "state" / "step-00000001"
        file = next(file for file in sorted(folder.rglob("*.safetensors")))
        if rows:
            save_file(load_file(file), file, {"rows": rows})
        else:
            file.write_bytes(b"these are no tensors")
        cursor = json.loads((folder / "cursor.json").read_text())
        (folder / "cursor.json").unlink()
        checkpoint.seal(folder, 1, {fact: cursor[fact] for fact in ("learners", "frozen")})
        with pytest.raises(RunError, match=r"step-00000001 (could not be read|has other networks)"):
            directory.restore(begin())


def test_lines_that_are_not_updates_are_omitted(tmp_path: Path) -> None:
    deep = "[" * 100_000
    (tmp_path / "log").write_text(
        f'{{"step": 1}}\n{{"step": 1e999}}\n{deep}\n[]\n{{"step": "2"}}\n{{"step": 3}}\n'
    )
    assert [step for step, _ in logged_lines(tmp_path / "log")] == [1, 3]
