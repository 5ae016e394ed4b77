"""Distillation in rounds. Everything about a round is a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.limits import check_range

# arXiv 2602.00792, section 4: from 0.96, lowered by 0.03 in each round.
PAPER_TEMPERATURES = (0.96, 0.93, 0.90, 0.87, 0.84)


@dataclass(frozen=True)
class Rounds:
    """Rounds of equal length; the step size delta doubles from round to round.

    delta = delta0 2^round is the time between student (t) and teacher (t - delta). In the paper it
    is 1/512 .. 1/32.

    Attributes:
        round_steps: training steps in a round, >= 1
        delta0: delta of the first round, in (0, 1)
        temperatures: the teacher's temperature, one value > 0 for each round

    >>> rounds = Rounds(round_steps=10_000)
    >>> rounds.round(10_000), rounds.starts(10_000)
    (1, True)
    >>> rounds.delta(10_000) * 512, rounds.temperature(10_000)
    (2.0, 0.93)
    """

    round_steps: int
    delta0: float = 1 / 512
    temperatures: tuple[float, ...] = PAPER_TEMPERATURES

    def __post_init__(self) -> None:
        check_rounds("temperatures", self.round_steps, self.delta0, self.count)
        positive = all(tau > 0 for tau in self.temperatures)
        check_range("temperatures", self.temperatures, positive, "each > 0")

    @property
    def count(self) -> int:
        """The number of rounds."""
        return len(self.temperatures)

    @property
    def total(self) -> int:
        """The training steps of all rounds."""
        return self.round_steps * self.count

    def round(self, step: int) -> int:
        """The round of a step: 0, 1, .. count - 1. The last round has no end."""
        return min(step // self.round_steps, self.count - 1)

    def starts(self, step: int) -> bool:
        """True at the first step of a round, the hard reset of the teacher (Algorithm 1)."""
        return step % self.round_steps == 0 and step < self.total

    def delta(self, step: int) -> float:
        """The time between student and teacher."""
        return self.delta0 * 2.0 ** self.round(step)

    def temperature(self, step: int) -> float:
        """The temperature of the teacher."""
        return self.temperatures[self.round(step)]


def check_rounds(name: str, round_steps: int, delta0: float, count: int) -> None:
    """Raise ValueError unless delta0, doubled each round, stays in (0, 1).

    Args:
        name: the argument that gives the number of rounds, for the error.
        round_steps: training steps in a round.
        delta0: delta of the first round.
        count: the number of rounds.
    """
    check_range("round_steps", round_steps, round_steps >= 1, "round_steps >= 1")
    check_range("delta0", delta0, 0 < delta0 < 1, "0 < delta0 < 1")
    most = math.ceil(-math.log2(delta0))
    want = (
        f"1 .. {most}, because delta0 = {delta0}, doubled each round, must stay below 1; give "
        "fewer rounds or a smaller delta0"
    )
    check_range(name, f"{count} rounds", 1 <= count <= most, want)
