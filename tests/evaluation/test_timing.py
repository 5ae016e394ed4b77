import time

import pytest
import torch

from unmask.evaluation.timing import Timed, peak_memory, reset_peak_memory, timed


def test_warm_up_is_not_timed():
    pauses = iter([0.05, 0.0, 0.0, 0.0])
    run = timed(lambda: time.sleep(next(pauses)) or "done", repeats=3, warmup=1)
    assert run.result == "done" and len(run.seconds) == 3
    assert max(run.seconds) < 0.05 and next(pauses, None) is None


def test_figures_are_medians():
    run = Timed(None, (1.0, 9.0, 2.0))
    assert run.median == 2
    assert run.measure(per=4).value == 0.5 and run.measure().n == 3
    rate = run.rate(100)
    assert (rate.value, rate.unit) == (50.0, "tokens/s") and rate.sem > 0
    assert Timed(None, (2.0,)).measure().sem is None
    with pytest.raises(ValueError, match="repeats >= 1"):
        timed(lambda: None, repeats=0)


def test_the_peak_is_in_bytes():
    reset_peak_memory()
    held = torch.ones(2**26, dtype=torch.uint8)
    assert len(held) < peak_memory() < 2**40
