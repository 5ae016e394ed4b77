"""How an optimizer is set, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AdamW:
    """Settings of one trained network: AdamW, its learning rate, its clip and its moving average.

    lr            peak learning rate
    betas, eps    moments of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)
    weight_decay  decoupled, as a share of lr a step
    warmup_steps  the learning rate grows linearly from lr / warmup_steps to lr over these steps
    decay_steps   None: constant after the warm-up; else a half cosine reaches 0 at this step
    clip_norm     greatest L2 norm of the gradient of all its parameters; None: no clip
    ema_decay     greatest decay of the moving average of the weights; None: no average is kept
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int | None = None
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.9999

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr is the peak learning rate: want a finite lr > 0, got {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps counts steps: want >= 0, got {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps is where the learning rate reaches 0: want more than "
                f"warmup_steps = {self.warmup_steps}, got {self.decay_steps}"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(
                f"clip_norm is out of range: got {self.clip_norm}, want a finite clip_norm > 0; give None for no clip"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas is out of range: got {self.betas}, want 0 <= beta < 1 for both"
            )
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps is out of range: got {self.eps}, want a finite eps > 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay is out of range: got {self.weight_decay}, want a finite weight_decay >= 0"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay is a share of old weights kept: want [0, 1), or None, got {self.ema_decay}"
            )

    def learning_rate(self, step: int) -> float:
        """Learning rate of update `step` (0 is the first): lr min(1, (step + 1) / warmup), then constant or cosine.

        The first update already moves (not rate 0, as in `get_constant_schedule_with_warmup` of transformers).

        >>> [AdamW(lr=1.0, warmup_steps=4).learning_rate(step) for step in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay_steps is None:
            return self.lr
        progress = min(1.0, (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
