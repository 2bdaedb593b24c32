"""Kernel memory in bulk: the bytes at many addresses at once.

Every kind of target answers the same question, :meth:`Memory.gather`, in the way that serves it
best: a snapshot or an ELF dump by indexing a mapped file, everything else through a cache of pages
(:mod:`anonvma_inspect.target.paged`).

Two kinds of absence must not be confused (see :class:`AddressSpace`): a pointer that cannot be
right is *wild*; one that may be right, but whose bytes the target does not have, is a *hole*.
"""

from __future__ import annotations

import bisect
import copy
import functools
import operator
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.parallel import run_parallel

__all__ = (
    "AddressSpace",
    "BoolColumn",
    "ByteRows",
    "Memory",
    "OverlayMemory",
    "RecordingMemory",
    "SegmentMemory",
    "U64Column",
    "distinct",
    "in_ranges",
    "merge_ranges",
    "starts_run",
    "take_rows",
)

U64Column = NDArray[np.uint64]
BoolColumn = NDArray[np.bool_]
ByteRows = NDArray[np.uint8]

WORD = 8
# The upper half of the address space belongs to the kernel on every 64-bit architecture here. The
# lower half must never be read: in an ELF dump written by QEMU physical address 0 answers for a
# NULL pointer.
KERNEL_HALF = 1 << 63
# Twice what x86-64 with four levels of page tables can have (MAX_PHYSMEM_BITS).
_MOST_RAM = 1 << 47
# So many addresses are worked on at a time.
_COUNTED_APART = 1 << 16
# Fewer are sorted in no time.
_FEW = 1 << 12
# What they are sorted by: any block will do in which objects of one kind stand close together.
_BLOCK_SHIFT = 12
# Counting is worth it if they are no further apart: blocks, and places in blocks, for each address.
_MOST_BLOCKS, _MOST_PLACES = 4, 32


def distinct(addresses: U64Column) -> U64Column:
    """Sort addresses and leave each of them once.

    What ``np.unique()`` does, several times as fast for millions of addresses, of which it makes a
    hash table: those of objects lie close together, so that they are counted, not sorted.
    """
    counted = _distinct_by_counting(addresses) if len(addresses) > _FEW else None
    if counted is not None:
        return counted
    ordered = np.sort(addresses)
    new = starts_run(ordered)
    return ordered if new.all() else ordered[new]


# Marks the place of each address, in those blocks of memory that have any; None where they lie too
# far apart for that. Threads that set the same mark do no harm.
def _distinct_by_counting(addresses: U64Column) -> U64Column | None:
    block_shift = np.uint64(_BLOCK_SHIFT)
    base = addresses.min() >> block_shift << block_shift
    blocks = int((addresses.max() - base) >> block_shift) + 1
    if blocks > _MOST_BLOCKS * len(addresses):
        return None
    parts = np.array_split(addresses, len(addresses) // _COUNTED_APART + 1)
    used = np.zeros(blocks, dtype=bool)

    def use(part: U64Column) -> int:
        used[((part - base) >> block_shift).view(np.int64)] = True
        return int(np.bitwise_or.reduce(part))

    # All have as many low bits that are 0 as their alignment.
    low = functools.reduce(operator.or_, run_parallel(use, parts), 1 << _BLOCK_SHIFT)
    shift = np.uint64((low & -low).bit_length() - 1)
    inside = np.uint64(_BLOCK_SHIFT) - shift
    block = np.flatnonzero(used).astype(np.uint64)
    if len(block) << int(inside) > _MOST_PLACES * len(addresses):
        return None
    first = np.zeros(blocks, dtype=np.uint64)
    first[used] = np.arange(len(block), dtype=np.uint64) << inside
    marks = np.zeros(len(block) << int(inside), dtype=bool)
    mask = np.uint64((1 << int(inside)) - 1)

    def mark(part: U64Column) -> None:
        place = part - base
        before = first[(place >> block_shift).view(np.int64)]
        marks[(before + ((place >> shift) & mask)).view(np.int64)] = True

    run_parallel(mark, parts)
    place = np.flatnonzero(marks).view(np.uint64)
    found = np.empty(len(place), dtype=np.uint64)

    def locate(part: slice) -> None:
        here = place[part]
        above = block[(here >> inside).view(np.int64)] << inside
        found[part] = ((above | (here & mask)) << shift) + base

    run_parallel(locate, _slices(len(place)))
    return found


def _slices(count: int) -> list[slice]:
    return [slice(at, at + _COUNTED_APART) for at in range(0, count, _COUNTED_APART)]


def starts_run(column: NDArray[np.integer[Any]]) -> BoolColumn:
    """Which elements differ from the one before them; the first one does."""
    new = np.ones(len(column), dtype=bool)
    np.not_equal(column[1:], column[:-1], out=new[1:])
    return new


def merge_ranges(ranges: U64Column) -> U64Column:
    """Sort half-open ranges and join those that touch or overlap.

    :param ranges: Shape (n, 2): start and end of each.
    :return: Shape (m, 2), sorted, disjoint, none empty.
    """
    ranges = ranges[ranges[:, 0] < ranges[:, 1]]
    if not len(ranges):
        return np.empty((0, 2), dtype=np.uint64)
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ranges[:, 1])
    starts_anew = np.ones(len(ranges), dtype=bool)
    starts_anew[1:] = ranges[1:, 0] > reach[:-1]
    first = np.flatnonzero(starts_anew)
    last = np.append(first[1:], len(ranges)) - 1
    return np.stack([ranges[first, 0], reach[last]], axis=1)


def in_ranges(ranges: U64Column, addresses: U64Column, size: int = 1) -> BoolColumn:
    """Which addresses lie in one of the ranges.

    :param ranges: Shape (n, 2): half-open, sorted, disjoint.
    :param addresses: Any values at all.
    :param size: Bytes there that must lie in it as well.
    """
    start, length = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
    start, length = start[length >= size], length[length >= size]
    if not len(start):
        return np.zeros(len(addresses), dtype=bool)
    # Nearly everything lies in the largest one.
    largest = int(np.argmax(length))
    found: BoolColumn = addresses - start[largest] <= length[largest] - np.uint64(size)
    if len(start) == 1 or found.all():
        return found
    # What lies below the first range is compared with the last one: far above its end, modulo
    # 2**64.
    index = np.searchsorted(start, addresses, side="right") - 1
    inside: BoolColumn = addresses - start[index] <= (length - np.uint64(size))[index]
    return inside


def take_rows(buffer: NDArray[np.uint8], offsets: NDArray[np.int64], size: int) -> ByteRows:
    """Copy rows of bytes out of a flat buffer.

    :param buffer: One-dimensional, contiguous.
    :param offsets: Where each row starts; the caller has checked that all rows lie inside.
    :param size: Bytes a row.
    :return: Shape (n, size).
    """
    if not len(offsets):
        return np.empty((0, size), dtype=np.uint8)
    # A view with one overlapping item of `size` bytes at every byte: taking items is then a memcpy
    # each, several times faster than an index for every byte.
    items = np.ndarray(
        shape=(len(buffer) - size + 1,),
        dtype=np.dtype((np.void, size)),
        buffer=buffer.data,
        strides=(1,),
    )
    return items[offsets].view(np.uint8).reshape(len(offsets), size)


@dataclass(frozen=True)
class AddressSpace:
    """Where an object of the kernel's can lie at all.

    Slab objects lie in the direct map of RAM. The ranges come from what describes the machine's
    memory (the dump's segments, ``iomem_resource``), not from what a dump happens to contain, so
    that a page which a filter left out is a hole and not a wild pointer.

    :ivar ram: Shape (n, 2): half-open virtual ranges of the direct map that are backed by RAM,
        sorted and disjoint.
    :ivar page_size: Bytes.
    :ivar direct_map: Virtual address of physical address 0, modulo 2**64.
    :raises TargetError: if that is more RAM than any machine has.
    """

    ram: U64Column
    page_size: int
    direct_map: int

    def __post_init__(self) -> None:
        total = sum(int(end) - int(start) for start, end in self.ram)
        if total > _MOST_RAM:
            raise TargetError(f"RAM of {total >> 40} TiB is described here: no machine has so much")

    def in_ram(self, addresses: U64Column, size: int = 1) -> BoolColumn:
        """Which addresses lie in RAM's direct map.

        :param addresses: Any values at all.
        :param size: Bytes there that must lie in it as well.
        """
        return in_ranges(self.ram, addresses, size)

    def wild(self, addresses: U64Column, size: int = 1, alignment: int = WORD) -> BoolColumn:
        """Which pointers cannot point to a kernel object in RAM.

        NULL counts as wild: the caller knows where NULL is legal.

        :param addresses: Any values at all.
        :param size: Bytes of the object.
        :param alignment: A power of two.
        """
        wild: BoolColumn = ~self.in_ram(addresses, size)
        wild |= (addresses & np.uint64(alignment - 1)) != 0
        return wild

    @cached_property
    def _places(self) -> tuple[U64Column, U64Column]:
        # Start of each range, on the boundary of a page, and what to add for places.
        start = self.ram[:, 0] & np.uint64(-self.page_size % 2**64)
        pages = (self.ram[:, 1] - start + np.uint64(self.page_size - 1)) // np.uint64(
            self.page_size
        )
        before = np.concatenate([[np.uint64(0)], np.cumsum(pages, dtype=np.uint64)])
        return start, before * np.uint64(self.page_size)

    @property
    def room(self) -> int:
        """Bytes of RAM, in whole pages: what places are below of."""
        return int(self._places[1][-1])

    def place(self, addresses: U64Column) -> NDArray[np.int64]:
        """Where addresses would lie if the ranges of RAM followed each other without gaps.

        :param addresses: Any values at all.
        :return: -1 for what is not in RAM.
        """
        if not len(self.ram):
            return np.full(len(addresses), -1, dtype=np.int64)
        start, before = self._places
        length = self.ram[:, 1] - start
        # Nearly everything lies in the largest range.
        largest = int(np.argmax(length))
        place: U64Column = addresses - start[largest]
        if (place < length[largest]).all():
            place += before[largest]
            return place.view(np.int64)
        index = np.searchsorted(start, addresses, side="right") - 1
        place = addresses - start[index]
        outside = place >= length[index]
        place += before[index]
        place[outside] = np.uint64(2**64 - 1)
        return place.view(np.int64)

    def addresses(self, places: NDArray[np.int64]) -> U64Column:
        """What lies at places: the reverse of :meth:`place`."""
        start, before = self._places
        index = np.searchsorted(before, places.view(np.uint64), side="right") - 1
        address: U64Column = places.view(np.uint64) - before[index] + start[index]
        return address


class Memory(Protocol):
    """A target's memory, by kernel virtual address."""

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """Read the same number of bytes at each of many addresses.

        Never raises for what it cannot read, and never reads the lower half of the address space.
        Whoever asks twice gets the same bytes; several threads may ask at a time.

        :param addresses: Any values at all, repeated ones too.
        :param size: Bytes at each.
        :return: The bytes, shape (n, size), and which rows are there, shape (n,). Rows that are not
            there are zero.
        """
        ...

    def uncached(self) -> Memory:
        """The same memory, to read much of it once: it keeps nothing once it is given up."""
        ...


class OverlayMemory:
    """Another memory with some words replaced, to look at a corruption without making one.

    :param memory: What lies below.
    :param words: New 64-bit values by address (multiples of 8).
    """

    def __init__(self, memory: Memory, words: dict[int, int]) -> None:
        self._memory = memory
        order = sorted(words)
        self._addresses = np.array(order, dtype=np.uint64)
        self._values = np.array([words[address] for address in order], dtype="<u8")

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`Memory.gather`."""
        rows, present = self._memory.gather(addresses, size)
        for address, value in zip(self._addresses, self._values, strict=True):
            new = np.frombuffer(value.tobytes(), dtype=np.uint8)
            shift = (address - addresses).view(np.int64)
            for row in np.flatnonzero((shift > -WORD) & (shift < size) & present):
                at = int(shift[row])
                low, high = max(at, 0), min(at + WORD, size)
                rows[row, low:high] = new[low - at : high - at]
        return rows, present

    def uncached(self) -> Memory:
        """See :meth:`Memory.uncached`."""
        above = copy.copy(self)
        above._memory = self._memory.uncached()
        return above


class RecordingMemory:
    """Another memory, remembering which words were asked for and were there.

    :param memory: What lies below.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._ranges: list[U64Column] = []
        self._lock = threading.Lock()

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`Memory.gather`."""
        rows, present = self._memory.gather(addresses, size)
        start = distinct(addresses[present])
        low = start & np.uint64(-WORD % 2**64)
        high = (start + np.uint64(size + WORD - 1)) & np.uint64(-WORD % 2**64)
        with self._lock:
            self._ranges.append(merge_ranges(np.stack([low, high], axis=1)))
            if len(self._ranges) > 64:
                self._ranges = [self.ranges()]
        return rows, present

    def uncached(self) -> Memory:
        """See :meth:`Memory.uncached`; what is read so is not recorded."""
        return self._memory.uncached()

    def ranges(self) -> U64Column:
        """What was read so far: shape (n, 2), half-open, in whole words, sorted, disjoint."""
        if not self._ranges:
            return np.empty((0, 2), dtype=np.uint64)
        return merge_ranges(np.concatenate(self._ranges))


class SegmentMemory:
    """A memory that lies in one flat buffer: a mapped dump, or a snapshot.

    :param buffer: The whole file, one-dimensional.
    :param start: Virtual address of each segment, sorted; the segments are disjoint.
    :param size: Bytes of each that the file has.
    :param offset: Where each starts in the buffer.
    :param captured: One bit per word of the buffer from ``captured_from`` on, if only some words of
        the segments were captured; ``None`` if all were.
    :param fallback: Answers for addresses in no segment; ``None``: they are absent.
    """

    def __init__(
        self,
        buffer: NDArray[np.uint8],
        start: U64Column,
        size: U64Column,
        offset: U64Column,
        *,
        captured: BoolColumn | None = None,
        captured_from: int = 0,
        fallback: Memory | None = None,
    ) -> None:
        self._buffer = buffer
        self._start = start
        self._end = start + size
        self._shift = (offset - start).view(np.int64)
        self._largest = int(np.argmax(size)) if len(size) else 0
        self._captured_from = captured_from
        self._captured_before: NDArray[np.uint32] | None = None
        if captured is not None:
            self._captured_before = np.zeros(len(captured) + 1, dtype=np.uint32)
            np.cumsum(captured, dtype=np.uint32, out=self._captured_before[1:])
        self._fallback = fallback

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`Memory.gather`."""
        if not len(self._start) or size > len(self._buffer):
            present = np.zeros(len(addresses), dtype=bool)
            offsets = np.zeros(len(addresses), dtype=np.int64)
        elif self._all_in_largest(addresses, size):
            present = np.ones(len(addresses), dtype=bool)
            offsets = addresses.view(np.int64) + self._shift[self._largest]
        else:
            index = np.searchsorted(self._start, addresses, side="right") - 1
            present = index >= 0
            index = np.maximum(index, 0)
            last = addresses + np.uint64(size)
            present &= (last <= self._end[index]) & (last > addresses)
            present &= addresses >= np.uint64(KERNEL_HALF)
            offsets = addresses.view(np.int64) + self._shift[index]
        if self._captured_before is not None:
            self._drop_uncaptured(offsets, present, size)
        if present.all():
            return take_rows(self._buffer, offsets, size), present
        rows = np.zeros((len(addresses), size), dtype=np.uint8)
        rows[present] = take_rows(self._buffer, offsets[present], size)
        if self._fallback is not None:
            rest = np.flatnonzero(~present)
            rows[rest], present[rest] = self._fallback.gather(addresses[rest], size)
        return rows, present

    def uncached(self) -> Memory:
        """See :meth:`Memory.uncached`."""
        above = copy.copy(self)
        above._fallback = None if self._fallback is None else self._fallback.uncached()
        return above

    def read(self, address: int, size: int) -> bytes:
        """Read one piece of memory, which :meth:`gather` is slow at.

        :raises LookupError: if any of it is not there; the fallback is not asked.
        """
        index = bisect.bisect_right(self._start, np.uint64(address)) - 1
        if (
            not KERNEL_HALF <= address < address + size < 2**64
            or index < 0
            or address + size > self._end[index]
        ):
            raise LookupError("not in any segment")
        offset = (address + int(self._shift[index])) % 2**64
        if self._captured_before is not None:
            first = (offset - self._captured_from) // WORD
            last = (offset - self._captured_from + size + WORD - 1) // WORD
            if self._captured_before[last] - self._captured_before[first] != last - first:
                raise LookupError("not captured in this snapshot")
        return self._buffer[offset : offset + size].tobytes()

    # Nearly always all of what is asked for lies in one segment.
    def _all_in_largest(self, addresses: U64Column, size: int) -> bool:
        start, end = self._start[self._largest], self._end[self._largest]
        if start < np.uint64(KERNEL_HALF) or end - start < np.uint64(size):
            return False
        return bool((addresses - start <= end - start - np.uint64(size)).all())

    # Clears `present` where a row holds a word that was not captured.
    def _drop_uncaptured(self, offsets: NDArray[np.int64], present: BoolColumn, size: int) -> None:
        before = self._captured_before
        assert before is not None
        # What lies outside is clipped to fewer words than it has.
        inside = offsets - self._captured_from
        first, last = inside // WORD, (inside + (size + WORD - 1)) // WORD
        captured = before.take(last, mode="clip") - before.take(first, mode="clip")
        present &= captured == last - first
