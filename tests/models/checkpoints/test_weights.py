"""Names, sizes and strictness of weights, on tensors in memory."""

import dataclasses

import pytest
import torch
from torch import Tensor

from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.weights import (
    Weight,
    build_network,
    infer_shape,
    insert_blocks,
    strip_prefixes,
)
from unmask.models.dit import DiT, Shape

SHAPES = [
    Shape(11, length=1, width=24, blocks=3, heads=2, cond_dim=5),
    Shape(7, length=1, width=16, blocks=1, heads=4, cond_dim=1, causal=True),
]


def weight(tensor: Tensor) -> Weight:
    """A tensor in memory."""
    return Weight(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def named(tensors: dict[str, Tensor]) -> dict[str, Weight]:
    return {name: weight(tensor) for name, tensor in tensors.items()}


def weights(shape: Shape) -> dict[str, Tensor]:
    return {name: torch.rand_like(tensor) for name, tensor in DiT(shape).state_dict().items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "backbone.backbone.", "_orig_mod.backbone._orig_mod."]
)
def test_every_size_comes_from_the_tensors(shape: Shape, prefix: str) -> None:
    tensors = weights(shape)
    prefixed = {f"{prefix}{name}": tensor.double() for name, tensor in tensors.items()}
    teacher = {"teacher.backbone.x": torch.ones(1), "backbone.teacher_head.x": torch.ones(1)}
    stripped = strip_prefixes(named(prefixed | teacher), "a file")
    assert infer_shape(stripped, "here") == shape
    network = build_network(dataclasses.replace(shape, length=9), stripped, None, "here")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_averages_replace_the_parameters_in_order_and_no_buffers() -> None:
    tensors = weights(SHAPES[0])
    averages = [torch.full_like(weight, i) for i, weight in enumerate(DiT(SHAPES[0]).parameters())]
    network = build_network(SHAPES[0], named(tensors), list(map(weight, averages)), "here")
    assert all(bool((weight == i).all()) for i, weight in enumerate(network.parameters()))
    assert torch.equal(network.rotary_emb.inv_freq, tensors["rotary_emb.inv_freq"])


def test_building_a_network_draws_no_random_numbers() -> None:
    tensors = weights(SHAPES[0])
    state = torch.get_rng_state()
    build_network(SHAPES[0], named(tensors), None, "here")
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_distinguish_another_architecture_from_another_prefix() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"another architecture\?\); 2 missing: vocab_embed.*1 unknown: h\.0\.attn",
    ):
        infer_shape(named({"h.0.attn": torch.ones(1)}), "here")
    with pytest.raises(CheckpointError, match=r"is 'net\.' a prefix to strip\?"):
        infer_shape(
            named({f"net.{name}": tensor for name, tensor in weights(SHAPES[0]).items()}), "here"
        )


def test_the_same_weights_twice_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a file .*: x "):
        strip_prefixes(named({"x": torch.ones(1), "backbone.x": torch.ones(1)}), "a file")


def test_impossible_sizes_are_refused() -> None:
    tensors = weights(SHAPES[0])
    for name, tensor, match in (
        ("vocab_embed.embedding", torch.ones(3), r"want 2 axes"),
        ("rotary_emb.inv_freq", torch.ones(20), "of another architecture"),
        ("rotary_emb.inv_freq", torch.ones(5), r"rotary_emb\.inv_freq \(5,\), want \(6,\)"),
        ("rotary_emb.inv_freq", torch.ones(()), "want 1 axes"),
        ("sigma_map.mlp.0.weight", torch.ones(2), "want 2 axes"),
    ):
        with pytest.raises(CheckpointError, match=match):
            changed = named(tensors | {name: tensor})
            build_network(infer_shape(changed, "here"), changed, None, "here")


def test_a_missing_block_is_named() -> None:
    tensors = {
        name: tensor
        for name, tensor in weights(SHAPES[0]).items()
        if not name.startswith("blocks.1.")
    }
    with pytest.raises(
        CheckpointError, match=r"10 missing: blocks\.1\.adaLN.*10 unknown: blocks\.2\."
    ):
        build_network(infer_shape(named(tensors), "here"), named(tensors), None, "here")


def test_inserted_blocks_leave_the_original_ones_in_place() -> None:
    tensors = weights(SHAPES[0])
    spread = insert_blocks(tensors, 3)
    assert {name.split(".")[1] for name in spread if name.startswith("blocks.")} == {"0", "3", "6"}
    assert torch.equal(spread["blocks.6.norm1.weight"], tensors["blocks.2.norm1.weight"])
    assert spread["vocab_embed.embedding"] is tensors["vocab_embed.embedding"]
    assert insert_blocks(tensors, 1).keys() == tensors.keys()
