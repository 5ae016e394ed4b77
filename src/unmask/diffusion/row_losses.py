"""Losses of single rows of the vocabulary, computed in bounded memory.

A `RowLoss` is a function that gives the values of some rows, and their derivatives with respect to
the logits in closed form. `compute_row_loss` applies it to the selected rows of a `Prediction`, as
a custom `autograd.Function`:

    for each chunk of rows:                  one call of the head
        for each block of rows in a chunk:   small enough for the cache of one core
            values and d logits              the `RowLoss`
        d hidden and d head                  one backward call of the head

The forward pass computes the gradients too, so the head runs once. Only the gradients of the hidden
rows [N, D] and of the head [V, D] are kept after a chunk. So memory does not grow with N V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unmask.prediction import Head, HeadWithBackward, Prediction, block_rows, chunk_rows
from unmask.types import PerToken

Rows = slice  # consecutive rows among the N selected ones


# The values [n], nats, and a function that computes d value / d logits [n, V], 0 where p is 0.
ValueAndGradient = tuple[Tensor, Callable[[], Tensor]]
# The loss of a block from log p [n, V] and its rows. It and its gradient may overwrite log p.
BlockLoss = Callable[[Tensor, Rows], ValueAndGradient]
# The loss of a chunk, after work that its blocks share (a teacher's head).
RowLoss = Callable[[Rows], BlockLoss]


def compute_row_loss(
    prediction: Prediction, loss: RowLoss, index: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Compute a loss at selected rows, differentiable in the hidden states and the head.

    Args:
        prediction: the prediction of all rows; its head has not run.
        loss: the loss of a chunk of rows.
        index: flat row indices [N].
        weight: constants [N] that multiply the values; None: 1. A factor on the result would
            cost a second pass of the head, unless all rows have the same factor.

    Returns:
        The values [N].
    """
    hidden, parameters = prediction.hidden_rows(index), list(prediction.head.parameters())
    needs_grad = any(tensor.requires_grad for tensor in (hidden, *parameters))
    if torch.is_grad_enabled() and needs_grad:
        weighted: Tensor = _RowLossFunction.apply(  # type: ignore[no-untyped-call]
            loss, prediction, index, weight, hidden, *parameters
        )
        return weighted
    values = []
    for chunk in _chunks(prediction, index):
        block_loss = loss(chunk)
        for rows, log_p in _blocks(prediction, prediction.logits(index[chunk]), index, chunk):
            values.append(block_loss(log_p, rows)[0])
    total = torch.cat(values)
    return total if weight is None else total * weight.to(total)


def scatter_rows(values: Tensor, where: Tensor) -> PerToken:
    """Put N row values at the N positions of `where` (bool [B, L], row-major): [B, L], else 0."""
    return values.new_zeros(where.shape).masked_scatter(where, values)


def softmax_backward(p: Tensor, slope: Tensor) -> Tensor:
    """Turn d f / d p into d f / d logits for p = softmax(logits): p (slope - <p, slope>).

    [n, V] each. Overwrites both.
    """
    return p.mul_(slope.sub_((p * slope).sum(-1)[:, None]))


def within(chunk: Rows, rows: Rows) -> Rows:
    """Convert a range of rows to indices relative to the start of its chunk."""
    return slice(rows.start - chunk.start, rows.stop - chunk.start)


class _RowLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: RowLoss,
        prediction: Prediction,
        index: Tensor,
        weight: Tensor | None,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.loss, ctx.prediction, ctx.index, ctx.weight = loss, prediction, index, weight
        values, ctx.gradients = _values_and_gradients(
            loss, prediction, index, hidden, ctx.needs_input_grad[5:], weight
        )
        ctx.save_for_backward(hidden, *parameters)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Unpacking also raises an error if a weight has changed since the forward pass.
        hidden, *_ = ctx.saved_tensors
        # The caller now owns the gradients, so a second backward pass computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        same_factor = not len(grad) or not bool((grad != grad[0]).any())
        if gradients is None or not same_factor:
            # The gradient of the head is a sum over rows, so it cannot be rescaled row by row.
            weight = grad if ctx.weight is None else grad * ctx.weight.to(grad)
            _, gradients = _values_and_gradients(
                ctx.loss, ctx.prediction, ctx.index, hidden, ctx.needs_input_grad[5:], weight
            )
        elif len(grad) and bool(grad[0] != 1):
            gradients = [None if total is None else total.mul_(grad[0]) for total in gradients]
        return None, None, None, None, *gradients


def _values_and_gradients(
    loss: RowLoss,
    prediction: Prediction,
    index: Tensor,
    hidden: Tensor,
    needs_grad: Sequence[bool],
    weight: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """The values [N], times `weight` [N] if given, and the gradients of their sum.

    The gradients are those of the hidden rows [N, D] and of each parameter of the head. A parameter
    that needs no gradient (`needs_grad`) has None.
    """
    parameters = list(prediction.head.parameters())
    d_hidden = torch.zeros_like(hidden)
    d_head = [
        torch.zeros_like(parameter) if needed else None
        for parameter, needed in zip(parameters, needs_grad, strict=True)
    ]
    unknown, values = prediction.is_unknown(index), []
    # Only on a CPU: elsewhere reading `unknown` would stall the device.
    some_visible = hidden.device.type != "cpu" or not bool(unknown.all())
    for chunk in _chunks(prediction, index):
        logits, head_backward = _run_head(prediction.head, hidden[chunk], d_head)
        block_loss, d_logits = loss(chunk), logits
        for rows, log_p in _blocks(prediction, logits, index, chunk):
            value, gradient = block_loss(log_p, rows)
            slope = gradient()
            del gradient  # it holds the teacher's rows, which the next block does not need
            if weight is not None:
                factor = weight[rows].to(slope)
                value, slope = value * factor, slope.mul_(factor[:, None])
            if some_visible:  # the point mass of a visible token has no gradient
                slope = slope.mul_(unknown[rows, None])
            values.append(value)
            if rows == chunk:
                d_logits = slope
            else:  # these logits have been read and may be overwritten
                d_logits[within(chunk, rows)] = slope
        d_hidden[chunk] = head_backward(d_logits)
    return torch.cat(values), [d_hidden, *d_head]


def _run_head(
    head: Head, hidden: Tensor, totals: Sequence[Tensor | None]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Apply the head: return the logits [n, V] and its backward pass, d logits -> d hidden.

    The caller may overwrite the logits. The backward pass adds the gradients of the head's
    parameters to `totals`.
    """
    if isinstance(head, HeadWithBackward):
        return head(hidden), partial(head.backward_rows, hidden, totals=totals)
    buffers = [total for total in totals if total is not None]
    parameters = [
        parameter
        for parameter, total in zip(head.parameters(), totals, strict=True)
        if total is not None
    ]
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        logits = head(leaf)

    def backward(slope: Tensor) -> Tensor:
        d_leaf, *parts = torch.autograd.grad(logits, [leaf, *parameters], slope.to(logits.dtype))
        for total, part in zip(buffers, parts, strict=True):
            total += part
        return d_leaf

    return logits.detach().clone(), backward


def _chunks(prediction: Prediction, index: Tensor) -> list[Rows]:
    """Split the N selected rows into chunks, one call of the head each."""
    size = chunk_rows(prediction.vocab_size, prediction.hidden.device)
    return _split(slice(0, len(index)), size)


def _blocks(
    prediction: Prediction, logits: Tensor, index: Tensor, chunk: Rows
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield (rows, log p [n, V]) for the blocks of a chunk. Overwrites the chunk's logits."""
    for rows in _split(chunk, block_rows(prediction.vocab_size, logits.device)):
        yield rows, prediction.normalise_(logits[within(chunk, rows)], index[rows])


def _split(rows: Rows, size: int) -> list[Rows]:
    """Split rows into parts of at most `size`.

    There is at least one part. An empty part gives values of the right dtype and zero gradients.
    """
    return [
        slice(low, min(low + size, rows.stop))
        for low in range(rows.start, max(rows.stop, rows.start + 1), size)
    ]
