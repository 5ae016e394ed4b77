"""Floor 1: the mathematics; no networks, no text."""
