"""The KV cache of a network, and gather and scatter of positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

# New keys and values -> all cached ones, each [B, heads, L, d].
Keep: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Cache:
    """Keys and values of positions that a network has computed, one pair for each block.

    A forward pass writes the keys and values of its positions, and attends to all cached positions.
    A causal network appends, which is exact. A bidirectional network writes a full row, then
    windows of that row. This is an approximation, because the cached keys and values were computed
    from other tokens in the window. Writes are in place, so no gradient flows.

    Attributes:
        pairs: keys and values [B, heads, capacity, head width], capacity >= length
        length: number of cached positions
    """

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0

    def write(
        self, block: int, positions: int | Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a block, and return all cached ones of that block.

        Args:
            block: Index of the block.
            positions: Positions [B, l] of each sequence, each < length, or the first of l
                consecutive positions, <= length.
            keys: New keys [B, heads, l, head width].
            values: New values, of the same shape.
        """
        if isinstance(positions, Tensor):
            for table, new in zip(self.pairs[block], (keys, values), strict=True):
                scatter_positions(table.transpose(1, 2), positions, new.transpose(1, 2))
        elif block == len(self.pairs):
            self.pairs.append((keys, values))
        else:
            old_keys, old_values = self.pairs[block]
            self.pairs[block] = (
                _written(old_keys, positions, keys),
                _written(old_values, positions, values),
            )
        if not isinstance(positions, Tensor):
            self.length = max(self.length, positions + keys.shape[2])
        kept_keys, kept_values = self.pairs[block]
        return kept_keys[:, :, : self.length], kept_values[:, :, : self.length]

    def __getitem__(self, rows: Tensor) -> Cache:
        """A copy for some of the sequences."""
        return Cache([(keys[rows], values[rows]) for keys, values in self.pairs], self.length)


def _written(table: Tensor, first: int, new: Tensor) -> Tensor:
    """`table` [B, heads, capacity, d] with `new` [B, heads, l, d] from `first` on; it may grow."""
    stop = first + new.shape[2]
    if stop > table.shape[2]:
        # Doubling the capacity copies each token about once in total.
        larger = table.new_empty(*table.shape[:2], 2 * stop, table.shape[3])
        larger[:, :, :first] = table[:, :, :first]
        table = larger
    table[:, :, first:stop] = new
    return table


def gather_positions(table: Tensor, positions: Tensor) -> Tensor:
    """The entries of each row of `table` [B, L, ...] at its `positions` [B, W]: [B, W, ...]."""
    return table[_rows(positions), positions]


def scatter_positions(table: Tensor, positions: Tensor, new: Tensor) -> Tensor:
    """Write `new` [B, W, ...] into `table` [B, L, ...] at `positions` [B, W]; returns `table`."""
    table[_rows(positions), positions] = new
    return table


def _rows(positions: Tensor) -> Tensor:
    return torch.arange(len(positions), device=positions.device)[:, None]
