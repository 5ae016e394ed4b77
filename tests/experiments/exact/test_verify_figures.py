"""The figures of `unmask verify`."""

from pathlib import Path

import pytest

from unmask.experiments.exact.duality_checks import observe
from unmask.experiments.exact.verify_figures import duality_figure


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_duality_figure(tmp_path: Path, ending: str) -> None:
    observation = observe(5, 200, seed=0)
    file = tmp_path / f"duality.{ending}"
    duality_figure(observation, file)
    assert file.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")
