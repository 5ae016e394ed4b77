"""A watch on the loss: a training that has gone wrong stops before the bad step reaches the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median


class TrainingError(RuntimeError):
    """A training cannot go on; the message says at which step, which term, and where the last good state is."""


@dataclass(frozen=True)
class Guard:
    """When a loss or gradient norm counts as exploded: above `factor` times the median of the last `window` steps.

    Nothing is compared during the first `patience` updates (the warm-up), nor before `window` values of the present
    round are known: a new round has a new loss. A value that is not finite always stops the run.
    """

    factor: float = 50.0
    window: int = 100
    patience: int = 100

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ValueError(
                f"factor says how far above the median is an explosion: want > 1, got {self.factor}"
            )
        if self.window < 1 or self.patience < 0:
            raise ValueError(
                f"want window >= 1 and patience >= 0 steps, got {self.window} and {self.patience}"
            )


@dataclass
class Watch:
    """The values a guard has seen. Not saved: after a resume it fills anew, and no result depends on it."""

    guard: Guard
    _round: int = 0
    _empty: int = 0  # steps in a row whose weights are all 0
    _seen: dict[str, deque[float]] = field(default_factory=dict)

    def learns(
        self,
        step: int,
        turn: str,
        weight: float,
        values: Mapping[str, float],
        metrics: Mapping[str, float],
    ) -> bool:
        """True where the loss of a step has a weight, so that the step is taken. TrainingError as in `check`.

        TrainingError also for a sum of weights below 0 or not a number, for a loss without weight, and where a whole
        `window` of steps has had no weight: such a training learns nothing.
        """
        if weight > 0:
            self._empty = 0
            self.check(step, turn, values, metrics)
            return True
        if weight < 0 or math.isnan(weight):
            raise TrainingError(
                self._message(
                    step, turn, f"weights of the loss sum to {weight}, want >= 0", metrics
                )
            )
        if any(value != 0 for value in values.values()):
            said = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise TrainingError(
                self._message(
                    step, turn, f"the weights of the loss are 0, and it has {said}", metrics
                )
            )
        self._empty += 1
        if self._empty >= self.guard.window:
            what = f"no token to learn from in {self._empty} steps in a row: the weights of the loss are 0"
            raise TrainingError(self._message(step, turn, what, metrics))
        return False

    def check(
        self, step: int, turn: str, values: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Raise TrainingError where one of `values` is not finite or explodes. `metrics` say more about the loss."""
        if (now := round(metrics.get("round", 0))) != self._round:
            self._round = now
            self._seen.clear()
        for name, value in values.items():
            seen = self._seen.setdefault(f"{turn} {name}", deque(maxlen=self.guard.window))
            if not math.isfinite(value):
                raise TrainingError(self._message(step, turn, f"{name} is {value}", metrics))
            if step >= self.guard.patience and len(seen) == self.guard.window:
                usual = median(seen)
                if value > self.guard.factor * usual > 0:
                    what = f"{name} is {value:.4g}, over {self.guard.factor:g} times its median {usual:.4g}"
                    raise TrainingError(self._message(step, turn, what, metrics))
            seen.append(value)

    def _message(self, step: int, turn: str, what: str, metrics: Mapping[str, float]) -> str:
        where = (
            f"step {step}"
            + (f", round {metrics['round']:g}" if "round" in metrics else "")
            + f", {turn}"
        )
        terms = {name: value for name, value in metrics.items() if name != "round"}
        bad = [f"{name} = {value:g}" for name, value in terms.items() if not math.isfinite(value)]
        rest = [f"{name} = {value:g}" for name, value in terms.items() if math.isfinite(value)]
        offending = f"; terms that are not finite: {', '.join(bad)}" if bad else ""
        others = f"; other terms: {', '.join(rest)}" if rest else ""
        return f"training stopped at {where}: {what}{offending}{others}. The step was not taken."
