"""Any law of tokens is a denoiser: an exact Markov chain without a network, sampled in 1 to 8 steps."""

from dataclasses import dataclass

import torch

import unmask

FLIP = torch.tensor(
    [[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64
)  # p(next | token), tokens 0 and 1; MASK is 2
START = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)


@dataclass(frozen=True)
class Chain:
    vocab_size: int = 3
    sees_alpha: bool = False

    def __call__(self, z, alpha):
        """Forward and backward messages: p(x_i | all shown tokens), exactly."""
        evidence = torch.stack([(z == 2) | (z == v) for v in (0, 1)], -1).double()
        left, right = [START.expand(len(z), 2)], [torch.ones(len(z), 2, dtype=torch.float64)]
        for i in range(z.shape[1] - 1):
            left.append((left[-1] * evidence[:, i]) @ FLIP)
            right.insert(0, (right[0] * evidence[:, -1 - i]) @ FLIP.T)
        law = torch.stack(left, 1) * torch.stack(right, 1) * evidence
        log_p = (law / law.sum(-1, keepdim=True)).log().clamp(min=-1e6)
        return unmask.Prediction.from_log_p(
            torch.cat([log_p, torch.full_like(log_p[..., :1], -1e6)], -1)
        )


@dataclass(frozen=True)
class Source:
    denoiser = Chain()
    process = unmask.MaskedProcess(vocab_size=3, mask_id=2)
    schedule = unmask.LogLinear(eps=0.0)
    tokenizer = None


for steps in (1, 2, 4, 8):
    tokens = unmask.sample(Source(), n=4000, length=8, steps=steps).tokens
    flips = (tokens[:, 1:] != tokens[:, :-1]).double().mean()
    print(
        f"{steps} steps: neighbours differ in {flips:.3f} of the places (source: {2 / 3 * 0.1 + 1 / 3 * 0.2:.3f})"
    )
