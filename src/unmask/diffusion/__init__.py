"""The mathematics of discrete diffusion: processes, schedules, losses. No networks, no text."""
