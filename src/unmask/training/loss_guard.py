"""Stop a training whose loss explodes, before a bad step changes the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from unmask.limits import check_range

_SLOWER = "Give a smaller learning rate, or a longer warm-up."


class TrainingError(RuntimeError):
    """The training cannot continue. The message names the step, the term and the last state."""


@dataclass
class LossGuard:
    """Compare loss and gradient norm with their recent medians, and refuse a value far above.

    A value that is not finite is always refused. The recent values are not saved: they are
    collected again after a resume, and no result depends on them.

    Attributes:
        factor: largest allowed ratio to the median
        window: steps of the median. Nothing is compared before a round has had that many steps,
            because a new round has a new loss
        patience: first steps of a training that are not compared (the warm-up)
    """

    factor: float = 50.0
    window: int = 100
    patience: int = 100
    _round: int = field(default=0, init=False, repr=False)
    # Consecutive steps whose weights are all 0.
    _empty: int = field(default=0, init=False, repr=False)
    _recent: dict[str, deque[float]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("factor", self.factor, self.factor > 1, "factor > 1")
        check_range("window", self.window, self.window >= 1, "window >= 1")
        check_range("patience", self.patience, self.patience >= 0, "patience >= 0")

    def accept(
        self,
        step: int,
        turn: str,
        weight: float,
        values: Mapping[str, float],
        metrics: Mapping[str, float],
    ) -> bool:
        """True if the step can be taken, False if its loss has no weight.

        Args:
            step: number of the step, 0 for the first.
            turn: the network that the step trains.
            weight: sum of the weights of the loss.
            values: loss and gradient norm.
            metrics: further terms for the message.

        Raises:
            TrainingError: `check` refuses a value, or the weight is below 0 or NaN. The loss is not
                0 but its gradient or weight is, or `window` consecutive steps had weight 0.
        """
        if weight > 0:
            self._empty = 0
            self.check(step, turn, values, metrics)
            if values["loss"] and values.get("grad_norm") == 0:
                problem = f"loss is {values['loss']:g}, but its gradient is 0"
                advice = (
                    f"The loss must depend on the weights of {turn!r}, the network of this turn, "
                    "without detach."
                )
                raise TrainingError(_message(step, turn, problem, metrics, advice))
            return True
        problem, advice = "", "Correct the weights of the objective."
        if weight < 0 or math.isnan(weight):
            problem = f"weights of the loss sum to {weight}, want >= 0"
        elif any(value != 0 for value in values.values()):
            terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
            problem = f"the weights of the loss are 0, but the step has {terms}"
        else:
            self._empty += 1
            if self._empty >= self.window:
                problem = (
                    f"weights of the loss are 0 in {self._empty} consecutive steps: there is no "
                    "token to learn from"
                )
                advice = "Give longer rows or larger batches."
        if problem:
            raise TrainingError(_message(step, turn, problem, metrics, advice))
        return False

    def check(
        self, step: int, turn: str, values: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """TrainingError, with `metrics`, if a value is not finite or far above its median."""
        if (now := round(metrics.get("round", 0))) != self._round:
            self._round = now
            self._recent.clear()
        for name, value in values.items():
            recent = self._recent.setdefault(f"{turn} {name}", deque(maxlen=self.window))
            if not math.isfinite(value):
                raise TrainingError(_message(step, turn, f"{name} is {value}", metrics, _SLOWER))
            if step >= self.patience and len(recent) == self.window:
                usual = median(recent)
                if value > self.factor * usual > 0:
                    problem = (
                        f"{name} is {value:.4g}, more than {self.factor:g} times its median "
                        f"{usual:.4g}"
                    )
                    raise TrainingError(_message(step, turn, problem, metrics, _SLOWER))
            recent.append(value)


def _message(step: int, turn: str, problem: str, metrics: Mapping[str, float], advice: str) -> str:
    in_round = f", round {metrics['round']:g}" if "round" in metrics else ""
    terms = {name: value for name, value in metrics.items() if name != "round"}
    bad = [f"{name} = {value:g}" for name, value in terms.items() if not math.isfinite(value)]
    rest = [f"{name} = {value:g}" for name, value in terms.items() if math.isfinite(value)]
    not_finite = f"; terms that are not finite: {', '.join(bad)}" if bad else ""
    others = f"; other terms: {', '.join(rest)}" if rest else ""
    return (
        f"training stopped at step {step}{in_round}, {turn}: {problem}{not_finite}{others}. The "
        f"step was not taken. {advice}"
    )
