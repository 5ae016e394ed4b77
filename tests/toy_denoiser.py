"""A small denoiser with weights for tests of objectives; it records its inputs."""

import torch
from torch import Tensor, nn

from unmask.prediction import Prediction
from unmask.types import SoftTokens


class Toy(nn.Module):
    """log p at a position from its token and the mean of its row.

    `calls` holds the (z, alpha) of every call.

    Soft tokens are read as the mean of their embeddings.
    """

    sees_alpha = False

    def __init__(self, vocab_size: int, mask_id: int | None = None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size, self.mask_id = vocab_size, mask_id
        self.embedding = nn.Parameter(
            torch.randn(vocab_size, 6, generator=generator, dtype=torch.float64)
        )
        self.head = nn.utils.skip_init(
            nn.Linear, 6, vocab_size, dtype=torch.float64
        )  # leaves global dice alone
        nn.init.normal_(self.head.weight, generator=generator)
        nn.init.normal_(self.head.bias, generator=generator)
        self.calls: list[tuple[Tensor | SoftTokens, Tensor]] = []

    def forward(self, z: Tensor | SoftTokens, alpha: Tensor) -> Prediction:
        self.calls.append((z, alpha))
        soft = isinstance(z, SoftTokens)
        hidden = (
            (self.embedding[z.tokens] * z.weights[..., None]).sum(2) if soft else self.embedding[z]
        )
        hidden = torch.tanh(hidden + hidden.mean(dim=1, keepdim=True))
        return Prediction(hidden, self.head, self.vocab_size, self.mask_id, None if soft else z)
