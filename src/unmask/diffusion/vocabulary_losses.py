"""Losses between distributions over the vocabulary: cross-entropy and four divergences.

Write p = softmax(logits) for a row of the student and q for the same row of the teacher. Each loss
gives its value and its derivative with respect to the student's logits in closed form.
`row_losses` applies it to the rows of a `Prediction` in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from unmask.diffusion.row_losses import (
    BlockLoss,
    Rows,
    ValueAndGradient,
    compute_row_loss,
    softmax_backward,
    within,
)
from unmask.prediction import Prediction
from unmask.types import Tokens


class Divergence(Protocol):
    """A divergence of two predictions at the N positions of `where` -> [N].

    The teacher is detached. `temperature` divides its log p: a value below 1 sharpens the teacher.
    """

    def __call__(
        self, student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0, /
    ) -> Tensor: ...


def cross_entropy(
    prediction: Prediction, x0: Tokens, where: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The cross-entropy -log p(x0_i | z) at the N positions of `where`.

    Args:
        prediction: the model's prediction from z.
        x0: the targets, [B, L].
        where: bool [B, L], or flat row indices [N].
        weight: a factor for each sequence, [B]; None: 1.

    Returns:
        [N] nats, times the weight.
    """
    index = prediction.rows(where)
    row_weight = None if weight is None else weight[index // x0.shape[1]]
    return _token_nats(prediction, x0.flatten()[index], index, row_weight)


def forward_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(q || p) = KL(teacher || student) at the N positions of `where` -> [N] nats.

    This divergence is mass-covering: the student must cover all tokens that the teacher may
    predict. `temperature` is that of the teacher.
    """
    return _divergence(_forward_kl, student, teacher, where, temperature)


def reverse_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(p || q) = KL(student || teacher) at the N positions of `where` -> [N] nats.

    This divergence is mode-seeking: a student can concentrate on one mode of the teacher.
    `temperature` is that of the teacher. If a token is visible to the teacher, q is a point mass,
    and the value is about 1e6 (1 - p(x0)) nats.
    """
    return _divergence(_reverse_kl, student, teacher, where, temperature)


def total_variation(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """The total variation sum |p - q| / 2 at the N positions of `where` -> [N], in [0, 1]."""
    return _divergence(_total_variation, student, teacher, where, temperature)


def squared_error(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """The squared error sum (p - q)^2 at the N positions of `where` -> [N], in [0, 2]."""
    return _divergence(_squared_error, student, teacher, where, temperature)


def expected_log_ratio(
    prediction: Prediction, above: Prediction, below: Prediction, where: Tensor
) -> Tensor:
    """sum_v p(v) [log a(v) - log b(v)] at the N positions of `where` -> [N] nats.

    Only p has a gradient. a (`above`) and b (`below`) are constants, of equal vocabularies. For
    a = p the value is KL(p || b), but its gradient is that of the expectation alone.
    """
    index = prediction.rows(where)

    def chunk_loss(chunk: Rows) -> BlockLoss:
        tables = above.logits(index[chunk]), below.logits(index[chunk])

        def block_loss(log_p: Tensor, rows: Rows) -> ValueAndGradient:
            part = within(chunk, rows)
            log_a = above.normalise_(tables[0][part], index[rows])
            ratio = log_a.sub_(below.normalise_(tables[1][part], index[rows]))
            p = log_p.exp_()
            return (p * ratio).sum(-1), lambda: softmax_backward(p, ratio)

        return block_loss

    return compute_row_loss(prediction, chunk_loss, index)


def leave_one_out(
    prediction: Prediction, above: Prediction, below: Prediction, where: Tensor, tokens: Tensor
) -> Tensor:
    """REINFORCE with a leave-one-out baseline for `expected_log_ratio`: [N] nats.

        r_k = log a(v_k) - log b(v_k)        for K tokens v_k ~ p of a position
        gradient = 1/K sum_k (r_k - mean_{j != k} r_j) grad log p(v_k)

    Its mean over the tokens is the gradient of `expected_log_ratio`. The value is the mean of r_k.
    Source: Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free".

    Args:
        prediction: p, with a gradient.
        above: a.
        below: b.
        where: bool [B, L], or flat row indices [N].
        tokens: the draws, int64 [K, N], K >= 2.
    """
    index = prediction.rows(where)
    with torch.no_grad():
        reward = torch.stack(
            [_token_nats(below, v, index) - _token_nats(above, v, index) for v in tokens]
        )
    others = (reward.sum(0) - reward) / (len(tokens) - 1)
    advantage = (reward - others) / len(tokens)
    nats = [_token_nats(prediction, v, index, a) for v, a in zip(tokens, advantage, strict=True)]
    surrogate = -torch.stack(nats).sum(0)
    return reward.mean(0) + surrogate - surrogate.detach()


def _token_nats(
    prediction: Prediction, target: Tensor, index: Tensor, weight: Tensor | None = None
) -> Tensor:
    """-log p of a target token [N] at each row of `index` [N], times a weight [N]: [N] nats."""

    def block_loss(log_p: Tensor, rows: Rows) -> ValueAndGradient:
        token = target[rows, None]
        minus_one = torch.full_like(token, -1, dtype=log_p.dtype)
        value = -log_p.gather(-1, token).squeeze(-1)
        # p - 1[target]
        return value, lambda: log_p.exp_().scatter_add_(-1, token, minus_one)

    return compute_row_loss(prediction, lambda chunk: block_loss, index, weight)


# (log p, log q), [n, V] each -> value [n], and a function that computes d value / d logits of p.
# Both overwrite log p and log q.
Formula = Callable[[Tensor, Tensor], ValueAndGradient]


def _forward_kl(log_p: Tensor, log_q: Tensor) -> ValueAndGradient:
    """KL(q || p) = sum q (log q - log p); derivative p - q."""
    q = log_q.exp()
    value = (q * log_q.sub_(log_p)).sum(-1)
    # Rounding can give a value below 0.
    return value.clamp(min=0), lambda: log_p.exp_().sub_(q)


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> ValueAndGradient:
    """KL(p || q) = sum p (log p - log q); derivative p (log p - log q - KL)."""
    log_ratio = log_q.neg_().add_(log_p)
    p = log_p.exp_()
    value = (p * log_ratio).sum(-1)
    return value.clamp(min=0), lambda: p.mul_(log_ratio.sub_(value[:, None]))


def _total_variation(log_p: Tensor, log_q: Tensor) -> ValueAndGradient:
    """sum |p - q| / 2; derivative sign(p - q) / 2, through the softmax."""
    p = log_p.exp_()
    difference = log_q.exp_().neg_().add_(p)
    value = difference.abs().sum(-1) / 2
    return value, lambda: softmax_backward(p, difference.sign_().div_(2))


def _squared_error(log_p: Tensor, log_q: Tensor) -> ValueAndGradient:
    """sum (p - q)^2; derivative 2 (p - q), through the softmax."""
    p = log_p.exp_()
    difference = log_q.exp_().neg_().add_(p)
    value = difference.square().sum(-1)
    return value, lambda: softmax_backward(p, difference.mul_(2))


def _divergence(
    formula: Formula, student: Prediction, teacher: Prediction, where: Tensor, temperature: float
) -> Tensor:
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"teacher has another vocabulary than student: got {teacher.vocab_size} and "
            f"{student.vocab_size} tokens, want the same"
        )
    index = student.rows(where)

    def chunk_loss(chunk: Rows) -> BlockLoss:
        logits = teacher.logits(index[chunk])  # one call of the teacher's head, without a graph

        def block_loss(log_p: Tensor, rows: Rows) -> ValueAndGradient:
            part = logits[within(chunk, rows)]
            return formula(log_p, teacher.normalise_(part, index[rows], temperature))

        return block_loss

    return compute_row_loss(student, chunk_loss, index)
