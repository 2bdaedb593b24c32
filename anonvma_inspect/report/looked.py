"""How a target that runs was read."""

from __future__ import annotations

from dataclasses import dataclass

from anonvma_inspect.report.facts import Document

__all__ = ("Looked",)

_MIB = 1 << 20


@dataclass(frozen=True)
class Looked:
    """What looking at a target that runs took.

    :ivar seconds: From the first word read to the last.
    :ivar bytes_read: Of the target's memory.
    """

    seconds: float
    bytes_read: int

    def document(self) -> Document:
        """As a part of a JSON answer."""
        return {"seconds": round(self.seconds, 3), "bytes_read": self.bytes_read}

    def describe(self) -> str:
        """For people."""
        return f"{self.seconds:.2f} s, {self.bytes_read / _MIB:,.1f} MiB read"
