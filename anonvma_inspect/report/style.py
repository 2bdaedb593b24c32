"""How text looks: colours and the characters to draw with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("PLAIN", "Style")


@dataclass(frozen=True)
class Style:
    """What the output can show.

    :ivar color: ANSI colours.
    :ivar unicode: Box characters; else lines are drawn in ASCII.
    """

    color: bool = False
    unicode: bool = True

    def good(self, text: str) -> str:
        """What is as it must be."""
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        """What is violated."""
        return self._paint("1;31", text)

    def warn(self, text: str) -> str:
        """What is suspicious or missing."""
        return self._paint("33", text)

    def red(self, text: str) -> str:
        """A red node."""
        return self._paint("31", text)

    def strong(self, text: str) -> str:
        """What the eye should find first."""
        return self._paint("1", text)

    def faint(self, text: str) -> str:
        """What is only there to be complete."""
        return self._paint("2", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and text else text


PLAIN = Style()
