"""Where masks come from: a Gaussian path whose largest coordinate stops being the token's own.

Latent Shadows (arXiv 2602.00792, section 3). Write x0 as a one-hot vector of K coordinates, let it fade into Gaussian
noise eps (Eq. 9), and show the token only while its coordinate k is the greatest (Eq. 8). Then

    x0 is shown  <=>  alpha~/sigma~ > Y,    Y = max_{j != k} eps_j - eps_k    (Lemma 3.1, the margin)
                 <=>  alpha > u,            u = F_Y(Y) ~ U(0, 1)              (Theorem 3.3)

so one number a token replaces K Gaussians: that is `Trajectory`. This file is the Gaussian side: the path, the
projection, and the calibration alpha = F_Y(alpha~/sigma~) with its derivative and inverse. alpha~/sigma~ is called
`snr_root`, the square root of the signal-to-noise ratio; F_Y is `keep_probability`, P(arg max w = x0).

K counts every coordinate that competes. In the paper one of them belongs to MASK; in Duo (arXiv 2506.10892) none does.

The edge: a signal-to-noise ratio is >= 0, and noise alone keeps one token in K, so physical paths reach only
keep >= 1/K. Below that the identities still hold, with a negative `snr_root` (the signal pushes x0 down), but no
SNR stands behind them: a schedule that ends at alpha = 0 leaves the Gaussian picture at alpha = 1/K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.types import Tokens

_REACH = 60.0  # beyond +-60 float64 holds nothing of F_Y but 0 and 1, nothing of its density but 0, for every K
_DROP = 40.0  # an integrand of e^-40 times its peak is left out
_NODES = 193  # a trapezoid of 193 nodes is exact to 1e-12 up to K = 10^7; at 129 nodes K = 200,000 already shows
_ROWS = 4096  # integrals held at a time
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def coefficients(snr_root: Tensor | float) -> tuple[Tensor, Tensor]:
    """(alpha~, sigma~) of the variance-preserving path (Eq. 2), float64, for any finite snr_root.

    alpha~^2 + sigma~^2 = 1 and alpha~/sigma~ = snr_root.
    """
    snr_root = torch.as_tensor(snr_root, dtype=torch.float64)
    sigma = 1 / torch.hypot(torch.ones_like(snr_root), snr_root)
    return snr_root * sigma, sigma


def ddim_path(x0: Tokens, eps: Tensor, snr_root: Tensor | float) -> Tensor:
    """The latent of x0 under fixed noise: w = alpha~ onehot(x0) + sigma~ eps (Eq. 9), float64 [n, K].

    x0 [n], eps [n, K] ~ N(0, 1), snr_root [n] or a scalar, any real; snr_root [T, 1] reads the n paths at T times,
    w [T, n, K]. A negative snr_root continues the path below keep = 1/K, where no physical SNR exists.
    """
    alpha, sigma = (part.to(eps.device) for part in coefficients(snr_root))
    noise = sigma[..., None] * eps
    own = _own(noise, x0)
    return noise.scatter_add(-1, own, alpha[..., None].expand(own.shape))


def project(w: Tensor, x0: Tokens, mask_id: int) -> Tokens:
    """x0 where w[x0] is strictly the greatest of all coordinates, else mask_id (Eq. 8): w [..., K] -> int64 [...].

    mask_id need not index w. A tie, or a nan anywhere in the row, is a MASK.
    """
    beaten = w < w.gather(-1, _own(w, x0))
    return torch.where(beaten.sum(-1) == w.shape[-1] - 1, x0, mask_id)


def margin(eps: Tensor, x0: Tokens) -> Tensor:
    """The level at which noise takes over: Y = max_{j != k} eps_j - eps_k, k = x0 (Lemma 3.1): eps [..., K] -> [...].

    `project(ddim_path(x0, eps, r), x0, m)` is x0 exactly while r > Y.
    """
    own = _own(eps, x0)
    rivals = eps.scatter(-1, own, -math.inf)
    return rivals.amax(-1) - eps.gather(-1, own).squeeze(-1)


def keep_probability(snr_root: Tensor | float, vocab_size: int) -> Tensor:
    """The chance that x0 is still shown: F_Y(r) = P(arg max w = x0) (Lemma 3.1), in float64, shape of `snr_root`.

        F_Y(r) = int phi(w - r) Phi(w)^(K-1) dw

    r = snr_root is any real number (infinities are limits), K = vocab_size >= 2. F_Y(0) = 1/K; K = 2 is
    Phi(r / sqrt 2). Relative error below 1e-11 down to the smallest normal float64. Gradients flow.
    """
    return _log_keep(_roots(snr_root, vocab_size), vocab_size).exp().clamp(max=1)


def keep_derivative(snr_root: Tensor | float, vocab_size: int) -> Tensor:
    """d keep / d snr_root, the density of the margin Y, by differentiating the integrand; float64, shape of `snr_root`.

    F_Y'(r) = (K-1) int phi(w - r) phi(w) Phi(w)^(K-2) dw,    which has no term to cancel
    """
    return _log_density(_roots(snr_root, vocab_size), vocab_size).exp()


def snr_root(keep: Tensor | float, vocab_size: int) -> Tensor:
    """The alpha~/sigma~ that shows x0 with probability `keep`: F_Y^{-1} (Lemma 3.1), float64, shape of `keep`.

    0 < keep < 1; monotone. Below 1/K the root is negative: no physical SNR. Near 1 the root is as sharp as
    float64 lets keep be (1 - keep carries few digits there); keep_probability(root) gives keep back to 1e-9.
    Newton steps on the log-odds, which are close to straight, from a table that brackets the root.
    """
    _check_size(vocab_size)
    keep = torch.as_tensor(keep, dtype=torch.float64)
    inside = (keep > 0) & (keep < 1)
    if not bool(inside.all()):
        raise ValueError(
            f"keep is the probability that a token is still shown: want 0 < keep < 1 "
            f"(0 and 1 lie at infinite snr_root), got {keep[~inside].flatten()[0].item()}"
        )
    target = keep.log() - torch.log1p(-keep)
    grid = torch.linspace(-_REACH, _REACH, 481, dtype=torch.float64, device=keep.device)
    odds = _log_odds(_log_keep(grid, vocab_size)).cummax(0).values
    right = torch.searchsorted(odds, target).clamp(1, len(grid) - 1)
    low, high = grid[right - 1], grid[right]
    root = low + (high - low) * (target - odds[right - 1]) / (odds[right] - odds[right - 1])
    for _ in range(5):
        log_keep = _log_keep(root, vocab_size)
        slope = (_log_density(root, vocab_size) - log_keep - _log_rest(log_keep)).exp()
        root = (root - (_log_odds(log_keep) - target) / slope).clamp(low, high)
    return root


def _log_keep(root: Tensor, vocab_size: int) -> Tensor:
    """log F_Y."""
    return (_log_integral(root, 0, vocab_size - 1) - _LOG_SQRT_2PI).clamp(max=0)


def _log_density(root: Tensor, vocab_size: int) -> Tensor:
    """log F_Y'."""
    return math.log(vocab_size - 1) + _log_integral(root, 1, vocab_size - 2) - 2 * _LOG_SQRT_2PI


def _log_rest(log_keep: Tensor) -> Tensor:
    """log(1 - keep), finite: keep is held one rounding step below 1."""
    return torch.log(-torch.expm1(log_keep.clamp(max=-(2.0**-53))))


def _log_odds(log_keep: Tensor) -> Tensor:
    return log_keep - _log_rest(log_keep)


def _log_integral(x: Tensor, a: int, m: int) -> Tensor:
    """log int exp(g), g(w) = -(w - x)^2 / 2 - a w^2 / 2 + m log Phi(w), for every x; float64.

    g is concave with g'' <= -1 and one peak: the trapezoid rule between the two ends where g has dropped by _DROP
    converges geometrically, and taken relative to the peak it keeps its relative error when the integral is tiny.
    """
    parts = [
        _log_trapezoid(part, a, m)
        for part in torch.split(x.clamp(-_REACH, _REACH).flatten(), _ROWS)
    ]
    return torch.cat(parts).view(x.shape)


def _log_trapezoid(x: Tensor, a: int, m: int) -> Tensor:
    with torch.no_grad():  # the sum does not depend on where its nodes lie
        peak, left, right = _support(x, a, m)
        width = (right - left) / (_NODES - 1)
        nodes = left[:, None] + width[:, None] * torch.arange(
            _NODES, dtype=x.dtype, device=x.device
        )
    heights = (_exponent(nodes, x[:, None], a, m) - peak[:, None]).exp()
    return peak + (width * heights.sum(-1)).log()


def _support(x: Tensor, a: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """(peak value of g, left end, right end): g is below peak - _DROP outside the ends.

    Newton's method, from where it is monotone: g' is convex and falling, so a start left of the peak climbs to it;
    a tangent of the concave g outside an end meets the level before g does, so every iterate is a valid end.
    """
    w = x / (1 + a)
    for _ in range(24):
        w = w + _slope(w, x, a, m) / _curvature(w, a, m)
    peak = _exponent(w, x, a, m)
    reach = math.sqrt(2 * _DROP)
    ends = [
        w - reach / _curvature(w, a, m).sqrt(),
        w + reach,
    ]  # |g''| falls with w and is at least 1
    for _ in range(4):
        ends = [
            end - (_exponent(end, x, a, m) - peak + _DROP) / _slope(end, x, a, m) for end in ends
        ]
    return peak, ends[0], ends[1]


def _exponent(w: Tensor, x: Tensor, a: int, m: int) -> Tensor:
    """g(w)."""
    log_cdf: Tensor = torch.special.log_ndtr(w)
    return -0.5 * ((w - x) ** 2 + a * w**2) + m * log_cdf


def _slope(w: Tensor, x: Tensor, a: int, m: int) -> Tensor:
    """g'(w)."""
    return x - (1 + a) * w + m * _mills(w)


def _curvature(w: Tensor, a: int, m: int) -> Tensor:
    """-g''(w)."""
    mills = _mills(w)
    return 1 + a + m * mills * (w + mills)


def _mills(w: Tensor) -> Tensor:
    """phi / Phi, the derivative of log Phi."""
    return torch.exp(-0.5 * w**2 - _LOG_SQRT_2PI - torch.special.log_ndtr(w))


def _roots(value: Tensor | float, vocab_size: int) -> Tensor:
    _check_size(vocab_size)
    roots = torch.as_tensor(value, dtype=torch.float64)
    if bool(roots.isnan().any()):
        raise ValueError(
            "snr_root is alpha~/sigma~, the root of the signal-to-noise ratio: want real numbers, got nan"
        )
    return roots


def _check_size(vocab_size: int) -> None:
    if vocab_size < 2:
        raise ValueError(
            f"vocab_size is K, the number of coordinates that compete for the arg max: want K >= 2, got {vocab_size}"
        )


def _own(w: Tensor, x0: Tokens) -> Tensor:
    """The index [..., 1] of the token's own coordinate, in the shape that gather and scatter want."""
    size = w.shape[-1]
    outside = x0[(x0 < 0) | (x0 >= size)]
    if outside.numel():
        raise ValueError(
            f"x0 indexes the {size} coordinates of the latent: want 0 <= x0 < {size}, got {outside[0].item()}"
        )
    return x0.expand(w.shape[:-1])[..., None]
