"""Read and write the files of models as data: no file can run code."""


class CheckpointError(ValueError):
    """A file or directory does not hold the expected weights."""
