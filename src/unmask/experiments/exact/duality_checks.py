"""A simulation of the masked diffusion duality: K-dimensional Gaussians against one scalar a token.

    observation = observe(vocab_size, n, seed)  # project Gaussians, threshold scalars
    examine(observation)                        # -> the checks of `unmask verify`

Latent Shadows (arXiv 2602.00792, section 3) proves two statements. The projection of a Gaussian
path (Eqs 8, 9) is masked diffusion if the signal-to-noise ratio is calibrated (Lemma 3.1). One
uniform number a token determines the whole path (Theorem 3.3). The simulation assumes neither: it
draws all n x K Gaussians and compares them with `Trajectory`, the code that training uses. A random
check fails by chance once in 1 / SIGNIFICANCE runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from unmask.diffusion.duality import ddim_path, keep_probability, margin, project, snr_root
from unmask.diffusion.schedules import LogLinear, NoiseSchedule
from unmask.diffusion.trajectory import Trajectory
from unmask.extras import needs_extra
from unmask.limits import whole
from unmask.rng import generator
from unmask.types import Tokens

# A random check fails if its p-value is below this.
SIGNIFICANCE = 1e-4
# The largest expected error of an exact claim, which has rounding errors only.
ROUNDING = 1e-9
TIMES = tuple(i / 10 for i in range(1, 10))
# Indices into TIMES of the joint distributions.
PAIR, TRIPLE = (2, 6), (1, 4, 7)
# With fewer tokens the chi-square approximation is poor.
FEWEST = 100
_BLOCK = 2**18  # Gaussians in memory at a time


@dataclass(frozen=True)
class Check:
    """One claim of the theory, measured.

    Attributes:
        statistic: A test's statistic, a measured number, or a count of violations.
        error: Largest distance between measurement and theory.
        expected_error: The size of `error` by chance; without a p-value, its limit.
        p_value: The probability of a larger statistic by chance. None for an exact claim.
        n: Tokens or texts drawn.
    """

    name: str
    statistic: float
    error: float
    expected_error: float
    p_value: float | None
    n: int

    @property
    def passed(self) -> bool:
        if self.p_value is None:
            return self.error <= self.expected_error
        return self.p_value >= SIGNIFICANCE


@dataclass(frozen=True)
class Observation:
    """n tokens over T times, from text to noise: projected Gaussians and thresholded scalars.

    Attributes:
        vocab_size: K, MASK = K - 1 included.
        alpha: [T] float64, decreasing.
        x0: [n] tokens.
        u: [n] F_Y(Y) of the tokens' margins Y.
        z: [T, n] the projection of each token's Gaussian path (Eq. 8).
        locked: [T, n] `Trajectory` at the same u.
        free: [T, n] `Trajectory` at independent uniform numbers.
    """

    vocab_size: int
    alpha: Tensor
    x0: Tokens
    u: Tensor
    z: Tokens
    locked: Tokens
    free: Tokens

    @property
    def n(self) -> int:
        return len(self.x0)

    def visible(self, z: Tokens) -> Tensor:
        """Whether each token of z [T, n] is not MASK."""
        return z != self.vocab_size - 1

    @property
    def kept(self) -> Tensor:
        """The share [T] of the projected tokens that are visible."""
        return self.visible(self.z).double().mean(-1)

    def patterns(self, z: Tokens, times: tuple[int, ...]) -> Tensor:
        """Counts of the tokens of z by visibility at k times: [2^k], the first time first.

        Index 2 = "10" counts the tokens that are visible at the first of two times only.
        """
        code = torch.zeros(self.n, dtype=torch.int64)
        for visible in self.visible(z)[list(times)]:
            code = 2 * code + visible
        return torch.bincount(code, minlength=2 ** len(times)).double()


def observe(
    vocab_size: int, n: int, seed: int, schedule: NoiseSchedule | None = None
) -> Observation:
    """Draw n tokens' Gaussian paths and n scalar paths at TIMES.

    As in the paper, the last of the K coordinates belongs to MASK: it competes, but no clean token
    is MASK.

    Args:
        vocab_size: K, the coordinates of the Gaussian.
        n: Tokens.
        seed: Seed of tokens and Gaussians.
        schedule: Log-linear by default.
    """
    whole("n", n, "tokens, enough for valid tests", FEWEST)
    alpha = (schedule or LogLinear()).alpha(torch.tensor(TIMES, dtype=torch.float64))
    root = snr_root(alpha, vocab_size)
    rng = generator(seed)
    mask_id = vocab_size - 1
    x0 = torch.randint(mask_id, (n,), generator=rng)
    margins, tokens = [], []
    for part in torch.split(x0, max(1, _BLOCK // vocab_size)):
        eps = torch.randn(len(part), vocab_size, generator=rng, dtype=torch.float64)
        margins.append(margin(eps, part))
        tokens.append(torch.stack([project(ddim_path(part, eps, r), part, mask_id) for r in root]))
    u = keep_probability(torch.cat(margins), vocab_size)

    def thresholded(level: Tensor) -> Tokens:
        paths = (len(alpha), n)
        noise = torch.full(paths, mask_id)
        return Trajectory(x0.expand(paths), noise, level.expand(paths)).at(alpha)

    locked = thresholded(u)
    free = thresholded(torch.rand(n, generator=rng, dtype=torch.float64))
    return Observation(vocab_size, alpha, x0, u, torch.cat(tokens, dim=1), locked, free)


def examine(observation: Observation) -> list[Check]:
    """The checks, in the order of the paper's proof."""
    return [
        edge(observation),
        calibration(observation),
        integral_transform(observation),
        joint_law(observation, PAIR),
        joint_law(observation, TRIPLE),
        locking(observation),
        absorbing(observation),
        nestedness(observation),
    ]


def edge(observation: Observation) -> Check:
    """Without signal all K coordinates are equally distributed, so F_Y(0) = 1/K."""
    size = observation.vocab_size
    error = abs(float(keep_probability(0.0, size)) - 1 / size)
    return Check("no signal keeps 1/K", error * size, error, ROUNDING / size, None, 1)


def calibration(observation: Observation) -> Check:
    """Lemma 3.1: at snr_root(alpha) the projection keeps a share alpha of the tokens at any time.

    The statistic is the largest deviation in standard errors; p has Bonferroni's correction.
    """
    alpha, n = observation.alpha, observation.n
    deviation = standard_error(alpha, n)
    error = (observation.kept - alpha).abs()
    statistic = float((error / deviation).max())
    p_value = min(1.0, len(alpha) * math.erfc(statistic / math.sqrt(2)))
    usual = float(deviation.max())
    return Check("calibrated marginals", statistic, float(error.max()), usual, p_value, n)


def integral_transform(observation: Observation) -> Check:
    """Theorem 3.3: u = F_Y(Y) is uniform (Kolmogorov-Smirnov test)."""
    test = _scipy_stats().kstest(observation.u.numpy(), "uniform")
    distance, n = float(test.statistic), observation.n
    # The mean of the Kolmogorov distribution.
    usual = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(n)
    return Check("F_Y(Y) is uniform", distance, distance, usual, float(test.pvalue), n)


def joint_law(observation: Observation, times: tuple[int, ...]) -> Check:
    """Projected Gaussians and free scalars are visible with equal joint probabilities.

    A two-sample chi-square test over patterns; `error` is the total variation between the samples.
    """
    n = observation.n
    projected, thresholded = (
        observation.patterns(z, times) for z in (observation.z, observation.free)
    )
    total = projected + thresholded
    counts = torch.stack([projected, thresholded])[:, total > 0]
    test = _scipy_stats().chi2_contingency(counts.numpy(), correction=False)
    error = float((projected - thresholded).abs().sum()) / (2 * n)
    # E|N(0, 2 s^2)| / 2 = s / sqrt(pi)
    usual = float((standard_error(total / (2 * n), n) / math.sqrt(math.pi)).sum())
    name = f"joint law at {len(times)} times"
    return Check(name, float(test.statistic), error, usual, float(test.pvalue), n)


def locking(observation: Observation) -> Check:
    """Theorem 3.3, path by path: with u = F_Y(Y) scalar and projection keep the same tokens."""
    return _exact("one scalar locks the path", (observation.z != observation.locked).any(0))


def absorbing(observation: Observation) -> Check:
    """Section 2.2 (after Eq. 5): a token of the projected path that is masked stays masked."""
    visible = observation.visible(observation.z)
    return _exact("once masked, stays masked", (visible[1:] & ~visible[:-1]).any(0))


def nestedness(observation: Observation) -> Check:
    """Eq. 13: the tokens of a trajectory visible at t are visible at every s < t, and equal x0."""
    visible = observation.visible(observation.free)
    returns = (visible[1:] & ~visible[:-1]).any(0)
    wrong = (visible & (observation.free != observation.x0)).any(0)
    return _exact("visible sets are nested", returns | wrong)


def pattern_probabilities(alpha: Tensor) -> Tensor:
    """The theory for `Observation.patterns` at levels alpha [k], decreasing: [2^k].

    The token is visible at the first j times exactly if alpha_j > u >= alpha_{j+1}.
    """
    k = len(alpha)
    levels = torch.cat([alpha.new_ones(1), alpha, alpha.new_zeros(1)])
    code = 2**k - 2 ** torch.arange(k, -1, -1)  # "00", "10", "11" for k = 2
    return alpha.new_zeros(2**k).index_copy(0, code, -levels.diff())


def standard_error(p: Tensor, n: int) -> Tensor:
    """The standard error of a share of n tokens whose expectation is p."""
    return (p * (1 - p) / n).sqrt()


def _exact(name: str, violated: Tensor) -> Check:
    """The check of an exact claim: `violated` [n] must be False everywhere."""
    count = int(violated.sum())
    return Check(name, float(count), count / len(violated), 0.0, None, len(violated))


def _scipy_stats() -> ModuleType:
    with needs_extra("demo"):
        from scipy import stats
    return stats  # type: ignore[no-any-return]
