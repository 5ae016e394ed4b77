"""A simulated processor: results of elementary functions move by one unit in the last place.

Vector libraries guarantee sines, powers and logarithms to one unit in the last place, and differ
below it. A law that holds under each of `SHIFTS` holds on every processor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ELEMENTARY = {
    "sin", "cos", "asin", "acos", "exp", "expm1", "log", "log1p", "pow", "__pow__",
    "special_log_ndtr", "special_ndtri",
}  # fmt: skip
SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "up": torch.ones_like,
    "down": lambda value: -torch.ones_like(value),
    "in turn": lambda value: 1 - 2 * (torch.arange(value.numel()).view(value.shape) % 2).to(value),
}


class LastBit(TorchFunctionMode):
    """Replace each result of an elementary function by its neighbour towards `shift`."""

    def __init__(self, shift: str) -> None:
        super().__init__()
        self.shift = SHIFTS[shift]

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function.__name__ not in ELEMENTARY:
            return found
        return found.where(
            found == 0, torch.nextafter(found, self.shift(found) * torch.inf)
        )  # zeros are exact
