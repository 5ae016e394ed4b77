"""Floor 5: a run as data. `build` is the one place that knows every class."""
