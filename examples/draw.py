"""Texts from one latent at 4, 16 and 64 steps: they are coupled. The cost is network calls."""

import unmask

model = unmask.load("unmask:teacher")
for steps in (4, 16, 64):
    samples = unmask.sample(model, n=2, length=64, steps=steps, seed=7)
    entropy = unmask.entropy(samples.tokens).mean()
    print(f"--- {steps} steps, {samples.nfe.tolist()} network calls, entropy {entropy:.2f} nats")
    print(samples.texts[0])
