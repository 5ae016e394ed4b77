"""Given tokens stay and the others are drawn: after a prompt, then in a gap of a sentence."""

import torch

import unmask

model = unmask.load("unmask:teacher")
prompted = unmask.sample(model, n=2, length=48, steps=16, prompt="Fellow citizens of the Senate")
print(prompted.texts)

sentence = "The Congress has passed an act for the relief of the citizens of the United States."
ids = torch.tensor(model.tokenizer.encode(sentence))
pinned = ids.repeat(3, 1)
pinned[:, 8:16] = -1  # the positions to draw
filled = unmask.sample(model, n=3, length=len(ids), steps=8, pinned=pinned)
for text in filled.texts:
    print(text)
