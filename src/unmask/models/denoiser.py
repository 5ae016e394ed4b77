"""From a network to the role that samplers and objectives ask for: `Denoiser`, or the next-token predictor."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.models.dit import Conditioning, DiT
from unmask.models.kv_cache import Cache, put_at_places
from unmask.prediction import Prediction
from unmask.types import PerSequence, SoftTokens, Tokens


class NetworkDenoiser(nn.Module):
    """A network as a `Denoiser`: log p(x0_i | z) behind noisy tokens z [B, L] with a share alpha [B] of text left.

    mask_id     for masked diffusion: the MASK is never predicted and shown tokens are carried over (SUBS, Sahoo et
                al. 2024, arXiv 2406.07524, section 3.2.3); None for uniform diffusion
    sees_alpha  tell the network sigma = -log alpha; False: it answers without (MDLM, SDTT, MCD)
    """

    def __init__(self, network: DiT, mask_id: int | None, sees_alpha: bool) -> None:
        super().__init__()
        if network.shape.causal:
            raise ValueError(
                "a denoiser reads the whole row: want a network with causal=False (else CausalPredictor)"
            )
        check_mask_id(mask_id, network.shape.vocab_size)
        self.network = network
        self.mask_id = mask_id
        self.sees_alpha = sees_alpha

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        return self.network.shape.vocab_size

    def forward(self, z: Tokens | SoftTokens, alpha: PerSequence) -> Prediction:
        """Gradients flow from the prediction to the weights; dropout acts in training mode.

        Uniform diffusion also reads soft tokens (Duo's curriculum); SUBS has to know which tokens are shown.
        """
        if isinstance(z, SoftTokens) and self.mask_id is not None:
            raise ValueError(
                "soft tokens are for uniform diffusion: a masked denoiser carries shown tokens over"
            )
        hidden = self.network.hidden(z, noise(alpha) if self.sees_alpha else None)
        return prediction(
            self.network, hidden, self.mask_id, None if isinstance(z, SoftTokens) else z
        )

    def frozen(self) -> FrozenDenoiser:
        """The same weights without gradient and dropout; what does not depend on z and alpha is computed now.

        It shares the memory of the weights and keeps no copy, so it is right until they change: then take a new one.
        """
        network = inference_view(self.network)
        with torch.no_grad():
            conditioning = None if self.sees_alpha else network.conditioning()
        return FrozenDenoiser(network, self.mask_id, self.sees_alpha, conditioning)


@dataclass(frozen=True)
class FrozenDenoiser:
    """A `Denoiser` for teachers and sampling, from `NetworkDenoiser.frozen`; `conditioning` None: alpha decides it."""

    network: DiT
    mask_id: int | None
    sees_alpha: bool
    conditioning: Conditioning | None

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        return self.network.shape.vocab_size

    def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction:
        """As `NetworkDenoiser`, in evaluation mode and without a graph."""
        return self.part(z, alpha)

    @torch.no_grad()
    def part(
        self,
        z: Tokens,
        alpha: PerSequence,
        asked: Tensor | None = None,
        cache: Cache | None = None,
        window: Tensor | None = None,
    ) -> Prediction:
        """As a call, without what nobody asks for: there it is not a number.

        asked   [B, W] places; the last block computes no others (None: all)
        cache   keeps the keys and values of the call, for a `window` of a later one
        window  [B, W] places in order; no others are computed, but attended to as the cache kept them. Approximate:
                that was made when the window held other tokens, and at another alpha. Where neither has changed it
                is a call, to rounding
        """
        sigma = noise(alpha) if self.sees_alpha else None
        tokens = z if window is None else z.gather(1, window)
        inside = asked if asked is None or window is None else torch.searchsorted(window, asked)
        hidden = self.network.hidden(
            tokens, sigma, cache=cache, places=window, asked=inside, conditioning=self.conditioning
        )
        places = window if asked is None else asked
        if places is not None:
            hidden = put_at_places(
                hidden.new_full((*z.shape, hidden.shape[2]), torch.nan), places, hidden
            )
        return prediction(self.network, hidden, self.mask_id, z)


class CausalPredictor(nn.Module):
    """A causal network as a predictor: at position i of ids [B, L], log p(token i + 1 | tokens up to i).

    `mask_id`, where the vocabulary has a MASK, is never predicted.
    """

    def __init__(self, network: DiT, mask_id: int | None = None) -> None:
        super().__init__()
        if not network.shape.causal:
            raise ValueError(
                "a next-token predictor must not see the next token: want a network with causal=True"
            )
        check_mask_id(mask_id, network.shape.vocab_size)
        self.network = network
        self.mask_id = mask_id

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.network.shape.vocab_size

    def forward(self, ids: Tokens, cache: Cache | None = None) -> Prediction:
        """With a `Cache`, ids are the continuation of what it holds, and it is extended."""
        return prediction(self.network, self.network.hidden(ids, cache=cache), self.mask_id, z=None)


def noise(alpha: PerSequence) -> Tensor:
    """sigma = -log alpha, nats, what a time-conditioned network is told."""
    if alpha.device.type == "cpu" and not bool(((alpha > 0) & (alpha <= 1)).all()):
        raise ValueError(
            f"alpha is the share of text left: this network wants 0 < alpha <= 1, got {alpha.tolist()}"
        )
    return -torch.log(alpha)


def prediction(network: DiT, hidden: Tensor, mask_id: int | None, z: Tokens | None) -> Prediction:
    """Hidden states of a network with its head, to be applied where asked."""
    return Prediction(hidden, network.head, network.shape.vocab_size, mask_id, z)


def check_mask_id(mask_id: int | None, vocab_size: int) -> None:
    """ValueError where MASK is not a token."""
    if mask_id is not None and not 0 <= mask_id < vocab_size:
        raise ValueError(
            f"mask_id is a token of the vocabulary: want 0 <= mask_id < {vocab_size}, got {mask_id}"
        )


def inference_view(network: DiT) -> DiT:
    """A second network on the memory of the same weights: evaluation mode, no gradient; the first is left alone."""
    shared = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in network.parameters()
    }
    shared_buffers = {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, {**shared, **shared_buffers}).eval()
