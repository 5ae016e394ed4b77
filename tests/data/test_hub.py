"""Names of models: paths, run directories, models of the package, revisions."""

from pathlib import Path

import huggingface_hub
import pytest

from unmask.data.hub import check_no_file_left_out, local_or_hub, resolve_dataset, shipped


def test_a_run_directory_gives_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert local_or_hub(tmp_path, ()) == tmp_path
    (tmp_path / "model" / "config.json").write_text("{}")
    assert local_or_hub(tmp_path, ()) == tmp_path / "model"
    (tmp_path / "config.json").write_text("{}")
    assert local_or_hub(str(tmp_path), ()) == tmp_path, "it holds a model itself"


def test_models_of_the_package_have_names() -> None:
    for name in ("teacher", "duo", "judge"):
        assert local_or_hub(f"unmask:{name}", ()) == shipped() / name
        assert (shipped() / name / "model.safetensors").exists()
    with pytest.raises(
        ValueError, match="unmask:student: want one of unmask:duo, unmask:judge, unmask:teacher"
    ):
        local_or_hub("unmask:student", ())


def test_a_hub_id_may_end_with_a_revision_but_not_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name, revision in (("a/b@v1", None), ("a/b", "v1"), ("a/b@v1", "v1"), ("a/b", None)):
        local_or_hub(name, (), revision)
    assert requests == [("a/b", "v1"), ("a/b", "v1"), ("a/b", "v1"), ("a/b", None)]
    with pytest.raises(ValueError, match=r"revision 'v2' contradicts .*a/b@v1"):
        local_or_hub("a/b@v1", (), "v2")
    (tmp_path / "a@b").mkdir()
    assert local_or_hub(tmp_path / "a@b", ()) == tmp_path / "a@b"
    for name in ("runs/a/b@v1", "runs/mine@old", "/data/me@host/model", "a b@v1"):
        with pytest.raises(ValueError, match=f"no file or directory {name}, "):
            local_or_hub(name, ())


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_empty_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path it would be the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^model or tokenizer .*got "):
        local_or_hub(name, ())
    assert local_or_hub(".", ()) == Path()


@pytest.mark.parametrize("name", ["here", "unmask:teacher"])
def test_a_revision_of_a_local_model_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match=f"^revision 'v1' .*{name} is a local model"):
        local_or_hub(name, (), "v1")


def test_the_error_names_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache/hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", download)
    for find in (
        lambda: local_or_hub("a/b", ()),
        lambda: resolve_dataset("hub:a/b"),
        lambda: check_no_file_left_out("a/b", "0" * 40, ["hf://datasets/a/b@0/x.parquet"]),
    ):
        with pytest.raises(ValueError, match=r"cannot be written \(.*/cache/hub.*\): set HF_HOME"):
            find()
