"""Coverage of 95 % intervals over n samples: how often they contain the true value, simulated.

    python benchmarks/coverage.py

The first two columns are for the bootstrap of `evaluation.bootstrap`.

normal   means of independent normal numbers, such as a completion disagreement over n texts
gain     exp of the difference of two paired means with normal errors, such as a gain of n samples
two sem  value ± 1.96 standard errors of `measure.mean`, for the normal numbers
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from unmask.evaluation.bootstrap import pooled_mean, resamples
from unmask.evaluation.interpolation import estimate
from unmask.evaluation.measure import mean

COUNTS = (2, 4, 8, 16, 32, 64, 256)


def covered(values: NDArray[np.float64], truth: float) -> tuple[bool, bool]:
    """Whether two intervals cover the truth.

    The first is the bootstrap interval of exp(mean), the second the mean ± 1.96 standard errors.
    """
    n = len(values)
    index = np.concatenate([np.arange(n)[None], resamples(n)])
    interval = estimate(pooled_mean(values, np.ones(n), index))
    measured = mean(values, "")
    low, high, sem = interval.low, interval.high, measured.sem
    assert low is not None and high is not None and sem is not None
    return low <= np.exp(truth) <= high, abs(measured.value - truth) <= 1.96 * sem


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000, help="simulated intervals")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        f"{args.trials} trials, 1000 resamples each, seed {args.seed}; "
        "share of intervals that cover the truth, in %"
    )
    print(f"{'n':>5} {'normal':>8} {'gain':>8} {'two sem':>8}")
    for n in COUNTS:
        random = np.random.default_rng([args.seed, n])
        plain = [covered(random.normal(size=n), 0.0) for _ in range(args.trials)]
        shared = ((random.normal(size=n), random.normal(size=(2, n))) for _ in range(args.trials))
        paired = [
            covered((0.3 * common + 0.1 * own)[0] - (0.3 * common + 0.1 * own)[1], 0.0)[0]
            for common, own in shared
        ]
        shares = (
            np.mean([each[0] for each in plain]),
            np.mean(paired),
            np.mean([each[1] for each in plain]),
        )
        print(f"{n:>5} " + " ".join(f"{100 * share:>8.1f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
