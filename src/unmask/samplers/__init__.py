"""How texts are drawn: `sample`, its options, and samplers (start at `samplers.steps`)."""
