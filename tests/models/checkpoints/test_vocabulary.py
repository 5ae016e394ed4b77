"""Vocabularies larger than their tokenizer: MASK and padding."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from safetensors.torch import save_file
from torch import Tensor

import unmask
from unmask.cli.main import main
from unmask.data.tokenizers import Tokenizer
from unmask.models.checkpoints import CheckpointError
from unmask.models.dit import DiT, Shape
from unmask.models.model import CausalModel, Model, load


def tokenizer(words: int, mask: bool = False) -> Tokenizer:
    names = [f"w{i}" for i in range(words)]
    if mask:
        names[3] = "[MASK]"
    backend = hf.Tokenizer(
        hf.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0")
    )
    if mask:
        backend.add_special_tokens(["[MASK]"])
    return Tokenizer(backend, {"mask": "[MASK]"} if mask else {})


def network(size: int, causal: bool = False) -> DiT:
    made = DiT(
        Shape(size, 6, width=8, blocks=1, heads=2, cond_dim=4, dropout=0.0, causal=causal)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


def write(directory: Path, net: DiT, tokenizer: Tokenizer | None, **config: Any) -> Path:
    """A directory in the layout of MDLM and Duo."""
    directory.mkdir()
    save_file(
        {f"backbone.{name}": tensor for name, tensor in net.state_dict().items()},
        directory / "model.safetensors",
    )
    (directory / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save(directory)
    return directory


def law(net: DiT, rows: list[int], ids: Tensor, mask_id: int) -> Tensor:
    """The network's distribution, conditioned on `rows` without MASK, by the formula in float64."""
    p = torch.softmax(net(ids)[..., :].double(), dim=-1)
    p[..., mask_id] = 0
    p = p[..., rows]
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize(("size", "mask_id"), [(24, 21), (24, 23), (24, 20), (32, 20), (32, 31)])
def test_without_padding_the_distribution_is_the_conditional_one(
    size: int, mask_id: int, tmp_path: Path
) -> None:
    """20 words; MASK is the first row after them, as in MDLM's code, the last, or another."""
    net = network(size)
    model = load(write(tmp_path / "m", net, tokenizer(20), mask_id=mask_id))
    assert isinstance(model, Model)
    assert model.vocab_size == 21 and model.denoiser.mask_id == 20
    rows = [*range(20), mask_id]
    z = torch.tensor([[20, 3, 20, 0, 19, 20]])
    prediction = model.denoiser(z, torch.tensor([0.5]))
    free = z[0] == 20
    want = law(net, rows, torch.tensor(rows)[z], mask_id)[0, free]
    got = prediction.log_p()[0, free].double().exp()
    assert (got.sum(-1) - 1).abs().max() < 1e-6 and (got - want).abs().max() < 1e-6
    drawn = unmask.sample(model, n=200, length=6, steps=3, seed=1)
    assert drawn.tokens.max() < 20 and drawn.tokens.unique().numel() > 15
    assert drawn.texts is not None and "<|" not in "".join(drawn.texts)


def test_padding_has_probability_before_it_is_removed(tmp_path: Path) -> None:
    """So the test above can fail: padding has at least 1/6 of the probability."""
    net = network(24)
    model = load(write(tmp_path / "m", net, None, mask_id=20))
    assert model.vocab_size == 24
    assert bool((unmask.sample(model, n=200, length=6, steps=3, seed=1).tokens > 20).any())


def test_a_given_tokenizer_removes_padding_like_one_in_the_directory(tmp_path: Path) -> None:
    tokenizer(20).save(tmp_path / "words")
    net = network(24)
    write(tmp_path / "m", net, None, mask_index=20)
    assert (
        main(
            [
                "convert",
                str(tmp_path / "m"),
                str(tmp_path / "out"),
                "--tokenizer",
                str(tmp_path / "words"),
            ]
        )
        == 0
    )
    back = load(tmp_path / "out")
    assert (
        isinstance(back, Model)
        and back.checkpoint_config().mask_id == 20
        and back.network.shape.vocab_size == 21
    )
    assert torch.equal(back.network.head.weight, net.head.weight[:21])
    assert torch.equal(back.network.vocab_embed.embedding, net.vocab_embed.embedding[:21])


def test_the_tokenizer_can_name_mask(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m", network(24), tokenizer(20, mask=True)))
    assert isinstance(model, Model) and model.denoiser.mask_id == 3 and model.vocab_size == 20
    with pytest.raises(CheckpointError, match="mask_id is 5 in the config and 3 in the tokenizer"):
        load(write(tmp_path / "n", network(24), tokenizer(20, mask=True), mask_id=5))


def test_an_unknown_mask_among_padded_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"mask_id is unknown: of 24 rows the tokenizer has 20.*set `mask_id`",
    ):
        load(write(tmp_path / "m", network(24), tokenizer(20)))


def test_one_extra_row_is_mask_as_in_the_public_checkpoints(tmp_path: Path) -> None:
    """GPT-2 has 50,257 tokens, and models of MDLM and SDTT have 50,258 rows: no padding."""
    model = load(write(tmp_path / "m", network(21), tokenizer(20)))
    assert isinstance(model, Model) and model.denoiser.mask_id == 20 and model.vocab_size == 21


@pytest.mark.parametrize(("config", "size"), [({"model_type": "duo"}, 20), ({}, None)])
def test_uniform_and_autoregressive_models(
    config: dict[str, Any], size: int | None, tmp_path: Path
) -> None:
    """No MASK: only the tokenizer's rows stay."""
    net = network(24, causal=size is None)
    model = load(write(tmp_path / "m", net, tokenizer(20), **config))
    assert model.vocab_size == 20
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert torch.allclose(model.network(ids), net(ids)[..., :20], atol=1e-6)
    if isinstance(model, CausalModel):
        want = torch.softmax(net(ids)[..., :20].double(), -1)
        assert (model.predictor(ids).log_p().double().exp() - want).abs().max() < 1e-6
    else:
        assert model.process == unmask.UniformProcess(20)
    assert unmask.sample(model, n=100, length=6, steps=3, seed=0).tokens.max() < 20


@pytest.mark.parametrize(
    ("size", "words"), [(22, 20), (30, 20), (1024, 258), (256, 100), (24, 25), (160, 20)]
)
def test_a_larger_vocabulary_that_is_not_padding_is_refused(
    size: int, words: int, tmp_path: Path
) -> None:
    """Padding ends at the next multiple of 8 to 128; more rows mean another model's tokenizer."""
    with pytest.raises(ValueError, match=f"the tokenizer has {words} tokens and the model {size}"):
        load(write(tmp_path / "m", network(size), tokenizer(words), mask_id=size - 1))


def test_padding_is_removed_from_raw_weights_too(tmp_path: Path) -> None:
    first, raw = network(24), network(24)
    torch.nn.init.normal_(raw.head.weight, generator=torch.Generator().manual_seed(5))
    padded = load(write(tmp_path / "m", first, None, mask_id=22, length=6, dropout=0.0))
    assert isinstance(padded, Model)
    padded.save(tmp_path / "both", raw=raw)
    tokenizer(20).save(tmp_path / "both")
    model = load(tmp_path / "both", weights="raw")
    assert torch.equal(model.network.head.weight, raw.head.weight[[*range(20), 22]])
