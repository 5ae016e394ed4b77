"""The shapes of the library, and the roles that everything above shares: `Denoiser` and `Encoder`.

B counts sequences, L positions, V tokens of the vocabulary (MASK included), D the width of a hidden
state, N the rows (positions) that a call asks for.
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
    """Soft tokens: at each position k tokens at once, by weight. A network reads the mean of their embeddings.

    tokens   int64 [B, L, k]
    weights  [B, L, k], >= 0, sum 1 over the k
    """

    tokens: Tensor
    weights: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.tokens.shape[0], self.tokens.shape[1]


class Denoiser(Protocol):
    """What every sampler, objective and measure asks of a model: the law of the text behind noisy tokens.

    `denoiser(z, alpha)` is `log p(x0_i | z without i)` for every position i, as a `Prediction` whose head has
    not run. `alpha` [B] is the share of text left in z. For a MASK the leave-one-out law is plain p(x0_i | z);
    a shown token of a masked process is carried over.
    """

    @property
    def vocab_size(self) -> int:
        """V, MASK included."""
        ...

    @property
    def sees_alpha(self) -> bool:
        """False where the answer does not depend on alpha."""
        ...

    def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction: ...


class Encoder(Protocol):
    """Features of text, for metrics and for objectives that compare texts by more than their tokens.

    `encoder(tokens, layer)` [B, L] -> [B, L, D]: hidden states behind the first `layer` blocks, without a head.
    """

    def __call__(self, tokens: Tokens, layer: int) -> Tensor: ...
