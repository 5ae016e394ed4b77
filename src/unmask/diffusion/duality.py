"""The Gaussian form of masked diffusion: a token becomes MASK when it is not the arg max.

Latent Shadows (arXiv 2602.00792, section 3). Write x0 as a one-hot vector of K coordinates and mix
it with Gaussian noise eps along a DDIM path (Eq. 9). Keep the token while its own coordinate k = x0
is the greatest, and replace it by MASK afterwards (Eq. 8). Then

    x0 is visible  <=>  alpha~/sigma~ > Y,    Y = max_{j != k} eps_j - eps_k    (Lemma 3.1)
                   <=>  alpha > u,            u = F_Y(Y) ~ U(0, 1)              (Theorem 3.3)

One number u for each token replaces K Gaussians (see `Trajectory`). This module has the Gaussian
path, the projection, and the calibration alpha = F_Y(alpha~/sigma~) with its derivative and
inverse. `snr_root` is alpha~/sigma~, the square root of the signal-to-noise ratio (SNR).
`keep_probability` is F_Y, the probability P(arg max w = x0).

K counts all coordinates that compete. In the paper, but not in Duo (arXiv 2506.10892), one of them
belongs to MASK.

Limit: an SNR is >= 0, and pure noise still keeps one token in K, so Gaussian paths reach only
keep >= 1/K. Below 1/K the identities hold with a negative `snr_root`, to which no SNR corresponds.
A schedule that ends at alpha = 0 leaves the Gaussian picture at alpha = 1/K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.types import Tokens

_REACH = 60.0  # beyond +-60, F_Y is 0 or 1 and its density is 0 in float64, for every K
_DROP = 40.0  # the integral leaves out values below e^-40 times the peak of the integrand
_NODES = 193  # error 1e-12 up to K = 10^7; 129 nodes are too few from K = 200,000 on
_ROWS = 4096  # integrals that are computed at a time
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def coefficients(snr_root: Tensor | float) -> tuple[Tensor, Tensor]:
    """The coefficients (alpha~, sigma~) of the variance-preserving path (Eq. 2), float64.

    For finite snr_root they satisfy alpha~^2 + sigma~^2 = 1 and alpha~/sigma~ = snr_root.
    """
    snr_root = torch.as_tensor(snr_root, dtype=torch.float64)
    sigma = 1 / torch.hypot(torch.ones_like(snr_root), snr_root)
    return snr_root * sigma, sigma


def ddim_path(x0: Tokens, eps: Tensor, snr_root: Tensor | float) -> Tensor:
    """The latent of x0 under fixed noise: w = alpha~ onehot(x0) + sigma~ eps (Eq. 9).

    Args:
        x0: token ids [n].
        eps: the noise [n, K] ~ N(0, 1).
        snr_root: any real number, [n] or a scalar. [T, 1] evaluates the n paths at T times.
            A negative value continues the path below keep = 1/K, where no SNR exists.

    Returns:
        w, float64 [n, K] or [T, n, K].
    """
    alpha, sigma = (part.to(eps.device) for part in coefficients(snr_root))
    noise = sigma[..., None] * eps
    own = _own(noise, x0)
    return noise.scatter_add(-1, own, alpha[..., None].expand(own.shape))


def project(w: Tensor, x0: Tokens, mask_id: int) -> Tokens:
    """Project the latent to tokens: x0 where w[x0] is the greatest coordinate, else MASK (Eq. 8).

    w [..., K] -> int64 [...]. `mask_id` need not index w. A tie for the greatest coordinate, or a
    nan anywhere in the row, gives MASK.
    """
    smaller = w < w.gather(-1, _own(w, x0))
    return torch.where(smaller.sum(-1) == w.shape[-1] - 1, x0, mask_id)


def margin(eps: Tensor, x0: Tokens) -> Tensor:
    """The margin Y = max_{j != k} eps_j - eps_k with k = x0 (Lemma 3.1): eps [..., K] -> [...].

    `project(ddim_path(x0, eps, r), x0, mask_id)` is x0 exactly while r > Y.
    """
    own = _own(eps, x0)
    others = eps.scatter(-1, own, -math.inf)
    return others.amax(-1) - eps.gather(-1, own).squeeze(-1)


def keep_probability(snr_root: Tensor | float, vocab_size: int) -> Tensor:
    """The probability that x0 is visible: F_Y(r) = P(arg max w = x0) (Lemma 3.1).

        F_Y(r) = int phi(w - r) Phi(w)^(K-1) dw

    F_Y(0) = 1/K, and F_Y(r) = Phi(r / sqrt 2) for K = 2. The relative error is below 1e-11 down to
    the smallest normal float64. Gradients flow.

    Args:
        snr_root: r, any real number; infinities give the limits.
        vocab_size: K >= 2.

    Returns:
        float64, in the shape of `snr_root`.
    """
    return _log_keep(_roots(snr_root, vocab_size), vocab_size).exp().clamp(max=1)


def keep_derivative(snr_root: Tensor | float, vocab_size: int) -> Tensor:
    """d keep / d snr_root: the density of the margin Y. float64, in the shape of `snr_root`.

        F_Y'(r) = (K-1) int phi(w - r) phi(w) Phi(w)^(K-2) dw

    This form has no cancelling terms.
    """
    return _log_density(_roots(snr_root, vocab_size), vocab_size).exp()


def snr_root(keep: Tensor | float, vocab_size: int) -> Tensor:
    """The alpha~/sigma~ at which x0 is visible with probability `keep`: F_Y^{-1} (Lemma 3.1).

    Newton's method solves for the log-odds of keep, which are almost linear in the root. A table
    brackets the root. `keep_probability` of the result equals `keep` to 1e-9. Near keep = 1 the
    precision of 1 - keep in float64 limits the precision of the root.

    Args:
        keep: 0 < keep < 1. Below 1/K the result is negative, and no SNR corresponds to it.
        vocab_size: K >= 2.

    Returns:
        float64, in the shape of `keep`.
    """
    _check_size(vocab_size)
    keep = torch.as_tensor(keep, dtype=torch.float64)
    inside = (keep > 0) & (keep < 1)
    if not bool(inside.all()):
        raise ValueError(
            f"keep is out of range: got {keep[~inside].flatten()[0].item()}, want 0 < keep < 1 "
            "(snr_root is infinite at 0 and 1)"
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
    """log(1 - keep). Finite, because keep is clamped one rounding step below 1."""
    return torch.log(-torch.expm1(log_keep.clamp(max=-(2.0**-53))))


def _log_odds(log_keep: Tensor) -> Tensor:
    return log_keep - _log_rest(log_keep)


def _log_integral(x: Tensor, a: int, m: int) -> Tensor:
    """log int exp(g(w)) dw, float64, for every x, with

        g(w) = -(w - x)^2 / 2 - a w^2 / 2 + m log Phi(w)

    g is concave with g'' <= -1. The trapezoid rule runs between the two points where g has dropped
    by _DROP, and converges geometrically. The sum is taken relative to the peak of g, so the
    relative error is also small for tiny integrals.
    """
    parts = [
        _log_trapezoid(part, a, m)
        for part in torch.split(x.clamp(-_REACH, _REACH).flatten(), _ROWS)
    ]
    return torch.cat(parts).view(x.shape)


def _log_trapezoid(x: Tensor, a: int, m: int) -> Tensor:
    with torch.no_grad():  # the integral does not depend on the position of the nodes
        peak, left, right = _support(x, a, m)
        width = (right - left) / (_NODES - 1)
        nodes = left[:, None] + width[:, None] * torch.arange(
            _NODES, dtype=x.dtype, device=x.device
        )
    heights = (_exponent(nodes, x[:, None], a, m) - peak[:, None]).exp()
    return peak + (width * heights.sum(-1)).log()


def _support(x: Tensor, a: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The interval to integrate: (peak value of g, left end, right end).

    Outside the ends g is below peak - _DROP. Newton's method converges monotonically here. Since g'
    is convex and decreasing, iterates that start left of the peak approach it from the left. Since
    g is concave, its tangents lie above it. So the iterates that start outside of an end stay
    outside, and each of them is a valid end.
    """
    w = x / (1 + a)
    for _ in range(24):
        w = w + _slope(w, x, a, m) / _curvature(w, a, m)
    peak = _exponent(w, x, a, m)
    reach = math.sqrt(2 * _DROP)
    # |g''| decreases in w and is at least 1.
    ends = [w - reach / _curvature(w, a, m).sqrt(), w + reach]
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
            "snr_root is not a number: got nan, want real numbers (the root of the signal-to-noise "
            "ratio)"
        )
    return roots


def _check_size(vocab_size: int) -> None:
    if vocab_size < 2:
        raise ValueError(
            f"vocab_size is out of range: got {vocab_size}, want K >= 2 (the coordinates that "
            "compete for the arg max)"
        )


def _own(w: Tensor, x0: Tokens) -> Tensor:
    """x0 as an index [..., 1] into the coordinates of w, for gather and scatter."""
    size = w.shape[-1]
    outside = x0[(x0 < 0) | (x0 >= size)]
    if outside.numel():
        raise ValueError(
            f"x0 is out of range: got {outside[0].item()}, want 0 <= x0 < {size} (the coordinates "
            "of the latent)"
        )
    return x0.expand(w.shape[:-1])[..., None]
