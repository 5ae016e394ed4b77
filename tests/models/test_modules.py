"""Copies of modules on other weights, and the comparison of weights."""

import pytest
import torch
from torch import Tensor, nn

from reference import network_random
from unmask.models.dit import Shape
from unmask.models.modules import (
    check_same_shapes,
    distinct_weights,
    inference_view,
    weights_digest,
    with_weights,
    without_weights,
)

SHAPE = Shape(vocab_size=11, length=12, width=24, blocks=2, heads=3, cond_dim=8)


class Tied(nn.Module):
    """An embedding tied to a head, and a buffer outside of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits


def test_a_copy_on_other_weights_computes_the_output_of_their_network() -> None:
    network, other = (network_random(SHAPE, seed=seed).eval() for seed in (0, 1))
    ids = torch.arange(24).view(2, 12) % 11
    copy = with_weights(network, other.state_dict())
    assert torch.equal(copy(ids), other(ids)) and not torch.equal(copy(ids), network(ids))
    assert weights_digest(copy.state_dict()) == weights_digest(other.state_dict())


def test_the_weights_themselves_are_used() -> None:
    network = network_random(SHAPE)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    copy = with_weights(network, weights)
    assert all(copy.state_dict()[name].data_ptr() == w.data_ptr() for name, w in weights.items())


def test_a_blank_module_has_no_memory_and_keeps_ties_and_other_buffers() -> None:
    module = Tied()
    blank = without_weights(module)
    assert all(weight.is_meta for weight in blank.parameters())
    assert blank.head.weight is blank.embedding.weight
    assert torch.equal(blank.positions, module.positions)
    copy = with_weights(blank, module.state_dict())
    ids = torch.arange(5)[None]
    assert torch.equal(copy(ids), module(ids)) and copy.head.weight is copy.embedding.weight


def test_the_first_name_of_tied_weights_decides() -> None:
    """An EMA has only the first name, so the second one still holds the raw weights."""
    module = Tied()
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    weights["embedding.weight"].fill_(1.0)
    copy = with_weights(module, weights)
    assert bool((copy.head.weight == 1).all()) and copy.head.weight is copy.embedding.weight
    assert list(distinct_weights(module)) == ["embedding.weight", "head.bias"]


def test_a_view_shares_memory_and_leaves_the_original_as_it_was() -> None:
    module = Tied().train()
    view = inference_view(module)
    assert view.head.weight.data_ptr() == module.head.weight.data_ptr()
    assert not view.training and not any(weight.requires_grad for weight in view.parameters())
    assert module.training and all(weight.requires_grad for weight in module.parameters())


def test_weights_that_do_not_fit_are_refused() -> None:
    state = Tied().state_dict()
    with pytest.raises(ValueError, match=r"weights .* 1 differ.*head\.bias"):
        with_weights(Tied(), {name: w for name, w in state.items() if name != "head.bias"})
    with pytest.raises(ValueError, match=r"raw .* 1 differ.*head\.bias"):
        check_same_shapes(state | {"head.bias": torch.zeros(4)}, state, "raw")
