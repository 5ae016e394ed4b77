"""The exact posterior of a synthetic source: as a model, and as a table of all masked texts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import LogLinear
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.objectives.consistency import Coupling
from unmask.prediction import Prediction
from unmask.types import PerSequence, Probs, Tokens

MOST_CANVASES = 4096
SCHEDULE = LogLinear()


@dataclass(frozen=True)
class ExactModel:
    """A model for `unmask.sample` without a network. It is also its own `Denoiser`.

    The prediction is the exact log p(x0_i | z without i) of a source.

    Attributes:
        source: The source, of V tokens.
        masked: True: masked diffusion, where MASK is the id V. False: uniform-state diffusion.
    """

    source: SyntheticSource
    masked: bool
    schedule: LogLinear = SCHEDULE
    tokenizer: None = None

    @property
    def denoiser(self) -> ExactModel:
        return self

    @property
    def process(self) -> MaskedProcess | UniformProcess:
        size = self.source.vocab_size
        return MaskedProcess(size + 1, mask_id=size) if self.masked else UniformProcess(size)

    @property
    def vocab_size(self) -> int:
        return self.process.vocab_size

    @property
    def sees_alpha(self) -> bool:
        return not self.masked

    def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction:
        log_p = self.source.conditionals(evidence(self.process, z, alpha))
        if not self.masked:
            return Prediction(log_p, nn.Identity(), self.vocab_size)
        log_p = F.pad(log_p, (0, 1), value=-torch.inf)
        return Prediction(log_p, nn.Identity(), self.vocab_size, self.process.mask_id, z)


def masked_model(source: SyntheticSource) -> ExactModel:
    """The masked-diffusion model of a source; MASK is the id after its last token."""
    return ExactModel(source, masked=True)


def uniform_model(source: SyntheticSource) -> ExactModel:
    """The uniform-state diffusion model of a source."""
    return ExactModel(source, masked=False)


def evidence(process: Process, z: Tokens, alpha: PerSequence) -> Probs:
    """q(z_i | x_i = v) at alpha [B], up to a factor at a MASK: [B, L, V], V without MASK.

    MASK is the last id of a masked process.
    """
    if process.mask_id is not None:
        visible = F.one_hot(z, process.vocab_size)[..., : process.mask_id]
        return torch.where((z == process.mask_id)[..., None], 1, visible).double()
    share = alpha.double()[:, None, None]
    return share * F.one_hot(z, process.vocab_size) + (1 - share) / process.vocab_size


@dataclass(frozen=True)
class EnumeratedSource:
    """All canvases (partially masked texts) and all texts of a source.

    Attributes:
        source: The source, of V tokens. MASK is V.
        canvases: [C, L] with C = (V + 1)^L. Row n holds the digits of n.
        texts: [X, L] with X = V^L.
        log_p: [X] log p(x) of the texts, nats.
        teacher: [C, L, V] the exact log p(x0_i | z), nats. Undefined at visible positions.
    """

    source: SyntheticSource
    canvases: Tokens
    texts: Tokens
    log_p: Tensor
    teacher: Tensor

    @property
    def length(self) -> int:
        return self.texts.shape[1]

    @property
    def mask_id(self) -> int:
        return self.source.vocab_size


def canvas_number(z: Tokens, mask_id: int) -> Tensor:
    """The row numbers [..] of canvases [.., L]: their digits in base V + 1, the highest first."""
    return (z * (mask_id + 1) ** torch.arange(z.shape[-1] - 1, -1, -1)).sum(-1)


def enumerate_source(source: SyntheticSource, length: int) -> EnumeratedSource:
    """Enumerate the texts of a length. ValueError for more than MOST_CANVASES canvases."""
    size = source.vocab_size
    if (size + 1) ** length > MOST_CANVASES:
        raise ValueError(
            f"(V + 1)^L is too large: got {(size + 1) ** length} canvases, want at most "
            f"{MOST_CANVASES}; use a smaller vocabulary or length"
        )
    canvases = torch.tensor([*product(range(size + 1), repeat=length)])
    texts = torch.tensor([*product(range(size), repeat=length)])
    alpha = torch.ones(len(canvases), dtype=torch.float64)
    hidden = masked_model(source)(canvases, alpha).hidden[..., :size]
    return EnumeratedSource(source, canvases, texts, source.log_prob(texts), hidden.log_softmax(-1))


@dataclass(frozen=True)
class Pairs:
    """The joint distribution of (x0, z_t, z_s) as K outcomes of positive probability.

    Attributes:
        weight: [K] probabilities, sum 1.
        t, s: [K] row numbers of the canvases z_t and z_s.
        x0: [K, L] texts.
        masked_t, masked_s: [K, L] whether a position is a MASK in z_t and in z_s.
    """

    weight: Tensor
    t: Tensor
    s: Tensor
    x0: Tokens
    masked_t: Tensor
    masked_s: Tensor


def coupled_pairs(source: EnumeratedSource, delta: float, coupling: Coupling) -> Pairs:
    """P(x0) P(masks of z_t and z_s), averaged over t ~ U(delta, 1] with s = t - delta.

    Locked: a token is masked in both with probability 1 - alpha_s, and in z_t only with probability
    alpha_s - alpha_t. Independent: the probabilities are products. The quadrature over t is exact,
    because alpha is linear in t.
    """
    nodes, shares = np.polynomial.legendre.leggauss(source.length + 1)
    t = torch.from_numpy(delta + (1 - delta) * (nodes + 1) / 2)
    a_t, a_s = SCHEDULE.alpha(t), SCHEDULE.alpha((t - delta).clamp(min=0))
    # The cases of a token: masked in neither, in z_s, in z_t, in both.
    if coupling == "locked":
        cases = [a_t, torch.zeros_like(t), a_s - a_t, 1 - a_s]
    else:
        cases = [a_t * a_s, a_t * (1 - a_s), (1 - a_t) * a_s, (1 - a_t) * (1 - a_s)]
    case_of = torch.tensor([*product(range(4), repeat=source.length)])  # [4^L, L]
    probability = torch.from_numpy(shares / 2) @ torch.stack(cases, -1)[:, case_of].prod(-1)
    weight = (source.log_p.exp()[:, None] * probability).flatten()
    kept = weight > 0
    x0 = source.texts.repeat_interleave(len(case_of), dim=0)[kept]
    case_of = case_of.repeat(len(source.texts), 1)[kept]
    masked_t, masked_s = case_of >= 2, case_of % 2 == 1
    t_number, s_number = (
        canvas_number(x0.masked_fill(masked, source.mask_id), source.mask_id)
        for masked in (masked_t, masked_s)
    )
    return Pairs(weight[kept], t_number, s_number, x0, masked_t, masked_s)


def sampled_distribution(source: EnumeratedSource, log_p: Tensor, steps: int) -> Tensor:
    """The exact distribution [X] of texts that ancestral sampling draws in N equal steps.

    Between two levels a masked token is unmasked with probability (alpha_s - alpha_t) / (1 -
    alpha_t) (MDLM, Eq. 6).

    Args:
        source: The enumerated source.
        log_p: Predictions log p(x0_i | z) [C, L, V].
        steps: N, from alpha = 0 to 1.
    """
    z, mask_id = source.canvases, source.mask_id
    masked = z == mask_id
    # [C, C, L]: from the first canvas to the second, position by position
    drawn = log_p.exp()[:, torch.arange(z.shape[1]), z.clamp(max=mask_id - 1)]
    same = (z[:, None] == z[None]).double()
    state = torch.zeros(len(z), dtype=torch.float64)
    state[-1] = 1.0  # the canvas of MASKs
    for low, high in pairwise(torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()):
        r = (high - low) / (1 - low)
        from_mask = torch.where(masked[None], 1 - r, r * drawn)
        state = state @ torch.where(masked[:, None], from_mask, same).prod(-1)
    return state[canvas_number(source.texts, mask_id)]
