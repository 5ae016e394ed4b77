"""How to draw: a latent, a grid of noise levels, and steps from one level to the next."""
