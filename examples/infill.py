"""Keep what is given, draw the rest: a prompt at the start, then a hole in the middle of a real sentence."""

import torch

import unmask

model = unmask.load("unmask:teacher")
prompted = unmask.sample(model, n=2, length=48, steps=16, prompt="Fellow citizens of the Senate")
print(prompted.texts)

sentence = "The Congress of the United States has passed an act for the relief of the citizens of the States."
ids = torch.tensor(model.tokenizer.encode(sentence))
pinned = ids.repeat(3, 1)
pinned[:, 8:16] = -1  # free
filled = unmask.sample(model, n=3, length=len(ids), steps=8, pinned=pinned)
for text in filled.texts:
    print(text)
