"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """A running average of the trained weights of a module: shadow <- d_n shadow + (1 - d_n) weight.

    d_n = min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ..., so that the first weights are soon forgotten.
    ValueError for a decay outside [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is the share of the average kept at an update: want 0 <= decay < 1, got {decay}"
            )
        self.decay = decay
        self.updates = 0
        self.shadow = {name: weight.detach().clone() for name, weight in trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        weights = trained(module)
        check(weights, self.shadow, "the module")
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.shadow.values()), [weights[name] for name in self.shadow], 1 - keep
        )


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name, in the module's order."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def check(got: Mapping[str, Tensor], want: Mapping[str, Tensor], whose: str) -> None:
    """ValueError where names or shapes of weights differ."""
    wrong = sorted(got.keys() ^ want.keys())
    wrong += [name for name in want if name in got and got[name].shape != want[name].shape]
    if wrong:
        raise ValueError(
            f"{whose} has other weights than these: {len(wrong)} differ, first: {wrong[:10]}"
        )
