"""A run that was stopped or killed in the middle of a round resumes bit for bit."""

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from toy_training import CPU, RECIPE, ROUND, Chase, begin, contents, differing, run, updates
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import GaussianArgmax, LogLinear
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import DiT, Shape
from unmask.objectives.base import Objective
from unmask.objectives.consistency import Consistency
from unmask.objectives.curriculum import Curriculum
from unmask.objectives.rounds import Rounds
from unmask.objectives.sdtt import Sdtt
from unmask.training import AdamW, RunDir, State, fit, stop_signals, with_checkpoints
from unmask.training.checkpoint import damage

STEPS = 10


def log(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("middle", [1, ROUND - 1, ROUND, 5, 2 * ROUND + 1])
def test_ten_steps_are_five_and_five(tmp_path: Path, middle: int) -> None:
    """With dropout, noise, EMA, warm-up, and a teacher that changes at steps 0, 4, 8."""
    straight, _ = run(tmp_path / "straight", STEPS)
    run(tmp_path / "stopped", middle)
    torch.manual_seed(middle)  # a new process has other random numbers
    resumed, again = run(tmp_path / "stopped", STEPS, accumulation=1)
    assert again[0].step == middle + 1
    assert differing(straight, resumed) == []
    assert log(tmp_path / "straight") == log(tmp_path / "stopped")


def test_the_comparison_sees_a_teacher_that_was_lost(tmp_path: Path) -> None:
    """The law above can fail: without its teacher, the same resume differs."""
    straight, _ = run(tmp_path / "straight", STEPS)
    run(tmp_path / "stopped", 5)
    objective = Chase()
    state = begin(objective)
    with RunDir.open(tmp_path / "stopped", RECIPE) as directory:
        directory.restore(state)
        objective.teacher.load_state_dict(Chase().teacher.state_dict())
        list(updates(state, objective, STEPS))
    assert any(name.startswith("student inner") for name in differing(straight, state))


def test_a_signal_saves_and_the_run_resumes(tmp_path: Path) -> None:
    straight, _ = run(tmp_path / "straight", STEPS)
    objective = Chase()
    state = begin(objective)
    with RunDir.open(tmp_path / "stopped", RECIPE) as directory, stop_signals() as stop:
        for update in with_checkpoints(
            updates(state, objective, STEPS, stop=stop), directory, state, every=100
        ):
            if update.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
        assert directory.steps() == [6]
    resumed, _ = run(tmp_path / "stopped", STEPS)
    assert differing(straight, resumed) == [] and log(tmp_path / "straight") == log(
        tmp_path / "stopped"
    )


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from toy_training import run

torch.optim.SGD([torch.zeros(1)])  # what torch imports late, it imports once, here
path, steps, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)

def begin(path):
    child = os.fork()
    if child == 0:
        run(path, steps, every=2)
        os._exit(0)
    return child

started = time.monotonic()
os.waitpid(begin(path.with_name("undisturbed")), 0)
whole = time.monotonic() - started  # seconds of a run on this machine; less than three pieces
for attempt in range(1000):
    child = begin(path)
    time.sleep(whole * dice.uniform(0.02, 0.25) * 1.1**attempt)
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0:
        break
print(attempt)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    """Killed repeatedly at random moments, the run ends as an uninterrupted one."""
    steps = 40
    paths = [str(Path(unmask.__file__).parents[1]), str(Path(__file__).parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path / "killed"), str(steps)]
    killer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert killer.returncode == 0, killer.stderr
    assert int(killer.stdout) >= 3, "the run was to be killed several times"
    straight, _ = run(tmp_path / "straight", steps, every=100)
    resumed, nothing = run(tmp_path / "killed", steps)
    assert nothing == [] and differing(straight, resumed) == []
    assert log(tmp_path / "straight") == log(tmp_path / "killed")


class Killed(BaseException):
    """The simulated process is killed: no later operation on a file has an effect."""


def counted(patch: pytest.MonkeyPatch, alive: int) -> list[str]:
    """Let only the first `alive` operations that change a directory happen; returns their names.

    Opening a file for reading changes nothing, and is not counted.
    """
    done: list[str] = []

    def watched(name: str, operate: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            if name == "open" and args[1][0] == "r":
                return operate(*args, **options)
            if len(done) >= alive:
                raise Killed(name)
            done.append(name)
            return operate(*args, **options)

        return operation

    for module, names in {io: ["open"], os: ["mkdir", "rename", "rmdir", "unlink"]}.items():
        for name in names:
            patch.setattr(module, name, watched(name, vars(module)[name]))
    return done


def carry_out(path: Path) -> None:
    """A run of three steps that publishes its model and drops its states."""
    objective = Chase()
    state = begin(objective)
    with RunDir.open(path, RECIPE) as directory:
        if not directory.model.exists():
            directory.restore(state, every=1)
            list(with_checkpoints(updates(state, objective, 3), directory, state, every=1))
            directory.publish(
                "model", lambda folder: torch.save(contents(state), folder / "weights")
            )
        directory.drop_states()


def saved_run(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The step at which the next start finds the run, and the tensors of its model or state."""
    state = begin()
    with RunDir.open(path, RECIPE) as directory:
        if directory.model.exists():
            return 3, torch.load(directory.model / "weights", weights_only=True)
        wrong = [damage(path / "state" / f"step-{step:08}", step) for step in directory.steps()]
        assert set(wrong) <= {None}, "a state is there whole or not at all"
        return directory.restore(state, every=1).step, contents(state)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_kill_before_any_operation_on_a_file_loses_nothing_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before the first operation, the second, ..., the last.

    The next start finds the newest saved state, or the one that was being saved, without a warning.
    It ends as an uninterrupted run does.
    """
    objective, saved, save = Chase(), [0], RunDir.save
    state = begin(objective)
    expected = [{name: value.clone() for name, value in contents(state).items()}]
    for _ in updates(state, objective, 3):
        expected.append({name: value.clone() for name, value in contents(state).items()})

    def noted(self: RunDir, state: State) -> None:
        save(self, state)
        saved.append(state.step)

    monkeypatch.setattr(RunDir, "save", noted)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # it takes most of the time
    for alive in range(1000):
        path, done = tmp_path / str(alive), []
        with monkeypatch.context() as patch, suppress(Killed):
            done = counted(patch, alive)
            carry_out(path)
            break
        newest = saved[-1]
        saved[:] = [0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step, numbers = saved_run(path) if path.exists() else (0, expected[0])
        assert newest <= step <= newest + 1 and equal(numbers, expected[step]), (
            f"killed before {alive}, behind {done[-2:]}"
        )
        if alive % 8 == 0:
            carry_out(path)
            saved[:] = [0]
            assert equal(saved_run(path)[1], expected[3]) and not (path / "state").exists()
            assert [record["step"] for record in log(path)] == [1, 2, 3] and not [
                *path.glob(".tmp-*")
            ]
    assert alive > 50 and {*done} == {"mkdir", "open", "rename", "rmdir", "unlink"}


VOCAB, LENGTH = 11, 8
MASKED, UNIFORM = MaskedProcess(VOCAB, VOCAB - 1), UniformProcess(VOCAB)
PATH = GaussianArgmax(VOCAB, -3.0, 2.0)


def denoiser(process: Process) -> NetworkDenoiser:
    torch.manual_seed(0)
    network = DiT(Shape(VOCAB, LENGTH, width=16, blocks=1, heads=2, cond_dim=8, dropout=0.2))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    masked = process is MASKED
    return NetworkDenoiser(network, mask_id=VOCAB - 1 if masked else None, sees_alpha=not masked)


def rounds(*temperatures: float) -> Rounds:
    return Rounds(round_steps=ROUND, delta0=1 / 16, temperatures=temperatures)


METHODS: dict[str, tuple[Process, Callable[[], Objective]]] = {
    "MCD": (
        MASKED,
        lambda: Consistency(MASKED, LogLinear(), denoiser(MASKED), rounds(0.9, 0.8, 0.7)),
    ),
    "SDTT": (
        MASKED,
        lambda: Sdtt(MASKED, LogLinear(), denoiser(MASKED), rounds(1, 1, 1), divergence="tvd"),
    ),
    "DCD": (UNIFORM, lambda: Consistency(UNIFORM, PATH, denoiser(UNIFORM), rounds(1, 1, 1))),
    "curriculum": (
        UNIFORM,
        lambda: Curriculum(UNIFORM, LogLinear(), PATH, 7, temperature=0.1, top_k=3),
    ),
    "curriculum, at its switch": (
        UNIFORM,
        lambda: Curriculum(UNIFORM, LogLinear(), PATH, 5, temperature=0.1),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """The same law for the real objectives, stopped inside a round and at the switch."""
    process, make = METHODS[name]

    def train(path: Path, steps: int) -> State:
        objective = make()
        state = State.begin(objective, denoiser(process), AdamW(lr=0.01), CPU)

        def batch(step: int) -> torch.Tensor:
            return torch.randint(
                VOCAB - 1, (4, LENGTH), generator=torch.Generator().manual_seed(step)
            )

        with RunDir.open(path, {}) as directory:
            directory.restore(state)
            list(
                with_checkpoints(
                    fit(objective, state, batch, steps=steps, engine=CPU), directory, state, every=5
                )
            )
        return state

    straight = train(tmp_path / "straight", STEPS)
    train(tmp_path / "stopped", 5)
    torch.manual_seed(5)  # a new process has other random numbers
    resumed = train(tmp_path / "stopped", STEPS)
    assert differing(straight, resumed) == [] and log(tmp_path / "straight") == log(
        tmp_path / "stopped"
    )
    records = log(tmp_path / "stopped")
    if "curriculum" not in name:
        assert [record["round"] for record in records] == [0] * 4 + [1] * 4 + [2] * 2
    assert len({record["loss"] for record in records}) == STEPS


def test_a_curriculum_switches_at_its_step() -> None:
    """Two runs that differ only in soft_steps are equal until the first of them switches."""
    losses, x0 = {}, torch.randint(VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    for soft_steps in (3, 6):
        objective = Curriculum(UNIFORM, LogLinear(), PATH, soft_steps, temperature=0.1, top_k=3)
        state = State.begin(objective, denoiser(UNIFORM), AdamW(lr=0.01), CPU)
        losses[soft_steps] = [
            update.loss for update in fit(objective, state, lambda step: x0, steps=5, engine=CPU)
        ]
    assert losses[3][:3] == losses[6][:3] and losses[3][3] != losses[6][3]
