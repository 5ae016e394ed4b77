"""The autoregressive sampler: its law, given tokens, cost, and an exact cache."""

from types import SimpleNamespace

import pytest
import torch

from reference import network_random, sampler_autoregressive, sampler_filtered, sampler_p_value
from toy_sampling import causal
from unmask.data.tokenizers import start_token
from unmask.models.denoiser import CausalPredictor
from unmask.models.dit import Shape
from unmask.samplers.autoregressive import autoregress
from unmask.samplers.categorical import gumbel_max
from unmask.samplers.latent import draw_latent
from unmask.samplers.sample import sample

N, V, L = 12_000, 3, 3


@pytest.mark.parametrize("pins", [(-1, -1, -1), (2, -1, -1), (-1, 0, -1)])
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 2}])
@pytest.mark.parametrize("draw", ["gumbel_max", "inverse_cdf"])
def test_law(pins: tuple[int, ...], filters: dict[str, float], draw: str) -> None:
    """Tokens after a given token depend on it, tokens before it do not."""
    model = causal(V, L)
    tokens = sample(
        model, n=N, length=L, pinned=torch.tensor(pins).expand(N, -1), draw=draw, **filters
    ).tokens
    exact = sampler_autoregressive(
        pins, lambda z: sampler_filtered(model.predictor.law(z)[None], **filters)[0]
    )
    assert sampler_p_value(tokens, exact) > 1e-3


def test_a_call_a_token_and_none_for_a_prompt() -> None:
    """nfe counts the calls that drew a token; a position given in all samples costs none."""
    model = causal(V, 6)
    done = sample(
        model,
        n=2,
        length=6,
        prompt=[1, 0],
        pinned=torch.tensor([[-1, -1, -1, 2, -1, -1], [-1, -1, 1, 2, -1, -1]]),
    )
    assert done.nfe.tolist() == [3, 2] and done.calls == 3 == len(model.predictor.table.batches)
    assert model.predictor.table.head_rows == [1, 2, 2]
    assert done.tokens[:, [0, 1, 3]].tolist() == [[1, 0, 2]] * 2 and done.tokens[1, 2] == 1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_make_no_difference(batch_size: int) -> None:
    model = causal(V, 5)
    whole, parts = (
        sample(model, n=8, length=5, seed=4, batch_size=size) for size in (None, batch_size)
    )
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.nfe, parts.nfe)
    assert parts.calls == 5 * -(-8 // batch_size)


def test_the_cache_of_a_network_changes_nothing() -> None:
    """The texts equal those of a loop without a cache."""
    predictor = CausalPredictor(
        network_random(Shape(11, 8, width=16, blocks=2, heads=2, causal=True)), mask_id=10
    )
    pins = torch.full((3, 8), -1)
    pins[:, 0], pins[1, 3:5], pins[:, 5] = 4, 7, 2
    latent = draw_latent(3, 8, seed=1)
    *_, last = autoregress(predictor, 0, pins, latent)
    z = pins.clone()
    for i in range(8):
        log_p = predictor(
            torch.cat([torch.zeros(3, 1, dtype=torch.int64), z[:, :i]], dim=1)
        ).log_p()[:, -1]
        token = gumbel_max(log_p.double(), latent.address((torch.arange(3), torch.full((3,), i))))
        z[:, i] = torch.where(pins[:, i] < 0, token, pins[:, i])
    assert torch.equal(last.z, z) and bool((last.z != 10).all())


def test_a_frame_holds_the_tokens_drawn_so_far() -> None:
    model = causal(V, 4)
    pins = torch.tensor([[-1, 1, -1, -1]])
    frames = list(autoregress(model.predictor, 0, pins, draw_latent(1, 4, 0)))
    assert [frame.step for frame in frames] == [0, 1, 2, 3] and [
        frame.alpha for frame in frames
    ] == [0, 0.25, 0.75, 1]
    assert torch.equal(frames[0].z, pins)
    assert [frame.changed[0].nonzero().flatten().tolist() for frame in frames] == [
        [],
        [0],
        [2],
        [3],
    ]
    assert bool((frames[1].z[0, 2:] == -1).all()) and bool((frames[-1].z >= 0).all())


@pytest.mark.parametrize(
    ("mask_id", "bos", "eos", "tokenizer", "start"),
    [
        (None, 3, 4, True, 3),
        (None, None, 4, True, 4),
        (8, None, None, True, 7),
        (None, 0, 0, False, 8),
        (8, 0, 0, False, 7),
        (2, 0, 0, False, 8),
    ],
)
def test_start_token(
    mask_id: int | None, bos: int | None, eos: int | None, tokenizer: bool, start: int
) -> None:
    predictor = SimpleNamespace(vocab_size=9, mask_id=mask_id)
    ends = SimpleNamespace(bos_id=bos, eos_id=eos) if tokenizer else None
    assert start_token(ends, predictor.vocab_size, predictor.mask_id) == start


def test_a_sampler_of_masks_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sampler has no effect .*left to right: got 'confidence'"
    ):
        sample(causal(V, L), n=1, length=L, sampler="confidence")
    with pytest.raises(ValueError, match=r"grid has no effect .*no noise levels: got 'cosine'"):
        sample(causal(V, L), n=1, length=L, grid="cosine")


def test_log_probabilities_that_are_no_numbers_are_refused() -> None:
    model = causal(V, L)
    model.predictor.table.logits[:] = torch.nan
    with pytest.raises(ValueError, match="not a number"):
        sample(model, n=1, length=L)
