"""Sampling: `sample`, its options, and samplers (start at `samplers.steps`)."""
