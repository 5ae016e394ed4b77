"""Documents to rows of L tokens, and rows to batches.

A batch is a pure function of the step. So a resumed run needs only the step's number, and processes
share the rows of a batch without communication.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.rng import address

Ids: TypeAlias = Sequence[int] | NDArray[np.int64]
BLOCK = 2**20  # tokens that are packed or checked at a time
_SHUFFLE = 0x5F1E  # separates these random numbers from other uses of a seed


class Rows(Protocol):
    """Token ids [n, L], read by row numbers int64 [k] or by a slice: a tensor or `StoredRows`."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice, /) -> Tensor: ...


@dataclass(frozen=True)
class StreamedRows:
    """Rows of a text that is read only as far as needed, in windows of W rows.

    Attributes:
        size: W.
        at_least: k -> the rows of the first whole windows, at least k rows. All rows if the text
            has fewer.
        close: ends the prefetch.
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
) -> Tensor:
    """Join documents with EOS between them, cut rows of L tokens, drop the remainder: int64 [n, L].

    With `wrap` a row is [BOS] + L - 2 tokens + [EOS], as in MDLM (Sahoo et al. 2024, arXiv
    2406.07524, as released).

    Args:
        token_lists: the token ids of each document.
        length: L.
        eos_id: EOS; None puts nothing between documents.
        wrap: put BOS and EOS at the ends of each row.
        bos_id: BOS; None uses EOS.

    Raises:
        ValueError: the documents do not fill one row.
    """
    return to_tensor(row_blocks(token_lists, length, eos_id, wrap, bos_id))


def to_tensor(blocks: Iterable[NDArray[np.int64]]) -> Tensor:
    """The rows of all blocks, in memory: int64 [n, L]."""
    return torch.from_numpy(np.concatenate(list(blocks)))


def row_blocks(
    token_lists: Iterable[Ids],
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    block: int = BLOCK,
    name: str = "the text",
) -> Iterator[NDArray[np.int64]]:
    """The rows of `pack` in blocks, so that memory holds only a block and one document.

    Args:
        token_lists: the token ids of each document.
        length: L.
        eos_id: EOS; None puts nothing between documents.
        wrap: put BOS and EOS at the ends of each row.
        bos_id: BOS; None uses EOS.
        block: tokens of a block.
        name: the text's name, for the error.

    Returns:
        Rows [k, L], int64. ValueError at the end if the documents do not fill one row.
    """
    body = length - 2 if wrap else length
    pieces = _check_total(join_documents(token_lists, eos_id), body, name)
    return cut_rows(pieces, length, eos_id, wrap, bos_id, block)


def join_documents(token_lists: Iterable[Ids], eos_id: int | None) -> Iterator[NDArray[np.int64]]:
    """The stream of tokens in pieces: the tokens of each document, and EOS between documents."""
    separator = np.array([] if eos_id is None else [eos_id], dtype=np.int64)
    for number, tokens in enumerate(token_lists):
        if number:
            yield separator
        yield np.asarray(tokens, dtype=np.int64)


def cut_rows(
    pieces: Iterable[NDArray[np.int64]],
    length: int,
    eos_id: int | None,
    wrap: bool = False,
    bos_id: int | None = None,
    block: int = BLOCK,
) -> Iterator[NDArray[np.int64]]:
    """Cut a stream of tokens, given in pieces, into the rows of `row_blocks`: int64 [k, L].

    If the tokens do not fill one row, there are no rows.
    """
    body = length - 2 if wrap else length
    if body < 1:
        raise ValueError(
            f"length is {length}: want at least {3 if wrap else 1} tokens in a row"
            f"{', which begins with BOS and ends with EOS' if wrap else ''}"
        )
    rows = _cut(pieces, body, max(block, body))
    if not wrap:
        return rows
    if eos_id is None:
        raise ValueError("wrap needs EOS at the ends of rows, but eos_id is None: use wrap=False")
    ends = (0, 0), (eos_id if bos_id is None else bos_id, eos_id)
    return (np.pad(body_rows, ((0, 0), (1, 1)), constant_values=ends) for body_rows in rows)


def check_rows(ids: Rows, vocab_size: int, mask_id: int | None) -> None:
    """ValueError unless rows [n, L] hold only ids in 0 .. V - 1, and no MASK."""
    ends: list[int] = []
    masks, step = 0, max(1, BLOCK // max(1, *ids.shape[1:]))
    for first in range(0, len(ids), step):
        part = ids[first : first + step]
        if part.numel():
            least, greatest = (int(end) for end in torch.aminmax(part))
            ends += [least, greatest]
            # MASK is greater than all ids of text in most vocabularies.
            if mask_id is not None and least <= mask_id <= greatest:
                masks += int((part == mask_id).sum())
    low, high = min(ends, default=0), max(ends, default=0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"rows hold wrong token ids: got {low} to {high}, want 0 <= id < vocab_size = "
            f"{vocab_size}; encode the text with the tokenizer of this vocabulary"
        )
    if masks:
        raise ValueError(
            f"rows hold MASK (id {mask_id}) {masks} times: want ids of text only; remove MASK"
        )


def evenly_spaced(n: int, k: int) -> Tensor:
    """The numbers of k evenly spaced rows of n, int64 [min(n, k)]: the middles of k equal parts.

    They are floor((2 i + 1) n / (2 k)) for i = 0 .. k - 1, or all rows if k >= n. ValueError for
    n < 1 or k < 1.

    >>> evenly_spaced(9, 3).tolist(), evenly_spaced(2, 512).tolist()
    ([1, 4, 7], [0, 1])
    """
    if n < 1 or k < 1:
        raise ValueError(f"n or k is too small: got n = {n} and k = {k}, want n >= 1 and k >= 1")
    k = min(n, k)
    return (2 * torch.arange(k) + 1) * n // (2 * k)


def batch_at(
    ids: Rows | StreamedRows,
    step: int,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """The rows [B / world, L] of one process in the batch of a step.

    Each epoch shuffles the rows inside every window. The sequence of rows is window after window
    and epoch after epoch; step k takes its rows k B to (k + 1) B. Rows that are not streamed are
    one window. At any step, the numbers of uses of any two rows differ by at most 1. The batch of
    all processes together does not depend on `world`.

    Args:
        ids: the rows [n, L].
        step: number of the batch, from 0.
        batch_size: B, rows of all processes together; a multiple of `world`.
        seed: seed of the shuffles.
        rank: number of this process.
        world: number of processes.
    """
    _check_batch(step, batch_size, rank, world)
    share = batch_size // world
    place = step * batch_size + rank * share + torch.arange(share)
    rows = ids.at_least(int(place[-1]) + 1) if isinstance(ids, StreamedRows) else ids
    if len(rows.shape) != 2 or len(rows) == 0:
        raise ValueError(f"ids has shape {tuple(rows.shape)}: want rows [n, L] with n > 0")
    n = len(rows)
    size = ids.size if isinstance(ids, StreamedRows) else n
    epoch, number = place // n, place % n
    window = number // size * size  # its first row
    parts = []
    for e, first in dict.fromkeys(zip(epoch.tolist(), window.tolist(), strict=True)):
        inside = number[(epoch == e) & (window == first)]
        parts.append(_shuffled(range(first, min(first + size, n)), seed, e)[inside - first])
    return rows[torch.cat(parts).to(rows.device)]


@lru_cache(maxsize=4)  # a batch may contain two epochs, and two data sets may alternate
def _shuffled(rows: range, seed: int, epoch: int) -> Tensor:
    """The row numbers of a window in the order of an epoch, int64: sorted by a hash, no ties."""
    numbers = torch.arange(rows.start, rows.stop)
    return numbers[address(_SHUFFLE, seed, epoch, numbers).argsort()]


def _cut(
    pieces: Iterable[NDArray[np.int64]], length: int, block: int
) -> Iterator[NDArray[np.int64]]:
    """Cut rows [k, L] whenever memory holds `block` tokens, and keep the remaining tokens."""
    held: list[NDArray[np.int64]] = []
    size = 0
    for piece in pieces:
        if len(piece):
            held.append(piece)
            size += len(piece)
        if size >= block:
            tokens, n = np.concatenate(held), size // length
            size -= n * length
            held = [tokens[n * length :]]
            yield tokens[: n * length].reshape(n, length)
    if size >= length:
        yield np.concatenate(held)[: size // length * length].reshape(-1, length)


def _check_total(
    pieces: Iterable[NDArray[np.int64]], length: int, name: str
) -> Iterator[NDArray[np.int64]]:
    """Yield the pieces; ValueError at the end if they do not fill one row."""
    total = 0
    for piece in pieces:
        total += len(piece)
        yield piece
    if total < length:
        raise ValueError(
            f"{name} has {total} tokens and a row takes {length}: give more text, or a smaller "
            "length"
        )


def _check_batch(step: int, batch_size: int, rank: int, world: int) -> None:
    if step < 0:
        raise ValueError(f"step is {step}: want >= 0")
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}: want 0 <= rank < world = {world}")
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size is {batch_size}: want a positive multiple of the {world} processes"
        )
