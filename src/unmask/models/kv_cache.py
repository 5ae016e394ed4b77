"""Keys and values that are kept between two passes of a network, and tables read and written place by place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Keep: TypeAlias = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # new keys and values -> all, [B, heads, L, d]


@dataclass
class Cache:
    """Keys and values of the positions that a network has read, one pair a block.

    A pass writes those of the positions it reads at their places, and attends to all that are kept. A causal network
    writes behind the last: exact. A bidirectional one writes a whole row, then windows of it: not exact, because what
    is kept of the other positions was made when the window held other tokens. In place: for passes without gradient.

    pairs   keys and values [B, heads, room, head width], room >= length
    length  positions that are kept
    """

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0

    def write(
        self, block: int, places: int | Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values [B, heads, l, head width] of a block; returns all that it keeps.

        places  [B, l], each < length, for each sequence its own; or the first of l in a row, <= length
        """
        if isinstance(places, Tensor):
            for table, new in zip(self.pairs[block], (keys, values), strict=True):
                put_at_places(table.transpose(1, 2), places, new.transpose(1, 2))
        elif block == len(self.pairs):
            self.pairs.append((keys, values))
        else:
            old_keys, old_values = self.pairs[block]
            self.pairs[block] = _laid(old_keys, places, keys), _laid(old_values, places, values)
        if not isinstance(places, Tensor):
            self.length = max(self.length, places + keys.shape[2])
        kept_keys, kept_values = self.pairs[block]
        return kept_keys[:, :, : self.length], kept_values[:, :, : self.length]

    def __getitem__(self, rows: Tensor) -> Cache:
        """A copy of what is kept of these sequences."""
        return Cache([(keys[rows], values[rows]) for keys, values in self.pairs], self.length)


def _laid(table: Tensor, first: int, new: Tensor) -> Tensor:
    """`table` [B, heads, room, d] with `new` [B, heads, l, d] from `first` on; where it has no room, a larger one."""
    stop = first + new.shape[2]
    if stop > table.shape[2]:  # twice the room: a token is copied about once, however many follow
        larger = table.new_empty(*table.shape[:2], 2 * stop, table.shape[3])
        larger[:, :, :first] = table[:, :, :first]
        table = larger
    table[:, :, first:stop] = new
    return table


def at_places(table: Tensor, places: Tensor) -> Tensor:
    """Of each row of `table` [B, L, ...] its entries at `places` [B, W]: [B, W, ...]."""
    return table[_rows(places), places]


def put_at_places(table: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """`table` [B, L, ...], in which each row now holds `new` [B, W, ...] at its `places` [B, W]."""
    table[_rows(places), places] = new
    return table


def _rows(places: Tensor) -> Tensor:
    return torch.arange(len(places), device=places.device)[:, None]
