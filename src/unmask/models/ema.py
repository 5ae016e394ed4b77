"""The exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.models.modules import check_same_shapes


class Ema:
    """An EMA of the trained weights of a module: shadow <- d_n shadow + (1 - d_n) weight.

    d_n = min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ..., so the share of the initial
    weights falls quickly. ValueError for a decay outside [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is outside its range: got {decay}, want 0 <= decay < 1")
        self.decay = decay
        self.updates = 0
        self.shadow = {name: weight.detach().clone() for name, weight in trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average with the present weights of the module."""
        weights = trained(module)
        check_same_shapes(weights, self.shadow, "module")
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.shadow.values()), [weights[name] for name in self.shadow], 1 - keep
        )


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The trainable weights by name, in the module's order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
