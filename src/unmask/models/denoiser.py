"""Denoisers and next-token predictors: the roles of a network, and `DiT` in these roles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from unmask.models.dit import Conditioning, DiT
from unmask.models.kv_cache import Cache, scatter_positions
from unmask.models.modules import inference_view
from unmask.prediction import Prediction
from unmask.types import Denoiser, PerSequence, SoftTokens, Tokens

# The kinds of models.
MASKED, UNIFORM, AUTOREGRESSIVE = KINDS = ("masked", "uniform", "autoregressive")


class DenoiserModule(nn.Module, ABC):
    """A `Denoiser` with weights: the role that `Model` needs.

    A subclass makes a foreign network usable for sampling, distillation, evaluation and saving. Its
    `__init__` sets these attributes.

    Attributes:
        network: the wrapped network; it holds all weights
        vocab_size: V, MASK included
        length: L, tokens of a training row
        mask_id: the id of MASK for masked diffusion; None for uniform diffusion
        sees_alpha: whether the prediction depends on alpha
    """

    network: nn.Module
    vocab_size: int
    length: int
    mask_id: int | None
    sees_alpha: bool

    @property
    def kind(self) -> str:
        """The diffusion process: "masked" or "uniform"."""
        return UNIFORM if self.mask_id is None else MASKED

    @abstractmethod
    def forward(self, z: Tokens, alpha: PerSequence) -> Prediction:
        """Predict log p(x0_i | z) from noisy tokens z [B, L] and alpha [B]; gradients flow."""


class PredictorModule(nn.Module, ABC):
    """A next-token predictor with weights: the role that `CausalModel` needs.

    Attributes:
        kind: "autoregressive"
        sees_alpha: False: there is no noise
        network: the wrapped network; it holds all weights
        vocab_size: V
        length: L, tokens of a training row
        mask_id: the id of MASK, which is never predicted; None if the vocabulary has no MASK
    """

    kind: ClassVar[str] = AUTOREGRESSIVE
    sees_alpha: ClassVar[bool] = False
    network: nn.Module
    vocab_size: int
    length: int
    mask_id: int | None

    @abstractmethod
    def forward(self, ids: Tokens, cache: Cache | None = None) -> Prediction:
        """Predict token i + 1 at each position i of ids [B, L], which continue the cache."""


class NetworkDenoiser(DenoiserModule):
    """A bidirectional `DiT` as a denoiser.

    Args:
        network: The network. ValueError for a causal one.
        mask_id: The id of MASK for masked diffusion; None for uniform diffusion. MASK is never
            predicted, and visible tokens keep probability 1 (SUBS, Sahoo et al. 2024, arXiv
            2406.07524, section 3.2.3).
        sees_alpha: True if the network gets sigma = -log alpha. False for a time-agnostic network
            (MDLM, SDTT, MCD).

    Attributes:
        conditioning: The folded conditioning of a time-agnostic network, set by `frozen`. None: it
            is computed at each call.
    """

    network: DiT
    conditioning: Conditioning | None

    def __init__(self, network: DiT, mask_id: int | None, sees_alpha: bool) -> None:
        super().__init__()
        if network.shape.causal:
            raise ValueError(
                "network is causal, but a denoiser needs causal=False; use CausalPredictor instead"
            )
        check_mask_id(mask_id, network.shape.vocab_size)
        self.network = network
        self.vocab_size = network.shape.vocab_size
        self.length = network.shape.length
        self.mask_id = mask_id
        self.sees_alpha = sees_alpha
        self.conditioning = None

    def forward(self, z: Tokens | SoftTokens, alpha: PerSequence) -> Prediction:
        """Predict log p(x0_i | z). Gradients flow; dropout acts in training mode.

        Uniform diffusion also accepts soft tokens (Duo's curriculum). Masked diffusion does not,
        because SUBS depends on which tokens are visible.
        """
        if isinstance(z, SoftTokens) and self.kind == MASKED:
            raise ValueError(
                "z holds soft tokens, which only uniform diffusion accepts: give token ids [B, L]"
            )
        sigma = sigma_of(alpha) if self.sees_alpha else None
        hidden = self.network.hidden(z, sigma, conditioning=self.conditioning)
        visible = None if isinstance(z, SoftTokens) else z
        return _prediction(self.network, hidden, self.mask_id, visible)

    @torch.no_grad()
    def frozen(self) -> NetworkDenoiser:
        """A copy for sampling, in evaluation mode and without gradient.

        The conditioning of a time-agnostic network is precomputed. The copy shares the memory of
        the weights. Make a new one after the weights have changed.
        """
        frozen = inference_view(self)
        frozen.conditioning = None if self.sees_alpha else frozen.network.conditioning()
        return frozen

    @torch.no_grad()
    def forward_window(
        self,
        z: Tokens,
        alpha: PerSequence,
        queries: Tensor | None = None,
        cache: Cache | None = None,
        window: Tensor | None = None,
    ) -> Prediction:
        """Predict at some positions only, without a graph; the hidden states are NaN at all others.

        Args:
            z: Noisy tokens [B, L].
            alpha: Noise levels [B].
            queries: Positions [B, W] to predict; the last block computes no others. None: all.
            cache: Without `window`, it stores the keys and values of this pass. With `window`, it
                holds those of an earlier full pass.
            window: Positions [B, W] to compute, ascending. They attend to all cached positions.
                This is an approximation if tokens or alpha have changed since the full pass. Else
                it is exact, to rounding.
        """
        sigma = sigma_of(alpha) if self.sees_alpha else None
        tokens = z if window is None else z.gather(1, window)
        queries_in_window = queries
        if queries is not None and window is not None:
            queries_in_window = torch.searchsorted(window, queries)
        hidden = self.network.hidden(
            tokens,
            sigma,
            cache=cache,
            positions=window,
            queries=queries_in_window,
            conditioning=self.conditioning,
        )
        computed = window if queries is None else queries
        if computed is not None:
            nan = hidden.new_full((*z.shape, hidden.shape[2]), torch.nan)
            hidden = scatter_positions(nan, computed, hidden)
        return _prediction(self.network, hidden, self.mask_id, z)


def for_inference(denoiser: Denoiser) -> Denoiser:
    """The denoiser without dropout: frozen if it wraps a `DiT`, else in evaluation mode."""
    if isinstance(denoiser, NetworkDenoiser):
        return denoiser.frozen()
    if isinstance(denoiser, nn.Module) and denoiser.training:
        return inference_view(denoiser)
    return denoiser


class CausalPredictor(PredictorModule):
    """A causal `DiT` as a predictor: log p(token i + 1 | tokens up to i) at position i.

    Args:
        network: The network. ValueError for one that is not causal.
        mask_id: The id of MASK, which is never predicted; None if the vocabulary has no MASK.
    """

    network: DiT

    def __init__(self, network: DiT, mask_id: int | None = None) -> None:
        super().__init__()
        if not network.shape.causal:
            raise ValueError(
                "network is not causal, but a next-token predictor needs causal=True; "
                "use NetworkDenoiser instead"
            )
        check_mask_id(mask_id, network.shape.vocab_size)
        self.network = network
        self.vocab_size = network.shape.vocab_size
        self.length = network.shape.length
        self.mask_id = mask_id

    def forward(self, ids: Tokens, cache: Cache | None = None) -> Prediction:
        """Predict the next token at each position; with a `Cache`, ids continue and extend it."""
        hidden = self.network.hidden(ids, cache=cache)
        return _prediction(self.network, hidden, self.mask_id, z=None)


def set_compute(module: nn.Module, dtype: torch.dtype, checkpointing: bool = False) -> None:
    """Set the precision of matrix products, and checkpointing, of every `DiT` in a module.

    ValueError for a module without a `DiT`, unless nothing has to change: another network computes
    in the precision of its weights.
    """
    networks = own_networks(module)
    for network in networks:
        network.compute_dtype = dtype
        network.checkpointing = checkpointing
    if not networks and (str(dtype) != f"torch.{compute_precision(module)}" or checkpointing):
        raise ValueError(
            f"precision and checkpointing cannot be set for {type(module).__name__}: "
            f"got {dtype} and checkpointing={checkpointing}, "
            f"want {compute_precision(module)} and False"
        )


def own_networks(module: nn.Module) -> list[DiT]:
    """Every `DiT` in a module."""
    return [part for part in module.modules() if isinstance(part, DiT)]


def compute_precision(module: nn.Module) -> str:
    """The precision of the matrix products: "float32", "bfloat16"."""
    for network in own_networks(module):
        return network.precision
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def sigma_of(alpha: PerSequence) -> Tensor:
    """sigma = -log alpha [B] in nats, the noise input of a time-conditioned network."""
    if alpha.device.type == "cpu" and not bool(((alpha > 0) & (alpha <= 1)).all()):
        raise ValueError(
            f"alpha is outside its range: got {alpha.tolist()}, want 0 < alpha <= 1 "
            "(the share of text left)"
        )
    return -torch.log(alpha)


def check_mask_id(mask_id: int | None, vocab_size: int) -> None:
    """ValueError unless mask_id is None or a token."""
    if mask_id is not None and not 0 <= mask_id < vocab_size:
        raise ValueError(
            f"mask_id is not in the vocabulary: got {mask_id}, want 0 <= mask_id < {vocab_size}"
        )


def _prediction(network: DiT, hidden: Tensor, mask_id: int | None, z: Tokens | None) -> Prediction:
    """The prediction from hidden states; the head is not yet applied."""
    return Prediction(hidden, network.head, network.shape.vocab_size, mask_id, z)
