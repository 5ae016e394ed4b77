"""Networks: the diffusion transformer and its causal form, their roles, EMA and files."""
