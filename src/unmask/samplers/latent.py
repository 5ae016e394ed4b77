"""The randomness of a sample as a value: when each token is revealed, and who wins the race for it.

A sample is a pure function of its `Latent` (and of the model), at any number of steps: the masked counterpart of
drawing one x_T and integrating it with few or many DDIM steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.diffusion.correlated_masking import Structure, gaussian_copula
from unmask.limits import INT64, seed_number, whole
from unmask.rng import address, uniform

_LEVEL, _RACE, _SHARED = 0, 1, 2  # the streams of a sample
BEFORE = 2**62  # the occasion before the first step: no step has this index


@dataclass(frozen=True)
class Latent:
    """The randomness of n samples of L tokens.

    u    [n, L] float64 in (0, 1): when a token is revealed. Read as the noise level alpha(1) + (1 - alpha(1)) u,
         so that any grid of levels that starts at alpha(1) reveals it exactly once
    key  [n] int64: the address of all other random numbers of a sample

    A model that reads an input noise fixed along the path would find it here, as one more field.
    """

    u: Tensor
    key: Tensor

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: Tensor | slice) -> Latent:
        """The latents of some samples; they stay what they are in any batch."""
        return Latent(self.u[rows], self.key[rows])

    def address(self, at: Tensor, occasion: int = 0) -> Tensor:
        """Hashed states [N] of the draws at positions `at` [N], flat in [n, L].

        `occasion` tells the draws of one position apart where it is drawn more than once (the step's index).
        """
        length = self.u.shape[1]
        return address(self.key[at // length], occasion, at % length)


def draw_latent(
    n: int,
    length: int,
    seed: int,
    first: int = 0,
    device: torch.device | str = "cpu",
    structure: Structure | None = None,
) -> Latent:
    """The latents of samples first, ..., first + n - 1 of a seed: row r depends on (seed, first + r) alone.

    `structure` says which tokens are revealed together; None, each on its own. The race is the same for any structure,
    and each token's own normal is Phi^-1 of the independent u, which a structure without correlation gives back.
    """
    seed_number("seed", seed)
    check_first(first, n)
    sample = torch.arange(first, first + n, device=device)
    position = torch.arange(length, device=device)
    own = address(seed, sample[:, None], _LEVEL, position)
    if structure is None:
        u = uniform(own)
    else:
        shared = [
            address(seed, sample[:, None], _SHARED, k, position)
            for k in range(1, structure.sources)
        ]
        # On the CPU: other devices may round Phi and its inverse in another way.
        normals = torch.special.ndtri(uniform(torch.stack([own, *shared]).cpu()))
        u = gaussian_copula(structure, normals).to(device)
    return Latent(u, address(seed, sample, _RACE))


def check_first(first: int, n: int) -> None:
    """ValueError where samples first, ..., first + n - 1 have numbers beyond 64 bits."""
    whole("first", first, "the number of the first sample", 0, INT64 - 1 - n)
