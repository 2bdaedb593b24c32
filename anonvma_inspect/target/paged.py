"""A cache of pages: the memory of what can only be read piece by piece, and of what runs."""

from __future__ import annotations

import contextlib
import functools
import mmap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.target.memory import (
    KERNEL_HALF,
    BoolColumn,
    ByteRows,
    Memory,
    U64Column,
    distinct,
    take_rows,
)

__all__ = ("Meter", "PagedMemory", "ReadInto")

#: Reads ``(address, buffer)``; raises :class:`LookupError` where there is nothing.
ReadInto = Callable[[int, memoryview], None]

# Neighbouring pages are read in one call; a longer run costs hardly more than a short one.
_RUN_PAGES = 64
# include/uapi/asm-generic/mman-common.h; Python knows it from 3.13 on.
_MAP_NORESERVE = 0x4000


@dataclass
class Meter:
    """What reading a target that runs has come to, over all views of it.

    :ivar bytes_read: How much of its memory was read.
    :ivar pages_refused: Pages that were not read since a view had reached its limit.
    """

    bytes_read: int = 0
    pages_refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, bytes_read: int = 0, pages_refused: int = 0) -> None:
        """Count; several threads may do so at a time."""
        with self._lock:
            self.bytes_read += bytes_read
            self.pages_refused += pages_refused


# Of so few addresses at a time, a step along a list, numpy takes longer to be asked than to answer.
_FEW = 16


# What a table of pages says of one that was not asked for yet, or could not be read.
_UNKNOWN, _ABSENT = -2, -1


class _PageTable:
    """Where each page lies in a pool: a table of 512 entries wherever a page was asked for.

    :param high: Number of the first page of each table, by 512, sorted.
    :param row: Row of each table.
    """

    _SHIFT = np.uint64(9)

    def __init__(
        self,
        high: U64Column | None = None,
        row: NDArray[np.int64] | None = None,
        entries: NDArray[np.int32] | None = None,
    ) -> None:
        self._high = np.empty(0, dtype=np.uint64) if high is None else high
        self._row = np.empty(0, dtype=np.int64) if row is None else row
        self._entries = (
            np.empty((0, 1 << int(self._SHIFT)), dtype=np.int32) if entries is None else entries
        )

    def look_up(self, pages: U64Column) -> NDArray[np.int64]:
        """The entry of each page."""
        if not len(self._high):
            return np.full(len(pages), _UNKNOWN, dtype=np.int64)
        high = pages >> self._SHIFT
        index = np.minimum(np.searchsorted(self._high, high), len(self._high) - 1)
        entry = self._entries.reshape(-1)[self._place(pages, index)].astype(np.int64)
        entry[self._high[index] != high] = _UNKNOWN
        return entry

    def _place(self, pages: U64Column, index: NDArray[np.intp]) -> NDArray[np.int64]:
        low = pages & np.uint64((1 << int(self._SHIFT)) - 1)
        place: NDArray[np.int64] = (self._row[index] << int(self._SHIFT)) | low.view(np.int64)
        return place

    def grown(self, pages: U64Column) -> _PageTable:
        """One that has entries for more pages, sorted; those that it has already are shared."""
        high = distinct(pages >> self._SHIFT)
        new = high[~np.isin(high, self._high, assume_unique=True)]
        if not len(new):
            return self
        count = len(self._high) + len(new)
        entries = self._entries
        if count > len(entries):
            entries = np.full((2 * count, entries.shape[1]), _UNKNOWN, dtype=np.int32)
            entries[: len(self._high)] = self._entries[: len(self._high)]
        high = np.concatenate([self._high, new])
        row = np.concatenate([self._row, np.arange(len(self._high), count)])
        order = np.argsort(high)
        return _PageTable(high[order], row[order], entries)

    def known(self) -> tuple[U64Column, NDArray[np.int64]]:
        """All pages that have an entry which is not negative, sorted, and that entry."""
        entries = self._entries[self._row]
        table, low = np.nonzero(entries >= 0)
        pages = (self._high[table] << self._SHIFT) | low.astype(np.uint64)
        return pages, entries[table, low].astype(np.int64)

    def enter(self, pages: U64Column, entries: NDArray[np.int32]) -> None:
        """Set the entries of pages that there are tables for."""
        index = np.searchsorted(self._high, pages >> self._SHIFT)
        self._entries.reshape(-1)[self._place(pages, index)] = entries


def _copy(read: Callable[[int, int], bytes], address: int, into: memoryview) -> None:
    into[:] = read(address, len(into))


class _Pool:
    """Pages, one behind the other.

    :param page_size: Bytes.
    :param limit: Bytes that there can be at most; ``None``: no limit.
    """

    def __init__(self, page_size: int, limit: int | None) -> None:
        self._page_size, self._limit = page_size, limit
        #: All of them, flat.
        self.bytes = np.zeros(0, dtype=np.uint8)

    def make_room(self, pages: int) -> None:
        """See to it that there is room for so many pages in all."""
        size = pages * self._page_size
        if size <= len(self.bytes):
            return
        # Where it is known how large it can become, only addresses are taken up at first: nothing
        # is copied when more is needed, and memory is used page by page.
        if self._limit is not None and not len(self.bytes):
            with contextlib.suppress(OSError):
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
                room = mmap.mmap(-1, max(self._limit, size), flags=flags)
                self.bytes = np.frombuffer(room, dtype=np.uint8)
                return
        grown = np.zeros(max(size, 2 * len(self.bytes), 64 * self._page_size), dtype=np.uint8)
        grown[: len(self.bytes)] = self.bytes
        self.bytes = grown

    def view(self, start: int, end: int) -> memoryview:
        """Some of the bytes, to be written to."""
        return self.bytes.data[start:end]


class PagedMemory:
    """A memory that can only be read piece by piece, behind a cache of whole pages.

    Of a target that runs, such a cache is a *view*: a page is what it was when it was first asked
    for, for as long as the view lasts, so that whoever asks twice gets the same bytes. Nothing is
    therefore ever dropped from it, and what bounds it is a limit, behind which pages are holes. The
    limit is there for a target in which pointers lead everywhere: what a sound one has to be read
    of is a small part of its slabs.

    :param read: Reads ``(address, size)``; raises :class:`LookupError` where there is nothing.
    :param page_size: Bytes; the unit of the cache and of absence.
    :param meter: Told what is read.
    :param limit: Bytes that are kept at most; ``None``: no limit.
    :param read_into: Reads ``(address, buffer)`` likewise, without a copy, where that can be done.
    :param ahead: Pages that will be asked for, it seems: as :meth:`asked` returned them for another
        view. They are read at once, so that they are of nearly one moment.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        page_size: int,
        *,
        meter: Meter | None = None,
        limit: int | None = None,
        read_into: ReadInto | None = None,
        ahead: U64Column | None = None,
    ) -> None:
        self._read = read
        self._read_into = functools.partial(_copy, read) if read_into is None else read_into
        self._page_size = page_size
        self._meter = Meter() if meter is None else meter
        self._limit = limit
        self._table = _PageTable()
        self._pool = _Pool(page_size, limit)
        self._used = 0
        # Held while pages are read. What was read is looked up without it: a page is in the pool
        # before a table says so, and a table or pool that others look at is never changed in what
        # it said.
        self._lock = threading.Lock()
        # Which slots were asked for; None: whatever was read.
        self._asked: BoolColumn | None = None
        # What the table says of the pages that are there, for those who ask for few at a time.
        self._slot_of: dict[int, int] = {}
        if ahead is not None and len(ahead):
            if limit is not None:
                ahead = ahead[: limit // page_size]
            self._load(ahead)
            self._asked = np.zeros(self._used, dtype=bool)

    def asked(self) -> U64Column:
        """Numbers of the pages that were asked for and are there, sorted."""
        pages, slots = self._table.known()
        if self._asked is not None:
            # What was read later, was read because it was asked for.
            pages = pages[np.append(self._asked, True)[np.minimum(slots, len(self._asked))]]
        return pages

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`Memory.gather`."""
        if len(addresses) <= _FEW and (rows := self._gather_few(addresses, size)) is not None:
            return rows, np.ones(len(addresses), dtype=bool)
        present = (addresses >= np.uint64(KERNEL_HALF)) & (addresses <= np.uint64(2**64 - 1 - size))
        page_size = np.uint64(self._page_size)
        if size <= self._page_size and present.all():
            page, inside = np.divmod(addresses, page_size)
            if not len(page) or inside.max() + np.uint64(size) <= page_size:
                slot, pool = self._slots(page)
                if (slot >= 0).all():
                    start = slot * self._page_size + inside.view(np.int64)
                    return take_rows(pool, start, size), present
        rows = np.zeros((len(addresses), size), dtype=np.uint8)
        index = np.flatnonzero(present)
        done = np.zeros(len(index), dtype=np.int64)
        # A row that crosses into the next page is put together from pieces, a page a round.
        while len(index):
            at = addresses[index] + done.view(np.uint64)
            page = at // page_size
            inside = (at % page_size).view(np.int64)
            count = np.minimum(size - done, self._page_size - inside)
            slot, pool = self._slots(page)
            there = slot >= 0
            present[index[~there]] = False
            for length in np.unique(count[there]):
                of_length = there & (count == length)
                start = slot[of_length] * self._page_size + inside[of_length]
                piece = take_rows(pool, start, int(length))
                if length == size:
                    rows[index[of_length]] = piece
                else:
                    column = done[of_length][:, None] + np.arange(length)
                    rows[index[of_length][:, None], column] = piece
            done = done + count
            more = there & (done < size)
            index, done = index[more], done[more]
        rows[~present] = 0
        return rows, present

    # None if some of it is not of that kind: on one page, and there.
    def _gather_few(self, addresses: U64Column, size: int) -> ByteRows | None:
        pool, page_size = self._pool.bytes.data, self._page_size
        rows = bytearray()
        for address in addresses.tolist():
            page, inside = divmod(address, page_size)
            if inside + size > page_size or address < KERNEL_HALF:
                return None
            slot = self._slot_of.get(page)
            if slot is None:
                slot = int(self._slots(np.array([page], dtype=np.uint64))[0][0])
                if slot < 0:
                    return None
                pool = self._pool.bytes.data
            elif self._asked is not None and slot < len(self._asked):
                self._asked[slot] = True
            start = slot * page_size + inside
            rows += pool[start : start + size]
        return np.frombuffer(rows, dtype=np.uint8).reshape(len(addresses), size)

    def uncached(self) -> Memory:
        """See :meth:`Memory.uncached`; of a target that runs, another view."""
        return PagedMemory(
            self._read,
            self._page_size,
            meter=self._meter,
            limit=self._limit,
            read_into=self._read_into,
        )

    # The slot of each page (by page number) in the pool, negative where it cannot be read, and the
    # pool, flat.
    def _slots(self, pages: U64Column) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        slots = self._table.look_up(pages)
        unknown = slots == _UNKNOWN
        if unknown.any():
            with self._lock:
                # Another thread may have read them in the meantime.
                wanted = distinct(pages[unknown])
                wanted = wanted[self._table.look_up(wanted) == _UNKNOWN]
                if len(wanted):
                    self._load(wanted)
            slots = self._table.look_up(pages)
        if self._asked is not None:
            ahead = slots[(slots >= 0) & (slots < len(self._asked))]
            self._asked[ahead] = True
        return slots, self._pool.bytes

    def _load(self, pages: U64Column) -> None:
        slots = np.full(len(pages), _ABSENT, dtype=np.int32)
        self._read_in(pages, slots)
        self._table = self._table.grown(pages)
        self._table.enter(pages, slots)
        there = slots >= 0
        self._slot_of.update(zip(pages[there].tolist(), slots[there].tolist(), strict=True))

    # Reads pages, those within the limit, into the pool; tells each one's slot.
    def _read_in(self, pages: U64Column, slots: NDArray[np.int32]) -> None:
        if self._limit is not None:
            room = max(self._limit // self._page_size - self._used, 0)
            self._meter.add(pages_refused=max(len(pages) - room, 0))
            pages = pages[:room]
        self._pool.make_room(self._used + len(pages))
        ends = [*(np.flatnonzero(np.diff(pages) != 1) + 1).tolist(), len(pages)]
        first = 0
        for end in ends:
            while first < end:
                last = min(first + _RUN_PAGES, end)
                self._load_run(int(pages[first]), slots[first:last])
                first = last

    # Neighbours.
    def _load_run(self, page: int, slots: NDArray[np.int32]) -> None:
        size, count = self._page_size, len(slots)
        into = self._pool.view(self._used * size, (self._used + count) * size)
        try:
            self._read_into(page * size, into)
        except LookupError:
            if count > 1:
                # One page of the run is missing: find out which.
                half = count // 2
                self._load_run(page, slots[:half])
                self._load_run(page + half, slots[half:])
            return
        self._meter.add(bytes_read=len(into))
        slots[:] = range(self._used, self._used + count)
        self._used += count
