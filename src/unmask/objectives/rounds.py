"""Distillation in rounds: everything about a round is a function of the step."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_TEMPERATURES = (
    0.96,
    0.93,
    0.90,
    0.87,
    0.84,
)  # arXiv 2602.00792, section 4: from 0.96, lowered by 0.03 a round


@dataclass(frozen=True)
class Rounds:
    """`count` rounds of `steps` steps; delta = delta0 2^round, the teacher's temperature a value a round.

    delta is the time between student (t) and teacher (t - delta): 1/512 .. 1/32 in the paper.

    >>> rounds = Rounds(steps=10_000)
    >>> rounds.round(10_000), rounds.starts(10_000), rounds.delta(10_000) * 512, rounds.temperature(10_000)
    (1, True, 2.0, 0.93)
    """

    steps: int
    delta0: float = 1 / 512
    temperatures: tuple[float, ...] = PAPER_TEMPERATURES

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is the length of a round: want steps >= 1, got {self.steps}")
        if not self.temperatures or not all(tau > 0 for tau in self.temperatures):
            raise ValueError(
                f"temperatures holds one tau > 0 a round, at least one: got {self.temperatures}"
            )
        if not 0 < self.delta0 * 2 ** (self.count - 1) < 1:
            raise ValueError(
                f"delta doubles from delta0 each round and is a time in (0, 1): delta0 = {self.delta0} reaches "
                f"{self.delta0 * 2 ** (self.count - 1)} in round {self.count}; take a smaller delta0 or fewer rounds"
            )

    @property
    def count(self) -> int:
        return len(self.temperatures)

    @property
    def total(self) -> int:
        """Steps of all rounds."""
        return self.steps * self.count

    def round(self, step: int) -> int:
        """0, 1, .. count - 1; the last round has no end."""
        return min(step // self.steps, self.count - 1)

    def starts(self, step: int) -> bool:
        """True at the first step of a round, where the teacher becomes the student (Algorithm 1, "hard reset")."""
        return step % self.steps == 0 and step < self.total

    def delta(self, step: int) -> float:
        return self.delta0 * 2.0 ** self.round(step)

    def temperature(self, step: int) -> float:
        return self.temperatures[self.round(step)]
