import os
import subprocess
import sys

import pytest
import torch

from unmask.evaluation.timing import Timed, peak_memory, reset_peak_memory, timed


def test_warm_up_is_not_timed():
    """A clock that a call advances by its duration: 50 seconds to warm up, then 1, 2 and 3."""
    durations, now = iter([50.0, 1.0, 2.0, 3.0]), [0.0]

    def work():
        now[0] += next(durations)
        return "done"

    run = timed(work, repeats=3, warmup=1, clock=lambda: now[0])
    assert run.result == "done" and run.seconds == (1.0, 2.0, 3.0)
    assert next(durations, None) is None


def test_figures_are_medians():
    run = Timed(None, (1.0, 9.0, 2.0))
    assert run.median == 2
    assert run.measure(per=4).value == 0.5 and run.measure().n == 3
    rate = run.rate(100)
    assert (rate.value, rate.unit) == (50.0, "tokens/s") and rate.sem > 0
    assert Timed(None, (2.0,)).measure().sem is None
    with pytest.raises(ValueError, match=r"repeats .* got 0"):
        timed(lambda: None, repeats=0)


def test_the_peak_is_in_bytes_and_grows_with_a_tensor():
    reset_peak_memory()
    before = peak_memory()
    size = before + 2**26  # more than the process ever held
    held = torch.ones(size, dtype=torch.uint8)
    assert held.numel() < peak_memory() < 4 * size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_that_of_the_process_and_not_of_its_parent():
    """The count of getrusage begins at the memory of the process that started this one."""
    held = bytearray(os.urandom(2**20)) * 2**10  # 1 GiB in the parent
    code = "from unmask.evaluation.timing import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(held) * 0.8
