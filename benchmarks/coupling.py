"""Coupling of texts by a latent: the share of tokens that are equal in two draws.

Compares draws with other precision, batch size, number of steps, or seed.
"""

from pathlib import Path

import torch

import unmask

model = unmask.load(Path(unmask.__file__).parent / "assets" / "teacher")
settings = {"n": 64, "length": 128, "steps": 8, "seed": 0, "order": "random"}
for dtype in (torch.float32, torch.bfloat16):
    model.network.compute_dtype = dtype
    base = unmask.sample(model, **settings).tokens
    if dtype == torch.float32:
        reference = base
    others = {
        "the same in float32": reference,
        "batches of 8": unmask.sample(model, **settings, batch_size=8).tokens,
        "16 steps": unmask.sample(model, **{**settings, "steps": 16}).tokens,
        "another seed": unmask.sample(model, **{**settings, "seed": 1}).tokens,
    }
    for name, tokens in others.items():
        share = (tokens == base).double().mean()
        print(f"{dtype}, 64 texts of 128 tokens, 8 steps, against {name}: {share:.4f} equal")
