"""Results and settings of `unmask bench`, as stored in bench.json; it never imports torch."""

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
    """The settings of `unmask bench`: step counts, batches, length and repeats of the timed calls.

    Attributes:
        steps: sampling steps of the diffusion model, one row for each
        batches: texts in a call, one row for each
        length: tokens a text
        repeats: timed pairs for a row, after one warm-up pair; all pairs draw the texts of `seed`

    Raises ValueError for counts outside their range.
    """

    steps: tuple[int, ...]
    batches: tuple[int, ...]
    length: int
    repeats: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check("steps", "sampling steps, each count once", self.steps)
        _check("batches", "texts a call of sample, each count once", self.batches)
        _check("length", "tokens a text", (self.length,))
        _check("repeats", "timed pairs for a row", (self.repeats,))
        seed_number("seed", self.seed)


@dataclass(frozen=True)
class Machine:
    """The machine that ran the calls.

    Attributes:
        device: "cpu", "cuda:0", ...
        name: name of the processor or the GPU
        threads: number of torch threads
        torch: version of torch
        precision: precision of the matrix products in the blocks of both networks
    """

    device: str
    name: str
    threads: int
    torch: str
    precision: str


@dataclass(frozen=True)
class Contender:
    """A timed model: name, number of weights, their digest, and whether they are random."""

    name: str
    parameters: int
    digest: str
    random: bool = False


@dataclass(frozen=True)
class BenchRow:
    """The calls of one model at one batch and one step count.

    Attributes:
        steps: None for the autoregressive model, which makes one network call a token
        batch: texts a call of `sample`
        nfe: network calls a text takes part in, mean over texts
        calls: network calls of the whole batch
        tokens_per_forward: length / nfe
        tokens_per_second: batch x length / seconds, median over repeats
        p50_s, p95_s: quantiles of the seconds of a call of `sample` (network calls, drawing of
            tokens, decoding), linear between two repeats; with fewer than 21 repeats p95 lies
            between the two longest
        ratio: tokens a second over those of the autoregressive call of the same pair, median over
            pairs; None for the autoregressive model
        memory_bytes: peak GPU memory of a call beyond the memory held before; None on a CPU
        seconds: seconds of each repeat, in order
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

    @property
    def name(self) -> str:
        """The kind of call in words: "8 steps" or "autoregressive"."""
        return step_name(self.steps)


@dataclass(frozen=True)
class Bench:
    """One run of `unmask bench`."""

    version: str
    machine: Machine
    plan: BenchSettings
    model: Contender
    baseline: Contender
    rows: tuple[BenchRow, ...]

    def rows_of(self, steps: int | None) -> list[BenchRow]:
        """The rows of one step count (None: the autoregressive model), by ascending batch."""
        return sorted((row for row in self.rows if row.steps == steps), key=lambda row: row.batch)

    @property
    def protocol_words(self) -> str:
        """How the rows were measured, in sentences."""
        plan, machine, baseline = self.plan, self.machine, self.baseline
        random = (
            " drawn at random: speed does not depend on their values" if baseline.random else ""
        )
        longest = "" if plan.repeats > 20 else ", here the two longest"
        return (
            f"{self.model.name} ({self.model.parameters:,} weights, {self.model.digest[:8]}) "
            f"against {baseline.name}, autoregressive with KV cache ({baseline.parameters:,} "
            f"weights{random}, {baseline.digest[:8]}). {plan.repeats} pairs a row after one "
            f"warm-up pair, both models in turns; p95 is linear between two repeats{longest}; "
            f"L = {plan.length} tokens, temperature 1, draws in float64, seed {plan.seed}. "
            f"{machine.name} ({machine.device}), {_plural(machine.threads, 'thread')}, "
            f"torch {machine.torch}, {machine.precision}; unmask {self.version}. "
            "Speed only: this says nothing about the texts."
        )

    def save(self, directory: Path) -> Path:
        """Write bench.json atomically; return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / BENCH, dumps(to_json(self), indent=1) + "\n")
        return directory / BENCH

    @staticmethod
    def read(file: Path) -> Bench:
        """Read a bench.json.

        Raises:
            ValueError: the file is not JSON, or a field is missing, unknown or of another type.
        """
        try:
            data = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error}. Measure it again with `unmask bench`") from error
        return from_json(Bench, data, file.name)


def step_name(steps: int | None) -> str:
    """A step count in words; None is the autoregressive model."""
    return "autoregressive" if steps is None else _plural(steps, "step")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _check(name: str, meaning: str, values: Sequence[int]) -> None:
    for value in values:
        whole(name, value, meaning, 1, MOST_STEPS)
    if fault := "empty" if not values else "repeated" if len(set(values)) < len(values) else "":
        got = f"got {list(values)}, want at least one value and no value twice"
        raise ValueError(f"{name} is {fault}: {got} ({meaning})")
