"""One latent, read at several step counts: the texts are coupled, and calls are counted, not steps."""

import unmask

model = unmask.load("unmask:teacher")
for steps in (4, 16, 64):
    drawn = unmask.sample(model, n=2, length=64, steps=steps, seed=7)
    assert drawn.texts is not None
    print(
        f"--- {steps} steps, {drawn.nfe.tolist()} calls, entropy {unmask.entropy(drawn.tokens).mean():.2f} nats"
    )
    print(drawn.texts[0])
