"""Optional packages: the error of a missing package names the extra that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages in the block `with needs_extra("demo"):`.

    ModuleNotFoundError names the missing package and its extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"package {error.name} is not installed: `pip install 'unmask[{extra}]'` installs it",
            name=error.name,
        ) from error
