"""Where objects lie: slab caches in the direct map, and the bytes behind them."""

from __future__ import annotations

import random
from collections.abc import Hashable

import numpy as np

from anonvma_inspect.target.memory import SegmentMemory, U64Column

__all__ = ("PAGE", "Ram")

PAGE = 4096


class Ram:
    """A machine's memory, as far as there is something in it.

    Caches of one size of object get pages here and there; objects get slots of them in no order,
    and what is freed is used again, as in a kernel that has run for a while.

    :param seed: Decides all places.
    :ivar base: Virtual address of physical address 0.
    :ivar size: Bytes of the direct map.
    """

    #: Slabs of a cache that are filled side by side, and slots that each has at least.
    _SIDE_BY_SIDE, _SLOTS = 4, 4

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.base = 0xFFFF888000000000 + self._dice.randrange(1 << 10) * (1 << 30)
        self.size = 64 << 20
        blocks = list(range(self.size >> 16))
        self._dice.shuffle(blocks)
        self._blocks = blocks
        self._garbage = self._dice.randbytes(1 << 16)
        self.data = bytearray()
        # Virtual address, bytes, and offset in the data of each run of pages.
        self._segments: list[tuple[int, int, int]] = []
        self._offset_of_page: dict[int, int] = {}
        self._free: dict[str, list[int]] = {}
        self._taken: dict[tuple[str, Hashable], int] = {}

    def add_segment(self, address: int, size: int) -> None:
        """Have pages at an address; they hold garbage."""
        offset = len(self.data)
        self.data += (self._garbage * (size // len(self._garbage) + 1))[:size]
        self._segments.append((address, size, offset))
        for at in range(0, size, PAGE):
            self._offset_of_page[(address + at) // PAGE] = offset + at

    def place(self, cache: str, size: int, who: Hashable) -> int:
        """Where an object lies, now and as long as it is not given back.

        :param cache: Name of the cache, which is for objects of one size.
        :param who: The object.
        """
        address = self._taken.get((cache, who))
        if address is None:
            free = self._free.setdefault(cache, [])
            if not free:
                free += self._new_slabs(size)
            address = self._taken[cache, who] = free.pop()
        return address

    def keep(self, cache: str, who: set[Hashable]) -> None:
        """Give back all objects of a cache but these."""
        for key in [key for key in self._taken if key[0] == cache and key[1] not in who]:
            self._free[cache].append(self._taken.pop(key))
            self._dice.shuffle(self._free[cache])

    def _new_slabs(self, size: int) -> list[int]:
        step = -(-size // 8) * 8
        pages = -(-step * self._SLOTS // PAGE)
        slots = []
        for _ in range(self._SIDE_BY_SIDE):
            slab = self.base + (self._blocks.pop() << 16)
            self.add_segment(slab, pages * PAGE)
            slots += list(range(slab, slab + pages * PAGE - step + 1, step))
        self._dice.shuffle(slots)
        return slots

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into memory, all in one page."""
        offset = self._offset_of_page[address // PAGE] + address % PAGE
        self.data[offset : offset + len(data)] = data

    def pages(self, cache: str) -> list[int]:
        """Addresses of the pages that objects of a cache start in."""
        return sorted({at // PAGE * PAGE for (name, _), at in self._taken.items() if name == cache})

    def ranges(self) -> U64Column:
        """Where there is something: shape (n, 2), half-open, sorted."""
        ends = [(start, start + size) for start, size, _ in sorted(self._segments)]
        return np.array(ends, dtype=np.uint64)

    def memory(self) -> SegmentMemory:
        """What is there now."""
        start, size, offset = np.array(sorted(self._segments), dtype=np.uint64).T
        return SegmentMemory(
            np.frombuffer(bytes(self.data), dtype=np.uint8),
            np.ascontiguousarray(start),
            np.ascontiguousarray(size),
            np.ascontiguousarray(offset),
        )
