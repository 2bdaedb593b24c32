"""Fields in a target's memory, and targets in which some have other values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import WORD, Memory, OverlayMemory, SegmentMemory

__all__ = ("changed", "read", "with_object")


def read(memory: Memory, address: int, size: int) -> int:
    """A little-endian number of the target's.

    :raises LookupError: if it is not there.
    """
    rows, present = memory.gather(np.array([address], dtype=np.uint64), size)
    if not present.all():
        raise LookupError(f"{size} bytes at {address:#x} are not in the target")
    return int.from_bytes(rows.tobytes(), "little")


def changed(target: Target, address: int, size: int, value: int) -> Target:
    """A target in which one field has another value.

    :param address: Of the field; it crosses no boundary of a word.
    :param size: Its bytes, at most a word.
    """
    word, shift = address - address % WORD, 8 * (address % WORD)
    mask = ((1 << 8 * size) - 1) << shift
    whole = read(target.memory, word, WORD) & ~mask | value << shift & mask
    return replace(target, memory=OverlayMemory(target.memory, {word: whole}))


def with_object(target: Target, address: int, content: bytes) -> Target:
    """A target in which some bytes are there whatever else may be said to be."""
    memory = SegmentMemory(
        np.frombuffer(content, dtype=np.uint8),
        np.array([address], dtype=np.uint64),
        np.array([len(content)], dtype=np.uint64),
        np.array([0], dtype=np.uint64),
        fallback=target.memory,
    )
    return replace(target, memory=memory)
