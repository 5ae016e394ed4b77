"""Losses between distributions over the vocabulary: cross-entropy and four divergences.

Write p = softmax(logits) for a row of the student and q for the same row of the teacher. Each loss
gives its value and its derivative with respect to the student's logits in closed form.
`row_losses` applies it to the rows of a `Prediction` in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from unmask.diffusion.row_losses import Rows, compute_row_loss, softmax_backward
from unmask.prediction import Prediction
from unmask.types import Tokens


class Divergence(Protocol):
    """A divergence of two predictions at the N positions of `where` -> [N].

    The teacher is detached. `temperature` is the teacher's; below 1 it sharpens.
    """

    def __call__(
        self, student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0, /
    ) -> Tensor: ...


def cross_entropy(
    prediction: Prediction, x0: Tokens, where: Tensor, weight: Tensor | None = None
) -> Tensor:
    """-log p(x0_i | z) at the N positions of `where`.

    Args:
        prediction: the model's prediction from z.
        x0: the targets, [B, L].
        where: bool [B, L], or flat row indices [N].
        weight: a factor for each sequence, [B]; None: 1.

    Returns:
        [N] nats, times the weight.
    """
    index = prediction.rows(where)
    rows = None if weight is None else weight[index // x0.shape[1]]
    return compute_row_loss(prediction, CrossEntropy(x0.flatten()[index]), index, rows)


def forward_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(q || p) = KL(teacher || student) at the N positions of `where` -> [N] nats.

    Its optimum covers all tokens that the teacher may predict. `temperature` is the teacher's.
    """
    return _divergence(_forward_kl, student, teacher, where, temperature)


def reverse_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(p || q) = KL(student || teacher) at the N positions of `where` -> [N] nats.

    Its optimum seeks a mode of the teacher. `temperature` is the teacher's. At a token that is
    visible to the teacher q is a point mass, and the value is about 1e6 (1 - p(x0)) nats.
    """
    return _divergence(_reverse_kl, student, teacher, where, temperature)


def total_variation(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """sum |p - q| / 2 at the N positions of `where` -> [N], in [0, 1]."""
    return _divergence(_total_variation, student, teacher, where, temperature)


def squared_error(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """sum (p - q)^2 at the N positions of `where` -> [N], in [0, 2]."""
    return _divergence(_squared_error, student, teacher, where, temperature)


@dataclass(frozen=True)
class CrossEntropy:
    """The row loss -log p(target); derivative p - 1[target]."""

    target: Tensor  # [N]

    def prepare(self, chunk: Rows) -> CrossEntropy:
        return self

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return -log_p.gather(-1, self.target[rows, None]).squeeze(-1)

    def value_and_grad(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        value, token = self.value(log_p, rows), self.target[rows, None]
        minus_one = torch.full_like(token, -1, dtype=log_p.dtype)
        return value, log_p.exp_().scatter_add_(-1, token, minus_one)


@dataclass(frozen=True)
class TeacherRows:
    """log q [n, V] of rows of the teacher, without a graph.

    index   [N] flat rows of the prediction
    logits  a chunk of rows and its logits; each row is read once, because reading overwrites it.
            None: the head runs for the rows of each call
    """

    prediction: Prediction
    index: Tensor
    temperature: float = 1.0
    logits: tuple[Rows, Tensor] | None = None

    def prepare(self, chunk: Rows) -> TeacherRows:
        """Run the head once for all rows of a chunk."""
        return replace(self, logits=(chunk, self.prediction.logits(self.index[chunk])))

    def __call__(self, rows: Rows) -> Tensor:
        chunk, logits = self.logits or (rows, self.prediction.logits(self.index[rows]))
        part = logits[rows.start - chunk.start : rows.stop - chunk.start]
        return self.prediction.normalise_(part, self.index[rows], self.temperature)


# (log p, log q), [n, V] each -> value [n] and d value / d logits of p [n, V]. Overwrites both.
Formula = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DivergenceLoss:
    """The row loss of a divergence from a teacher."""

    formula: Formula
    teacher: TeacherRows

    def prepare(self, chunk: Rows) -> DivergenceLoss:
        return replace(self, teacher=self.teacher.prepare(chunk))

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return self.value_and_grad(log_p, rows)[0]

    def value_and_grad(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return self.formula(log_p, self.teacher(rows))


def _forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q (log q - log p); derivative p - q."""
    q = log_q.exp()
    value = (q * log_q.sub_(log_p)).sum(-1)
    return value.clamp(min=0), log_p.exp_().sub_(q)  # rounding can give a value below 0


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p (log p - log q); derivative p (log p - log q - KL)."""
    log_ratio = log_q.neg_().add_(log_p)
    p = log_p.exp_()
    value = (p * log_ratio).sum(-1)
    return value.clamp(min=0), p.mul_(log_ratio.sub_(value[:, None]))


def _total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """sum |p - q| / 2; derivative sign(p - q) / 2, through the softmax."""
    p = log_p.exp_()
    difference = log_q.exp_().neg_().add_(p)
    value = difference.abs().sum(-1) / 2
    return value, softmax_backward(p, difference.sign_().div_(2))


def _squared_error(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """sum (p - q)^2; derivative 2 (p - q), through the softmax."""
    p = log_p.exp_()
    difference = log_q.exp_().neg_().add_(p)
    value = difference.square().sum(-1)
    return value, softmax_backward(p, difference.mul_(2))


def _divergence(
    formula: Formula, student: Prediction, teacher: Prediction, where: Tensor, temperature: float
) -> Tensor:
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"teacher has another vocabulary than student: got {teacher.vocab_size} and "
            f"{student.vocab_size} tokens, want the same"
        )
    index = student.rows(where)
    loss = DivergenceLoss(formula, TeacherRows(teacher, index, temperature))
    return compute_row_loss(student, loss, index)
