"""How long `unmask sample` takes with threads that spin while they wait, that sleep, and with one thread: in turns.

    python benchmarks/waiting.py [--turns 3] [--n 2] [--steps 16]

Run it beside other work and alone: on an idle machine there is little to steal.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--turns", type=int, default=3)
parser.add_argument("--n", type=int, default=2)
parser.add_argument("--steps", type=int, default=16)
asked = parser.parse_args()

# With arguments, `main` leaves the environment as it is: this is the default of OpenMP.
DRAW = f"""
from unmask.cli.main import main
main(["sample", "unmask:teacher", "--n", "{asked.n}", "--steps", "{asked.steps}"])
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
for _ in range(asked.turns):
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
    f"unmask sample, {asked.n} texts, {asked.steps} steps, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
)
for name, found in seconds.items():
    ratio = statistics.median(
        a / b for a, b in zip(seconds["threads that spin"], found, strict=True)
    )
    print(
        f"{name:18} {statistics.median(found):6.1f} s of median {asked.turns} turns, {ratio:.2f} times as fast"
    )
