"""Token lists to rows of L tokens, and rows to batches.

A batch is a pure function of the step: a run that resumes needs no cursor but the step's number, and processes
need not talk to share the rows out. Where the rows are, in memory or on disk (`stored`), does not matter to it, nor
whether they are all there (`windows`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.rng import address

Ids: TypeAlias = Sequence[int] | NDArray[np.int64]
BLOCK = 2**20  # tokens that are packed, or looked through, at a time
_SHUFFLE = 0x5F1E  # keeps these numbers apart from the other uses of a seed


class Rows(Protocol):
    """Token ids [n, L] that are read by row numbers, int64 [k], or a slice: a tensor, or `stored.StoredRows`."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice, /) -> Tensor: ...


@dataclass(frozen=True)
class StreamedRows:
    """Rows of a text that is read only as far as it is asked for, in windows of W rows, one after the other.

    size   W
    at_least  k -> the rows of the first whole windows, at least k of them, or all rows of a text that ends before
    close  ends what is done ahead of being asked
    """

    size: int
    at_least: Callable[[int], Rows]
    close: Callable[[], None]


def pack(
    token_lists: Iterable[Ids],
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    between: bool = True,
) -> Tensor:
    """Join documents with EOS between them, cut rows of L = `length` tokens, drop the remainder: int64 [n, L].

    `eos_id` None, or `between` False: nothing between documents. `wrap`: each row is [BOS] + L - 2 tokens + [EOS], the
    rows of MDLM (Sahoo et al. 2024, arXiv 2406.07524, as released), with EOS for BOS unless `bos_id` is given.
    ValueError where the documents do not fill one row.
    """
    return to_tensor(row_blocks(token_lists, length, eos_id, wrap, bos_id, between))


def to_tensor(blocks: Iterable[NDArray[np.int64]]) -> Tensor:
    """The rows of all blocks, in memory: int64 [n, L]."""
    return torch.from_numpy(np.concatenate(list(blocks)))


def row_blocks(
    token_lists: Iterable[Ids],
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    between: bool = True,
    block: int = BLOCK,
    name: str = "the text",
) -> Iterator[NDArray[np.int64]]:
    """The rows of `pack`, a few at a time as the documents come: int64 [k, L], k the rows of about `block` tokens.

    What is held is less than `block` tokens and one document, however many documents there are. `name` is the text's
    name in the error where it does not fill one row.
    """
    pieces = join_documents(token_lists, eos_id if between else None)
    return cut_rows(
        _enough(pieces, length - 2 if wrap else length, name), length, eos_id, wrap, bos_id, block
    )


def cut_rows(
    pieces: Iterable[NDArray[np.int64]],
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    block: int = BLOCK,
) -> Iterator[NDArray[np.int64]]:
    """The rows of `row_blocks` from the stream of tokens that the pieces are when they are joined; none of too few."""
    body = length - 2 if wrap else length
    if body < 1:
        raise ValueError(
            f"length counts the tokens of a row (besides its two ends, with wrap): want > 0, got {body}"
        )
    plain = _crops(pieces, body, max(block, body))
    if not wrap:
        return plain
    if eos_id is None:
        raise ValueError(
            "wrap ends each row with EOS, but eos_id is None: give an EOS token, or wrap=False"
        )
    ends = (0, 0), (eos_id if bos_id is None else bos_id, eos_id)
    return (np.pad(rows, ((0, 0), (1, 1)), constant_values=ends) for rows in plain)


def check_rows(ids: Rows, vocab_size: int, mask_id: int | None) -> None:
    """ValueError unless rows [n, L] are text of a vocabulary: ids in 0 .. V - 1, and no MASK, which is noise."""
    ends, masks, step = [], 0, max(1, BLOCK // max(1, *ids.shape[1:]))
    for first in range(0, len(ids), step):
        some = ids[first : first + step]
        if some.numel():
            least, most = (int(end) for end in torch.aminmax(some))
            ends += [least, most]
            if (
                mask_id is not None and least <= mask_id <= most
            ):  # it is beyond all others in most vocabularies
                masks += int((some == mask_id).sum())
    low, high = min(ends, default=0), max(ends, default=0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"rows hold token ids: want 0 <= id < vocab_size = {vocab_size}, got {low} to {high}; was the text encoded "
            "with another tokenizer?"
        )
    if masks:
        raise ValueError(
            f"rows hold text, and MASK (id {mask_id}) is none: it stands there {masks} times; cut it out"
        )


def evenly_spaced(n: int, k: int) -> Tensor:
    """Row numbers [min(n, k)], int64, spread evenly over n rows: the middle row of each of k equal parts.

    floor((2 i + 1) n / (2 k)) for i = 0 .. k - 1, or all rows where k >= n. ValueError for n < 1 or k < 1.

    >>> spread(9, 3).tolist(), spread(2, 512).tolist()
    ([1, 4, 7], [0, 1])
    """
    if n < 1 or k < 1:
        raise ValueError(
            f"n counts the rows and k those to take: want n >= 1 and k >= 1, got n = {n} and k = {k}"
        )
    k = min(n, k)
    return (2 * torch.arange(k) + 1) * n // (2 * k)


def batch_at(
    ids: Rows | StreamedRows, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1
) -> Tensor:
    """The rows [B / world, L] that process `rank` of `world` sees at `step`; together they see B = `batch_size` rows.

    The rows of each window come in another order in each epoch, windows and epochs follow each other without a gap,
    and step k takes rows k B to (k + 1) B of that stream; rows that are all there are one window. So at any step two
    rows differ by at most 1 in how often they were seen, and what all processes see together does not depend on
    `world`.
    """
    _check(step, batch_size, rank, world)
    share = batch_size // world
    place = step * batch_size + rank * share + torch.arange(share)
    known = ids.at_least(int(place[-1]) + 1) if isinstance(ids, StreamedRows) else ids
    if len(known.shape) != 2 or len(known) == 0:
        raise ValueError(
            f"ids holds the rows of a text, [n, L] with n > 0: got shape {tuple(known.shape)}"
        )
    n, size = len(known), ids.size if isinstance(ids, StreamedRows) else len(ids)
    epoch, row = place // n, place % n
    start = row // size * size  # of the row's window
    parts = []
    for e, first in dict.fromkeys(zip(epoch.tolist(), start.tolist(), strict=True)):
        here = row[(epoch == e) & (start == first)]
        parts.append(_order(range(first, min(first + size, n)), seed, e)[here - first])
    return known[torch.cat(parts).to(known.device)]


def batches(
    ids: Rows | StreamedRows,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Tensor]:
    """`batch_at` of `first_step`, `first_step` + 1 and so on, without end."""
    return (batch_at(ids, step, batch_size, seed, rank, world) for step in count(first_step))


@lru_cache(maxsize=4)  # a batch may straddle two epochs, and two data sets may take turns
def _order(rows: range, seed: int, epoch: int) -> Tensor:
    """The order of a window in an epoch: int64 row numbers, sorted by a hash, which has no ties within an epoch."""
    numbers = torch.arange(rows.start, rows.stop)
    return numbers[address(_SHUFFLE, seed, epoch, numbers).argsort()]


def join_documents(token_lists: Iterable[Ids], eos_id: int | None) -> Iterator[NDArray[np.int64]]:
    """The tokens of each document, EOS between documents: pieces of the stream of tokens."""
    between = np.array([] if eos_id is None else [eos_id], dtype=np.int64)
    for number, tokens in enumerate(token_lists):
        if number:
            yield between
        yield np.asarray(tokens, dtype=np.int64)


def _crops(
    pieces: Iterable[NDArray[np.int64]], length: int, block: int
) -> Iterator[NDArray[np.int64]]:
    """Rows [k, length] of the stream of tokens, cut as soon as `block` tokens are there; the remainder is carried."""
    held: list[NDArray[np.int64]] = []
    size = 0
    for piece in pieces:
        if len(piece):
            held.append(piece)
            size += len(piece)
        if size >= block:
            stream, n = np.concatenate(held), size // length
            size -= n * length
            held = [stream[n * length :]]
            yield stream[: n * length].reshape(n, length)
    if size >= length:
        yield np.concatenate(held)[: size // length * length].reshape(-1, length)


def _enough(
    pieces: Iterable[NDArray[np.int64]], length: int, name: str
) -> Iterator[NDArray[np.int64]]:
    """The pieces; ValueError at their end where they do not fill one row."""
    total = 0
    for piece in pieces:
        total += len(piece)
        yield piece
    if total < length:
        raise ValueError(
            f"{name} has {total} tokens and a row takes {length}: give more text, or a smaller length"
        )


def _check(step: int, batch_size: int, rank: int, world: int) -> None:
    if step < 0:
        raise ValueError(f"step counts batches: want step >= 0, got {step}")
    if not 0 <= rank < world:
        raise ValueError(
            f"rank numbers the `world` processes: want 0 <= rank < {world}, got {rank}"
        )
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size counts the rows of all processes together: want a multiple of {world}, got {batch_size}"
        )
