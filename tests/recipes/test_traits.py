"""Settings of a user's own objective have the role `ObjectiveSettings`."""

import subprocess
import sys
from pathlib import Path

import pytest

OWN = """
from dataclasses import dataclass, replace
from typing import Literal

import unmask
from unmask.data.tokenizers import Tokenizer
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import NoiseSchedule
from unmask.objectives.base import Objective
from unmask.objectives.nelbo import Nelbo
from unmask.recipes.traits import Student, Traits


@dataclass(frozen=True)
class Own:
    kind: Literal["own"] = "own"

    def traits(self) -> Traits:
        return Traits("masked")

    def build(
        self, student: Student, schedule: NoiseSchedule, tokenizer: Tokenizer | None
    ) -> Objective:
        return Nelbo(MaskedProcess(student.vocab_size, student.mask_id or 0), schedule)


recipe = replace(unmask.recipe("demo-teacher"), objective=Own())
wrong = replace(recipe, objective="own")  # type: ignore[arg-type]
"""


@pytest.mark.slow
def test_a_recipe_takes_them_by_their_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "own_settings.py"
    file.write_text(OWN, "utf-8")
    call = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--strict", str(file)]
    root = Path(__file__).parents[2]
    done = subprocess.run(call, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
