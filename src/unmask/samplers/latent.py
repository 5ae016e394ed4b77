"""The random numbers of a sample as a value: the level of each token, and its Gumbel noise.

A sample is a pure function of its `Latent` and of the model, at any number of steps. DDIM does the
same for images: it integrates one x_T in few or in many steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from unmask.limits import INT64, seed_number, whole
from unmask.rng import address, uniform

# int64 tensors (samples, columns) that broadcast, as `nonzero(as_tuple=True)` of [n, L] gives them
Positions: TypeAlias = tuple[Tensor, Tensor]

_LEVEL, _KEY = 0, 1  # the streams of a sample
INITIAL_NOISE = 2**62  # the occasion of the noise before the first step; no step has this index


@dataclass(frozen=True)
class Latent:
    """The random numbers of n samples of L tokens.

    Attributes:
        u: The level of a token, float64 [n, L] in (0, 1). The token is unmasked at the alpha
            alpha(1) + (1 - alpha(1)) u, so a grid from alpha(1) to 1 unmasks each token once.
        key: The address of all other random numbers of a sample, int64 [n].
    """

    u: Tensor
    key: Tensor

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: Tensor | slice) -> Latent:
        """Select samples. A latent does not depend on its batch."""
        return Latent(self.u[rows], self.key[rows])

    @property
    def everywhere(self) -> Positions:
        """All positions, as samples [n, 1] and columns [L]."""
        n, length = self.u.shape
        device = self.u.device
        return torch.arange(n, device=device)[:, None], torch.arange(length, device=device)

    def address(self, at: Positions, occasion: int = 0) -> Tensor:
        """The hashed states of the draws at positions, in the shape of the positions.

        `occasion` separates the draws of a position that is drawn more than once. It is the index
        of the step.
        """
        samples, columns = at
        return address(self.key[samples], occasion, columns)


def draw_latent(
    n: int,
    length: int,
    seed: int,
    first: int = 0,
    device: torch.device | str = "cpu",
) -> Latent:
    """Draw the latents of samples first, ..., first + n - 1 of a seed.

    Row r is a function of (seed, first + r) alone.

    Args:
        n: Number of samples.
        length: Tokens of a sample.
        seed: A 64-bit number.
        first: Number of the first sample.
        device: Device of the tensors.

    Raises:
        ValueError: seed or first is out of range.
    """
    seed_number("seed", seed)
    check_first(first, n)
    sample = torch.arange(first, first + n, device=device)
    position = torch.arange(length, device=device)
    u = uniform(address(seed, sample[:, None], _LEVEL, position))
    return Latent(u, address(seed, sample, _KEY))


def check_first(first: int, n: int) -> None:
    """Raise ValueError unless the numbers first, ..., first + n - 1 fit into 64 bits."""
    whole("first", first, "the number of the first sample", 0, INT64 - 1 - n)
