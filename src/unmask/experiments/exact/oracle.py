"""The exact denoiser of a synthetic source: its posterior, without a network."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import LogLinear, NoiseSchedule
from unmask.experiments.exact.synthetic_sources import SyntheticSource
from unmask.prediction import Prediction
from unmask.types import PerSequence, Probs, Tokens


@dataclass(frozen=True)
class ExactDenoiser:
    """A `Denoiser` that returns the exact log p(x0_i | z without i) of a source.

    Under `MaskedProcess` the last id is MASK, and visible tokens are kept. `UniformProcess` has the
    source's V tokens.
    """

    source: SyntheticSource
    process: Process

    def __post_init__(self) -> None:
        size, process = self.source.vocab_size, self.process
        match process:
            case MaskedProcess(vocab_size=vocab_size, mask_id=mask_id) if (vocab_size, mask_id) == (
                size + 1,
                size,
            ):
                return
            case UniformProcess(vocab_size=vocab_size) if vocab_size == size:
                return
        raise ValueError(
            f"process is {process}: want MaskedProcess({size + 1}, mask_id={size}) or "
            f"UniformProcess({size}), with the tokens of the source"
        )

    @property
    def vocab_size(self) -> int:
        return self.process.vocab_size

    @property
    def sees_alpha(self) -> bool:
        return not isinstance(self.process, MaskedProcess)

    def __call__(self, z: Tokens, alpha: PerSequence) -> Prediction:
        table = self.source.conditionals(evidence(self.process, z, alpha))
        if isinstance(self.process, MaskedProcess):
            table = F.pad(table, (0, 1), value=-torch.inf)
            return Prediction(table, nn.Identity(), self.vocab_size, self.process.mask_id, z)
        return Prediction(table, nn.Identity(), self.vocab_size)


def evidence(process: Process, z: Tokens, alpha: PerSequence) -> Probs:
    """q(z_i | x_i = v) at alpha [B], up to a factor for a MASK: [B, L, V], V without MASK."""
    if isinstance(process, MaskedProcess):
        seen = F.one_hot(z, process.vocab_size)[
            ..., torch.arange(process.vocab_size) != process.mask_id
        ]
        return torch.where((z == process.mask_id)[..., None], 1, seen).double()
    share = alpha.double()[:, None, None]
    return share * F.one_hot(z, process.vocab_size) + (1 - share) / process.vocab_size


@dataclass(frozen=True)
class ExactModel:
    """A model for `unmask.sample` without a tokenizer."""

    denoiser: ExactDenoiser
    schedule: NoiseSchedule = field(default_factory=LogLinear)
    tokenizer: None = None

    @property
    def process(self) -> Process:
        return self.denoiser.process

    @property
    def source(self) -> SyntheticSource:
        return self.denoiser.source


def masked_model(source: SyntheticSource) -> ExactModel:
    """The masked-diffusion model of a source; MASK is the id after its last token."""
    size = source.vocab_size
    return ExactModel(ExactDenoiser(source, MaskedProcess(size + 1, mask_id=size)))


def uniform_model(source: SyntheticSource) -> ExactModel:
    """The uniform-state diffusion model of a source."""
    return ExactModel(ExactDenoiser(source, UniformProcess(source.vocab_size)))
