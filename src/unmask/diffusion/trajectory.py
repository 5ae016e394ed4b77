"""The randomness of a corruption as a value: drawn once, evaluated at any noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask.diffusion.levels import LevelOrder, random_order
from unmask.diffusion.schedules import check_unit
from unmask.types import PerSequence, PerToken, Tokens

if TYPE_CHECKING:
    from unmask.diffusion.processes import Process


@dataclass(frozen=True)
class Trajectory:
    """One path from text to noise: z_i = x0_i while u_i < alpha, noise_i afterwards.

    With noise = MASK this is Mask(x0, u, gamma) of Latent Shadows (arXiv 2602.00792, Eq. 13).
    Two times s < t of one trajectory give MCD's coupled pair (z_t, z_s). The MASKs of z_s are a
    subset of those of z_t (Theorem 3.3).

    With noise = a uniform token the pair has the law of Duo's Gaussian arg max path (arXiv
    2506.10892). That arg max changes once, from x0 to a token that stays the arg max.

    Attributes:
        x0: the text [B, L]: data, or a model's completion
        noise: the noise tokens [B, L]
        u: the level at which a token becomes noise: uniform, float64 [B, L] in [0, 1)
    """

    x0: Tokens
    noise: Tokens
    u: PerToken

    def at(self, alpha: PerSequence) -> Tokens:
        """The noisy tokens z [B, L] at alpha [B], the share of text left."""
        check_unit(alpha, "alpha")
        if alpha.shape != self.u.shape[:1]:
            raise ValueError(
                f"alpha has the wrong shape: got {list(alpha.shape)}, want one value a sequence, "
                f"[B] = {list(self.u.shape[:1])}"
            )
        return torch.where(self.u < alpha.to(self.u.device)[:, None], self.x0, self.noise)


def trajectory(
    process: Process,
    x0: Tokens,
    generator: torch.Generator | None = None,
    order: LevelOrder = random_order,
) -> Trajectory:
    """Draw the randomness of the forward process from x0: the levels u and the noise.

    Args:
        process: the source of the noise.
        x0: token ids [B, L].
        generator: the source of randomness; None: torch's global generator.
        order: the joint law of the levels within a text. The texts of a batch are independent.

    The law of one token over all levels is the same for any order, but the joint law of several
    tokens is not. So `Process.nelbo` is a bound for independent levels only. A coupled pair (z_t,
    z_s) only needs nested MASKs, which any order gives.
    """
    if not callable(order):
        raise ValueError(
            f"order is not a function of levels: got {order!r}, want random_order or spread_order "
            "of unmask.diffusion.levels"
        )
    u = torch.rand(x0.shape, generator=generator, dtype=torch.float64, device=x0.device)
    return Trajectory(x0, process.prior(x0, generator=generator), order(u))
