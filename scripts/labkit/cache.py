"""The lab's cache directory, shared by runs at the same time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

__all__ = ("locked",)


@contextlib.contextmanager
def locked(cache: Path, what: str) -> Iterator[None]:
    """Hold the lock on one part of the cache; a second run waits for the first."""
    directory = cache / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / what).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
