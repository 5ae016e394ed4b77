"""Exported Lightning checkpoints: entries, order, and the way back."""

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers as hf
import torch
from safetensors.torch import load_file

from unmask.cli.main import main
from unmask.data.tokenizers import Tokenizer, train_bpe
from unmask.diffusion.processes import MaskedProcess, UniformProcess
from unmask.diffusion.schedules import Cosine, LogLinear
from unmask.models.checkpoints.export import save_lightning
from unmask.models.checkpoints.lightning import open_checkpoint
from unmask.models.denoiser import NetworkDenoiser
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model, load

GOLDEN = Path(__file__).parents[2] / "golden"
CKPT = GOLDEN / "lightning_mdlm" / "mdlm.ckpt"


def tensors(file: Path) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    with open_checkpoint(file) as checkpoint:
        assert checkpoint.shadow is not None
        weights = {name: weight.read() for name, weight in checkpoint.weights.items()}
        return weights, [weight.read() for weight in checkpoint.shadow]


def test_mdlms_checkpoint_comes_back_name_by_name_and_in_the_same_order(tmp_path: Path) -> None:
    assert main(["convert", str(CKPT), str(tmp_path / "own"), "--weights", "both"]) == 0
    back = tmp_path / "back.ckpt"
    assert (
        main(
            [
                "convert",
                str(tmp_path / "own"),
                str(back),
                "--to",
                "lightning-duo",
                "--weights",
                "both",
            ]
        )
        == 0
    )
    (weights, shadow), (want_weights, want_shadow) = tensors(back), tensors(CKPT)
    assert weights.keys() == want_weights.keys() and len(shadow) == len(want_shadow) == 30
    assert all(torch.equal(weights[name], want_weights[name]) for name in weights)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(shadow, want_shadow, strict=True))
    assert any(
        not torch.equal(shadow[i], list(weights.values())[i]) for i in range(3)
    )  # two sets, not one twice


def test_the_checkpoint_has_all_entries_that_their_code_reads(tmp_path: Path) -> None:
    """`load_from_checkpoint` and `on_load_checkpoint` need them; torch reads them without code."""
    save_lightning(load(CKPT), tmp_path / "a.ckpt")
    read = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert read.keys() >= {
        "state_dict",
        "ema",
        "loops",
        "hyper_parameters",
        "pytorch-lightning_version",
    }
    assert read["ema"].keys() == {"decay", "num_updates", "shadow_params"}
    loop = read["loops"]["fit_loop"]
    assert loop["epoch_progress"]["current"]["completed"] == 0
    assert loop["epoch_loop.batch_progress"]["current"]["completed"] == 0
    size = read["hyper_parameters"]["config"]["model"]
    want = {"hidden_size": 48, "n_blocks": 2, "n_heads": 3, "length": 24, "cond_dim": 16}
    assert {name: size[name] for name in want} == want


@pytest.mark.parametrize("folder", ["hub_mdlm", "hub_sdtt", "hub_duo", "hub_ar", "lightning_mdlm"])
def test_every_layout_survives_both_conversions(folder: str, tmp_path: Path) -> None:
    """Each stage of load, our directory, load, .ckpt, load gives the original codes' numbers."""
    want = load_file(GOLDEN / folder / "expected.safetensors")
    own, ckpt = tmp_path / "own", tmp_path / "new" / "model.ckpt"
    assert main(["convert", str(GOLDEN / folder), str(own)]) == 0
    assert main(["convert", str(own), str(ckpt), "--to", "lightning-duo"]) == 0
    first = load(GOLDEN / folder)
    for model in (load(own), load(ckpt)):
        if isinstance(model, CausalModel):
            logits = model.network(want["x0"])
        elif folder == "hub_duo":
            logits = model.network(want["zt"], want["sigma"])
        else:
            logits = model.network(want["zt"])
        reference = want["logits_ema" if folder == "lightning_mdlm" else "logits"]
        assert reference.abs().max() > 0.1 and (logits - reference).abs().max() < 1e-4
        assert model.checkpoint_config() == first.checkpoint_config()


def test_a_mask_that_is_not_the_last_token_and_eps_are_kept(tmp_path: Path) -> None:
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4))
    model = Model(NetworkDenoiser(network, 3, True), MaskedProcess(9, 3), LogLinear(0.01), None)
    save_lightning(model, tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt").checkpoint_config() == model.checkpoint_config()


def test_models_that_the_layout_cannot_express_are_refused(tmp_path: Path) -> None:
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4))
    uniform = Model(NetworkDenoiser(network, None, False), UniformProcess(9), LogLinear(), None)
    with pytest.raises(ValueError, match=r"sees_alpha .* got False"):
        save_lightning(uniform, tmp_path / "a.ckpt")
    masked = load(CKPT)
    assert isinstance(masked, Model)
    with pytest.raises(ValueError, match=r"schedule .* got Cosine"):
        save_lightning(replace(masked, schedule=Cosine()), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"^raw .*adaLN_modulation"):
        save_lightning(masked, tmp_path / "a.ckpt", raw=network)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"a\.ckpt .*File exists"):
        save_lightning(load(CKPT), tmp_path / "file" / "a.ckpt")
    old = tmp_path / "old.ckpt"
    old.mkdir()  # a directory cannot be replaced by a file
    with pytest.raises(ValueError, match=r"old\.ckpt is a directory"):
        save_lightning(load(CKPT), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.ckpt"]


def test_a_lightning_checkpoint_is_float32(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = [
        "convert",
        str(CKPT),
        str(tmp_path / "a.ckpt"),
        "--to",
        "lightning-duo",
        "--dtype",
        "bfloat16",
    ]
    assert main(call) == 1 and "float32 weights" in capsys.readouterr().err


def test_convert_adds_a_missing_tokenizer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Public checkpoints need GPT-2's. A tokenizer of another vocabulary is refused."""
    train_bpe(["the rain in Spain"] * 3, 258).save(tmp_path / "bpe")
    network = DiT(Shape(258, 8, width=8, blocks=1, heads=2, cond_dim=4))
    Model(NetworkDenoiser(network, 257, False), MaskedProcess(258, 257), LogLinear(), None).save(
        tmp_path / "a"
    )
    assert (
        main(
            [
                "convert",
                str(tmp_path / "a"),
                str(tmp_path / "b"),
                "--tokenizer",
                str(tmp_path / "bpe"),
            ]
        )
        == 0
    )
    with_one = load(tmp_path / "b")
    assert (
        with_one.tokenizer is not None
        and with_one.tokenizer.digest == Tokenizer.load(tmp_path / "bpe").digest
    )
    capsys.readouterr()
    for call, words in (
        (
            ["convert", str(CKPT), str(tmp_path / "c"), "--tokenizer", str(tmp_path / "bpe")],
            "258 tokens and the model 38",
        ),
        (["convert", str(CKPT), str(tmp_path / "c.ckpt")], "is the name of a checkpoint"),
        (
            [
                "convert",
                str(CKPT),
                str(tmp_path / "c.ckpt"),
                "--to",
                "lightning-duo",
                "--tokenizer",
                "x",
            ],
            "no tokenizer",
        ),
    ):
        assert main(call) == 1 and words in capsys.readouterr().err


@pytest.mark.parametrize("mask_id", [261, 3])
def test_the_mask_of_a_tokenizer_replaces_an_assumed_one(
    mask_id: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """BERT's MASK is 103 of 30522; a checkpoint that names none would use the last token."""
    backend = hf.Tokenizer(
        hf.models.WordLevel({word: i for i, word in enumerate(["[MASK]", *map(str, range(261))])})
    )
    backend.add_special_tokens(["[MASK]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    network = DiT(Shape(262, 8, width=8, blocks=1, heads=2, cond_dim=4))
    model = Model(
        NetworkDenoiser(network, mask_id, False),
        MaskedProcess(262, mask_id),
        LogLinear(),
        None,
    )
    model.save(tmp_path / "a")
    code = main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--tokenizer", str(tmp_path)])
    if mask_id == 3:
        assert (
            code == 1
            and "mask_id is 3 in the config and 0 in the tokenizer" in capsys.readouterr().err
        )
    else:
        assert code == 0 and load(tmp_path / "b").checkpoint_config().mask_id == 0
