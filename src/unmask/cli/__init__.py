"""Floor 7: one verb a file; parse, call, print, exit code."""
