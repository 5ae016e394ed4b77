"""The bound of uniform-state diffusion in closed form: value and derivative of one row.

Duo (Sahoo et al. 2025, arXiv 2506.10892, Eq. 12), the Rao-Blackwellised continuous-time bound.
Write a = alpha, a' = d alpha / dt, p_j for the prediction of token j and K for the vocabulary size:

    y_j     = K a p_j + 1 - a              c = -a' / (K a)
    kappa_t = (1 - a) / (K a + 1 - a)      B = K a / (1 - a) if x0 != z, else 0
    A       = kappa_t if x0 = z else 1     S = sum_j log y_j

    value = c (K / y_z - K / y_z(x0) + A (K log y_z - S) + B (log y_z - log y_x0) + const)

    y_z(x0) = 1 - a + K a [x0 = z]
    const   = (K - 1) kappa_t log kappa_t if x0 = z else -log(kappa_t) / kappa_t

If p is the point mass of x0, the value is zero and y_z equals y_z(x0). The terms of z and x0 nearly
cancel, so they are computed in float64, one number a row. S - K log(1 - a) is the sum of
log(1 + K a p_j / (1 - a)), whose terms have the precision of log p. The sum is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.diffusion.row_losses import BlockLoss, Rows, ValueAndGradient, softmax_backward


def uniform_nelbo(
    x0: Tensor, z: Tensor, alpha: Tensor, minus_dalpha: Tensor, size: int
) -> BlockLoss:
    """The row loss of Duo's bound in nats; the docstring of this module has the formula.

    Args:
        x0: tokens of the text, [N].
        z: noisy tokens, [N].
        alpha: the share of text left, float64 [N], in [0, 1).
        minus_dalpha: -d alpha / dt >= 0, float64 [N].
        size: K.
    """

    def block_loss(log_p: Tensor, rows: Rows) -> ValueAndGradient:
        a, same = alpha[rows], x0[rows] == z[rows]
        log_p_z, log_p_x0 = (
            log_p.gather(-1, token[rows, None]).squeeze(-1).double() for token in (z, x0)
        )
        p, p_z = log_p.exp_(), log_p_z.exp()
        y_z = size * a * p_z + 1 - a
        y_x0 = size * a * log_p_x0.exp() + 1 - a
        kappa_t = (1 - a) / (size * a + 1 - a)
        ratio = size * a / (1 - a)
        A, B = torch.where(same, kappa_t, 1.0), torch.where(same, 0.0, ratio)
        c = (minus_dalpha[rows] / (size * a)).where(a > 0, 0.0)
        # y_z(x0) - y_z, without cancellation
        deficit = size * a * torch.where(same, -torch.expm1(log_p_z), -p_z)
        sum_log = p.mul(ratio[:, None].to(p)).log1p_().sum(-1, dtype=torch.float64)
        constant = torch.where(same, (size - 1) * kappa_t, -1 / kappa_t) * kappa_t.log()
        rate = (
            size * deficit / (y_z * (y_z + deficit))
            + A * (size * torch.log1p(ratio * p_z) - sum_log)
            + B * (y_z.log() - y_x0.log())
            + constant
        )
        value = (c * rate).clamp(min=0).to(p.dtype)  # rounding can give a value below 0

        def gradient() -> Tensor:
            unit = (c * size * a)[:, None]  # c dy / dp
            y = (p * (size * a)[:, None].to(p)).add_((1 - a)[:, None].to(p))
            slope = y.reciprocal_().mul_((-A[:, None] * unit).to(p))
            at_z = (A * size + B) / y_z - size / y_z**2
            at_x0 = -(B / y_x0)
            slope.scatter_add_(-1, z[rows, None], (at_z[:, None] * unit).to(p))
            slope.scatter_add_(-1, x0[rows, None], (at_x0[:, None] * unit).to(p))
            return softmax_backward(p, slope)

        return value, gradient

    return block_loss
