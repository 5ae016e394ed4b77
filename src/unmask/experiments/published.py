"""Gen PPL, and entropy where it was printed, of published tables: what `unmask reproduce` prints beside ours.

MCD: arXiv 2602.00792, which says float64 and GPT-2 large; of its tables only the figures in its text are known here,
none with an entropy. 39.73, 118.1 and 52.16 are taken for round 5, which the text does not name. Its MDLM teacher has
about half of what Duo's float64 table has at the same steps.
Duo: arXiv 2506.10892, float64 draws, GPT-2 large, ancestral steps; its SDTT is of the MDLM teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MCD, DUO = "MCD paper", "Duo paper"


@dataclass(frozen=True)
class Published:
    """A cell of a published table; `entropy` in nats, None where it is not given."""

    source: str
    gen_ppl: float
    entropy: float | None = None

    def __str__(self) -> str:
        return f"{self.gen_ppl:.4g}" + ("" if self.entropy is None else f" / {self.entropy:.2f}")


Cells = Mapping[
    tuple[str, int, int], tuple[Published, ...]
]  # (line, round, 0 for a teacher; steps)

_STEPS = (1024, 512, 256, 128, 64, 32, 16, 8)
_TEACHERS = {  # Duo, table of teachers: gen PPL / entropy at _STEPS
    "MDLM": "104.85/5.63 104.43/5.63 112.70/5.66 120.77/5.67 143.88/5.70 196.79/5.75 343.33/5.81 830.82/5.91",
    "Duo": "77.69/5.55 78.14/5.55 78.62/5.55 80.02/5.55 85.62/5.57 96.19/5.57 122.78/5.58 198.27/5.57",
}
_STUDENTS = {  # after five rounds
    "SDTT": "36.89/5.39 37.16/5.40 38.65/5.41 41.98/5.43 47.04/5.45 62.29/5.49 89.17/5.53 193.05/5.58",
    "DCD": "50.55/5.36 52.43/5.38 53.69/5.43 54.16/5.46 55.83/5.49 61.31/5.52 75.24/5.53 111.88/5.52",
}
_ROUNDS = {  # gen PPL after rounds 1 to 4, at the steps of the key
    ("SDTT", _STEPS): ("79.12 79.40 84.28 89.97 105.90 141.78 249.15 618.15",),
    ("DCD", _STEPS): ("67.58 67.37 67.78 70.43 74.45 81.89 103.03 164.49",),
    ("SDTT", (1024, 32, 16, 8)): ("", "61.75 107.93 183.41 458.83", "49.53 83.85 135.75 323.56",
                                  "42.53 70.82 111.40 253.59"),
    ("DCD", (1024, 32, 16, 8)): ("", "60.09 71.77 89.59 137.87", "56.89 65.96 82.30 122.49",
                                 "52.78 62.42 76.83 114.80"),
}  # fmt: skip


def _duo(
    line: str, round_: int, steps: tuple[int, ...], text: str
) -> dict[tuple[str, int, int], Published]:
    found = {}
    for count, cell in zip(steps, text.split(), strict=True):
        gen_ppl, _, entropy = cell.partition("/")
        found[line, round_, count] = Published(
            DUO, float(gen_ppl), float(entropy) if entropy else None
        )
    return found


def _table1() -> Cells:
    cells: dict[tuple[str, int, int], list[Published]] = {
        ("MDLM", 0, 512): [Published(MCD, 54.74)],
        ("MCD", 5, 32): [Published(MCD, 39.73)],
        ("MCD", 5, 8): [Published(MCD, 118.1)],
        ("SDTT", 5, 32): [Published(MCD, 52.16)],
        ("MCD", 1, 32): [Published(MCD, 94.97)],  # its table 2
    }
    rows: list[tuple[str, int, tuple[int, ...], str]] = [
        (line, 0, _STEPS, text) for line, text in _TEACHERS.items()
    ]
    rows += [(line, 5, _STEPS, text) for line, text in _STUDENTS.items()]
    rows += [
        (line, round_, steps, text)
        for (line, steps), texts in _ROUNDS.items()
        for round_, text in enumerate(texts, start=1)
        if text
    ]
    for row in rows:
        for place, cell in _duo(*row).items():
            cells.setdefault(place, []).append(cell)
    return MappingProxyType({place: tuple(found) for place, found in cells.items()})


TABLES: Mapping[str, Cells] = MappingProxyType(
    {
        "table1": _table1(),
        "table2": {
            ("hybrid", 1, 32): (Published(MCD, 94.97),),
            ("KL-Fwd", 1, 32): (Published(MCD, 110.86),),
        },
        "table3": {
            ("MDLM large", 0, 32): (Published(MCD, 260.17),),
            ("MDLM large", 0, 512): (Published(MCD, 62.92),),
            ("MCD", 1, 32): (Published(MCD, 204.10),),
            ("MCD", 1, 512): (Published(MCD, 48.54),),
            ("MCD", 1, 64): (Published(MCD, 121.01),),
            ("SDTT", 1, 64): (Published(MCD, 136.71),),
        },
        "figure3": _table1(),
    }
)
FAILED = {("table2", "KL-Bwd"): f"{MCD}: FAILED"}  # a line that has no number there
