"""Read and write the files of models as data: no file can run code."""

from collections.abc import Iterator
from contextlib import contextmanager


class CheckpointError(ValueError):
    """A file or directory does not hold the expected weights."""


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Raise a ValueError of the block as a CheckpointError with the same message."""
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error
