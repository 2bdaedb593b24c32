"""A guest that is told what to do: lines of shell, what they print, and how they end."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from .guest import Guest

__all__ = ("Shell", "split")

_STATUS = re.compile(r"LAB-STATUS (\d+)")


def split(data: bytes) -> tuple[list[str], int]:
    """The whole lines in what came so far, and how many bytes they take."""
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode(errors="replace").splitlines(), whole


class Shell:
    """The other end of ``guest/shell-init``."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._at = 0
        #: How the last command ended; None while one runs.
        self.status: int | None = 0

    def start(self, command: str) -> None:
        """Have a command run; :meth:`lines` has what it prints, and must be read to the end."""
        assert self.status is not None, "the command before still runs"
        self.status = None
        self._guest.tell(command.encode() + b"\n")

    def lines(self, patience: float) -> Iterator[str]:
        """Yield what the command prints, line by line, until it ends.

        :param patience: For how many seconds it may print nothing.
        :raises GuestError: if it does, or if the guest dies.
        """
        heard = time.monotonic()
        while self.status is None:
            said, size = split(self._guest.word(self._at))
            self._at += size
            for line in said:
                ended = _STATUS.fullmatch(line)
                if ended:
                    self.status = int(ended.group(1))
                else:
                    yield line
            if said:
                heard = time.monotonic()
                continue
            self._guest.check()
            if time.monotonic() - heard > patience:
                raise self._guest.failure(f"The command said nothing for {patience:.0f} s.")
            time.sleep(0.05)

    def run(self, command: str, patience: float = 120) -> tuple[int, list[str]]:
        """Run a command; return its exit code and what it printed."""
        self.start(command)
        said = list(self.lines(patience))
        assert self.status is not None
        return self.status, said
