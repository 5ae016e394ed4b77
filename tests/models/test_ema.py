"""The EMA of weights: formula, state and refusals."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unmask.models.ema import Ema


def module(value: float = 0.0) -> nn.Module:
    """Two trained weights, one that is not, and a buffer."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    net[0].bias.requires_grad_(False)
    net.append(nn.Linear(3, 1, bias=False))
    fill(net, value)
    return net


def fill(net: nn.Module, value: float) -> None:
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_of_a_known_path(decay: float) -> None:
    net = module(1.0)
    ema = Ema(net, decay)
    want = 1.0
    for n, value in enumerate([5.0, -2.0, 4.0, 0.5, 3.0], start=1):
        fill(net, value)
        ema.update(net)
        keep = min(decay, (1 + n) / (10 + n))
        want = keep * want + (1 - keep) * value
    assert ema.updates == 5
    for weight in ema.shadow.values():
        assert_close(weight, torch.full_like(weight, want))


def test_only_trained_weights_are_averaged_in_the_order_of_the_module() -> None:
    assert list(Ema(module(), 0.9).shadow) == ["0.weight", "2.weight"]


def test_other_weights_and_decays_outside_their_range_are_refused() -> None:
    ema, other = Ema(module(), 0.9), nn.Sequential(nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"0\.bias.*2\.weight.*0\.weight"):
        ema.update(other)
    assert (ema.updates, ema.decay) == (0, 0.9), "a refusal changes nothing"
    with pytest.raises(ValueError, match=r"decay .* got 1\.0, want 0 <= decay < 1"):
        Ema(module(), 1.0)
