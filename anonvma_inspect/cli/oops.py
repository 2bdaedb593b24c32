"""Words that an oops, or any other text, names."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ("Word", "words_of")

# A register before it, as x86-64 ("RAX: ", "CR2: ") and arm64 ("x29: ", "pc : ") print them; then a
# word as %016lx and %px have it, or one with 0x.
_WORD = re.compile(
    r"(?:(?<![\w.])(?P<register>[A-Za-z][A-Za-z0-9_]{0,7})\s{0,3}:\s{0,3}"
    r"(?:[0-9a-f]{4}:)?)?"
    r"(?<![0-9A-Za-z_+])(?:0[xX](?P<prefixed>[0-9a-fA-F]{1,16})|(?P<plain>[0-9a-f]{16}))"
    r"(?![0-9A-Za-z_])"
)
# The last page has error numbers (MAX_ERRNO, include/linux/err.h).
_KERNEL_HALF, _LAST_POINTER = 1 << 63, (1 << 64) - 4096
# What slub_debug writes into free objects has no high bit.
_POISON = (0x6B6B6B6B6B6B6B6B, 0x5A5A5A5A5A5A5A5A)
_NEAR = 0x80


@dataclass(frozen=True)
class Word:
    """A word, and the registers or names that stood before it."""

    address: int
    labels: tuple[str, ...]


def words_of(text: str, most: int) -> tuple[list[Word], int]:
    """Find the kernel addresses, and what may have been one, in a text.

    :param most: No more different ones than this.
    :return: In the order in which they come; and how many there are in all.
    """
    found: dict[int, dict[str, None]] = {}
    for match in _WORD.finditer(text):
        address = int(match["prefixed"] or match["plain"], 16)
        if _KERNEL_HALF <= address <= _LAST_POINTER or any(
            abs(address - each) < _NEAR for each in _POISON
        ):
            labels = found.setdefault(address, {})
            if match["register"]:
                labels[match["register"]] = None
    words = [Word(address, tuple(labels)) for address, labels in found.items()]
    return words[:most], len(words)
