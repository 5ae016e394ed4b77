"""Checkpoints for other people's code: what is in them, in which order, and that they come back."""

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
        weights = {name: checkpoint.tensor(stored) for name, stored in checkpoint.weights.items()}
        return weights, [checkpoint.tensor(stored) for stored in checkpoint.shadow]


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


def test_what_their_code_reads_is_there(tmp_path: Path) -> None:
    """`load_from_checkpoint` and their `on_load_checkpoint` ask for these, and torch runs no code to read them."""
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
    assert {name: size[name] for name in ("hidden_size", "n_blocks", "n_heads", "length", "cond_dim")} == {
        "hidden_size": 48, "n_blocks": 2, "n_heads": 3, "length": 24, "cond_dim": 16,
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["hub_mdlm", "hub_sdtt", "hub_duo", "hub_ar", "lightning_mdlm"])
def test_every_layout_goes_through_both_of_ours(folder: str, tmp_path: Path) -> None:
    """load -> our directory -> load -> .ckpt -> load: the numbers of the original codes at each stage."""
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
        wanted = want["logits_ema" if folder == "lightning_mdlm" else "logits"]
        assert wanted.abs().max() > 0.1 and (logits - wanted).abs().max() < 1e-4
        assert model.facts() == first.facts()


def test_a_mask_that_is_not_the_last_token_and_eps_are_kept(tmp_path: Path) -> None:
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4))
    model = Model(
        NetworkDenoiser(network, 3, True), MaskedProcess(9, 3), LogLinear(0.01), None, network
    )
    save_lightning(model, tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt").facts() == model.facts()


def test_what_the_layout_has_no_place_for_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    network = DiT(Shape(9, 8, width=8, blocks=1, heads=2, cond_dim=4))
    uniform = Model(
        NetworkDenoiser(network, None, False), UniformProcess(9), LogLinear(), None, network
    )
    with pytest.raises(ValueError, match="told the noise level"):
        save_lightning(uniform, tmp_path / "a.ckpt")
    masked = load(CKPT)
    assert isinstance(masked, Model)
    with pytest.raises(ValueError, match=r"log-linear schedule only.*Cosine"):
        save_lightning(replace(masked, schedule=Cosine()), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="raw holds the weights that were averaged"):
        save_lightning(masked, tmp_path / "a.ckpt", raw=network)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="could not be written, what was there is unchanged"):
        save_lightning(load(CKPT), tmp_path / "file" / "a.ckpt")
    old = tmp_path / "old.ckpt"
    old.mkdir()  # a directory cannot be replaced by a file
    with pytest.raises(ValueError, match=r"old\.ckpt is a directory"):
        save_lightning(load(CKPT), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.ckpt"]


def test_precision_of_such_a_checkpoint_is_float32(
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


def test_a_model_without_its_tokenizer_is_given_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As GPT-2's for the public checkpoints, which hold none; one of another vocabulary is refused."""
    train_bpe(["the rain in Spain"] * 3, 258).save(tmp_path / "bpe")
    network = DiT(Shape(258, 8, width=8, blocks=1, heads=2, cond_dim=4))
    Model(
        NetworkDenoiser(network, 257, False), MaskedProcess(258, 257), LogLinear(), None, network
    ).save(tmp_path / "a")
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
def test_the_mask_of_a_tokenizer_is_taken_where_the_models_was_a_guess(
    mask_id: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """BERT's MASK is 103 of 30522; a checkpoint that is silent about it was read with the last token."""
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
        network,
    )
    model.save(tmp_path / "a")
    code = main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--tokenizer", str(tmp_path)])
    if mask_id == 3:
        assert (
            code == 1
            and "MASK is token 3 by the config and 0 by the tokenizer" in capsys.readouterr().err
        )
    else:
        assert code == 0 and load(tmp_path / "b").facts().mask_id == 0
