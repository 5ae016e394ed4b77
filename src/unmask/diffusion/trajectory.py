"""The randomness of a corruption as a value: drawn once, read at any noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask.diffusion.correlated_masking import Structure, gaussian_copula
from unmask.diffusion.schedules import check_unit
from unmask.types import PerSequence, PerToken, Tokens

if TYPE_CHECKING:
    from unmask.diffusion.processes import Process


@dataclass(frozen=True)
class Trajectory:
    """One path from text to noise, its randomness fixed: z_t,i = x0_i while u_i < alpha_t, noise_i after that.

    This is Mask(x0, u, gamma) of Latent Shadows (arXiv 2602.00792, Eq. 13) where `noise` is MASK: two reads at
    s < t are MCD's coupled pair, and the tokens masked at s are a subset of those masked at t (Theorem 3.3).
    Where `noise` is a uniform token, the pair has the law of Duo's Gaussian arg max path (arXiv 2506.10892): the
    arg max leaves x0 once, for a competitor that never changes.

    x0 [B, L] may be data or a model's completion; noise [B, L]; u [B, L] in [0, 1), float64.
    """

    x0: Tokens
    noise: Tokens
    u: PerToken

    def at(self, alpha: PerSequence) -> Tokens:
        """z [B, L] at alpha [B], the share of text left."""
        check_unit(alpha, "alpha")
        if alpha.shape != self.u.shape[:1]:
            raise ValueError(
                f"alpha has a value a row, [B] = {list(self.u.shape[:1])}, got {list(alpha.shape)}"
            )
        return torch.where(self.u < alpha.to(self.u.device)[:, None], self.x0, self.noise)


def trajectory(
    process: Process,
    x0: Tokens,
    generator: torch.Generator | None = None,
    structure: Structure | None = None,
) -> Trajectory:
    """Draw u ~ U[0, 1) a token and the noise of `process`: the forward process from x0 [B, L].

    `structure` says how the levels of a text depend on one another; None, not at all. One text is independent of the
    next. The law of one token at all levels is the same for any structure, the law of several is not: the bound of
    `Process.nelbo` is for independent levels, while a coupled pair (z_t, z_s) needs nestedness only.
    """
    if structure is None:
        u = torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
    else:
        shape = (structure.sources, *x0.shape)
        normals = torch.randn(shape, generator=generator, dtype=torch.float64, device=x0.device)
        u = gaussian_copula(structure, normals)
    return Trajectory(x0, process.prior(x0, generator=generator), u)
