"""Lightning checkpoints: opened as archives of data, and only if complete."""

import io
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.lightning import open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "lightning_mdlm" / "mdlm.ckpt"


def save(path: Path, root: Any, **options: Any) -> Path:
    torch.save(root, path, **options)
    return path


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], tuple[str, bytes] | None],
    **options: Any,
) -> Path:
    """The archive with every member changed, or dropped if `change` returns None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(*changed)
    return target


def refuse(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match), open_checkpoint(path) as checkpoint:
        for weight in [*checkpoint.weights.values(), *(checkpoint.shadow or [])]:
            weight.read()


def test_the_golden_checkpoint_holds_raw_weights_averages_and_a_config() -> None:
    with open_checkpoint(GOLDEN) as checkpoint:
        weights = {name: weight.read() for name, weight in checkpoint.weights.items()}
        assert checkpoint.shadow is not None
        shadow = [weight.read() for weight in checkpoint.shadow]
    assert (
        len(weights) == 31 and len(shadow) == 30
    )  # the rotary frequencies are a buffer: no average
    assert "backbone.vocab_embed.embedding" in weights
    assert shadow[0].shape == weights["backbone.vocab_embed.embedding"].shape
    assert checkpoint.config["model"]["length"] == 24
    assert checkpoint.config["parameterization"] == "subs"
    assert checkpoint.config["noise"] == {"type": "loglinear"}
    assert checkpoint.config["time_conditioning"] is False


KINDS = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def test_tensors_of_every_dtype_and_view_are_read_exactly(tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors: dict[str, Tensor] = {str(kind): (base > 0).to(kind) for kind in KINDS}
    tensors |= {
        "row": base[1:3],
        "column": base[:, 2],
        "turned": base.T,
        "scalar": base[0, 0],
        "empty": base[:0],
    }
    tensors["parameter"] = torch.nn.Parameter(base.clone())
    with open_checkpoint(save(tmp_path / "a.ckpt", {"state_dict": tensors})) as checkpoint:
        assert checkpoint.shadow is None and checkpoint.config == {}
        for name, tensor in tensors.items():
            read = checkpoint.weights[name].read()
            assert read.dtype == tensor.dtype and torch.equal(read, tensor)
            assert not read.requires_grad


class DictConfig:
    """Pickles as omegaconf's class of this name, without the package."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("omegaconf", "omegaconf.dictconfig"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["omegaconf.dictconfig"].DictConfig = DictConfig  # type: ignore[attr-defined]
    monkeypatch.setattr(DictConfig, "__module__", "omegaconf.dictconfig")
    yield


@pytest.mark.usefixtures("omegaconf")
def test_configs_of_every_form_are_read(tmp_path: Path) -> None:
    weights = {"state_dict": {"a": torch.ones(1)}}
    inner = DictConfig(
        _content={"length": DictConfig(_val=7), "tags": DictConfig(_content=["x", 1])}
    )
    whole = DictConfig(
        _content={
            "model": inner,
            "odd": torch.ones(1),
            "open": "${a}",
            "none": DictConfig(_val=None),
        }
    )
    want = {"model": {"length": 7, "tags": ["x", 1]}, "odd": None, "open": "${a}", "none": None}
    for hyper in ({"config": whole, "tokenizer": DictConfig(anything=1)}, whole):
        with open_checkpoint(
            save(tmp_path / "a.ckpt", weights | {"hyper_parameters": hyper})
        ) as checkpoint:
            assert checkpoint.config == want


@pytest.mark.usefixtures("omegaconf")
def test_recursive_and_exponential_configs_are_harmless(tmp_path: Path) -> None:
    weights = {"state_dict": {"a": torch.ones(1)}}
    ring = DictConfig()
    ring._content = {"self": ring, "length": 3}
    with open_checkpoint(
        save(tmp_path / "a.ckpt", weights | {"hyper_parameters": ring})
    ) as checkpoint:
        assert checkpoint.config["length"] == 3 and checkpoint.config["self"]["self"]["length"] == 3
    bomb: Any = ["x"]
    for _ in range(60):
        bomb = [bomb] * 10
    with open_checkpoint(
        save(tmp_path / "b.ckpt", weights | {"hyper_parameters": {"x": bomb}})
    ) as checkpoint:
        assert len(checkpoint.config["x"]) == 10
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    refuse(
        save(tmp_path / "c.ckpt", weights | {"hyper_parameters": {"x": deep}}),
        "nested too deep: got over 100",
    )


def test_tensors_are_read_on_demand(tmp_path: Path) -> None:
    """The checksum of a tensor detects a flipped bit, when that tensor is read."""
    content = bytearray(GOLDEN.read_bytes())
    with zipfile.ZipFile(GOLDEN) as archive:
        info = archive.getinfo("mdlm/data/1")
    extra = struct.unpack("<HH", content[info.header_offset + 26 : info.header_offset + 30])
    content[info.header_offset + 30 + sum(extra) + 5] ^= 1
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(content)
    with open_checkpoint(path) as checkpoint:
        for weight in checkpoint.weights.values():
            if weight.storage == "1":
                with pytest.raises(CheckpointError, match="data/1 is damaged"):
                    weight.read()
            else:
                weight.read()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named_so(share: float, tmp_path: Path) -> None:
    content = GOLDEN.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(share * len(content))])
    refuse(path, "truncated or damaged" if share else "is not a checkpoint")


@given(
    st.integers(0, GOLDEN.stat().st_size - 1) | st.integers(-20000, -1),
    st.binary(min_size=1, max_size=6),
)
def test_damage_anywhere_is_an_error_of_ours_or_harmless(
    tmp_path_factory: Any, place: int, patch: bytes
) -> None:
    content = bytearray(GOLDEN.read_bytes())
    place %= len(content)
    content[place : place + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "patched.ckpt"
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for weight in [*checkpoint.weights.values(), *(checkpoint.shadow or [])]:
                weight.read()
    except CheckpointError:
        pass


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('canary', 'w')",)


def test_a_hostile_checkpoint_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {"state_dict": {"a": torch.ones(1)}, "callbacks": Hostile()}
    refuse(
        save(tmp_path / "evil.ckpt", root),
        r"evil\.ckpt is not opened, and no code in it was run.*builtins\.exec",
    )
    assert not Path("canary").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert Path("canary").exists()  # so the file was a real one


def test_a_pickle_inside_a_tensor_stays_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = pickle.dumps(Hostile())
    root = {"state_dict": {"a": torch.frombuffer(bytearray(inner), dtype=torch.uint8)}}
    with open_checkpoint(save(tmp_path / "nested.ckpt", root)) as checkpoint:
        assert bytes(checkpoint.weights["a"].read().tolist()) == inner
    assert not Path("canary").exists()


def test_old_files_are_refused_with_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {"state_dict": {"a": torch.ones(1)}}
    old = save(tmp_path / "old.ckpt", root, _use_new_zipfile_serialization=False)
    refuse(old, "is not opened: .*torch before 1.6.*If you trust")
    refuse(
        save(tmp_path / "evil.ckpt", Hostile(), _use_new_zipfile_serialization=False), "not opened"
    )
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Hostile()))
    refuse(tmp_path / "bare.ckpt", "not opened")
    with tarfile.open(tmp_path / "tar.ckpt", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refuse(tmp_path / "tar.ckpt", "not opened")
    assert not Path("canary").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    refuse(tmp_path / "text.ckpt", "not a checkpoint: want the zip archive")
    rewrite(
        GOLDEN,
        tmp_path / "other.ckpt",
        lambda name, content: (name.replace("data.pkl", "data.txt"), content),
    )
    refuse(tmp_path / "other.ckpt", "0 files NAME/data.pkl, want 1")
    refuse(save(tmp_path / "bare.ckpt", {"a": torch.ones(1)}), "without a `state_dict`")
    refuse(save(tmp_path / "list.ckpt", [1]), "without a `state_dict`")
    refuse(save(tmp_path / "odd.ckpt", {"state_dict": {"a": 1}}), "other than named tensors")
    root: dict[str, Any] = {"state_dict": {"a": torch.ones(1)}}
    refuse(save(tmp_path / "ema.ckpt", root | {"ema": {"shadow_params": {"a": 1}}}), "want a list")
    refuse(save(tmp_path / "ema.ckpt", root | {"ema": [1]}), "want a list")


def test_archives_are_read_only_as_torch_writes_them(tmp_path: Path) -> None:
    def same(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content

    with open_checkpoint(rewrite(GOLDEN, tmp_path / "same.ckpt", same)) as checkpoint:
        assert len(checkpoint.weights) == 31
    refuse(
        rewrite(GOLDEN, tmp_path / "packed.ckpt", same, compression=zipfile.ZIP_DEFLATED),
        "is compressed",
    )
    lost = rewrite(
        GOLDEN,
        tmp_path / "lost.ckpt",
        lambda name, content: None if name == "mdlm/data/3" else (name, content),
    )
    refuse(lost, "no member mdlm/data/3")
    short = rewrite(
        GOLDEN,
        tmp_path / "short.ckpt",
        lambda name, content: (name, content[:1000]) if "/data/" in name else (name, content),
    )
    refuse(short, "got 1000 bytes, want")
    turned = rewrite(
        GOLDEN,
        tmp_path / "turned.ckpt",
        lambda name, content: (name, b"big" if "byteorder" in name else content),
    )
    refuse(turned, "big-endian")


def test_unusual_dtypes_matter_for_weights_only(tmp_path: Path) -> None:
    root = {"state_dict": {"a": torch.ones(1)}, "other": torch.ones(2, dtype=torch.uint16)}
    with open_checkpoint(save(tmp_path / "a.ckpt", root)) as checkpoint:
        assert checkpoint.weights["a"].read().tolist() == [1.0]
    root = {"state_dict": {"a": torch.ones(2, dtype=torch.uint16)}}
    refuse(save(tmp_path / "b.ckpt", root), "other than named tensors")
