"""The average of the weights: its formula, its memory, and its refusals."""

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


def test_copying_writes_the_average_and_nothing_else() -> None:
    net, other = module(1.0), module(7.0)
    ema = Ema(net, 0.9)
    fill(net, 2.0)
    ema.copy_to(other)
    assert other[0].weight.eq(1).all() and other[2].weight.eq(1).all() and other[0].bias.eq(7).all()
    ema.update(net)
    assert other[0].weight.eq(1).all(), "a copy does not follow the average"
    assert net[0].weight.eq(2).all(), "the average does not move the weights"


def test_a_saved_average_continues_to_the_bit() -> None:
    def walk(ema: Ema, net: nn.Module, steps: range) -> None:
        for step in steps:
            fill(net, 0.1 * step * (-1) ** step)
            ema.update(net)

    net = module(1.0)
    straight = Ema(net, 0.99)
    walk(straight, net, range(4))
    state = {name: value for name, value in straight.state_dict().items() if name != "shadow"}
    state["shadow"] = {name: weight.clone() for name, weight in straight.shadow.items()}
    walk(straight, net, range(4, 8))
    resumed = Ema(module(3.0), 0.5)
    resumed.load_state_dict(state)
    walk(resumed, net, range(4, 8))
    assert (resumed.updates, resumed.decay) == (8, 0.99)
    for name, weight in straight.shadow.items():
        assert torch.equal(resumed.shadow[name], weight)


def test_foreign_weights_and_decays_are_refused() -> None:
    ema, other = Ema(module(), 0.9), nn.Sequential(nn.Linear(2, 4))
    for act in (ema.update, ema.copy_to, lambda net: ema.load_state_dict(Ema(net, 0.5).state_dict())):
        with pytest.raises(ValueError, match=r"0\.bias.*2\.weight.*0\.weight"):
            act(other)
    assert (ema.updates, ema.decay) == (0, 0.9), "a refusal changes nothing"
    with pytest.raises(ValueError, match=r"0 <= decay < 1, got 1\.0"):
        Ema(module(), 1.0)
