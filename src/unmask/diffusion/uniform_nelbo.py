"""The bound of uniform-state diffusion in closed form: value and derivative of one row.

Duo (Sahoo et al. 2025, arXiv 2506.10892, Eq. 12), the Rao-Blackwellised continuous-time bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.diffusion.row_losses import Rows, softmax_backward


@dataclass(frozen=True)
class UniformNelbo:
    """The row loss of Duo's bound, nats. Write a = alpha, K for the number of tokens, and

        y_j     = K a p_j + 1 - a              c = -a' / (K a)
        kappa_t = (1 - a) / (K a + 1 - a)      B = K a / (1 - a)
        A       = kappa_t if x0 = z else 1     S = sum_j log y_j

        value = c (K / y_z - K / y_z(x0) + A (K log y_z - S)
                   + B [x0 != z] (log y_z - log y_x0) + const)

        y_z(x0) = 1 - a + K a [x0 = z]
        const   = (K - 1) kappa_t log kappa_t if x0 = z else -log(kappa_t) / kappa_t

    The value is zero if p is the point mass of x0; y_z(x0) is y_z for that p. The terms of z and x0
    nearly cancel, so they are computed in float64, one number a row. S - K log(1 - a) is the sum of
    log(1 + B p_j): terms in the precision of log p, sum in float64.

    x0            [N] tokens of the text
    z             [N] noisy tokens
    alpha         [N] float64, in [0, 1)
    minus_dalpha  [N] float64, -d alpha / dt >= 0
    size          K
    """

    x0: Tensor
    z: Tensor
    alpha: Tensor
    minus_dalpha: Tensor
    size: int

    def prepare(self, chunk: Rows) -> UniformNelbo:
        return self

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return self._value(log_p.exp(), rows, self._terms(log_p, rows)).to(log_p.dtype)

    def value_and_grad(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        size, alpha, terms = self.size, self.alpha[rows, None], self._terms(log_p, rows)
        p = log_p.exp_()
        value = self._value(p, rows, terms).to(p.dtype)
        unit = terms.c[:, None] * size * alpha  # c dy / dp
        y = (p * (size * alpha).to(p)).add_((1 - alpha).to(p))
        slope = y.reciprocal_().mul_((-terms.A[:, None] * unit).to(p))
        at_z = (terms.A * size + terms.B) / terms.y_z - size / terms.y_z**2
        at_x0 = -(terms.B / terms.y_x0)
        slope.scatter_add_(-1, self.z[rows, None], (at_z[:, None] * unit).to(p))
        slope.scatter_add_(-1, self.x0[rows, None], (at_x0[:, None] * unit).to(p))
        return value, softmax_backward(p, slope)

    def _value(self, p: Tensor, rows: Rows, terms: _Terms) -> Tensor:
        """The values [n], float64, from p [n, V]."""
        size, alpha, same = self.size, self.alpha[rows], terms.same
        ratio = size * alpha / (1 - alpha)
        sum_log = p.mul(ratio[:, None].to(p)).log1p_().sum(-1, dtype=torch.float64)
        kappa_t = terms.kappa_t
        constant = torch.where(same, (size - 1) * kappa_t, -1 / kappa_t) * kappa_t.log()
        rate = (
            size * terms.deficit / (terms.y_z * (terms.y_z + terms.deficit))
            + terms.A * (size * torch.log1p(ratio * terms.p_z) - sum_log)
            + terms.B * (terms.y_z.log() - terms.y_x0.log())
            + constant
        )
        return (terms.c * rate).clamp(min=0)  # rounding can give a value below 0

    def _terms(self, log_p: Tensor, rows: Rows) -> _Terms:
        size, alpha, same = self.size, self.alpha[rows], self.x0[rows] == self.z[rows]
        log_p_z, log_p_x0 = (
            log_p.gather(-1, token[rows, None]).squeeze(-1).double() for token in (self.z, self.x0)
        )
        kappa_t = (1 - alpha) / (size * alpha + 1 - alpha)
        return _Terms(
            same=same,
            p_z=log_p_z.exp(),
            kappa_t=kappa_t,
            y_z=size * alpha * log_p_z.exp() + 1 - alpha,
            y_x0=size * alpha * log_p_x0.exp() + 1 - alpha,
            deficit=size * alpha * torch.where(same, -torch.expm1(log_p_z), -log_p_z.exp()),
            A=torch.where(same, kappa_t, 1.0),
            B=torch.where(same, 0.0, size * alpha / (1 - alpha)),
            c=(self.minus_dalpha[rows] / (size * alpha)).where(alpha > 0, 0.0),
        )


class _Terms(NamedTuple):
    """The terms of `UniformNelbo` that depend on z and x0 only: [n] each, float64."""

    same: Tensor  # x0 = z, bool
    p_z: Tensor
    kappa_t: Tensor
    y_z: Tensor
    y_x0: Tensor
    deficit: Tensor  # y_z(x0) - y_z
    A: Tensor
    B: Tensor  # 0 if x0 = z
    c: Tensor
