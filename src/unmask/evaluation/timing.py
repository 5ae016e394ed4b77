"""Seconds, tokens a second, and memory, measured so that they mean the same twice."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from unmask.evaluation.measure import Measure, median

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What a call answered, and the wall clock of each repeat, seconds."""

    result: T
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds; unlike the mean it does not mind one interrupted repeat."""
        return statistics.median(self.seconds)

    def measure(self, per: int = 1, unit: str = "s") -> Measure:
        """Median seconds / per (say, the number of texts drawn), with a bootstrap error over repeats."""
        return median(np.array(self.seconds) / per, unit)

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the repeats ended, linear between two repeats in order.

        With R repeats the quantile stands at place 1 + share (R - 1): below R = 21 the 0.95 one is a mean of the two
        longest, weighted for the longest the more the fewer they are.
        """
        return float(np.quantile(np.array(self.seconds), share))

    def rate(self, count: int, unit: str = "tokens/s") -> Measure:
        """Median of count / seconds, with a bootstrap error over repeats."""
        return median(count / np.array(self.seconds), unit)


def timed(
    call: Callable[[], T], *, repeats: int = 3, warmup: int = 1, device: torch.device | str = "cpu"
) -> Timed[T]:
    """Run `call` warmup + repeats times, keep the clock of the last `repeats`; waits for an accelerator to finish."""
    if not (repeats >= 1 and warmup >= 0):
        raise ValueError(
            f"want repeats >= 1 timed calls after warmup >= 0 others, got {repeats} and {warmup}"
        )
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(repeats):
        _finish(device)
        start = time.perf_counter()
        result = call()
        _finish(device)
        seconds.append(time.perf_counter() - start)
    return Timed(result, tuple(seconds))


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Bytes: the most that torch held on a GPU since `reset_peak_memory`; on a CPU, that this process ever held."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Forget the peak of a GPU; a process cannot forget its own: measure on the CPU in a fresh one."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _finish(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
