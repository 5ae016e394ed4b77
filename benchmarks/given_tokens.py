"""The N-step bound of the shipped teacher if some tokens of each row are given.

Prints nats a drawn token at 2, 4, 8 and 16 steps, for a random half of the tokens and for the first
half. The rows are 64 held-out rows of 128 tokens, spread evenly; seed 0.
"""

import torch

import unmask
from unmask.data.packing import evenly_spaced
from unmask.recipes.held_out import Text, held_out

NAME = "unmask:teacher"
model = unmask.load(NAME)
rows = held_out(Text(), NAME, model).rows
ids = torch.as_tensor(rows[evenly_spaced(len(rows), 64)])
length = ids.shape[1]
patterns = {
    "a random half": torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5,
    f"the first {length // 2}": (torch.arange(length) < length // 2).expand_as(ids),
}
print("| given tokens | order | 2 steps | 4 | 8 | 16 |\n|---|---|---|---|---|---|")
for name, given in patterns.items():
    for order in ("random", "spread", "spread,count=equal"):
        bounds = [
            unmask.few_step_bound(model, ids, steps, order, given=given) for steps in (2, 4, 8, 16)
        ]
        values = " | ".join(f"{bound.value:.3f}" for bound in bounds)
        print(f"| {name} | {order} | {values} |", flush=True)
