"""Size and settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.limits import MOST_STEPS, check_range, seed_number, whole


@dataclass(frozen=True)
class EvalSettings:
    """Size and settings of an evaluation; ValueError for counts outside their range.

    Attributes:
        samples: texts per row
        seed: seed of the latents of all texts
        teacher_steps: step counts of the teacher, one row each
        student_steps: step counts of the student, one row each
        teacher_temperatures: temperatures of the teacher in addition to 1, at each step count
        student_temperatures: temperatures of the student in addition to 1, at each step count
        top_p: top-p of further rows of the teacher at the student's step counts, a stronger
            opponent than temperature alone (1: not measured)
        top_p_temperatures: temperatures of these rows
        texts: half-masked real texts for the completion disagreement, spread evenly over the
            held-out rows
        completions: completions of each half-masked text
        bound_texts: held-out rows for the N-step bound of each row at temperature 1, spread evenly
            over them (0: not measured)
        mauve_seeds: starts of k-means for MAUVE against other real texts (0: not measured)
        reverse_seeds: networks fitted per row for the reverse perplexity (0: not measured)
        batch_size: maximum samples per network call
        sampler: sampler of both diffusion models, by name
        draw: categorical draw: gumbel_max couples texts across step counts; inverse_cdf has the
            same distribution and is faster
        round_steps: steps of the student in the table of rounds
        shown: number of example texts of teacher and student, side by side
        player_steps: steps of the example texts whose unmasking is recorded
    """

    samples: int = 64
    seed: int = 0
    teacher_steps: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    student_steps: tuple[int, ...] = (4, 8, 16, 32)
    teacher_temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.1)
    student_temperatures: tuple[float, ...] = (1.15, 1.3, 1.45)
    top_p: float = 0.9
    top_p_temperatures: tuple[float, ...] = (1.0, 1.15, 1.3)
    texts: int = 16
    completions: int = 4
    bound_texts: int = 64
    mauve_seeds: int = 0
    reverse_seeds: int = 0
    batch_size: int = 64
    sampler: str = "order=spread"
    draw: str = "gumbel_max"
    round_steps: int = 8
    shown: int = 3
    player_steps: int = 16

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "round_steps", "player_steps"):
            whole(name, getattr(self, name), "a count of the evaluation", 1, MOST_STEPS)
        optional = "texts", "completions", "bound_texts", "mauve_seeds", "reverse_seeds", "shown"
        for name in optional:
            whole(name, getattr(self, name), "a count of the evaluation", 0, MOST_STEPS)
        seed_number("seed", self.seed)
        check_range("top_p", self.top_p, 0 < self.top_p <= 1, "0 < top_p <= 1")

    @property
    def has_set_metrics(self) -> bool:
        """Whether sets of texts are compared with other real texts."""
        return bool(self.mauve_seeds or self.reverse_seeds)
