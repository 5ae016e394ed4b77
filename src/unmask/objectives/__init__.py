"""Training objectives, one module for each method."""
