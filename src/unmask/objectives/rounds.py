"""Distillation in rounds. Everything about a round is a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

# arXiv 2602.00792, section 4: from 0.96, lowered by 0.03 in each round.
PAPER_TEMPERATURES = (0.96, 0.93, 0.90, 0.87, 0.84)


@dataclass(frozen=True)
class Rounds:
    """Rounds of equal length; the step size delta doubles from round to round.

    delta = delta0 2^round is the time between student (t) and teacher (t - delta). In the paper it
    is 1/512 .. 1/32.

    steps         training steps a round, >= 1
    delta0        delta of the first round
    temperatures  the teacher's temperature in each round, > 0; their number is the number of rounds

    >>> rounds = Rounds(steps=10_000)
    >>> rounds.round(10_000), rounds.starts(10_000)
    (1, True)
    >>> rounds.delta(10_000) * 512, rounds.temperature(10_000)
    (2.0, 0.93)
    """

    steps: int
    delta0: float = 1 / 512
    temperatures: tuple[float, ...] = PAPER_TEMPERATURES

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"steps is out of range: got {self.steps}, want steps >= 1 (training steps a round)"
            )
        if not self.temperatures or not all(tau > 0 for tau in self.temperatures):
            raise ValueError(
                f"temperatures is empty or out of range: got {self.temperatures}, want one tau > 0 "
                "for each round"
            )
        last = self.delta0 * 2 ** (self.count - 1)
        if not 0 < last < 1:
            raise ValueError(
                f"delta0 is out of range: got {self.delta0}, which doubles each round and reaches "
                f"{last} in round {self.count}, want a time in (0, 1); take a smaller delta0 or "
                "fewer rounds"
            )

    @property
    def count(self) -> int:
        """The number of rounds."""
        return len(self.temperatures)

    @property
    def total(self) -> int:
        """The training steps of all rounds."""
        return self.steps * self.count

    def round(self, step: int) -> int:
        """The round of a step: 0, 1, .. count - 1. The last round has no end."""
        return min(step // self.steps, self.count - 1)

    def starts(self, step: int) -> bool:
        """Whether a round starts: the teacher becomes the student (Algorithm 1, "hard reset")."""
        return step % self.steps == 0 and step < self.total

    def delta(self, step: int) -> float:
        """The time between student and teacher."""
        return self.delta0 * 2.0 ** self.round(step)

    def temperature(self, step: int) -> float:
        """The temperature of the teacher."""
        return self.temperatures[self.round(step)]
