"""Losses over the vocabulary, a chunk of rows at a time.

Each loss is a *rule* about one row: from log p it gives the value and the derivative with respect to the logits,
in closed form. One `autograd.Function` drives any rule over the rows of a `Prediction` and recomputes the head in
the backward pass, so that memory holds one chunk, whatever the number of rows and V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unmask.prediction import CHUNK_ELEMENTS, Prediction
from unmask.types import PerToken, Tokens

Rows = slice


class RowRule(Protocol):
    """A loss of single rows. `rows` says which of the N rows the chunk `log_p` [n, V] holds."""

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        """[n], nats."""
        ...

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        """d value / d logits, [n, V]; zero where p is zero."""
        ...


def row_loss(prediction: Prediction, rule: RowRule, index: Tensor) -> Tensor:
    """The rule's value at flat rows `index` [N] of a prediction -> [N], differentiable in hidden states and head."""
    values: Tensor = _RowLoss.apply(  # type: ignore[no-untyped-call]
        rule, prediction, index, prediction.hidden_rows(index), *prediction.head.parameters()
    )
    return values


def spread(values: Tensor, where: Tensor) -> PerToken:
    """Put the N row values of `where` (bool [B, L], row-major) back in their places: [B, L], zero elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(x0); derivative p - 1[x0]."""

    target: Tensor  # [N]

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return -log_p.gather(-1, self.target[rows, None]).squeeze(-1)

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        token = self.target[rows, None]
        return log_p.exp().scatter_add_(-1, token, torch.full_like(token, -1, dtype=log_p.dtype))


@dataclass(frozen=True)
class ForwardKL:
    """KL(q || p) = sum q (log q - log p), q the teacher; derivative p - q. It covers what the teacher would say."""

    teacher: Callable[[Rows], Tensor]  # rows -> log q [n, V]

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        log_q = self.teacher(rows)
        return (log_q.exp() * (log_q - log_p)).sum(-1).clamp(min=0)  # rounding, of two laws that are nearly one

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        return log_p.exp() - self.teacher(rows).exp()


@dataclass(frozen=True)
class ReverseKL:
    """KL(p || q) = sum p (log p - log q), q the teacher; derivative p ((log p - log q) - KL). It seeks a mode of q."""

    teacher: Callable[[Rows], Tensor]

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return (log_p.exp() * (log_p - self.teacher(rows))).sum(-1).clamp(min=0)

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        return _through_softmax(log_p.exp(), log_p - self.teacher(rows))


@dataclass(frozen=True)
class TotalVariation:
    """sum |p - q| / 2; derivative by softmax."""

    teacher: Callable[[Rows], Tensor]

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return (log_p.exp() - self.teacher(rows).exp()).abs().sum(-1) / 2

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        p = log_p.exp()
        return _through_softmax(p, (p - self.teacher(rows).exp()).sign() / 2)


@dataclass(frozen=True)
class SquaredError:
    """sum (p - q)^2; derivative by softmax."""

    teacher: Callable[[Rows], Tensor]

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return (log_p.exp() - self.teacher(rows).exp()).square().sum(-1)

    def derivative(self, log_p: Tensor, rows: Rows) -> Tensor:
        p = log_p.exp()
        return _through_softmax(p, 2 * (p - self.teacher(rows).exp()))


def _through_softmax(p: Tensor, slope: Tensor) -> Tensor:
    """d f / d logits of p = softmax(logits), slope = d f / d p: p (slope - <p, slope>)."""
    return p * (slope - (p * slope).sum(-1, keepdim=True))


class Divergence(Protocol):
    """A distance of two predictions at the N positions of `where` -> [N]; the teacher is detached."""

    def __call__(
        self, student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0, /
    ) -> Tensor: ...


def cross_entropy(prediction: Prediction, x0: Tokens, where: Tensor) -> Tensor:
    """-log p(x0_i | z) at the N positions of `where` [B, L] -> [N] nats."""
    index = prediction.rows(where)
    return row_loss(prediction, CrossEntropy(x0.flatten()[index]), index)


def forward_kl(student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) at the N positions of `where` -> [N] nats; `temperature` is the detached teacher's."""
    index = student.rows(where)
    return row_loss(student, ForwardKL(_reader(student, teacher, index, temperature)), index)


def reverse_kl(student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher) at the N positions of `where` -> [N] nats; `temperature` is the detached teacher's.

    About 1e6 (1 - p(x0)) nats where the teacher sees the token: its law is a point mass there.
    """
    index = student.rows(where)
    return row_loss(student, ReverseKL(_reader(student, teacher, index, temperature)), index)


def total_variation(student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0) -> Tensor:
    """sum |p - q| / 2 of the probabilities at the N positions of `where` -> [N], in [0, 1]."""
    index = student.rows(where)
    return row_loss(student, TotalVariation(_reader(student, teacher, index, temperature)), index)


def squared_error(student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0) -> Tensor:
    """sum (p - q)^2 of the probabilities at the N positions of `where` -> [N], in [0, 2]."""
    index = student.rows(where)
    return row_loss(student, SquaredError(_reader(student, teacher, index, temperature)), index)


def _reader(student: Prediction, teacher: Prediction, index: Tensor, temperature: float) -> Callable[[Rows], Tensor]:
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"teacher and student are compared token by token: want one vocabulary, got {teacher.vocab_size} and "
            f"{student.vocab_size} tokens"
        )

    def read(rows: Rows) -> Tensor:
        with torch.no_grad():
            return teacher.log_p(index[rows], temperature)

    return read


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: RowRule, prediction: Prediction, index: Tensor, hidden: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.rule, ctx.prediction, ctx.index = rule, prediction, index
        ctx.save_for_backward(hidden, *parameters)
        values = [
            rule.value(prediction.normalise(prediction.head(hidden[rows]), index[rows]), rows)
            for rows in _chunks(len(index), prediction.vocab_size)
        ]
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *_ = ctx.saved_tensors  # the unpacking also refuses weights that have changed since the forward pass
        prediction, index = ctx.prediction, ctx.index
        parameters = list(prediction.head.parameters())
        free = prediction.free_rows(index)
        d_hidden = torch.zeros_like(hidden)
        wanted = [p for p, want in zip(parameters, ctx.needs_input_grad[4:], strict=True) if want]
        d_wanted = [torch.zeros_like(p) for p in wanted]
        for rows in _chunks(len(index), prediction.vocab_size):
            with torch.enable_grad():
                leaf = hidden[rows].detach().requires_grad_()
                logits = prediction.head(leaf)
            log_p = prediction.normalise(logits.detach(), index[rows])
            d_logits = ctx.rule.derivative(log_p, rows) * (grad[rows] * free[rows])[:, None]
            d_leaf, *d_head = torch.autograd.grad(logits, [leaf, *wanted], d_logits.to(logits.dtype))
            d_hidden[rows] = d_leaf
            for total, part in zip(d_wanted, d_head, strict=True):
                total += part
        filled = iter(d_wanted)
        return None, None, None, d_hidden, *(next(filled) if want else None for want in ctx.needs_input_grad[4:])


def _chunks(rows: int, vocab_size: int) -> list[Rows]:
    """At least one chunk: an empty one gives values of the right dtype, and gradients of zero."""
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    return [slice(first, min(first + size, rows)) for first in range(0, max(rows, 1), size)]
