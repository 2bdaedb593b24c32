"""Progress on standard error."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

__all__ = ("Progress",)

# What is over sooner than this needs no progress; more lines a second than this no one reads.
_DELAY = 0.5
_INTERVAL = 0.1
_CLEAR = "\r\x1b[K"


class Progress:
    """One line on a terminal that says what is being read; cleared at the end.

    :param shown: True: from the start; False: never; None: when it takes long.
    """

    def __init__(self, shown: bool | None) -> None:
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._enabled = terminal and shown is not False
        self._next = time.monotonic() + (0 if shown else _DELAY)
        self._written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._written:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def __call__(self, what: str, count: int) -> None:
        """Tell what is being read and how many of it so far."""
        if not self._enabled:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            self._written = True
            sys.stderr.write(f"{_CLEAR}reading {what}: {count:,}")
            sys.stderr.flush()
