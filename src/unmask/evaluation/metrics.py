"""Diversity measures of drawn texts: entropies, n-grams, overlap, disagreement of completions.

Each function returns a value per sample, so that every mean has a standard error and comparisons
can be paired. Token ids are int64 [n, L]: n samples of L tokens. All results are exact counts in
float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.rng import address, uniform
from unmask.types import PerSequence, Tokens

_HALVES = 0x48414C46  # random stream of the positions that `half_masked` masks


def entropy(tokens: Tokens) -> PerSequence:
    """Unigram entropy of each sample's token ids, -sum_v (c_v/L) ln(c_v/L): [n] nats, at most ln L.

    As in Duo (arXiv 2506.10892), without a correction for L. The entropy does not show whether all
    samples are the same text.

    >>> entropy(torch.tensor([[5, 5, 5, 5], [1, 2, 1, 2]]))
    tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    if not isinstance(tokens, Tensor):
        raise ValueError(
            f"tokens is not a tensor: got {type(tokens).__name__}, want ids [n, L] as an int64 "
            "tensor; use torch.tensor(tokens), or the field .tokens of samples"
        )
    return (tokens.shape[1] / own_counts(grams(tokens, 1)).double()).log().mean(dim=1)


def pooled_entropy(tokens: Tokens, n: int = 4) -> PerSequence:
    """Entropy of the n-grams of all samples together, nats: the mean of the returned values [rows].

    A sample's value is the mean of -ln(share of the pool) over its n-grams. The value is also the
    influence of the sample on the entropy, so the spread of the values gives the standard error.
    The entropy grows with the number of samples: compare at equal n.

    >>> pooled_entropy(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    tensor([0.6931, 0.6931], dtype=torch.float64)
    """
    ids = grams(tokens, n)
    return (ids.numel() / ids.flatten().bincount()[ids].double()).log().mean(dim=1)


def repetition(tokens: Tokens, n: int) -> PerSequence:
    """Share of a sample's n-grams that repeat an earlier n-gram: 1 - distinct / all, [rows].

    >>> repetition(torch.tensor([[1, 2, 1, 2, 1]]), 2)
    tensor([0.5000], dtype=torch.float64)
    """
    return 1 - own_counts(grams(tokens, n)).double().reciprocal().mean(dim=1)


def distinct_n(tokens: Tokens, n: int) -> PerSequence:
    """Distinct / all n-grams of the set (distinct-n): the mean of the returned values [rows].

    >>> distinct_n(torch.tensor([[1, 2, 3], [1, 2, 3]]), 2).mean()
    tensor(0.5000, dtype=torch.float64)
    """
    ids = grams(tokens, n)
    return ids.flatten().bincount()[ids].double().reciprocal().mean(dim=1)


def overlap(tokens: Tokens, n: int = 4, subset: int = 64) -> PerSequence:
    """Share of a sample's n-grams in another sample, mean over the others: [min(rows, subset)].

    The mean covers every ordered pair of the first `subset` rows. It is 1 if all samples are one
    text, whatever the entropy of this text.

    >>> overlap(torch.tensor([[1, 2, 3], [1, 2, 4]]), n=2)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    ids = grams(tokens[:subset], n)
    rows = len(ids)
    if rows < 2:
        raise ValueError(f"tokens has too few samples for an overlap: got {rows}, want at least 2")
    counts = torch.zeros(rows, int(ids.max()) + 1, device=ids.device)
    counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
    shared = (counts @ (counts > 0).to(counts).T).double() / ids.shape[1]
    return (shared.sum(dim=1) - shared.diagonal()) / (rows - 1)


def half_masked(texts: Tokens, share: float = 0.5, seed: int = 0) -> Tokens:
    """Texts [T, L] with round(share L) positions of each set to -1, chosen by (seed, text)."""
    count, length = texts.shape
    rows = torch.arange(count, device=texts.device)[:, None]
    columns = torch.arange(length, device=texts.device)[None]
    order = uniform(address(_HALVES, seed, rows, columns)).argsort(dim=1).argsort(dim=1)
    return texts.masked_fill(order < round(share * length), -1)


def completion_disagreement(
    complete: Callable[[Tokens], Tokens],
    texts: Tokens,
    completions: int = 16,
    share: float = 0.5,
    seed: int = 0,
) -> PerSequence:
    """P(two completions of a text differ at a masked position), mean over positions: [T].

    This is diversity given a context. A method that keeps one mode per context keeps its unigram
    entropy and loses this diversity.

    Args:
        complete: function from pinned ids [T completions, L], -1 at free positions, to independent
            ids of this shape.
        texts: real rows [T, L]; entry i of the result belongs to text i, for every model.
        completions: completions per text, at least 2.
        share: share of the positions that are masked.
        seed: seed of the masked positions.
    """
    if completions < 2:
        raise ValueError(f"completions is too small: got {completions}, want completions >= 2")
    masked = half_masked(texts, share, seed)
    if not bool((masked == -1).any(dim=1).all()):
        raise ValueError(
            f"share is too small: got {share}, which masks none of {masked.shape[1]} tokens"
        )
    pinned = masked.repeat_interleave(completions, dim=0)
    drawn = complete(pinned)
    if drawn.shape != pinned.shape or not bool((drawn == pinned)[pinned != -1].all()):
        raise ValueError(
            f"complete changed pinned tokens or the shape: got {tuple(drawn.shape)}, want ids "
            f"{tuple(pinned.shape)} with the pinned tokens"
        )
    sets = zip(drawn.split(completions), masked == -1, strict=True)
    return torch.stack([disagreement(rows[:, free]) for rows, free in sets])


def disagreement(rows: Tokens) -> Tensor:
    """P(two of k rows differ at a position), mean over positions: rows [k, M] -> scalar, unbiased.

    >>> disagreement(torch.tensor([[1, 7], [1, 8], [1, 8]]))
    tensor(0.3333, dtype=torch.float64)
    """
    k = len(rows)
    agreeing = own_counts(rows.T).double() - 1  # number of other rows with the same token
    return 1 - agreeing.mean() / (k - 1)


def grams(tokens: Tokens, n: int) -> Tokens:
    """Number the n-grams: ids [rows, L - n + 1] in 0 .. distinct - 1, equal for equal n-grams."""
    rows, length = tokens.shape
    if not (rows >= 1 and 1 <= n <= length):
        raise ValueError(
            f"n or tokens is out of range: got n = {n} and tokens {[rows, length]}, "
            "want rows >= 1 and 1 <= n <= L"
        )
    single = _number(tokens)
    size, ids = int(single.max()) + 1, single
    for shift in range(1, n):  # ids < rows L and size < V, so the product fits 64 bits
        ids = _number(ids[:, :-1] * size + single[:, shift:])
    return ids


def _number(values: Tensor) -> Tokens:
    inverse: Tensor = torch.unique(values, return_inverse=True)[1]
    return inverse


def own_counts(ids: Tokens) -> Tokens:
    """Count each entry of ids [n, L] in its own row: [n, L], in the order of the sorted row."""
    ids = ids.sort(dim=1).values
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    run = starts.long().cumsum(dim=1) - 1
    return torch.zeros_like(ids).scatter_add_(1, run, torch.ones_like(ids)).gather(1, run)
