"""What `unmask bench` finds: a diffusion model's speed beside an autoregressive one's, with what it was measured on.

No torch here: whoever reads bench.json (the figure, the command line) reads it through this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.atomic_files import write_text
from unmask.dataclass_json import dumps, from_json, read_json, to_json
from unmask.evaluation.measure import Measure
from unmask.limits import MOST_STEPS, seed_number, whole

BENCH = "bench.json"


@dataclass(frozen=True)
class BenchSettings:
    """What is timed: a pair of calls of `sample`, ours and the autoregressive one's, for each of steps and batches.

    length   tokens of a text
    repeats  pairs behind a row, after one that warms up; every one draws the same texts, those of the seed

    ValueError for counts that are none.
    """

    steps: tuple[int, ...]
    batches: tuple[int, ...]
    length: int
    repeats: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check("steps", "the moves from noise to text that are timed, each count once", self.steps)
        _check(
            "batches", "the numbers of texts that one call of sample draws, each once", self.batches
        )
        _check("length", "the number of tokens of a text", (self.length,))
        _check("repeats", "the number of timed pairs behind a row", (self.repeats,))
        seed_number("seed", self.seed)


@dataclass(frozen=True)
class Machine:
    """What the clock depends on: device ("cpu", "cuda:0") and its name, torch's threads and version, precision.

    precision  of the matrix products in the blocks of both networks
    """

    device: str
    name: str
    threads: int
    torch: str
    precision: str


@dataclass(frozen=True)
class Contender:
    """A model: its name, the number of its weights, their digest, and whether they are drawn at random."""

    name: str
    parameters: int
    digest: str
    random: bool = False


@dataclass(frozen=True)
class BenchRow:
    """The calls of one model at one batch and one step count.

    steps               None: the autoregressive model, a call a token
    batch               texts a call of `sample`
    nfe                 network calls that a text takes part in, mean over the texts
    calls               network calls made for all of them
    tokens_per_forward  length / nfe: tokens that a text gains in a network call, mean
    tokens_per_second   batch x length / seconds, median over repeats
    p50_s, p95_s        latency of a call of `sample`, network calls, draws and decoding: quantiles over the repeats,
                        linear between two of them; with fewer than 21 the second lies between the two longest
    ratio               tokens a second over those of the autoregressive call beside it, median over pairs; None for
                        the autoregressive model
    memory_bytes        the most that a GPU's allocator held in a call beyond what it held before; None on a CPU
    seconds             of each repeat, in order
    """

    steps: int | None
    batch: int
    nfe: float
    calls: int
    tokens_per_forward: float
    tokens_per_second: Measure
    p50_s: float
    p95_s: float
    ratio: Measure | None
    memory_bytes: int | None
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Bench:
    """One run of `unmask bench`."""

    version: str
    machine: Machine
    plan: BenchSettings
    model: Contender
    baseline: Contender
    rows: tuple[BenchRow, ...]

    def of(self, steps: int | None) -> list[BenchRow]:
        """The rows of one step count (None: of the autoregressive model), by growing batch."""
        return sorted((row for row in self.rows if row.steps == steps), key=lambda row: row.batch)

    def save(self, directory: Path) -> Path:
        """Write bench.json whole."""
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / BENCH, dumps(to_json(self), indent=1) + "\n")
        return directory / BENCH

    @staticmethod
    def read(file: Path) -> Bench:
        """What `save` wrote; ValueError for what is no JSON, and for fields missing, unknown or of another type."""
        try:
            data = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error}. Measure it again with `unmask bench`") from error
        return from_json(Bench, data, file.name)


def words(bench: Bench) -> str:
    """How the rows were measured, in sentences."""
    plan, machine, theirs = bench.plan, bench.machine, bench.baseline
    random = " drawn at random: speed does not depend on what they say" if theirs.random else ""
    return (
        f"{bench.model.name} ({bench.model.parameters:,} weights, {bench.model.digest[:8]}) against {theirs.name}, "
        f"autoregressive with KV cache ({theirs.parameters:,} weights{random}, {theirs.digest[:8]}). "
        f"{plan.repeats} pairs a row after one to warm up, ours and the other in turns; p95 is linear between two "
        f"repeats{'' if plan.repeats > 20 else ', here the two longest'}; L = {plan.length} tokens, temperature 1, "
        f"draws in float64, seed {plan.seed}. {machine.name} ({machine.device}), {machine.threads} "
        f"thread{'' if machine.threads == 1 else 's'}, torch {machine.torch}, {machine.precision}; "
        f"unmask {bench.version}. Speed only: this says nothing about the texts."
    )


def _check(name: str, meaning: str, values: Sequence[int]) -> None:
    for value in values:
        whole(name, value, meaning, 1, MOST_STEPS)
    if fault := "empty" if not values else "repeated" if len(set(values)) < len(values) else "":
        raise ValueError(
            f"{name} is {fault}: got {list(values)}, want at least one and none twice ({meaning})"
        )
