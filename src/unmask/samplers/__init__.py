"""Sampling: `sample`, its options, and samplers. The interface of a sampler is in `steps`."""
