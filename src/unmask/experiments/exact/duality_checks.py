"""A simulation of the masked diffusion duality: K-dimensional Gaussians against one scalar a token.

    observation = observe(vocab_size, n, seed)  # project Gaussians, threshold scalars
    examine(observation)                        # -> the checks of `unmask verify`
    figure_data(observation)                    # -> plain lists for a figure

Latent Shadows (arXiv 2602.00792, section 3) proves two statements. The projection of a Gaussian
path (Eqs 8, 9) is masked diffusion if the signal-to-noise ratio is calibrated (Lemma 3.1). One
uniform number a token determines the whole path (Theorem 3.3). The simulation assumes neither: it
draws all n x K Gaussians and compares them with `Trajectory`, the code that training uses. A random
check fails by chance once in 1 / SIGNIFICANCE runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
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
TIMES = tuple(i / 10 for i in range(1, 10))
# Indices into TIMES of the joint distributions.
PAIR, TRIPLE = (2, 6), (1, 4, 7)
# With fewer tokens the chi-square approximation is poor.
FEWEST = 100
_BLOCK = 2**18  # Gaussians in memory at a time
_CURVE_POINTS = 121
_PLOTTED_DRAWS = 200


@dataclass(frozen=True)
class Check:
    """One claim of the theory, measured.

    Attributes:
        statistic: a test's statistic, or a count of violations: it decides `passed`
        error: largest distance between measurement and theory, as a probability
        expected_error: the size of `error` by chance or rounding alone; 0 if no exception is
            allowed
        p_value: the probability of a larger statistic by chance; None for an exact claim
        n: tokens drawn
    """

    name: str
    statistic: float
    error: float
    expected_error: float
    p_value: float | None
    n: int
    passed: bool


@dataclass(frozen=True)
class Observation:
    """n tokens over T times, from text to noise: projected Gaussians and thresholded scalars.

    Attributes:
        alpha: [T] float64, decreasing
        x0: [n] tokens
        u: [n] F_Y(Y) of the tokens' margins Y
        z: [T, n] the projection of each token's Gaussian path (Eq. 8)
        locked: [T, n] `Trajectory` at the same u
        free: [T, n] `Trajectory` at independent uniform numbers
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


@dataclass(frozen=True)
class JointLaw:
    """Probabilities of visibility at several times; "10": visible at the first time only."""

    time: list[float]
    pattern: list[str]
    exact: list[float]
    projected: list[float]
    thresholded: list[float]


@dataclass(frozen=True)
class FigureData:
    """The data of the duality figure, as plain lists.

    Attributes:
        time, alpha, snr_root: calibration: times, target shares of text, and their signal-to-noise
            roots
        kept, kept_error: calibration: measured shares of text, and one standard error
        uniform, pit: quantile plot: i / n against the sorted F_Y(Y), thinned
        curve_root, curve_keep: the curve of F_Y
        edge: 1/K, where snr_root changes sign: below it there is no physical SNR
        joint: the joint distributions at 2 and at 3 times
    """

    time: list[float]
    alpha: list[float]
    snr_root: list[float]
    kept: list[float]
    kept_error: list[float]
    uniform: list[float]
    pit: list[float]
    curve_root: list[float]
    curve_keep: list[float]
    edge: float
    joint: list[JointLaw]


def observe(
    vocab_size: int, n: int, seed: int, schedule: NoiseSchedule | None = None
) -> Observation:
    """Draw n tokens' Gaussian paths and n scalar paths at TIMES.

    As in the paper, the last of the K coordinates belongs to MASK: it competes but is never a
    token.

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
    return Check(
        "no signal keeps 1/K", error * size, error, 1e-9 / size, None, 1, error * size <= 1e-9
    )


def calibration(observation: Observation) -> Check:
    """Lemma 3.1: at snr_root(alpha) the projection keeps a share alpha of the tokens at any time.

    The statistic is the largest deviation in standard errors; p has Bonferroni's correction.
    """
    alpha, n = observation.alpha, observation.n
    kept = _visible(observation, observation.z).mean(-1)
    standard_error = _standard_error(alpha, n)
    error = (kept - alpha).abs()
    statistic = float((error / standard_error).max())
    p_value = min(1.0, len(alpha) * math.erfc(statistic / math.sqrt(2)))
    usual = float(standard_error.max())
    return _random("calibrated marginals", statistic, float(error.max()), usual, p_value, n)


def integral_transform(observation: Observation) -> Check:
    """Theorem 3.3: u = F_Y(Y) is uniform (Kolmogorov-Smirnov test)."""
    distance, p_value = kolmogorov_smirnov(observation.u)
    # The mean of the Kolmogorov distribution.
    usual = math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(observation.n)
    return _random("F_Y(Y) is uniform", distance, distance, usual, p_value, observation.n)


def joint_law(observation: Observation, times: tuple[int, ...]) -> Check:
    """Projected Gaussians and free scalars are visible with equal joint probabilities.

    A two-sample chi-square test over patterns; `error` is the total variation between the samples.
    """
    n = observation.n
    projected, thresholded = (
        _patterns(observation, z, times) for z in (observation.z, observation.free)
    )
    total = projected + thresholded
    counts = torch.stack([projected, thresholded])[:, total > 0]
    test = _scipy_stats().chi2_contingency(counts.numpy(), correction=False)
    statistic, p_value = float(test.statistic), float(test.pvalue)
    error = float((projected - thresholded).abs().sum()) / (2 * n)
    # E|N(0, 2 s^2)| / 2 = s / sqrt(pi)
    usual = float((_standard_error(total / (2 * n), n) / math.sqrt(math.pi)).sum())
    return _random(f"joint law at {len(times)} times", statistic, error, usual, p_value, n)


def locking(observation: Observation) -> Check:
    """Theorem 3.3, path by path: with u = F_Y(Y) scalar and projection keep the same tokens."""
    return _exact("one scalar locks the path", (observation.z != observation.locked).any(0))


def absorbing(observation: Observation) -> Check:
    """Section 2.2 (after Eq. 5): a token of the projected path that is masked stays masked."""
    visible = _visible(observation, observation.z)
    return _exact("once masked, stays masked", (visible.diff(dim=0) > 0).any(0))


def nestedness(observation: Observation) -> Check:
    """Eq. 13: the tokens of a trajectory visible at t are visible at every s < t, and equal x0."""
    visible = _visible(observation, observation.free)
    wrong = (observation.free != observation.x0) & visible.bool()
    violated = wrong.any(0)
    for s, t in combinations(range(len(visible)), 2):
        violated = violated | (visible[t] > visible[s])
    return _exact("visible sets are nested", violated)


def figure_data(observation: Observation) -> FigureData:
    """The data of the duality figure."""
    size, n, alpha = observation.vocab_size, observation.n, observation.alpha
    pit = observation.u.sort().values
    thin = torch.linspace(0, n - 1, min(n, _PLOTTED_DRAWS), dtype=torch.float64).round().long()
    curve = torch.linspace(-2.0, float(snr_root(0.999, size)), _CURVE_POINTS, dtype=torch.float64)
    return FigureData(
        time=list(TIMES),
        alpha=alpha.tolist(),
        snr_root=snr_root(alpha, size).tolist(),
        kept=_visible(observation, observation.z).mean(-1).tolist(),
        kept_error=_standard_error(alpha, n).tolist(),
        uniform=((thin + 0.5) / n).tolist(),
        pit=pit[thin].tolist(),
        curve_root=curve.tolist(),
        curve_keep=keep_probability(curve, size).tolist(),
        edge=1 / size,
        joint=[_joint_figure(observation, times) for times in (PAIR, TRIPLE)],
    )


def kolmogorov_smirnov(u: Tensor) -> tuple[float, float]:
    """Test that u [n] is uniform on [0, 1]: (statistic D, p-value)."""
    stats = _scipy_stats()
    result = stats.ks_1samp(u.double().numpy(), stats.uniform.cdf)
    return float(result.statistic), float(result.pvalue)


def _scipy_stats() -> ModuleType:
    with needs_extra("demo"):
        from scipy import stats
    return stats  # type: ignore[no-any-return]


def _visible(observation: Observation, z: Tokens) -> Tensor:
    """1.0 where z [T, n] is not MASK, else 0.0."""
    return (z != observation.vocab_size - 1).double()


def _standard_error(p: Tensor, n: int) -> Tensor:
    return (p * (1 - p) / n).sqrt()


def _patterns(observation: Observation, z: Tokens, times: tuple[int, ...]) -> Tensor:
    """Token counts by visibility at the k times: [2^k], the first time is the highest bit."""
    code = torch.zeros(observation.n, dtype=torch.int64)
    for time in times:
        code = 2 * code + (z[time] != observation.vocab_size - 1)
    return torch.bincount(code, minlength=2 ** len(times)).double()


def _joint_figure(observation: Observation, times: tuple[int, ...]) -> JointLaw:
    k = len(times)
    levels = [1.0, *observation.alpha[list(times)].tolist(), 0.0]
    exact = [0.0] * 2**k
    for visible in range(k + 1):  # at the first times: alpha_next <= u < alpha_last
        exact[2**k - 2 ** (k - visible)] = levels[visible] - levels[visible + 1]
    return JointLaw(
        time=[TIMES[time] for time in times],
        pattern=[format(code, f"0{k}b") for code in range(2**k)],
        exact=exact,
        projected=(_patterns(observation, observation.z, times) / observation.n).tolist(),
        thresholded=(_patterns(observation, observation.free, times) / observation.n).tolist(),
    )


def _random(
    name: str, statistic: float, error: float, expected_error: float, p_value: float, n: int
) -> Check:
    return Check(name, statistic, error, expected_error, p_value, n, p_value >= SIGNIFICANCE)


def _exact(name: str, violated: Tensor) -> Check:
    """The check of an exact claim: `violated` [n] must be False everywhere."""
    count = int(violated.sum())
    return Check(name, float(count), count / len(violated), 0.0, None, len(violated), count == 0)
