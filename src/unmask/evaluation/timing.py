"""Repeatable measurements of wall clock time, throughput and peak memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from unmask.evaluation.measure import Measure, median

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """The result of a call, and the wall clock time of each repeat in seconds."""

    result: T
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds; robust to a single interrupted repeat."""
        return statistics.median(self.seconds)

    def measure(self, per: int = 1, unit: str = "s") -> Measure:
        """Median of seconds / per (such as the number of texts), with a bootstrap error."""
        return median(np.array(self.seconds) / per, unit)

    def quantile(self, share: float) -> float:
        """The quantile of the seconds over repeats, linear between two order statistics.

        With R repeats the quantile lies at rank 1 + share (R - 1). For R < 21 the 0.95 quantile is
        therefore a weighted mean of the two longest repeats.
        """
        return float(np.quantile(np.array(self.seconds), share))

    def rate(self, count: int) -> Measure:
        """Median tokens a second, with a bootstrap standard error over repeats."""
        return median(count / np.array(self.seconds), "tokens/s")


def timed(
    call: Callable[[], T],
    *,
    repeats: int = 3,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Timed[T]:
    """Run `call` warmup + repeats times and time the last `repeats`.

    Args:
        call: the work to time.
        repeats: timed calls, at least 1.
        warmup: calls before them that are not timed.
        device: an accelerator to synchronise with before each clock reading.
        clock: returns seconds.
    """
    if not (repeats >= 1 and warmup >= 0):
        raise ValueError(
            f"repeats or warmup is too small: got {repeats} and {warmup}, want repeats >= 1 and "
            "warmup >= 0"
        )
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(repeats):
        _synchronize(device)
        start = clock()
        result = call()
        _synchronize(device)
        seconds.append(clock() - start)
    return Timed(result, tuple(seconds))


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Peak memory in bytes: torch's on a GPU since the last reset, this process's own on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # the count of getrusage begins at the memory of the parent process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Reset the peak of a GPU. The peak of a CPU process cannot be reset: use a fresh process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
