"""Token lists to rows of L tokens, and rows to batches.

A batch is a pure function of the step: a run that resumes needs no cursor but the step's number, and processes
need not talk to share the rows out.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.rng import address

_SHUFFLE = 0x5F1E  # keeps these numbers apart from the other uses of a seed


def pack(
    token_lists: Iterable[Sequence[int]],
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
    if wrap:
        if eos_id is None:
            raise ValueError("wrap ends each row with EOS, but eos_id is None: give an EOS token, or wrap=False")
        body = pack(token_lists, length - 2, eos_id if between else None)
        bos, eos = (torch.full((len(body), 1), end) for end in (eos_id if bos_id is None else bos_id, eos_id))
        return torch.cat([bos, body, eos], dim=1)
    if length < 1:
        raise ValueError(f"length counts the tokens of a row (besides its two ends, with wrap): want > 0, got {length}")
    stream = _join(token_lists, eos_id if between else None)
    if len(stream) < length:
        raise ValueError(
            f"the text has {len(stream)} tokens and a row takes {length}: give more text, or a smaller length"
        )
    n = len(stream) // length
    return torch.from_numpy(stream[: n * length]).view(n, length)


def check_rows(ids: Tensor, vocab_size: int, mask_id: int | None) -> None:
    """ValueError unless rows [n, L] are text of a vocabulary: ids in 0 .. V - 1, and no MASK, which is noise."""
    low, high = (int(end) for end in torch.aminmax(ids)) if ids.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"rows hold token ids: want 0 <= id < vocab_size = {vocab_size}, got {low} to {high}; was the text encoded "
            "with another tokenizer?"
        )
    if mask_id is not None and bool((ids == mask_id).any()):
        count = int((ids == mask_id).sum())
        raise ValueError(f"rows hold text, and MASK (id {mask_id}) is none: it stands there {count} times; cut it out")


def batch_at(ids: Tensor, step: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Tensor:
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
    ids: Tensor, batch_size: int, seed: int, first_step: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """`batch_at` of `first_step`, `first_step` + 1 and so on, without end."""
    return (batch_at(ids, step, batch_size, seed, rank, world) for step in count(first_step))


@lru_cache(maxsize=4)  # a batch may straddle two epochs, and two data sets may take turns
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in an epoch: int64 [n], row numbers sorted by a hash, which has no ties within an epoch."""
    return address(_SHUFFLE, seed, epoch, torch.arange(n)).argsort()


def _join(token_lists: Iterable[Sequence[int]], eos_id: int | None) -> NDArray[np.int64]:
    """One stream of tokens, EOS between documents."""
    between = np.array([] if eos_id is None else [eos_id], dtype=np.int64)
    pieces = [piece for tokens in token_lists for piece in (between, np.asarray(tokens, dtype=np.int64))]
    return np.concatenate(pieces[1:] or [between[:0]])


def _check(ids: Tensor, step: int, batch_size: int, rank: int, world: int) -> None:
    if ids.dim() != 2 or len(ids) == 0:
        raise ValueError(f"ids holds the rows of a text, [n, L] with n > 0: got shape {tuple(ids.shape)}")
    if step < 0:
        raise ValueError(f"step counts batches: want step >= 0, got {step}")
    if not 0 <= rank < world:
        raise ValueError(f"rank numbers the `world` processes: want 0 <= rank < {world}, got {rank}")
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size counts the rows of all processes together: want a multiple of {world}, got {batch_size}"
        )
