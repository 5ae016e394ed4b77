"""Evidence: measures with their protocol, judges, likelihoods, and the frontier of quality against diversity."""
