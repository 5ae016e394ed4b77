"""Measures of texts and models: judges, diversity, likelihood, timing, and the frontier."""
