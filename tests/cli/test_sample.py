"""`unmask sample` on models whose training rows had BOS and EOS at their ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.models.model import load


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_prompt_stands_behind_bos_where_training_rows_began_with_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a model never saw other text at the start of a row."""
    model = load(request.getfixturevalue(kind))
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("the state")
    for wrap, want in ((False, ids), (True, [model.tokenizer.bos_id, *ids])):
        model.save(tmp_path / "model", recipe={"data": {"wrap": wrap}})
        assert (
            main(["sample", str(tmp_path / "model"), "--n", "2", "--prompt", "the state", "--json"])
            == 0
        )
        rows = json.loads(capsys.readouterr().out)["tokens"]
        assert [row[: len(want)] for row in rows] == [want, want] and len(rows[0]) == 16
