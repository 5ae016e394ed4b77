"""Seconds of `unmask sample` with waiting threads that spin, that sleep, and with one thread.

    python benchmarks/waiting.py [--turns 3] [--n 2] [--steps 16]

Run it beside other work, and alone: on an idle machine the three hardly differ.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--turns", type=int, default=3, help="runs of each way")
parser.add_argument("--n", type=int, default=2, help="number of texts")
parser.add_argument("--steps", type=int, default=16, help="steps from noise to text")
args = parser.parse_args()

# `main` with arguments does not set OMP_WAIT_POLICY, so threads wait as OpenMP does by default.
DRAW = f"""
from unmask.cli.main import main
main(["sample", "unmask:teacher", "--n", "{args.n}", "--steps", "{args.steps}"])
"""
WAYS = {
    "threads that spin": {},
    "threads that sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("OMP_", "GOMP_", "MKL_"))
}
seconds: dict[str, list[float]] = {name: [] for name in WAYS}
for _ in range(args.turns):
    for name, environment in WAYS.items():
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", DRAW],
            env=clean | environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds[name].append(time.perf_counter() - start)
print(
    f"unmask sample, {args.n} texts, {args.steps} steps, "
    f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
)
spinning = seconds["threads that spin"]
for name, values in seconds.items():
    ratio = statistics.median(a / b for a, b in zip(spinning, values, strict=True))
    print(
        f"{name:18} {statistics.median(values):6.1f} s, median of {args.turns} turns, "
        f"{ratio:.2f} times as fast"
    )
