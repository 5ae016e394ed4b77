"""The network: numbers of the original codes, and laws of exactness, caches and gradients."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reference import network_golden, network_random
from unmask.models.dit import DiT, Shape, small
from unmask.models.kv_cache import Cache
from unmask.models.layers import Rotary
from unmask.types import Encoder

pytestmark = pytest.mark.processor

SHAPE = Shape(vocab_size=11, length=12, width=24, blocks=2, heads=3, cond_dim=8)
CAUSAL = Shape(vocab_size=11, length=12, width=24, blocks=2, heads=3, causal=True)
LENGTH = 12


def ids(rows: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


# The originals


def close(got: Tensor, want: Tensor) -> None:
    assert_close(got, want, atol=1e-4, rtol=0)


def test_mdlm_logits() -> None:
    network, want = network_golden("hub_mdlm")
    close(network(want["zt"]), want["logits"])
    close(network(want["zt"], want["sigma"]), want["logits_with_sigma"])
    assert (want["logits"] - want["logits_with_sigma"]).abs().max() > 0.1, (
        "the data would not notice sigma"
    )


def test_duo_logits_of_ids_and_of_soft_input() -> None:
    network, want = network_golden("hub_duo")
    close(network(want["zt"], want["sigma"]), want["logits"])
    close(network(want["soft_input"], want["sigma"]), want["soft_logits"])


def test_causal_logits() -> None:
    network, want = network_golden("hub_ar")
    close(network(want["x0"]), want["logits"])


def test_the_published_network_has_its_names_shapes_and_size() -> None:
    with torch.device("meta"):
        network = DiT(small(50258))
    block = {
        "norm1.weight": (768,),
        "attn_qkv.weight": (2304, 768),
        "attn_out.weight": (768, 768),
        "norm2.weight": (768,),
        "mlp.0.weight": (3072, 768),
        "mlp.0.bias": (3072,),
        "mlp.2.weight": (768, 3072),
        "mlp.2.bias": (768,),
        "adaLN_modulation.weight": (4608, 128),
        "adaLN_modulation.bias": (4608,),
    }
    want = {
        "vocab_embed.embedding": (50258, 768),
        "sigma_map.mlp.0.weight": (128, 256),
        "sigma_map.mlp.0.bias": (128,),
        "sigma_map.mlp.2.weight": (128, 128),
        "sigma_map.mlp.2.bias": (128,),
        "rotary_emb.inv_freq": (32,),
        **{f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()},
        "output_layer.norm_final.weight": (768,),
        "output_layer.linear.weight": (50258, 768),
        "output_layer.linear.bias": (50258,),
        "output_layer.adaLN_modulation.weight": (1536, 128),
        "output_layer.adaLN_modulation.bias": (1536,),
    }
    assert {name: tuple(weight.shape) for name, weight in network.state_dict().items()} == want
    assert [name for name, _ in network.named_parameters()] == [
        name for name in want if "inv_freq" not in name
    ]
    assert len(want) == 131
    assert sum(weight.numel() for weight in network.parameters()) == 169_627_218


def test_a_causal_network_has_no_conditioning() -> None:
    names = DiT(CAUSAL).state_dict().keys()
    assert names == {
        name for name in DiT(SHAPE).state_dict() if "sigma_map" not in name and "adaLN" not in name
    }


# Laws


@pytest.mark.parametrize("shape", [SHAPE, CAUSAL])
def test_a_new_network_guesses_uniformly(shape: Shape) -> None:
    assert not DiT(shape)(ids()).any()


def test_a_new_block_is_the_identity() -> None:
    network = DiT(SHAPE).eval()
    assert_close(
        network.hidden(ids()), torch.nn.functional.layer_norm(network.vocab_embed(ids()), [24])
    )


def test_time_agnostic_is_sigma_zero_for_every_row() -> None:
    network = network_random(SHAPE)
    assert_close(network(ids()), network(ids(), torch.zeros(3)))
    conditioning = network.conditioning()
    assert_close(
        network.hidden(ids(), conditioning=conditioning), network.hidden(ids()), rtol=0, atol=0
    )
    assert conditioning.output.weight.shape == (24,), "one conditioning for all rows"


def test_every_row_has_its_own_sigma() -> None:
    network = network_random(SHAPE)
    sigma = torch.tensor([0.1, 1.0, 6.0])
    together = network(ids(), sigma)
    for row in range(3):
        assert_close(together[row : row + 1], network(ids()[row : row + 1], sigma[row : row + 1]))
    assert (together - network(ids(), sigma.flip(0)))[0].abs().max() > 0.1


def test_certain_soft_input_is_the_token() -> None:
    network = network_random(SHAPE)
    soft = 1e4 * torch.nn.functional.one_hot(ids(), 11).float()
    assert_close(network(soft), network(ids()))


def test_positions_enter_by_their_difference_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(8)

    def product(i: int, j: int) -> float:
        return float((rotary(i, 1).rotate(q) * rotary(j, 1).rotate(k)).sum())

    assert product(0, 3) == pytest.approx(product(40, 43), abs=1e-4)
    assert product(0, 3) != pytest.approx(product(0, 4), abs=1e-2)
    assert product(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_a_row_may_be_longer_than_those_of_training() -> None:
    network, longer = network_random(CAUSAL), ids(length=5 * LENGTH)
    before = network(longer[:, :LENGTH])
    assert_close(network(longer)[:, :LENGTH], before)
    assert_close(network(longer[:, :LENGTH]), before)


@pytest.mark.parametrize(("shape", "sees_the_future"), [(SHAPE, True), (CAUSAL, False)])
def test_only_a_causal_network_ignores_later_tokens(shape: Shape, sees_the_future: bool) -> None:
    network, other = network_random(shape), ids()
    other[:, -1] = (other[:, -1] + 1) % 11
    change = (network(ids()) - network(other)).abs().amax(dim=(0, 2))
    assert bool(change[:-1].max() > 1e-3) is sees_the_future
    assert change[-1] > 1e-3


@given(st.sets(st.integers(1, LENGTH - 1)))
def test_parts_with_a_cache_equal_a_full_forward_pass(cuts: set[int]) -> None:
    network, cache = network_random(CAUSAL), Cache()
    parts = [
        network.hidden(ids()[:, i:j], cache=cache) for i, j in pairwise([0, *sorted(cuts), LENGTH])
    ]
    assert cache.length == LENGTH
    assert_close(torch.cat(parts, dim=1), network.hidden(ids()))


def window_of(network: DiT, tokens: Tensor, changed: Tensor, places: Tensor) -> Tensor:
    """Hidden states of a window of `changed`, after a full pass over `tokens` filled the cache."""
    cache = Cache()
    network.hidden(tokens, cache=cache)
    assert cache.length == LENGTH
    return network.hidden(changed.gather(1, places), cache=cache, positions=places)


PLACES = torch.tensor(
    [[3, 4, 5, 6], [0, 9, 2, 2], [11, 11, 11, 11]]
)  # in any order, and more than once


def at_places(hidden: Tensor) -> Tensor:
    return hidden.gather(1, PLACES[..., None].expand(-1, -1, hidden.shape[2]))


@torch.no_grad()
def test_a_window_of_unchanged_tokens_equals_the_full_pass() -> None:
    network = network_random(SHAPE)
    assert_close(window_of(network, ids(), ids(), PLACES), at_places(network.hidden(ids())))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("sigma", [None, torch.tensor([0.1, 1.0, 2.0])])
def test_queries_equal_the_full_pass(blocks: int, sigma: Tensor | None) -> None:
    network = network_random(replace(SHAPE, blocks=blocks))
    assert_close(
        network.hidden(ids(), sigma, queries=PLACES), at_places(network.hidden(ids(), sigma))
    )


@torch.no_grad()
def test_queries_of_a_window() -> None:
    network, changed, part, inside = (
        network_random(SHAPE),
        ids(seed=1),
        Cache(),
        torch.tensor([[1], [3], [0]]),
    )
    network.hidden(ids(), cache=part, queries=PLACES[:, :1])
    got = network.hidden(changed.gather(1, PLACES), cache=part, positions=PLACES, queries=inside)
    assert_close(
        got[:, 0], window_of(network, ids(), changed, PLACES)[torch.arange(3), inside[:, 0]]
    )


def test_a_causal_network_accepts_no_queries() -> None:
    with pytest.raises(ValueError, match="queries need a bidirectional network"):
        DiT(CAUSAL).hidden(ids(), queries=PLACES)


@torch.no_grad()
def test_a_window_of_all_positions_overwrites_the_cache() -> None:
    network, other = network_random(SHAPE), ids(seed=1)
    everywhere = torch.arange(LENGTH).expand(3, -1)
    assert_close(window_of(network, ids(), other, everywhere), network.hidden(other))
    assert_close(
        window_of(network, ids(), other, everywhere.flip(1)), network.hidden(other).flip(1)
    )


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_window_is_exact_in_a_network_of_one_block_only(blocks: int) -> None:
    """Keys and values of the first block depend on their own tokens only."""
    network, changed = network_random(replace(SHAPE, blocks=blocks)), ids()
    changed.scatter_(1, PLACES, (changed.gather(1, PLACES) + 1) % 11)
    error = (
        (window_of(network, ids(), changed, PLACES) - at_places(network.hidden(changed)))
        .abs()
        .max()
    )
    assert error < 1e-5 if blocks == 1 else error > 1e-3


@torch.no_grad()
def test_a_cache_can_be_restricted_to_some_rows() -> None:
    network, cache, rows = network_random(SHAPE), Cache(), torch.tensor([2, 0])
    network.hidden(ids(), cache=cache)
    some = cache[rows]
    got = network.hidden(
        ids(seed=1)[rows].gather(1, PLACES[rows]), cache=some, positions=PLACES[rows]
    )
    assert_close(got, window_of(network, ids(), ids(seed=1), PLACES)[rows])


def test_a_growing_cache_is_reallocated_rarely() -> None:
    """The capacity doubles: 8 of the 255 writes of a text of 256 tokens copy it."""
    cache, part = Cache(), torch.randn(1, 1, 256, 2, generator=torch.Generator().manual_seed(0))
    places = set()
    for i, token in enumerate(part.split(1, dim=2)):
        keys, values = cache.write(0, i, token, -token)
        assert torch.equal(keys, part[:, :, : i + 1]) and torch.equal(values, -keys)
        places.add(cache.pairs[0][0].data_ptr())
    assert len(places) <= 10


@pytest.mark.parametrize("shape", [SHAPE, CAUSAL])
def test_every_weight_gets_a_gradient(shape: Shape) -> None:
    network = network_random(shape)
    sigma = None if shape.causal else torch.tensor([0.1, 1.0, 6.0])
    network(ids(), sigma).square().sum().backward()
    assert [
        name
        for name, weight in network.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ] == []


@pytest.mark.parametrize("sigma", [None, torch.tensor([0.1, 1.0, 6.0])])
def test_gradients_equal_central_differences(sigma: Tensor | None) -> None:
    """In float64, along a random direction in weight space."""
    network = network_random(SHAPE).double()
    network.compute_dtype = torch.float64
    weights = list(network.parameters())
    direction = [torch.randn_like(weight) for weight in weights]

    def loss() -> Tensor:
        return network(ids(), sigma).square().mean()

    def moved(step: float) -> float:
        torch._foreach_add_(weights, direction, alpha=step)
        value = float(loss())
        torch._foreach_sub_(weights, direction, alpha=step)
        return value

    grads = torch.autograd.grad(loss(), weights)
    terms = [(grad * along).flatten() for grad, along in zip(grads, direction, strict=True)]
    slope = float(torch.cat(terms).sum())
    scale = float(torch.cat(terms).norm())  # of a slope that does not cancel by chance
    with torch.no_grad():
        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert slope == pytest.approx(expected, abs=1e-7 * scale)


@pytest.mark.parametrize("shape", [SHAPE, CAUSAL])
def test_features_are_the_residual_stream_after_a_block(shape: Shape) -> None:
    network, tokens = network_random(shape).eval(), ids()
    encoder: Encoder = network.features
    assert torch.equal(encoder(tokens, 0), network.vocab_embed(tokens))
    whole = encoder(tokens, shape.blocks)
    assert torch.equal(
        network.output_layer.normalise(whole, network.conditioning().output), network.hidden(tokens)
    )
    second = list(network.blocks)[1]
    angles = network.rotary_emb(0, tokens.shape[1])
    after = second(encoder(tokens, 1), network.conditioning().blocks[1], angles, torch.float32)
    assert torch.equal(after, whole) and not torch.equal(encoder(tokens, 1), whole)
    for layer in (-1, shape.blocks + 1):
        with pytest.raises(ValueError, match=f"layer .* got {layer}, want 0 to 2"):
            encoder(tokens, layer)


def test_dropout_acts_in_training_only() -> None:
    network = network_random(SHAPE)
    assert_close(network(ids()), network(ids()), rtol=0, atol=0)
    network.train()
    assert (network(ids()) - network(ids())).abs().max() > 1e-2


@pytest.mark.parametrize("folder", ["hub_mdlm", "hub_ar"])
def test_bfloat16_products_give_nearly_the_same_float32_logits(folder: str) -> None:
    network, want = network_golden(folder)
    tokens, logits = want["zt" if "zt" in want else "x0"], want["logits"]
    network.compute_dtype = torch.bfloat16
    got = network(tokens)
    error = (got - logits).norm() / logits.norm()
    assert got.dtype == torch.float32
    assert 1e-5 < error < 2e-2, "not bfloat16, or not near"
    assert len(got.unique()) > 0.9 * len(logits.unique()), "logits rounded to bfloat16 collide"


@pytest.mark.parametrize("sigma", [None, torch.tensor([0.1, 1.0, 3.0])])
def test_checkpointing_is_bit_exact_and_saves_memory(sigma: Tensor | None) -> None:
    """Logits and every gradient agree, with dropout; autograd keeps the inputs of blocks only."""

    def learn(checkpointing: bool) -> tuple[list[Tensor], int]:
        network, kept = network_random(replace(SHAPE, dropout=0.3, blocks=4)).train(), []
        network.checkpointing = checkpointing
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            logits = network(ids(), sigma)
        logits.square().sum().backward()
        return [logits.detach(), *(weight.grad for weight in network.parameters())], sum(kept)

    (plain, much), (again, little) = learn(False), learn(True)
    assert all(map(torch.equal, plain, again))
    assert little < much / 3


def test_a_first_call_in_inference_mode_does_not_spoil_training() -> None:
    network = network_random(SHAPE)
    with torch.inference_mode():
        network(ids())
    network(ids()).square().sum().backward()
    grads = [weight.grad for weight in network.parameters()]
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in grads)


def test_the_state_does_not_depend_on_earlier_inputs() -> None:
    network = network_random(SHAPE)
    before = network.state_dict().keys()
    network(ids(length=40))
    assert network.state_dict().keys() == before


# What a user can get wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 26}, "width .* got 26, want a multiple of 2 x heads = 6"),
        ({"width": 9}, "width .* got 9"),
        ({"heads": 0}, "heads .* got 0, want at least 1"),
        ({"length": 0}, "length .* got 0, want at least 1"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"dropout": 1.0}, "dropout .* got 1.0, want 0 <= dropout < 1"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    sizes = {"vocab_size": 11, "length": 12, "width": 24, "blocks": 2, "heads": 3}
    with pytest.raises(ValueError, match=message):
        Shape(**(sizes | change))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 11]]), "token ids .* got 0 to 11, want 0 to 10"),
        (torch.tensor([[-1, 2]]), "got -1 to 2"),
        (torch.tensor([1, 2]), r"token ids .* got \(2,\), want \[B, L\]"),
        (torch.zeros(1, 2, 10), r"soft input .* got \(1, 2, 10\), want \[B, L, 11\]"),
    ],
)
def test_impossible_tokens_are_refused(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(SHAPE)(tokens)


def test_impossible_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma"):
        DiT(CAUSAL)(ids(), torch.zeros(3))
    cache = Cache()
    with pytest.raises(
        ValueError,
        match=r"positions .* got 0 to 11, want 0 <= position < 0",
    ):
        DiT(SHAPE).hidden(ids()[:, :4], cache=cache, positions=PLACES)
    DiT(SHAPE).hidden(ids(), cache=cache)
    with pytest.raises(ValueError, match=r"positions .* got \(3, 4\), want .* \(3, 5\)"):
        DiT(SHAPE).hidden(ids()[:, :5], cache=cache, positions=PLACES)
    with pytest.raises(ValueError, match=r"positions need a bidirectional network"):
        DiT(CAUSAL).hidden(ids()[:, :4], cache=Cache(), positions=PLACES)
    with pytest.raises(ValueError, match=r"sigma .* got \[2\], want \[B\] = \[3\]"):
        DiT(SHAPE)(ids(), torch.zeros(2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_may_be_cast(dtype: torch.dtype, causal: bool) -> None:
    """`network.to(dtype)` gives the numbers of float32 to rounding, with any conditioning."""
    shape = Shape(11, LENGTH, width=24, blocks=2, heads=2, cond_dim=6, causal=causal)
    network = network_random(shape)
    want = network(ids())
    got = network.to(dtype)(ids())
    assert got.dtype == dtype
    tolerance = {torch.float64: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.1}[dtype]
    assert (got - want).abs().max() < tolerance * want.abs().max()
    if not causal:
        sigma = torch.full((len(ids()),), 0.5)
        assert network(ids(), sigma).dtype == dtype


def test_rotary_angles_are_exact_in_half_precision() -> None:
    """In bfloat16, position 1,000 equals its neighbours and a frequency has 8 bits."""
    exact, cast = Rotary(64), Rotary(64).to(torch.bfloat16)
    for table in (cast(0, 2000), cast(1990, 10)):
        assert table.cos.dtype == torch.float32
    assert torch.equal(cast(0, 2000).cos, exact(0, 2000).cos) and torch.equal(
        cast(0, 2000).sin, exact(0, 2000).sin
    )


def test_the_table_of_angles_grows_with_the_rows() -> None:
    """It doubles for a row that grows token by token, so it is rebuilt rarely."""
    rotary, sizes = Rotary(8), []
    whole = Rotary(8)(0, 300).cos
    for stop in range(1, 301):
        assert torch.equal(rotary(stop - 1, 1).cos, whole[stop - 1 : stop])
        sizes.append(rotary._length)
    assert len(set(sizes)) < 12 and max(sizes) < 600 and Rotary(8)._length == 0
