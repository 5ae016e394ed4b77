"""The order of EMA weights: swaps are refused, averages of the weights are accepted."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.models.checkpoints import CheckpointError
from unmask.models.checkpoints.ema_check import ELEMENTS, check_order, thinned
from unmask.models.checkpoints.lightning import open_checkpoint
from unmask.models.dit import DiT, Shape
from unmask.models.model import load

CKPT = Path(__file__).parents[2] / "golden" / "lightning_mdlm" / "mdlm.ckpt"
Weights = dict[str, Tensor]


def vectors(count: int, size: int, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): torch.randn(size, generator=generator, dtype=torch.float64) for i in range(count)
    }


def moved(averages: Weights, shift: int) -> Weights:
    names = list(averages)
    return {name: averages[names[(i + shift) % len(names)]] for i, name in enumerate(names)}


@pytest.mark.parametrize("size", [256, 1000])
@pytest.mark.parametrize(("count", "shift"), [(2, 1), (3, 1), (7, 3), (12, 1), (12, 11)])
def test_permutations_of_any_cycle_length_are_refused(count: int, shift: int, size: int) -> None:
    """The cosine is -1 for a swapped pair, and at most -1/2 in longer cycles."""
    raw = vectors(count, size, seed=0)
    averages = {name: weight + 0.1 * torch.sin(weight) for name, weight in raw.items()}
    check_order(raw, averages, "here")
    with pytest.raises(CheckpointError, match=r"here .*EMA .*weights='raw'"):
        check_order(raw, moved(averages, shift), "here")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [0.1, 1.0, 3.0])
def test_averages_of_the_weights_are_accepted(share: float, steps: float) -> None:
    """From the initial weights (share 0) to the last, after steps of up to 3 times their size."""
    first, change = vectors(12, 300, seed=0), vectors(12, 300, seed=1)
    raw = {name: weight + steps * change[name] for name, weight in first.items()}
    check_order(
        raw, {name: weight + share * steps * change[name] for name, weight in first.items()}, "here"
    )


def test_equal_weights_and_averages_are_skipped() -> None:
    """Biases and gates start as zeros, norms as ones, so untrained ones have equal averages."""
    raw = vectors(5, 400, seed=0)
    for value in (0.0, 1.0):
        check_order(
            raw, {name: torch.full_like(weight, value) for name, weight in raw.items()}, "here"
        )
    check_order({name: torch.ones_like(weight) for name, weight in raw.items()}, raw, "here")
    check_order({}, {}, "here")


def test_few_elements_are_accepted_within_four_standard_deviations() -> None:
    for seed in range(200):
        check_order(vectors(6, 16, seed), vectors(6, 16, seed + 1000), "here")
    cosine = [4 / math.sqrt(size) for size in (17, 100, 256)]
    assert cosine[0] < 1 and cosine[-1] == 0.25


def test_the_ema_of_a_trained_network(tmp_path: Path) -> None:
    """After 60 steps of Adam, slow and fast averages are accepted and swaps are refused."""
    torch.manual_seed(0)
    network = DiT(Shape(20, 16, width=32, blocks=3, heads=2, cond_dim=16, dropout=0.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    means = {
        decay: {n: p.detach().clone() for n, p in network.named_parameters()}
        for decay in (1.0, 0.999, 0.5)
    }
    for _ in range(60):
        ids = torch.arange(16).repeat(4, 1) + torch.randint(0, 4, (4, 1))
        loss = torch.nn.functional.cross_entropy(
            network(ids, torch.rand(4)).flatten(0, 1), (ids + 1).flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for decay, mean in means.items():
                for name, weight in network.named_parameters():
                    mean[name].lerp_(weight, 1 - decay)
    swapped = {"blocks.0.": "blocks.2.", "blocks.2.": "blocks.0."}
    for mean in means.values():
        save(tmp_path / "a.ckpt", network, list(mean.values()))
        assert torch.equal(
            load(tmp_path / "a.ckpt").network.head.weight, mean["output_layer.linear.weight"]
        )
        other = [mean[swapped.get(name[:9], name[:9]) + name[9:]] for name in mean]
        save(tmp_path / "b.ckpt", network, other)
        with pytest.raises(
            CheckpointError,
            match=r"b\.ckpt has EMA weights in another order.*weights='raw'",
        ):
            load(tmp_path / "b.ckpt")
        assert load(tmp_path / "b.ckpt", weights="raw")


def save(file: Path, network: DiT, averages: list[Tensor]) -> None:
    weights = {f"backbone.{name}": tensor.detach() for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "ema": {"shadow_params": averages}}, file)


def test_swapped_averages_of_the_original_code_are_refused(tmp_path: Path) -> None:
    """Embedding and head have one shape, so another code's list could swap them."""
    with open_checkpoint(CKPT) as checkpoint:
        assert checkpoint.shadow is not None
        shadow = [weight.read().clone() for weight in checkpoint.shadow]
        network = load(CKPT, weights="raw").network
    names = [name for name, _ in network.named_parameters()]
    one, two = names.index("vocab_embed.embedding"), names.index("output_layer.linear.weight")
    assert shadow[one].shape == shadow[two].shape
    shadow[one], shadow[two] = shadow[two], shadow[one]
    save(tmp_path / "a.ckpt", network, shadow)
    with pytest.raises(
        CheckpointError, match=r"output_layer\.linear\.weight|vocab_embed\.embedding"
    ):
        load(tmp_path / "a.ckpt")


def test_a_thinned_tensor_is_evenly_spaced() -> None:
    for size in (0, 1, 5, ELEMENTS, ELEMENTS + 1, 3 * ELEMENTS + 7):
        part = thinned(torch.arange(size))
        assert len(part) <= ELEMENTS and (size > ELEMENTS or len(part) == size)
        assert not size or part[-1] > 0.9 * (size - 1) or size < 3
