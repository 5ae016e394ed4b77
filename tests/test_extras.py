"""Sampling and distillation need no extra; what needs one names it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unmask
from unmask.cli.doctor import OPTIONAL, PACKAGES
from unmask.extras import needs_extra

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def names_of(requirements: list[str]) -> list[str]:
    """Names of packages without their versions."""
    return [re.split(r"[<>=\[]", requirement)[0] for requirement in requirements]


ABSENT = f"""
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {names_of(EXTRAS["demo"])}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
import unmask
"""

DISTIL = """
from dataclasses import replace
model = unmask.load("unmask:teacher")
samples = unmask.sample(model, n=2, length=16, steps=2)
assert len(set(samples.texts)) == 2
recipe = unmask.recipe("demo-mcd")
objective = replace(recipe.objective, round_steps=1)
recipe = replace(recipe, steps=2, batch_size=2, accumulation=1, objective=objective)
*_, last = unmask.distill(model, samples.tokens, recipe)
assert unmask.sample(last.student, n=1, length=16, steps=1).texts
"""

COMMANDS = """
from unmask.cli.main import main
for words in (
    ["demo"],
    ["bench"],
    ["report", "runs"],
    ["reproduce", "ablation"],
    ["verify", "--n", "200", "--vocab-size", "4"],
    ["eval", "likelihood", "unmask:teacher"],
):
    print(main(words))
"""


def run_without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import what the extra `demo` installs."""
    environment = os.environ | {"PYTHONPATH": str(Path(unmask.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", ABSENT + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_model_is_sampled_and_distilled_without_extras(tmp_path: Path) -> None:
    process = run_without_extras(DISTIL, tmp_path)
    assert process.returncode == 0, process.stderr


def test_each_command_that_needs_the_extra_names_it(tmp_path: Path) -> None:
    process = run_without_extras(COMMANDS, tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stderr.splitlines()
    assert process.stdout.split() == ["1"] * len(lines)
    assert [line.split(":")[0] for line in lines] == [
        *("unmask demo", "unmask bench", "unmask report"),
        *("unmask reproduce", "unmask verify", "unmask eval"),
    ]
    assert all("pip install 'unmask[demo]'" in line for line in lines)


def test_the_error_names_the_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package.*unmask\[demo\]") as caught:
        with needs_extra("demo"):
            import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert caught.value.name == "no_such_package"


def test_doctor_shows_every_package_of_the_project() -> None:
    assert sorted(PACKAGES) == sorted(names_of(PROJECT["dependencies"]))
    wanted = {
        name for extra, packages in EXTRAS.items() if extra != "dev" for name in names_of(packages)
    }
    assert wanted <= set(OPTIONAL)
