"""Floor 3: what to learn, one file a method."""
