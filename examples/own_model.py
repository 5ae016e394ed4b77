"""A denoiser without a network: exact probabilities of a Markov chain, sampled in 1 to 8 steps."""

from dataclasses import dataclass

import torch

import unmask

# The tokens are 0 and 1, and MASK is 2. p(next token | token), and p(first token).
NEXT = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
FIRST = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)


@dataclass(frozen=True)
class Chain:
    """p(x_i | all visible tokens), exactly, by forward and backward messages."""

    vocab_size: int = 3
    sees_alpha: bool = False

    def __call__(self, z, alpha):
        """z int64 [B, L] -> log p [B, L, 3]."""
        possible = torch.stack([(z == 2) | (z == v) for v in (0, 1)], -1).double()
        left, right = [FIRST.expand(len(z), 2)], [torch.ones(len(z), 2, dtype=torch.float64)]
        for i in range(z.shape[1] - 1):
            left.append((left[-1] * possible[:, i]) @ NEXT)
            right.insert(0, (right[0] * possible[:, -1 - i]) @ NEXT.T)
        joint = torch.stack(left, 1) * torch.stack(right, 1) * possible
        log_p = (joint / joint.sum(-1, keepdim=True)).log().clamp(min=-1e6)
        mask = torch.full_like(log_p[..., :1], -1e6)  # MASK is never predicted
        return unmask.Prediction.from_log_p(torch.cat([log_p, mask], -1))


@dataclass(frozen=True)
class Source:
    """A model: `unmask.sample` needs these four attributes and no more."""

    denoiser = Chain()
    process = unmask.MaskedProcess(vocab_size=3, mask_id=2)
    schedule = unmask.LogLinear(eps=0.0)
    tokenizer = None


# Tokens of one step are drawn independently of each other. So few steps lose their dependence.
exact = 2 / 3 * 0.1 + 1 / 3 * 0.2
for steps in (1, 2, 4, 8):
    tokens = unmask.sample(Source(), n=4000, length=8, steps=steps).tokens
    change = (tokens[:, 1:] != tokens[:, :-1]).double().mean()
    print(f"{steps} steps: P(two neighbours differ) = {change:.3f}, exact {exact:.3f}")
