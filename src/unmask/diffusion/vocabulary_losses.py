"""Losses over the vocabulary, a chunk of rows at a time.

Each loss is a *rule* about one row: from log p it gives the value and the derivative with respect to the logits,
in closed form. One `autograd.Function` drives any rule over the rows of a `Prediction`. Value and gradient come from
one pass, while a chunk of logits is at hand: what outlives it is the gradient of hidden rows [N, D] and head [V, D], so
that memory holds one chunk, whatever the number of rows and V, and the head runs once. Between the head's products the
rule goes over a chunk block by block, as many rows as a core's cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unmask.prediction import Head, HeadWithBackward, Prediction, block_rows, chunk_rows
from unmask.types import PerToken, Tokens

Rows = slice


class RowLoss(Protocol):
    """A loss of single rows. `rows` says which of the N rows the table `log_p` [n, V] holds."""

    def at(self, chunk: Rows) -> RowLoss:
        """The same loss, ready for rows of this chunk: what they need together, a teacher's logits, is made now."""
        ...

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        """[n], nats."""
        ...

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The value [n] and d value / d logits [n, V], zero where p is zero; `log_p` may be overwritten."""
        ...


def row_loss(
    prediction: Prediction, rule: RowLoss, index: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The rule's value at flat rows `index` [N] of a prediction -> [N], differentiable in hidden states and head.

    weight  [N], constants that multiply the values. What is multiplied later costs a second pass over the head in the
            backward pass where it differs from row to row
    """
    hidden, parameters = prediction.hidden_rows(index), list(prediction.head.parameters())
    if not (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, *parameters))
    ):
        values = torch.cat([
            ready.value(log_p, few)
            for rows in _chunks(prediction, index)
            for ready in (rule.at(rows),)
            for few, log_p in _blocks(prediction, prediction.logits(index[rows]), index, rows)
        ])  # fmt: skip
        return values if weight is None else values * weight.to(values)
    weighted: Tensor = _RowLossFunction.apply(  # type: ignore[no-untyped-call]
        rule, prediction, index, weight, hidden, *parameters
    )
    return weighted


def scatter_rows(values: Tensor, where: Tensor) -> PerToken:
    """Put the N row values of `where` (bool [B, L], row-major) back in their places: [B, L], zero elsewhere."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(x0); derivative p - 1[x0]."""

    target: Tensor  # [N]

    def at(self, chunk: Rows) -> CrossEntropy:
        return self

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return -log_p.gather(-1, self.target[rows, None]).squeeze(-1)

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        value, token = self.value(log_p, rows), self.target[rows, None]
        return value, log_p.exp_().scatter_add_(
            -1, token, torch.full_like(token, -1, dtype=log_p.dtype)
        )


@dataclass(frozen=True)
class TeacherRows:
    """log q [n, V] of rows of a prediction, without a graph; `at` a chunk its head has run for all rows of it.

    index  [N] flat rows of the prediction
    held   a chunk of them, and its logits, each to be asked for once: they are overwritten. None: the head runs for the
           rows that are asked for
    """

    prediction: Prediction
    index: Tensor
    temperature: float = 1.0
    held: tuple[Rows, Tensor] | None = None

    def at(self, chunk: Rows) -> TeacherRows:
        return replace(self, held=(chunk, self.prediction.logits(self.index[chunk])))

    def __call__(self, rows: Rows) -> Tensor:
        chunk, logits = self.held or (rows, self.prediction.logits(self.index[rows]))
        return self.prediction.normalise_(
            logits[_within(chunk, rows)], self.index[rows], self.temperature
        )


@dataclass(frozen=True)
class _Taught:
    """The part of a rule that compares with a teacher."""

    teacher: TeacherRows

    def at(self, chunk: Rows) -> Self:
        return replace(self, teacher=self.teacher.at(chunk))


class ForwardKL(_Taught):
    """KL(q || p) = sum q (log q - log p), q the teacher; derivative p - q. It covers what the teacher would say."""

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        log_q = self.teacher(rows)
        return _dot(log_q.exp(), log_q - log_p).clamp(
            min=0
        )  # rounding, of two laws that are nearly one

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        log_q = self.teacher(rows)
        q = log_q.exp()
        value = _dot(q, log_q.sub_(log_p))
        return value.clamp(min=0), log_p.exp_().sub_(q)


class ReverseKL(_Taught):
    """KL(p || q) = sum p (log p - log q), q the teacher; derivative p ((log p - log q) - KL). It seeks a mode of q."""

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return _dot(log_p.exp(), log_p - self.teacher(rows)).clamp(min=0)

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        apart = self.teacher(rows).neg_().add_(log_p)
        p = log_p.exp_()
        value = _dot(p, apart)
        return value.clamp(min=0), p.mul_(apart.sub_(value[:, None]))


class TotalVariation(_Taught):
    """sum |p - q| / 2; derivative by softmax."""

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return (log_p.exp() - self.teacher(rows).exp_()).abs_().sum(-1) / 2

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        p = log_p.exp_()
        apart = self.teacher(rows).exp_().neg_().add_(p)
        return apart.abs().sum(-1) / 2, softmax_backward(p, apart.sign_().div_(2))


class SquaredError(_Taught):
    """sum (p - q)^2; derivative by softmax."""

    def value(self, log_p: Tensor, rows: Rows) -> Tensor:
        return (log_p.exp() - self.teacher(rows).exp_()).square_().sum(-1)

    def with_slope(self, log_p: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        p = log_p.exp_()
        apart = self.teacher(rows).exp_().neg_().add_(p)
        return apart.square().sum(-1), softmax_backward(p, apart.mul_(2))


def softmax_backward(p: Tensor, slope: Tensor) -> Tensor:
    """d f / d logits of p = softmax(logits), slope = d f / d p: p (slope - <p, slope>), in the place of p."""
    return p.mul_(slope.sub_(_dot(p, slope)[:, None]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row: [n, V], [n, V] -> [n]."""
    return (a * b).sum(-1)


class Divergence(Protocol):
    """A distance of two predictions at the N positions of `where` -> [N]; the teacher is detached."""

    def __call__(
        self, student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0, /
    ) -> Tensor: ...


def cross_entropy(
    prediction: Prediction, x0: Tokens, where: Tensor, weight: Tensor | None = None
) -> Tensor:
    """-log p(x0_i | z) at the N positions of `where` [B, L] -> [N] nats; times `weight` [B] of their sequences."""
    index = prediction.rows(where)
    rows = None if weight is None else weight[index // x0.shape[1]]
    return row_loss(prediction, CrossEntropy(x0.flatten()[index]), index, rows)


def forward_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) at the N positions of `where` -> [N] nats; `temperature` is the detached teacher's."""
    index = student.rows(where)
    return row_loss(student, ForwardKL(_teacher(student, teacher, index, temperature)), index)


def reverse_kl(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(student || teacher) at the N positions of `where` -> [N] nats; `temperature` is the detached teacher's.

    About 1e6 (1 - p(x0)) nats where the teacher sees the token: its law is a point mass there.
    """
    index = student.rows(where)
    return row_loss(student, ReverseKL(_teacher(student, teacher, index, temperature)), index)


def total_variation(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """sum |p - q| / 2 of the probabilities at the N positions of `where` -> [N], in [0, 1]."""
    index = student.rows(where)
    return row_loss(student, TotalVariation(_teacher(student, teacher, index, temperature)), index)


def squared_error(
    student: Prediction, teacher: Prediction, where: Tensor, temperature: float = 1.0
) -> Tensor:
    """sum (p - q)^2 of the probabilities at the N positions of `where` -> [N], in [0, 2]."""
    index = student.rows(where)
    return row_loss(student, SquaredError(_teacher(student, teacher, index, temperature)), index)


def _teacher(
    student: Prediction, teacher: Prediction, index: Tensor, temperature: float
) -> TeacherRows:
    if student.vocab_size != teacher.vocab_size:
        raise ValueError(
            f"teacher and student are compared token by token: want one vocabulary, got {teacher.vocab_size} and "
            f"{student.vocab_size} tokens"
        )
    return TeacherRows(teacher, index, temperature)


class _RowLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rule: RowLoss,
        prediction: Prediction,
        index: Tensor,
        weight: Tensor | None,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.rule, ctx.prediction, ctx.index, ctx.weight = rule, prediction, index, weight
        values, ctx.gradients = _sweep(
            rule, prediction, index, hidden, ctx.needs_input_grad[5:], weight
        )
        ctx.save_for_backward(hidden, *parameters)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *_ = (
            ctx.saved_tensors
        )  # the unpacking also refuses weights that have changed since the forward pass
        gradients, ctx.gradients = (
            ctx.gradients,
            None,
        )  # given away: who comes again has them made again
        equal = not len(grad) or not bool((grad != grad[0]).any())
        if (
            gradients is None or not equal
        ):  # the head's is a sum over rows: with other weights another one
            weight = grad if ctx.weight is None else grad * ctx.weight.to(grad)
            _, gradients = _sweep(
                ctx.rule, ctx.prediction, ctx.index, hidden, ctx.needs_input_grad[5:], weight
            )
        elif len(grad) and bool(grad[0] != 1):
            gradients = [each if each is None else each.mul_(grad[0]) for each in gradients]
        return None, None, None, None, *gradients


def _sweep(
    rule: RowLoss,
    prediction: Prediction,
    index: Tensor,
    hidden: Tensor,
    wanted: Sequence[bool],
    weight: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Values [N] times `weight` [N], if any, and the gradient of their sum: hidden [N, D], then the head's.

    None stands for a parameter of the head that does not want one.
    """
    parameters = list(prediction.head.parameters())
    d_hidden = torch.zeros_like(hidden)
    d_head = [
        torch.zeros_like(p) if want else None for p, want in zip(parameters, wanted, strict=True)
    ]
    free, values = prediction.is_unknown(index), []
    some_shown = hidden.device.type != "cpu" or not bool(
        free.all()
    )  # elsewhere a look would stall the device
    for rows in _chunks(prediction, index):
        logits, pull = _head(prediction.head, hidden[rows], d_head)
        ready, slopes = rule.at(rows), logits
        for few, log_p in _blocks(prediction, logits, index, rows):
            value, slope = ready.with_slope(log_p, few)
            if weight is not None:
                factor = weight[few].to(slope)
                value, slope = value * factor, slope.mul_(factor[:, None])
            if some_shown:  # nobody guesses what is shown
                slope = slope.mul_(free[few, None])
            values.append(value)
            if few == rows:
                slopes = slope
            else:  # the logits of these rows have been read
                slopes[_within(rows, few)] = slope
        d_hidden[rows] = pull(slopes)
    return torch.cat(values), [d_hidden, *d_head]


def _head(
    head: Head, hidden: Tensor, totals: Sequence[Tensor | None]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Logits [n, V] that may be overwritten, and the way back: d logits -> d hidden; the head's own go to `totals`."""
    if isinstance(head, HeadWithBackward):
        return head(hidden), partial(head.backward_rows, hidden, totals=totals)
    parameters = [
        p for p, total in zip(head.parameters(), totals, strict=True) if total is not None
    ]
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = head(leaf)

    def pull(slope: Tensor) -> Tensor:
        d_leaf, *parts = torch.autograd.grad(logits, [leaf, *parameters], slope.to(logits.dtype))
        for total, part in zip(
            (total for total in totals if total is not None), parts, strict=True
        ):
            total += part
        return d_leaf

    return logits.detach().clone(), pull


def _chunks(prediction: Prediction, index: Tensor) -> list[Rows]:
    """The flat rows `index` [N], as many at a time as logits are held of; at least one chunk, if an empty one."""
    return _parts(slice(0, len(index)), chunk_rows(prediction.vocab_size, prediction.hidden.device))


def _blocks(
    prediction: Prediction, logits: Tensor, index: Tensor, chunk: Rows
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield (rows, log p [n, V]) of a chunk of `index` with these logits, which are overwritten."""
    for rows in _parts(chunk, block_rows(prediction.vocab_size, logits.device)):
        yield rows, prediction.normalise_(logits[_within(chunk, rows)], index[rows])


def _parts(rows: Rows, size: int) -> list[Rows]:
    """At least one part: an empty one gives values of the right dtype, and gradients of zero."""
    return [
        slice(low, min(low + size, rows.stop))
        for low in range(rows.start, max(rows.stop, rows.start + 1), size)
    ]


def _within(chunk: Rows, rows: Rows) -> Rows:
    """The same rows, counted from the start of a chunk."""
    return slice(rows.start - chunk.start, rows.stop - chunk.start)
