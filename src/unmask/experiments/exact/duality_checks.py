"""The masked diffusion duality as an experiment: real K-dimensional Gaussians against the scalar that replaces them.

    observation = observe(vocab_size, n, seed)   # draw the Gaussians, project them, threshold scalars
    examine(observation)                         # -> the checks of `unmask verify`
    figure_data(observation)                     # -> plain lists to draw

Latent Shadows (arXiv 2602.00792, section 3) proves that the projection of a Gaussian path (Eqs 8, 9) is masked
diffusion, once the signal-to-noise ratio is calibrated (Lemma 3.1), and that one uniform number a token carries all of
it (Theorem 3.3). Nothing here assumes that: the latents are drawn in full, n x K numbers, and compared with
`Trajectory`, the code that training uses. A random check fails by chance once in 1 / SIGNIFICANCE runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from unmask.diffusion.duality import ddim_path, keep_probability, margin, project, snr_root
from unmask.diffusion.schedules import LogLinear, NoiseSchedule
from unmask.diffusion.trajectory import Trajectory
from unmask.rng import generator
from unmask.types import Tokens

SIGNIFICANCE = 1e-4  # a random check passes while chance alone does worse at least this often
TIMES = tuple(i / 10 for i in range(1, 10))
PAIR, TRIPLE = (2, 6), (1, 4, 7)  # indices into TIMES of the joint laws
FEWEST = 100  # draws below which chi-square and Kolmogorov's law are not yet good approximations
_BLOCK = 2**18  # Gaussians held at a time
_CURVE_POINTS = 121
_PLOTTED_DRAWS = 200


@dataclass(frozen=True)
class Check:
    """One claim of the duality, measured.

    statistic       the number that the verdict looks at (a test's statistic, or a count of violations)
    error           the largest distance between what was seen and what the theory says, as a probability
    expected_error  the size that chance (or rounding) alone gives `error`; 0 where no exception is allowed
    p_value         how often chance alone does worse; None where the claim is exact
    n               tokens drawn
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
    """n tokens followed over T times, most text first: latents projected, and scalars thresholded.

    alpha [T] float64, falling; tokens x0 [n]; u = F_Y(Y) [n] of their margins Y; tokens z, locked, free [T, n]:
    z       the projection of each token's Gaussian path (Eq. 8)
    locked  `Trajectory` at the *same* randomness, u
    free    `Trajectory` at uniform numbers of its own
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
    """P(which of several times show the token), a list entry a pattern: "10" is shown at the first time only."""

    time: list[float]
    pattern: list[str]
    exact: list[float]
    projected: list[float]
    thresholded: list[float]


@dataclass(frozen=True)
class FigureData:
    """What a picture of the duality needs, as plain lists.

    time, alpha, snr_root, kept, kept_error   calibration: target and measured share of text, one standard error
    uniform, pit                              quantile plot: i / n against the sorted F_Y(Y), thinned
    curve_root, curve_keep                    F_Y; `edge` = 1/K is where snr_root changes sign and SNR ends
    joint                                     the laws at 2 and at 3 times
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


def run_checks(vocab_size: int, n: int, seed: int) -> list[Check]:
    """Every check, for K = vocab_size >= 2 coordinates and n >= 100 tokens. Time and work grow with n x K."""
    return examine(observe(vocab_size, n, seed))


def observe(
    vocab_size: int, n: int, seed: int, schedule: NoiseSchedule | None = None
) -> Observation:
    """Draw n tokens' Gaussian paths at TIMES of the schedule (default log-linear), and n scalar ones.

    As in the paper the last of the K coordinates is MASK's own: it competes and is never a token.
    """
    if n < FEWEST:
        raise ValueError(
            f"n is the number of tokens drawn: want n >= {FEWEST} for the tests to hold, got {n}"
        )
    alpha = (schedule or LogLinear()).alpha(torch.tensor(TIMES, dtype=torch.float64))
    root = snr_root(alpha, vocab_size)
    dice = generator(seed)
    mask_id = vocab_size - 1
    x0 = torch.randint(mask_id, (n,), generator=dice)
    margins, tokens = [], []
    for part in torch.split(x0, max(1, _BLOCK // vocab_size)):
        eps = torch.randn(len(part), vocab_size, generator=dice, dtype=torch.float64)
        margins.append(margin(eps, part))
        tokens.append(torch.stack([project(ddim_path(part, eps, r), part, mask_id) for r in root]))
    u = keep_probability(torch.cat(margins), vocab_size)

    def thresholded(level: Tensor) -> Tokens:
        paths = (len(alpha), n)
        noise = torch.full(paths, mask_id)
        return Trajectory(x0.expand(paths), noise, level.expand(paths)).at(alpha)

    locked = thresholded(u)
    free = thresholded(torch.rand(n, generator=dice, dtype=torch.float64))
    return Observation(vocab_size, alpha, x0, u, torch.cat(tokens, dim=1), locked, free)


def examine(observation: Observation) -> list[Check]:
    """The checks, in the order of the paper's argument."""
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
    """Without signal x0 is one of K equals: F_Y(0) = 1/K. A positive SNR reaches nothing below it."""
    size = observation.vocab_size
    error = abs(float(keep_probability(0.0, size)) - 1 / size)
    return Check(
        "no signal keeps 1/K", error * size, error, 1e-9 / size, None, 1, error * size <= 1e-9
    )


def calibration(observation: Observation) -> Check:
    """Lemma 3.1: at snr_root(alpha) the projection shows a share alpha of the tokens, at every time.

    The statistic is the largest deviation in standard errors; p is Bonferroni's over the times.
    """
    alpha, n = observation.alpha, observation.n
    kept = _shown(observation, observation.z).mean(-1)
    standard_error = _standard_error(alpha, n)
    error = (kept - alpha).abs()
    statistic = float((error / standard_error).max())
    p_value = min(1.0, len(alpha) * math.erfc(statistic / math.sqrt(2)))
    return _random(
        "calibrated marginals",
        statistic,
        float(error.max()),
        float(standard_error.max()),
        p_value,
        n,
    )


def integral_transform(observation: Observation) -> Check:
    """Theorem 3.3: u = F_Y(Y) is uniform (Kolmogorov and Smirnov's test)."""
    distance, p_value = kolmogorov_smirnov(observation.u)
    usual = (
        math.sqrt(math.pi / 2) * math.log(2) / math.sqrt(observation.n)
    )  # the mean of Kolmogorov's law
    return _random("F_Y(Y) is uniform", distance, distance, usual, p_value, observation.n)


def joint_law(observation: Observation, times: tuple[int, ...]) -> Check:
    """Projected Gaussians and free scalars have one joint law of being shown: the two-sample chi-square over patterns.

    `error` is the total variation between the two empirical laws.
    """
    n = observation.n
    projected, thresholded = (
        _patterns(observation, z, times) for z in (observation.z, observation.free)
    )
    total = projected + thresholded
    seen = total > 0
    statistic = float(((projected - thresholded) ** 2 / total)[seen].sum())
    p_value = _chi_square_tail(statistic, int(seen.sum()) - 1)
    error = float((projected - thresholded).abs().sum()) / (2 * n)
    usual = float(
        (_standard_error(total / (2 * n), n) / math.sqrt(math.pi)).sum()
    )  # E|N(0, 2 s^2)| / 2 = s / sqrt pi
    return _random(f"joint law at {len(times)} times", statistic, error, usual, p_value, n)


def locking(observation: Observation) -> Check:
    """Theorem 3.3, path by path: with u = F_Y(Y) the scalar shows exactly the tokens that the projection shows."""
    return _exact("one scalar locks the path", (observation.z != observation.locked).any(0))


def absorbing(observation: Observation) -> Check:
    """Section 2.2 (after Eq. 5): along the projected path a token once masked stays masked."""
    shown = _shown(observation, observation.z)
    return _exact("once masked, stays masked", (shown.diff(dim=0) > 0).any(0))


def nestedness(observation: Observation) -> Check:
    """Eq. 13: for every two times s < t of one trajectory the tokens shown at t are shown at s too, and are x0."""
    shown = _shown(observation, observation.free)
    wrong = (observation.free != observation.x0) & shown.bool()
    violated = wrong.any(0)
    for s, t in combinations(range(len(shown)), 2):
        violated = violated | (shown[t] > shown[s])
    return _exact("shown sets are nested", violated)


def figure_data(observation: Observation) -> FigureData:
    """The lists that a figure of the checks draws."""
    size, n, alpha = observation.vocab_size, observation.n, observation.alpha
    pit = observation.u.sort().values
    thin = torch.linspace(0, n - 1, min(n, _PLOTTED_DRAWS), dtype=torch.float64).round().long()
    curve = torch.linspace(-2.0, float(snr_root(0.999, size)), _CURVE_POINTS, dtype=torch.float64)
    return FigureData(
        time=list(TIMES),
        alpha=alpha.tolist(),
        snr_root=snr_root(alpha, size).tolist(),
        kept=_shown(observation, observation.z).mean(-1).tolist(),
        kept_error=_standard_error(alpha, n).tolist(),
        uniform=((thin + 0.5) / n).tolist(),
        pit=pit[thin].tolist(),
        curve_root=curve.tolist(),
        curve_keep=keep_probability(curve, size).tolist(),
        edge=1 / size,
        joint=[_joint_figure(observation, times) for times in (PAIR, TRIPLE)],
    )


def kolmogorov_smirnov(u: Tensor) -> tuple[float, float]:
    """(D, p): the largest distance between the empirical CDF of u [n] and the uniform one, and the chance of a larger.

    p is Kolmogorov's limit law at x + 1 / (6 sqrt n) + (x - 1) / (4n), x = D sqrt n (Vrbik 2018): within 2e-4 of the
    exact law from n = 100.
    """
    n = len(u)
    u = u.double().sort().values
    rank = torch.arange(n, dtype=torch.float64)
    distance = float(torch.maximum((rank + 1) / n - u, u - rank / n).max())
    x = distance * math.sqrt(n)
    return distance, _kolmogorov_tail(x + 1 / (6 * math.sqrt(n)) + (x - 1) / (4 * n))


def _kolmogorov_tail(x: float) -> float:
    """P(K > x): two series for one function, each used where a few terms are enough."""
    if x <= 0:
        return 1.0
    if x < 1:
        terms = (math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 6))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 6))


def _chi_square_tail(statistic: float, freedom: int) -> float:
    """P(chi-square > statistic)."""
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _shown(observation: Observation, z: Tokens) -> Tensor:
    """1.0 where z [T, n] is not MASK."""
    return (z != observation.vocab_size - 1).double()


def _standard_error(p: Tensor, n: int) -> Tensor:
    return (p * (1 - p) / n).sqrt()


def _patterns(observation: Observation, z: Tokens, times: tuple[int, ...]) -> Tensor:
    """How many tokens are shown at exactly each subset of the times: [2^k], the first time is the highest bit."""
    code = torch.zeros(observation.n, dtype=torch.int64)
    for time in times:
        code = 2 * code + (z[time] != observation.vocab_size - 1)
    return torch.bincount(code, minlength=2 ** len(times)).double()


def _joint_figure(observation: Observation, times: tuple[int, ...]) -> JointLaw:
    k = len(times)
    levels = [1.0, *observation.alpha[list(times)].tolist(), 0.0]
    exact = [0.0] * 2**k
    for shown in range(k + 1):  # shown at the first `shown` times: alpha_next <= u < alpha_last
        exact[2**k - 2 ** (k - shown)] = levels[shown] - levels[shown + 1]
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
    """A claim without exceptions: `violated` [n] must be nowhere true."""
    count = int(violated.sum())
    return Check(name, float(count), count / len(violated), 0.0, None, len(violated), count == 0)
