"""`unmask train` saves its state before a signal or a failed output ends it."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toy_recipes import corpus
from unmask.cli import train

PLAN = (
    "--network.width 8 --network.blocks 1 --network.heads 2 --network.cond-dim 4 "
    "--network.length 16 --batch-size 4 --precision float32 --data.part all "
    "--data.tokenizer bpe:262 --steps 6 --save-every 100 --json"
)


@pytest.fixture
def begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Train in `a run`, calling `at` with each step; returns exit code or error, and messages."""
    data = ["--data.corpus", str(corpus(tmp_path / "text")), "--out", str(tmp_path / "a run")]

    def run(at: Callable[[int], object]) -> tuple[int | OSError, str]:
        monkeypatch.setattr(train, "emit", lambda record, indent: at(record["step"]))
        try:
            code: int | OSError = train.main("train", ["demo-teacher", *PLAN.split(), *data])
        except OSError as error:
            code = error
        return code, capsys.readouterr().err

    return run


def states(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "a run" / "state").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_command_to_resume_is_named(
    begin: Callable[..., Any], tmp_path: Path, number: int
) -> None:
    code, messages = begin(lambda step: os.kill(os.getpid(), number) if step == 2 else None)
    command = f"unmask train '{tmp_path}/a run'"
    assert code == 1 and f"stopped; `{command}` resumes from the state" in messages
    assert states(tmp_path) == ["step-00000003"]
    steps: list[int] = []
    code, messages = begin(steps.append)
    assert code == 0 and steps == [4, 5, 6] and "a run/model holds the model" in messages
    assert begin(steps.append)[0] == 0 and steps == [4, 5, 6]


@pytest.mark.parametrize(
    "fault", [BrokenPipeError(errno.EPIPE, "closed"), OSError(errno.ENOSPC, "No space left")]
)
def test_a_lost_output_ends_the_training_with_its_state_saved(
    begin: Callable[..., Any], tmp_path: Path, fault: OSError
) -> None:
    """As in `unmask train ... --json | head`."""

    def fail(step: int) -> None:
        if step == 2:
            raise fault

    assert begin(fail)[0] is fault
    assert states(tmp_path) == ["step-00000003"]
