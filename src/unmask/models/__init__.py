"""Networks: the diffusion transformer, its causal form, their roles, their averages, and their files."""
