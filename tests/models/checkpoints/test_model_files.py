"""Files of a model: wrapped names, shards, dtypes, configs, and special files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.dataclass_json import read_json
from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.config import LARGEST_LENGTH
from unmask.models.checkpoints.model_files import INDEX, locate, open_files
from unmask.models.model import Model, load

GOLDEN = Path(__file__).parents[2] / "golden"
MDLM = GOLDEN / "hub_mdlm"
TENSORS = load_file(MDLM / "model.safetensors")
BARE = {name.removeprefix("backbone."): tensor for name, tensor in TENSORS.items()}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(MDLM, tmp_path / "model")
    return tmp_path / "model"


def logits(path: Path) -> Tensor:
    model = load(path)
    assert isinstance(model, Model)
    return model.network(torch.arange(24)[None])


# --- names


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"model.backbone.{name}",
        lambda name: f"_forward_module.module.model._orig_mod.{name}",
        lambda name: f"_fsdp_wrapped_module.backbone.{name}",
        lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
        lambda name: name.replace(
            "blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        ),
        lambda name: "backbone.module." + name.replace("mlp.", "mlp.module."),
    ],
)
def test_wrappers_are_stripped_from_names(rename: Callable[[str], str], copy: Path) -> None:
    save_file({rename(name): tensor for name, tensor in BARE.items()}, copy / "model.safetensors")
    assert torch.equal(logits(copy), logits(MDLM))


def test_two_copies_of_the_weights_under_two_wrappers_are_refused(copy: Path) -> None:
    both = {f"module.{name}": tensor for name, tensor in BARE.items()}
    save_file(
        both | {f"model.{name}": tensor.clone() for name, tensor in BARE.items()},
        copy / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="adaLN_modulation"):
        load(copy)


# --- shards


def shard(directory: Path, **changed: str) -> dict[str, str]:
    """Write the weights as three shards with their index."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    files = {
        name: f"model-0000{1 + i % 3}-of-00003.safetensors"
        for i, name in enumerate(sorted(TENSORS))
    }
    for file in set(files.values()):
        save_file({name: TENSORS[name] for name in files if files[name] == file}, directory / file)
    (directory / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": files | changed})
    )
    return files


def test_shards_are_one_model(copy: Path) -> None:
    shard(copy)
    assert torch.equal(logits(copy), logits(MDLM))
    with pytest.raises(CheckpointError, match=r"no raw\.safetensors"):
        load(copy, weights="raw")


def test_shards_that_do_not_fit_their_index_are_refused(copy: Path, tmp_path: Path) -> None:
    first = sorted(TENSORS)[0]
    for changed, match in (
        (
            {first: "../evil.safetensors"},
            r"got '\.\./evil\.safetensors', want a \.safetensors file",
        ),
        (
            {first: str(tmp_path / "evil.safetensors")},
            r"want a \.safetensors file",
        ),
        ({first: "pytorch_model.bin"}, "want a .safetensors file"),
        ({first: ""}, "want a .safetensors file"),
        ({first: "model-00009-of-00009.safetensors"}, "has no model-00009-of-00009"),
        ({first: "model-00002-of-00003.safetensors"}, f"differ in 1 tensors, first: {first}"),
        (
            {"backbone.extra": "model-00001-of-00003.safetensors"},
            r"differ in 1 tensors, first: backbone\.extra",
        ),
    ):
        save_file(TENSORS, tmp_path / "evil.safetensors")
        shard(copy, **changed)
        with pytest.raises(CheckpointError, match=match):
            load(copy)
    files = shard(copy)
    (copy / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00003-of-00003"):
        load(copy)
    for text in (
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": []}',
    ):
        (copy / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match="has no `weight_map`"):
            load(copy)
    twice = (
        json.dumps({"weight_map": files})[:-2]
        + f', "{first}": "model-00002-of-00003.safetensors"}}}}'
    )
    (copy / INDEX).write_text(twice)
    with pytest.raises(CheckpointError, match=f"has the name '{first}' twice"):
        load(copy)


# --- numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_every_width_are_weights(dtype: torch.dtype, copy: Path) -> None:
    save_file(
        {name: tensor.to(dtype) for name, tensor in TENSORS.items()}, copy / "model.safetensors"
    )
    tolerance = {torch.float64: 1e-6, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert (logits(copy) - logits(MDLM)).abs().max() < tolerance


KINDS = [
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", KINDS)
def test_dtypes_that_weights_cannot_have_are_refused(dtype: torch.dtype, copy: Path) -> None:
    """A quantised model would give texts of noise."""
    name = "backbone.blocks.0.mlp.0.weight"
    save_file(TENSORS | {name: TENSORS[name].to(dtype)}, copy / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"blocks\.0\.mlp\.0\.weight has the wrong dtype: .*float16, bfloat16"
    ):
        load(copy)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("averaged", [False, True])
def test_dtypes_that_weights_cannot_have_are_refused_in_a_checkpoint(
    averaged: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    network = load(MDLM).network
    odd = network.blocks[0].mlp[0].weight.detach().to(dtype)
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    shadow = [weight.detach() for weight in network.parameters()]
    if averaged:
        place = [name for name, _ in network.named_parameters()].index("blocks.0.mlp.0.weight")
        shadow[place] = odd
    else:
        state["blocks.0.mlp.0.weight"] = odd
    torch.save({"state_dict": state, "ema": {"shadow_params": shadow}}, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError,
        match=r"want one of float16|other than named tensors|want a list .* of tensors",
    ):
        load(tmp_path / "a.ckpt")


def test_float64_beyond_float32_is_refused(copy: Path) -> None:
    name = "backbone.output_layer.linear.bias"
    save_file(
        TENSORS | {name: torch.full((38,), 1e300, dtype=torch.float64)}, copy / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load(copy)


# --- configs


CONFIG = json.loads((MDLM / "config.json").read_text())


def test_a_byte_order_mark_is_skipped(copy: Path) -> None:
    (copy / "config.json").write_bytes(b"\xef\xbb\xbf" + (MDLM / "config.json").read_bytes())
    assert torch.equal(logits(copy), logits(MDLM))


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "3", '"a"', "", "{", "\x00", "[" * 100_000, "{" + '"a":{' * 50_000),
        *(
            '{"a": NaN}',
            '{"a": -Infinity}',
            '{"a": 1, "a": 2}',
            "9" * 5000,
            '{"length": ' + "9" * 5000 + "}",
        ),
    ],
)
def test_configs_that_are_not_json_objects_are_refused(text: str, copy: Path) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json .*JSON"):
        load(copy)


@pytest.mark.parametrize(
    "value", [10**9, LARGEST_LENGTH + 1, 0, -1, "24", 24.5, [24], {"a": 1}, True, 10**400]
)
def test_impossible_lengths_are_refused(value: Any, copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps(CONFIG | {"length": value, "model_length": value}))
    with pytest.raises(CheckpointError, match="`length`"):
        load(copy)


@pytest.mark.parametrize("value", [1, -0.5, "0.1", [0.1], 10**400, 10**300])
def test_impossible_dropouts_are_refused(value: Any, copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps(CONFIG | {"dropout": value}))
    with pytest.raises(CheckpointError, match="dropout"):
        load(copy)


@pytest.mark.parametrize("value", [-1, 38, 10**30, "37", [37], True, 37.0])
def test_masks_outside_the_vocabulary_are_refused(value: Any, copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps(CONFIG | {"mask_index": value}))
    with pytest.raises(CheckpointError, match="mask_i"):
        load(copy)


@pytest.mark.parametrize(
    "config",
    [{"name": ["LogLinear"]}, {"name": None}, {}, {"name": "Polynomial", "power": 10**300}]
    + [{"name": "LogLinear", "eps": value} for value in ("x", [1], None, True, 2, -1, 1e300)]
    + [{"name": "Polynomial", "power": value} for value in (0, -1, {}, 1e300)],
)
def test_unknown_schedules_are_refused(config: Any, tmp_path: Path) -> None:
    load(MDLM).save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schedule": config}))
    with pytest.raises(CheckpointError, match=r"`schedule|eps is|power is"):
        load(tmp_path / "m")


def test_a_long_length_in_a_config_costs_no_memory(copy: Path) -> None:
    """The table of rotary angles grows with the rows, not with the length in a config."""
    (copy / "config.json").write_text(
        json.dumps(CONFIG | {"length": LARGEST_LENGTH, "model_length": LARGEST_LENGTH})
    )
    network = load(copy).network
    network(torch.zeros(1, 5, dtype=torch.int64))
    assert (
        network.shape.length == LARGEST_LENGTH
        and network.rotary_emb(0, 5).cos.untyped_storage().nbytes() < 10_000
    )


# --- special files


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", INDEX, "tokenizer.json", "vocab.json", "a.ckpt"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_only_regular_files_are_read(kind: str, name: str, copy: Path) -> None:
    """Reading a pipe would block, and reading /dev/zero would fill the memory."""
    if name in (INDEX, "a.ckpt"):
        (copy / "model.safetensors").unlink()
    (copy / name).unlink(missing_ok=True)
    {
        "pipe": lambda: os.mkfifo(copy / name),
        "device": lambda: (copy / name).symlink_to("/dev/zero"),
        "directory": (copy / name).mkdir,
    }[kind]()
    with pytest.raises(CheckpointError, match="is not a regular file"):
        load(copy)


def test_other_files_of_a_directory_are_ignored(copy: Path) -> None:
    (copy / "tokenizer_old").mkdir()
    os.mkfifo(copy / "notes")
    assert torch.equal(logits(copy), logits(MDLM))


def test_a_device_file_is_refused() -> None:
    for name in ("/dev/zero", "/dev/null"):
        with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
            load(name)


def test_files_have_a_largest_size(copy: Path) -> None:
    for name, size in (("config.json", 2**22), ("tokenizer.json", 2**27)):
        with (copy / name).open("wb") as file:
            file.truncate(size + 1)  # a hole: no bytes on the disk
        with pytest.raises(
            CheckpointError, match=f"{name} .*got {size + 1} bytes, want at most {size}"
        ):
            load(copy)
        shutil.copy(MDLM / "config.json", copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.write((2**24 + 1).to_bytes(8, "little"))
        file.truncate(2**25)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match="its header has 16777217 bytes, want at most 16777216"
    ):
        load(copy)


def test_json_numbers_are_read_exactly(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, "ä", None, True, {"b": {}}], "": "x"}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False), encoding)
        assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match=r"a\.json .*got \d+ bytes, want at most 5"):
        read_json(tmp_path / "a.json", 5)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
    (tmp_path / "a.json").write_text("{}", "utf-16")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_nothing_is_read_before_names_and_shapes_fit(copy: Path) -> None:
    with open_files(locate(copy, None), "ema") as source:
        assert source.weights["vocab_embed.embedding"].shape == (38, 48)
        (copy / "model.safetensors").write_bytes(b"")
        assert source.weights["output_layer.linear.bias"].kind == "float32"
