"""Denoisers over a network: predictions, noise input, and frozen views."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reference import network_golden, network_random
from unmask.models.denoiser import CausalPredictor, NetworkDenoiser
from unmask.models.dit import Shape
from unmask.models.kv_cache import Cache
from unmask.types import Denoiser

pytestmark = pytest.mark.processor

# A dozen products one behind the other, sums of up to 100 terms of order 1, each right to 100 x
# 2^-24 in any order.
CLOSE = 1e-4

MASK = 10
SHAPE = Shape(vocab_size=11, length=12, width=24, blocks=2, heads=3, cond_dim=8)
CAUSAL = Shape(vocab_size=11, length=12, width=24, blocks=2, heads=3, causal=True)
ALPHA = torch.tensor([0.2, 0.5, 0.9])


def noisy() -> Tensor:
    z = torch.randint(10, (3, 12), generator=torch.Generator().manual_seed(0))
    z[:, ::2] = MASK
    return z


def test_subs_of_the_original() -> None:
    network, want = network_golden("hub_mdlm")
    z, mask_id = want["zt"], 37
    denoiser = NetworkDenoiser(network, mask_id, sees_alpha=False)
    for form in (denoiser, denoiser.frozen()):
        rows = form(z, torch.exp(-want["sigma"])).log_p(z == mask_id)
        assert_close(rows[:, :mask_id], want["log_probs_masked"][:, :mask_id], atol=1e-4, rtol=0)
        assert bool((rows[:, mask_id] <= -1e6).all())


def test_duo_gets_sigma() -> None:
    network, want = network_golden("hub_duo")
    denoiser = NetworkDenoiser(network, mask_id=None, sees_alpha=True)
    log_p = torch.log_softmax(want["logits"], dim=-1)
    for form in (denoiser, denoiser.frozen()):
        assert_close(form(want["zt"], want["alpha_t"]).log_p(), log_p, atol=1e-4, rtol=0)


def test_the_next_token_of_the_original() -> None:
    network, want = network_golden("hub_ar")
    log_p = torch.log_softmax(want["logits"], dim=-1)
    assert_close(CausalPredictor(network)(want["x0"]).log_p(), log_p, atol=1e-4, rtol=0)


def test_alpha_matters_only_with_sees_alpha() -> None:
    network = network_random(SHAPE)
    for sees_alpha in (False, True):
        denoiser = NetworkDenoiser(network, MASK, sees_alpha)
        change = (
            (denoiser(noisy(), ALPHA).hidden - denoiser(noisy(), ALPHA / 2).hidden)
            .abs()
            .amax(dim=(1, 2))
        )
        assert ((change > 1e-3) == sees_alpha).all()


@pytest.mark.parametrize("sees_alpha", [False, True])
def test_a_frozen_denoiser_predicts_the_same(sees_alpha: bool) -> None:
    denoiser = NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha).train()
    frozen: Denoiser = denoiser.frozen()
    assert denoiser.training and denoiser.network.training, "freezing left the original as it was"
    assert (frozen.vocab_size, frozen.sees_alpha) == (11, sees_alpha)
    assert_close(
        frozen(noisy(), ALPHA).log_p(), denoiser.eval()(noisy(), ALPHA).log_p(), rtol=0, atol=0
    )


@pytest.mark.parametrize("sees_alpha", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_of_a_frozen_denoiser(sees_alpha: bool, dtype: torch.dtype) -> None:
    """A window of unchanged text equals the full pass, and is NaN elsewhere.

    The bounds are rounding: `CLOSE` in float32; in bfloat16 a dozen products of 2^-8 each.
    """
    network = network_random(SHAPE)
    network.compute_dtype = dtype
    frozen, cache, places = (
        NetworkDenoiser(network, MASK, sees_alpha).frozen(),
        Cache(),
        torch.tensor([[2, 4]] * 3),
    )
    whole = frozen(noisy(), ALPHA)
    assert torch.equal(frozen.forward_window(noisy(), ALPHA, cache=cache).hidden, whole.hidden)
    part = frozen.forward_window(noisy(), ALPHA, cache=cache, window=places)
    close = CLOSE if dtype == torch.float32 else 0.1
    assert_close(part.log_p()[:, [2, 4]], whole.log_p()[:, [2, 4]], atol=close, rtol=0)
    assert (
        bool(part.hidden[:, [0, 1, 3, *range(5, 12)]].isnan().all())
        and not part.hidden.requires_grad
    )


@pytest.mark.parametrize("sees_alpha", [False, True])
def test_a_frozen_denoiser_at_queries(sees_alpha: bool) -> None:
    """Predictions equal the full call at the queries, and are NaN elsewhere."""
    frozen = NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha).frozen()
    whole, part = (
        frozen(noisy(), ALPHA),
        frozen.forward_window(noisy(), ALPHA, torch.tensor([[2, 4]] * 3)),
    )
    assert_close(part.log_p()[:, [2, 4]], whole.log_p()[:, [2, 4]], atol=CLOSE, rtol=0)
    assert (
        bool(part.hidden[:, [0, 1, 3, *range(5, 12)]].isnan().all())
        and not part.hidden.requires_grad
    )


def test_a_frozen_denoiser_has_no_gradient_and_no_copy_of_the_weights() -> None:
    denoiser = NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha=False)
    frozen = denoiser.frozen()
    assert not frozen(noisy(), ALPHA).log_p().requires_grad
    assert all(weight.requires_grad for weight in denoiser.parameters())
    pairs = zip(denoiser.network.parameters(), frozen.network.parameters(), strict=True)
    assert all(live.data_ptr() == still.data_ptr() for live, still in pairs)


def test_gradients_flow_through_selected_rows() -> None:
    denoiser = NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha=True)
    z = noisy()
    denoiser(z, ALPHA).log_p(z == MASK)[:, :MASK].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in denoiser.parameters())


def test_visible_tokens_are_carried_over_in_masked_diffusion_only() -> None:
    z = noisy()
    masked = NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha=False)(z, ALPHA).log_p()
    shown = z != MASK
    assert_close(masked.exp()[shown], torch.nn.functional.one_hot(z[shown], 11).float())
    uniform = NetworkDenoiser(network_random(SHAPE), None, sees_alpha=False)(z, ALPHA).log_p()
    assert bool((uniform.exp() < 1).all()) and bool((uniform[..., MASK] > -1e3).all())


def test_a_causal_predictor_never_predicts_mask_and_continues_a_cache() -> None:
    predictor, cache, ids = CausalPredictor(network_random(CAUSAL), MASK), Cache(), noisy() % MASK
    whole = predictor(ids).log_p()
    assert bool((whole[..., MASK] <= -1e6).all()) and predictor.vocab_size == 11
    parts = [predictor(part, cache).log_p() for part in ids.split([5, 1, 6], dim=1)]
    assert_close(torch.cat(parts, dim=1), whole)


def test_wrong_networks_masks_and_alphas_are_refused() -> None:
    with pytest.raises(ValueError, match="causal=False"):
        NetworkDenoiser(network_random(CAUSAL), MASK, sees_alpha=False)
    with pytest.raises(ValueError, match="causal=True"):
        CausalPredictor(network_random(SHAPE))
    with pytest.raises(ValueError, match=r"mask_id .* got 11, want 0 <= mask_id < 11"):
        NetworkDenoiser(network_random(SHAPE), 11, sees_alpha=False)
    with pytest.raises(ValueError, match=r"alpha .* got \[0.0, 0.5, 1.0\], want 0 < alpha <= 1"):
        NetworkDenoiser(network_random(SHAPE), MASK, sees_alpha=True)(
            noisy(), torch.tensor([0.0, 0.5, 1.0])
        )
