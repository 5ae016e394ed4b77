"""Settings of an optimizer, and its learning rate as a pure function of the update."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AdamW:
    """AdamW for one trained network: its learning rate, gradient clipping and EMA.

    Attributes:
        lr: peak learning rate
        betas: decay rates of the two moments (Loshchilov and Hutter 2019, arXiv 1711.05101)
        eps: number added to the denominator of an update
        weight_decay: decoupled weight decay, as a share of lr in each update
        warmup_steps: updates over which the learning rate grows linearly from lr / warmup_steps
            to lr
        decay_steps: update at which a half cosine reaches 0; None: constant after the warm-up
        clip_norm: largest L2 norm of the gradient of all parameters; None: no clipping
        ema_decay: largest decay of the EMA of the weights; None: no EMA
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
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is out of range: got {self.lr}, want a finite lr > 0")
        if self.warmup_steps < 0:
            raise ValueError(
                f"warmup_steps is out of range: got {self.warmup_steps}, want warmup_steps >= 0"
            )
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps is out of range: got {self.decay_steps}, want decay_steps > "
                f"warmup_steps = {self.warmup_steps}"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(
                f"clip_norm is out of range: got {self.clip_norm}, want a finite clip_norm > 0; "
                "give None for no clipping"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas is out of range: got {self.betas}, want 0 <= beta < 1 for both"
            )
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps is out of range: got {self.eps}, want a finite eps > 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay is out of range: got {self.weight_decay}, want a finite "
                "weight_decay >= 0"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay is out of range: got {self.ema_decay}, want 0 <= ema_decay < 1, or "
                "None for no EMA"
            )

    def learning_rate(self, update: int) -> float:
        """The learning rate of an update (0 is the first).

        lr min(1, (update + 1) / warmup_steps), then constant or a half cosine. The first update has
        a rate above 0, unlike `get_constant_schedule_with_warmup` of transformers.

        >>> [AdamW(lr=1.0, warmup_steps=4).learning_rate(update) for update in (0, 1, 3, 9)]
        [0.25, 0.5, 1.0, 1.0]
        """
        if update < self.warmup_steps:
            return self.lr * (update + 1) / self.warmup_steps
        if self.decay_steps is None:
            return self.lr
        progress = min(1.0, (update - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
