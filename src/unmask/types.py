"""Shapes of tensors, and the two roles that a model can play: `Denoiser` and `Encoder`.

The letters in shapes: B sequences, L positions, V tokens of the vocabulary (MASK included), D
channels of a hidden state, N selected rows. A row is one position of one sequence.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from unmask.prediction import Prediction

Tokens: TypeAlias = Tensor  # int64 [B, L], token ids
PerSequence: TypeAlias = Tensor  # [B]
PerToken: TypeAlias = Tensor  # [B, L]
Probs: TypeAlias = Tensor  # [B, L, V]


@dataclass(frozen=True)
class SoftTokens:
    """A weighted mean of k tokens at each position: a network gets the mean of their embeddings.

    Attributes:
        tokens: int64 [B, L, k]
        weights: [B, L, k], >= 0; the k weights of a position sum to 1
    """

    tokens: Tensor
    weights: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.tokens.shape[0], self.tokens.shape[1]


class Denoiser(Protocol):
    """A model that predicts the clean text from noisy tokens.

    Samplers, objectives and metrics use a model through this role only. `denoiser(z, alpha)` is log
    p(x0_i | z without position i) for every position i. The result is a `Prediction`: the backbone
    has run, but the vocabulary head has not. `alpha` [B] is the share of text left in z.

    At a MASK this leave-one-out law equals p(x0_i | z). Under a masked process a visible token
    keeps probability 1.
    """

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        ...

    @property
    def sees_alpha(self) -> bool:
        """Whether the prediction depends on alpha."""
        ...

    def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction: ...


class Encoder(Protocol):
    """A model that gives features of a text, for metrics and for losses in feature space.

    `encoder(tokens, layer)` maps [B, L] to the hidden states [B, L, D] after the first `layer`
    blocks. The vocabulary head is not applied.
    """

    def __call__(self, tokens: Tokens, layer: int) -> Tensor: ...
