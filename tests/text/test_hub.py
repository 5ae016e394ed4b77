"""Names of models: paths, run directories, what comes with the package, and revisions."""

from pathlib import Path

import pytest

from unmask.text.hub import local_or_hub, shipped, split_revision


def test_a_run_directory_stands_for_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert local_or_hub(tmp_path, ()) == tmp_path
    (tmp_path / "model" / "config.json").write_text("{}")
    assert local_or_hub(tmp_path, ()) == tmp_path / "model"
    (tmp_path / "config.json").write_text("{}")
    assert local_or_hub(str(tmp_path), ()) == tmp_path, "it holds a model itself"


def test_models_of_the_package_have_names() -> None:
    for name in ("teacher", "judge"):
        assert local_or_hub(f"unmask:{name}", ()) == shipped() / name
        assert (shipped() / name / "model.safetensors").exists()
    with pytest.raises(ValueError, match="are unmask:judge, unmask:teacher: got unmask:student"):
        local_or_hub("unmask:student", ())


def test_revisions_stand_behind_a_hub_id_and_not_in_a_path(tmp_path: Path) -> None:
    assert split_revision("someone/model@v1") == ("someone/model", "v1")
    assert split_revision("someone/model") == ("someone/model", None)
    (tmp_path / "a@b").mkdir()
    assert split_revision(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), None)
