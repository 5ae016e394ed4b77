"""Settings of an optimizer, and its learning rate as a pure function of the update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.limits import check_range


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
        check_range("lr", self.lr, 0 < self.lr < math.inf, "a finite lr > 0")
        check_range("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "warmup_steps >= 0")
        check_range("betas", self.betas, all(0 <= b < 1 for b in self.betas), "both in [0, 1)")
        check_range("eps", self.eps, 0 < self.eps < math.inf, "a finite eps > 0")
        decay = self.weight_decay
        check_range("weight_decay", decay, 0 <= decay < math.inf, "a finite weight_decay >= 0")
        if self.decay_steps is not None:
            want = f"decay_steps > warmup_steps = {self.warmup_steps}"
            check_range("decay_steps", self.decay_steps, self.decay_steps > self.warmup_steps, want)
        if self.clip_norm is not None:
            want = "a finite clip_norm > 0, or None for no clipping"
            check_range("clip_norm", self.clip_norm, 0 < self.clip_norm < math.inf, want)
        if self.ema_decay is not None:
            want = "0 <= ema_decay < 1, or None for no EMA"
            check_range("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, want)

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
