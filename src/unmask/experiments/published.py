"""Published gen PPL, and entropy where it was printed: `unmask reproduce` prints them beside ours.

MCD: arXiv 2602.00792, which states float64 and GPT-2 large. Only the figures in its text are
known here, none with an entropy. We assign 39.73, 118.1 and 52.16 to round 5, because the text
does not name their round. Its MDLM teacher has about half of the gen PPL of Duo's float64 table
at equal steps.
Duo: arXiv 2506.10892, float64 draws, GPT-2 large, ancestral steps; its SDTT is of the MDLM teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MCD, DUO = "MCD paper", "Duo paper"


@dataclass(frozen=True)
class Published:
    """A cell of a published table; `entropy` in nats, None where it is not given."""

    source: str
    gen_ppl: float
    entropy: float | None = None

    def __str__(self) -> str:
        return f"{self.gen_ppl:.4g}" + ("" if self.entropy is None else f" / {self.entropy:.2f}")


Key = tuple[str, int, int]  # line, round (0: a teacher), steps
Cells = Mapping[Key, tuple[Published, ...]]

ALL = (1024, 512, 256, 128, 64, 32, 16, 8)
FEW = (1024, 32, 16, 8)
# Duo's tables: line, round, step counts, gen PPL / entropy at them (rounds 1 to 4: gen PPL).
DUO_ROWS: tuple[tuple[str, int, tuple[int, ...], str], ...] = (
    ("MDLM", 0, ALL, "104.85/5.63 104.43/5.63 112.70/5.66 120.77/5.67 "
                     "143.88/5.70 196.79/5.75 343.33/5.81 830.82/5.91"),
    ("Duo", 0, ALL, "77.69/5.55 78.14/5.55 78.62/5.55 80.02/5.55 "
                    "85.62/5.57 96.19/5.57 122.78/5.58 198.27/5.57"),
    ("SDTT", 5, ALL, "36.89/5.39 37.16/5.40 38.65/5.41 41.98/5.43 "
                     "47.04/5.45 62.29/5.49 89.17/5.53 193.05/5.58"),
    ("DCD", 5, ALL, "50.55/5.36 52.43/5.38 53.69/5.43 54.16/5.46 "
                    "55.83/5.49 61.31/5.52 75.24/5.53 111.88/5.52"),
    ("SDTT", 1, ALL, "79.12 79.40 84.28 89.97 105.90 141.78 249.15 618.15"),
    ("SDTT", 2, FEW, "61.75 107.93 183.41 458.83"),
    ("SDTT", 3, FEW, "49.53 83.85 135.75 323.56"),
    ("SDTT", 4, FEW, "42.53 70.82 111.40 253.59"),
    ("DCD", 1, ALL, "67.58 67.37 67.78 70.43 74.45 81.89 103.03 164.49"),
    ("DCD", 2, FEW, "60.09 71.77 89.59 137.87"),
    ("DCD", 3, FEW, "56.89 65.96 82.30 122.49"),
    ("DCD", 4, FEW, "52.78 62.42 76.83 114.80"),
)  # fmt: skip
MCD_TABLE1: Mapping[Key, float] = {
    ("MDLM", 0, 512): 54.74,
    ("MCD", 5, 32): 39.73,
    ("MCD", 5, 8): 118.1,
    ("SDTT", 5, 32): 52.16,
    ("MCD", 1, 32): 94.97,  # its table 2
}
MCD_TABLE2: Mapping[Key, float] = {("hybrid", 1, 32): 94.97, ("KL-Fwd", 1, 32): 110.86}
MCD_TABLE3: Mapping[Key, float] = {
    ("MDLM large", 0, 32): 260.17,
    ("MDLM large", 0, 512): 62.92,
    ("MCD", 1, 32): 204.10,
    ("MCD", 1, 512): 48.54,
    ("MCD", 1, 64): 121.01,
    ("SDTT", 1, 64): 136.71,
}


def _cells(
    mcd: Mapping[Key, float], duo: tuple[tuple[str, int, tuple[int, ...], str], ...] = ()
) -> Cells:
    """The published cells by their key; where both papers have one, MCD's is first."""
    cells = {key: (Published(MCD, gen_ppl),) for key, gen_ppl in mcd.items()}
    for line, round_, steps, text in duo:
        for count, cell in zip(steps, text.split(), strict=True):
            gen_ppl, _, entropy = cell.partition("/")
            published = Published(DUO, float(gen_ppl), float(entropy) if entropy else None)
            cells[line, round_, count] = (*cells.get((line, round_, count), ()), published)
    return cells


TABLES: Mapping[str, Cells] = {
    "table1": _cells(MCD_TABLE1, DUO_ROWS),
    "table2": _cells(MCD_TABLE2),
    "table3": _cells(MCD_TABLE3),
    "figure3": _cells(MCD_TABLE1, DUO_ROWS),
}
# Lines of our tables that have no number in the paper, with its words.
FAILED: Mapping[str, Mapping[str, str]] = {"table2": {"KL-Bwd": f"{MCD}: FAILED"}}
