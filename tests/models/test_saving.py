"""Saving: directories that may be written, file modes, cards and raw weights."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unmask.cli.main import main
from unmask.diffusion.processes import MaskedProcess
from unmask.diffusion.schedules import LogLinear
from unmask.models.checkpoints.export import save_lightning
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model, load
from unmask.recipes.schema import DataSettings, trained_on

GOLDEN = Path(__file__).parents[1] / "golden"
CKPT = GOLDEN / "lightning_mdlm" / "mdlm.ckpt"
CARD = {"recipe": {"data": {"corpus": "austen", "part": "first half"}}, "steps": 3}


def model(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4)).eval()
        torch.nn.init.normal_(network.head.weight)
    return Model(NetworkDenoiser(network, 8, False), MaskedProcess(9, 8), LogLinear(), None)


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what must not be replaced


@pytest.mark.parametrize("to", ["unmask", "lightning-duo"])
@pytest.mark.parametrize(
    "kind", ["file", "link to a file", "device", "pipe", "folder", "home", "working directory"]
)
def test_other_directories_are_refused_and_left_unchanged(
    kind: str,
    to: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A conversion leaves it unchanged."""
    out = tmp_path / "out"
    if kind in ("file", "link to a file"):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "notes.txt").rename(out) if kind == "file" else out.symlink_to(
            tmp_path / "notes.txt"
        )
    elif kind == "device":
        out = Path("/dev/null")
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        out.mkdir()
        if kind != "working directory" or to != "unmask":
            (out / "thesis.tex").write_text("mine")
    if kind == "working directory":
        monkeypatch.chdir(out)
    before, kinds = content(tmp_path), out.lstat().st_mode
    assert main(["convert", str(CKPT), str(out), "--to", to]) == 1
    printed = capsys.readouterr().err
    assert str(out.resolve()) in printed and "give" in printed and len(printed.splitlines()) == 1
    with pytest.raises(ValueError, match=str(out.resolve())):
        model().save(out) if to == "unmask" else save_lightning(model(), out)
    assert content(tmp_path) == before and out.lstat().st_mode == kinds


def test_a_read_only_directory_is_left_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model().save(tmp_path / "m")
    before = content(tmp_path)
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != tmp_path / "m"
    )  # root may do anything
    with pytest.raises(ValueError, match="is not writable"):
        model(seed=1).save(tmp_path / "m")
    assert content(tmp_path) == before


def test_foreign_models_and_run_directories_are_left_unchanged(tmp_path: Path) -> None:
    """Only directories that `save` wrote are replaced: no downloads, no runs with states."""
    shutil.copytree(GOLDEN / "hub_duo", tmp_path / "duo")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    before = content(tmp_path)
    for name in ("duo", "run"):
        with pytest.raises(ValueError, match="does not hold a model"):
            model().save(tmp_path / name)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["run/model", "run", "link"])
def test_a_model_is_not_converted_onto_itself(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model().save(tmp_path / "run" / "model", raw=model(seed=1).network, note="kept")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "model")
    before = content(tmp_path)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / name)]) == 1
    assert ("out is the source model" in capsys.readouterr().err) == (name != "run")
    shutil.copy(CKPT, tmp_path / "a.ckpt")
    assert (
        main(
            ["convert", str(tmp_path / "a.ckpt"), str(tmp_path / "a.ckpt"), "--to", "lightning-duo"]
        )
        == 1
    )
    assert content(tmp_path) == before | {"a.ckpt": CKPT.read_bytes()}


def test_a_model_and_a_checkpoint_of_ours_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in ("new", "empty", "link", "new"):
        assert main(["convert", str(CKPT), str(tmp_path / name)]) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "config.json").exists()
    (tmp_path / "old.ckpt").write_bytes(b"")
    for _ in range(2):
        assert (
            main(
                [
                    "convert",
                    str(tmp_path / "new"),
                    str(tmp_path / "old.ckpt"),
                    "--to",
                    "lightning-duo",
                ]
            )
            == 0
        )
    assert isinstance(load(tmp_path / "old.ckpt"), Model)


def test_raw_weights_stay_beside_their_ema(tmp_path: Path) -> None:
    first, raw = model(), model(seed=1).network
    first.save(tmp_path / "m", raw=raw)
    load(tmp_path / "m").save(tmp_path / "m", dtype=torch.bfloat16, note="again")
    assert torch.equal(load(tmp_path / "m", weights="raw").network.head.weight, raw.head.weight)
    assert load(tmp_path / "m").card["note"] == "again"
    model(seed=2).save(tmp_path / "m")
    assert not (tmp_path / "m" / "raw.safetensors").exists()


# --- modes and owners


def test_files_and_directories_have_the_modes_of_the_umask(umask: int, tmp_path: Path) -> None:
    model().save(tmp_path / "m", raw=model(seed=1).network)
    save_lightning(model(), tmp_path / "a.ckpt")
    assert {
        file.name: mode(file) for file in [*(tmp_path / "m").iterdir(), tmp_path / "a.ckpt"]
    } == {name: 0o640 for name in ("config.json", "model.safetensors", "raw.safetensors", "a.ckpt")}
    assert mode(tmp_path / "m") == 0o750


@pytest.mark.parametrize("want", [0o700, 0o2770, 0o1777])
def test_a_replaced_directory_keeps_its_mode(want: int, tmp_path: Path) -> None:
    for name in ("empty", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(want)
    model().save(tmp_path / "model")
    for name in ("empty", "model"):
        model().save(tmp_path / name)
        assert mode(tmp_path / name) == want
    save_lightning(model(), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").chmod(0o600)
    save_lightning(model(), tmp_path / "a.ckpt")
    assert mode(tmp_path / "a.ckpt") == 0o600


def test_an_owner_is_kept_or_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root keeps the owner of a directory; other users cannot, and leave it unchanged."""
    model().save(tmp_path / "m")
    before, given = content(tmp_path / "m"), []
    status = (tmp_path / "m").stat()
    real = os.stat

    def foreign(path: Path, **options: bool) -> os.stat_result:
        result = real(path, **options)
        if str(path) != str(tmp_path / "m"):
            return result
        return os.stat_result((*result[:4], status.st_uid + 1, *result[5:]))

    def refuse(path: Path, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "stat", foreign)
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(
        OSError, match=r"could not be written; its old contents are unchanged: .*not permitted"
    ):
        model(seed=1).save(tmp_path / "m")
    assert content(tmp_path / "m") == before and os.listdir(tmp_path) == ["m"]
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path.name, uid, gid)))
    model(seed=1).save(tmp_path / "m")
    assert {(uid, gid) for _, uid, gid in given} == {(status.st_uid + 1, status.st_gid)}
    assert {name for name, *_ in given} == {".tmp-m", "config.json", "model.safetensors"}


# --- the card


def test_the_card_survives_every_layout(tmp_path: Path) -> None:
    """`eval likelihood` finds the text of a converted model."""
    model().save(tmp_path / "a", **CARD)
    assert load(tmp_path / "a").card == CARD
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--dtype", "bfloat16"]) == 0
    assert (
        main(["convert", str(tmp_path / "b"), str(tmp_path / "c.ckpt"), "--to", "lightning-duo"])
        == 0
    )
    assert main(["convert", str(tmp_path / "c.ckpt"), str(tmp_path / "d")]) == 0
    assert load(tmp_path / "c.ckpt").card == CARD | {
        "source": str(tmp_path / "a"),
        "weights": "ema",
    }
    for name in ("b", "d"):
        assert trained_on(str(tmp_path / name)) == DataSettings("austen", "first half")
    load(tmp_path / "d").save(tmp_path / "e", steps=4)
    card = json.loads((tmp_path / "e" / "config.json").read_text("utf-8"))["card"]
    assert (card["steps"], card["recipe"]) == (4, CARD["recipe"])


@pytest.mark.parametrize(
    "card", [[], None, "x", {"recipe": None}, {"recipe": []}, {"recipe": {"data": 3}}]
)
def test_a_card_of_the_wrong_type_is_ignored(card: object, tmp_path: Path) -> None:
    model().save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"card": card}), "utf-8-sig")
    assert load(tmp_path / "m").card == (card if isinstance(card, dict) else {})
    if card == {"recipe": {"data": 3}}:
        with pytest.raises(ValueError, match="data in the card"):
            trained_on(str(tmp_path / "m"))
    else:
        assert trained_on(str(tmp_path / "m")) is None


def test_models_are_compared_without_their_cards(tmp_path: Path) -> None:
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, causal=True))
    judge = CausalModel(CausalPredictor(network, 8), None)
    judge.save(tmp_path / "judge", **CARD)
    back = load(tmp_path / "judge")
    assert (
        back.card == CARD
        and judge.card == {}
        and back.checkpoint_config() == judge.checkpoint_config()
    )
    assert load(GOLDEN / "hub_duo").card == {}
