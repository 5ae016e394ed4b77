"""Token lists to rows of L tokens, and rows to batches.

A batch is a pure function of the step: a run that resumes needs no cursor but the step's number, and processes
need not talk to share the rows out. Where the rows are, in memory or on disk (`stored`), does not matter to it.
"""

from collections.abc import Iterable, Iterator, Sequence
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
    return joined(row_blocks(token_lists, length, eos_id, wrap, bos_id, between))


def joined(blocks: Iterable[NDArray[np.int64]]) -> Tensor:
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
) -> Iterator[NDArray[np.int64]]:
    """The rows of `pack`, a few at a time as the documents come: int64 [k, L], k the rows of about `block` tokens.

    What is held is less than `block` tokens and one document, however many documents there are.
    """
    body = length - 2 if wrap else length
    if body < 1:
        raise ValueError(f"length counts the tokens of a row (besides its two ends, with wrap): want > 0, got {body}")
    crops = _crops(_pieces(token_lists, eos_id if between else None), body, max(block, body))
    if not wrap:
        return crops
    if eos_id is None:
        raise ValueError("wrap ends each row with EOS, but eos_id is None: give an EOS token, or wrap=False")
    ends = (0, 0), (eos_id if bos_id is None else bos_id, eos_id)
    return (np.pad(rows, ((0, 0), (1, 1)), constant_values=ends) for rows in crops)


def check_rows(ids: Rows, vocab_size: int, mask_id: int | None) -> None:
    """ValueError unless rows [n, L] are text of a vocabulary: ids in 0 .. V - 1, and no MASK, which is noise."""
    ends, masks, step = [], 0, max(1, BLOCK // max(1, *ids.shape[1:]))
    for first in range(0, len(ids), step):
        some = ids[first : first + step]
        if some.numel():
            least, most = (int(end) for end in torch.aminmax(some))
            ends += [least, most]
            if mask_id is not None and least <= mask_id <= most:  # it is beyond all others in most vocabularies
                masks += int((some == mask_id).sum())
    low, high = min(ends, default=0), max(ends, default=0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"rows hold token ids: want 0 <= id < vocab_size = {vocab_size}, got {low} to {high}; was the text encoded "
            "with another tokenizer?"
        )
    if masks:
        raise ValueError(f"rows hold text, and MASK (id {mask_id}) is none: it stands there {masks} times; cut it out")


def batch_at(ids: Rows, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Tensor:
    """The rows [B / world, L] that process `rank` of `world` sees at `step`; together they see B = `batch_size` rows.

    The rows of each epoch come in an order of its own, epochs follow each other without a gap, and step k takes
    rows k B to (k + 1) B of that stream. So at any step two rows differ by at most 1 in how often they were seen,
    and what all processes see together does not depend on `world`.
    """
    _check(ids, step, batch_size, rank, world)
    share = batch_size // world
    place = step * batch_size + rank * share + torch.arange(share)
    epoch, row = place // len(ids), place % len(ids)
    epochs = range(int(epoch[0]), int(epoch[-1]) + 1)
    order = torch.cat([_order(len(ids), seed, e)[row[epoch == e]] for e in epochs])
    return ids[order.to(ids.device)]


def batches(
    ids: Rows, batch_size: int, seed: int, first_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """`batch_at` of `first_step`, `first_step` + 1 and so on, without end."""
    return (batch_at(ids, step, batch_size, seed, rank, world) for step in count(first_step))


@lru_cache(maxsize=4)  # a batch may straddle two epochs, and two data sets may take turns
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in an epoch: int64 [n], row numbers sorted by a hash, which has no ties within an epoch."""
    return address(_SHUFFLE, seed, epoch, torch.arange(n)).argsort()


def _pieces(token_lists: Iterable[Ids], eos_id: int | None) -> Iterator[NDArray[np.int64]]:
    """The tokens of each document, EOS between documents."""
    between = np.array([] if eos_id is None else [eos_id], dtype=np.int64)
    for number, tokens in enumerate(token_lists):
        if number:
            yield between
        yield np.asarray(tokens, dtype=np.int64)


def _crops(pieces: Iterable[NDArray[np.int64]], length: int, block: int) -> Iterator[NDArray[np.int64]]:
    """Rows [k, length] of the stream of tokens, cut as soon as `block` tokens are there; the remainder is carried."""
    held: list[NDArray[np.int64]] = []
    size = total = 0
    for piece in pieces:
        if len(piece):
            held.append(piece)
            size, total = size + len(piece), total + len(piece)
        if size >= block:
            stream, n = np.concatenate(held), size // length
            size -= n * length
            held = [stream[n * length :]]
            yield stream[: n * length].reshape(n, length)
    if total < length:
        raise ValueError(f"the text has {total} tokens and a row takes {length}: give more text, or a smaller length")
    if size >= length:
        yield np.concatenate(held)[: size // length * length].reshape(-1, length)


def _check(ids: Rows, step: int, batch_size: int, rank: int, world: int) -> None:
    if len(ids.shape) != 2 or len(ids) == 0:
        raise ValueError(f"ids holds the rows of a text, [n, L] with n > 0: got shape {tuple(ids.shape)}")
    if step < 0:
        raise ValueError(f"step counts batches: want step >= 0, got {step}")
    if not 0 <= rank < world:
        raise ValueError(f"rank numbers the `world` processes: want 0 <= rank < {world}, got {rank}")
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size counts the rows of all processes together: want a multiple of {world}, got {batch_size}"
        )
