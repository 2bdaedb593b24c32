"""The page tables of many processes, walked together, a level at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.page_table import EntryKind, PageTableFormat
from anonvma_inspect.tables import I64Column, RowColumn, U8Column
from anonvma_inspect.target.memory import WORD, BoolColumn, U64Column

__all__ = ("Entries", "LookUp", "PageTableWalk", "PageTables", "Spans", "look_up")

# Tables read together: 4 MiB of those of 4 KiB.
_BATCH = 1 << 10
# More page frames than any machine here has: where it is not known what is RAM.
_MOST_FRAMES = 1 << 32
_NO_WORDS: U64Column = np.empty(0, dtype=np.uint64)
_NO_ROWS: I64Column = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Spans:
    """Ranges of user addresses of several mms, by mm and address, disjoint.

    :ivar mm: A number of the mm, from 0 on.
    :ivar first: First page, as a number.
    :ivar last: Last page.
    :ivar bits: Of the number of a page.
    """

    mm: I64Column
    first: U64Column
    last: U64Column
    bits: int

    def key(self, mm: I64Column, page: U64Column) -> U64Column:
        """What pages of mms are sorted by."""
        return (mm.astype(np.uint64) << np.uint64(self.bits)) | page

    def find(self, mm: I64Column, page: U64Column, count: int) -> tuple[RowColumn, BoolColumn]:
        """The last span that begins before or in some pages, and whether any lies in it.

        :param count: How many pages each.
        """
        key = self.key(mm, page)
        starts, ends = self._keys
        if not len(starts):
            return np.zeros(len(key), dtype=np.int64), np.zeros(len(key), dtype=bool)
        row = np.searchsorted(starts, key + np.uint64(count - 1), side="right") - 1
        found = row >= 0
        row = np.maximum(row, 0)
        found &= ends[row] >= key
        return row, found

    @cached_property
    def _keys(self) -> tuple[U64Column, U64Column]:
        return self.key(self.mm, self.first), self.key(self.mm, self.last)


@dataclass(frozen=True)
class Entries:
    """Entries that are no tables, of one level.

    :ivar mm: As in :class:`Spans`.
    :ivar page: Number of the first page that each maps.
    :ivar kind: An :class:`~anonvma_inspect.kernel.page_table.EntryKind`.
    :ivar frame: As :meth:`PageTableFormat.frames` has it.
    :ivar word: The entry.
    :ivar span: Row in the spans.
    :ivar pages: How many pages an entry maps.
    :ivar stray: How many others there were, outside of the spans.
    """

    mm: I64Column
    page: U64Column
    kind: U8Column
    frame: U64Column
    word: U64Column
    span: RowColumn
    pages: int
    stray: int


@dataclass(frozen=True)
class PageTables:
    """Tables of one level.

    :ivar mm: As in :class:`Spans`.
    :ivar page: The first page that each stands for.
    :ivar address: Where it is.
    """

    mm: I64Column
    page: U64Column
    address: U64Column

    def only(self, part: slice) -> PageTables:
        """Some of them."""
        return PageTables(self.mm[part], self.page[part], self.address[part])


class PageTableWalk:
    """Walks page tables.

    No table is read twice: in a sound kernel each has one place in one mm, and what is not sound
    must not keep us busy for ever.
    """

    def __init__(self, reader: Reader, form: PageTableFormat) -> None:
        self._reader, self._form = reader, form
        #: How many tables were read, and how many could not be.
        self.read, self.lost = 0, 0
        self._lock = threading.Lock()
        frames = reader.space.room >> form.page_shift
        self._met = np.zeros(frames + 1, dtype=bool) if frames < _MOST_FRAMES else None

    def upper(self, spans: Spans, pgd: U64Column) -> tuple[list[Entries], list[PageTables]]:
        """Walk down to the tables that map pages.

        :param pgd: Address of the top table of each mm.
        :return: Entries that map huge pages; and the lowest tables, in batches, for :meth:`leaves`.
        """
        form = self._form
        level = PageTables(np.arange(len(pgd)), np.zeros(len(pgd), dtype=np.uint64), pgd)
        huge = []
        for number in range(form.levels, 1, -1):
            # Top tables can be smaller than a page, and several lie in one.
            level = self._only_new(level, number < form.levels)
            found = [self._step(part, spans, number) for part in _parts(level)]
            huge += [entries for entries, _ in found]
            below = [tables for _, tables in found]
            level = PageTables(
                np.concatenate([_NO_ROWS, *(each.mm for each in below)]),
                np.concatenate([_NO_WORDS, *(each.page for each in below)]),
                np.concatenate([_NO_WORDS, *(each.address for each in below)]),
            )
        return huge, _parts(self._only_new(level, True))

    def leaves(self, tables: PageTables, spans: Spans) -> Entries:
        """Read tables that map pages."""
        return self._step(tables, spans, 1)[0]

    # Tables that are in RAM and were not met before.
    def _only_new(self, level: PageTables, pages: bool) -> PageTables:
        space, size = self._reader.space, 1 << self._form.page_shift
        good = ~space.wild(level.address)
        if not pages:
            place = level.address.view(np.int64)
        elif self._met is not None:
            place = np.where(good, space.place(level.address) >> self._form.page_shift, -1)
        else:
            place = (level.address // np.uint64(size)).view(np.int64)
        first = np.zeros(len(good), dtype=bool)
        first[np.unique(place, return_index=True)[1]] = True
        good &= first
        if pages and self._met is not None:
            good &= ~self._met[place]
            self._met[place[good]] = True
        self.lost += int(np.count_nonzero(~good))
        return PageTables(level.mm[good], level.page[good], level.address[good])

    def _step(self, tables: PageTables, spans: Spans, number: int) -> tuple[Entries, PageTables]:
        form, reader = self._form, self._reader
        bits = min(form.index_bits, form.address_bits - form.shift(number))
        if number == form.levels:
            bits = form.address_bits - form.shift(number)
        size = WORD << bits
        rows, present = reader.memory.gather(tables.address, size)
        if not present.all():
            reader.hole(tables.address[~present], size, "page table")
        with self._lock:
            self.read += int(np.count_nonzero(present))
        words = rows.view("<u8").reshape(-1)
        place = np.flatnonzero(words)
        entries = words[place].astype(np.uint64)
        table, slot = place >> bits, place & ((1 << bits) - 1)
        mm = tables.mm[table]
        count = form.shift(number) - form.page_shift
        page = tables.page[table] + (slot.astype(np.uint64) << np.uint64(count))
        span, inside = spans.find(mm, page, 1 << count)
        kinds = form.kinds(entries, number)
        next_one = kinds == EntryKind.TABLE
        stray = int(np.count_nonzero(~inside & ~next_one))
        last = np.flatnonzero(inside & ~next_one)
        frame = form.frames(entries[last], kinds[last], number)
        found = Entries(
            *(mm[last], page[last], kinds[last], frame, entries[last], span[last]),
            *(1 << count, stray),
        )
        more = np.flatnonzero(inside & next_one)
        address = form.physical(entries[more]) + np.uint64(reader.space.direct_map)
        return found, PageTables(mm[more], page[more], address)


def _parts(level: PageTables) -> list[PageTables]:
    return [level.only(slice(at, at + _BATCH)) for at in range(0, len(level.mm), _BATCH)]


@dataclass(frozen=True)
class LookUp:
    """What page tables say of single addresses.

    :ivar entry: The word that the walk ended at; 0 where there was none.
    :ivar kind: An :class:`~anonvma_inspect.kernel.page_table.EntryKind`.
    :ivar frame: Number of the page frame of that page; 0 if there is none.
    :ivar pages: How many pages the entry maps.
    :ivar known: The tables were there.
    """

    entry: U64Column
    kind: U8Column
    frame: U64Column
    pages: I64Column
    known: BoolColumn


def look_up(reader: Reader, form: PageTableFormat, pgd: U64Column, addresses: U64Column) -> LookUp:
    """Walk page tables to single addresses.

    :param pgd: Address of the top table for each.
    :param addresses: Of user memory.
    """
    count = len(addresses)
    entry, frame = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.uint64)
    kind = np.full(count, EntryKind.NONE, dtype=np.uint8)
    pages, known = np.ones(count, dtype=np.int64), np.ones(count, dtype=bool)
    front = np.flatnonzero(addresses < np.uint64(1 << form.address_bits))
    table = pgd[front]
    for level in range(form.levels, 0, -1):
        shift = np.uint64(form.shift(level))
        slot = addresses[front] >> shift
        if level < form.levels:
            slot &= np.uint64((1 << form.index_bits) - 1)
        at = table + slot * np.uint64(WORD)
        wild = reader.space.wild(at, WORD)
        rows, present = reader.memory.gather(at, WORD)
        reader.hole(at[~wild & ~present], WORD, "page table")
        known[front[wild | ~present]] = False
        there = ~wild & present
        front, words = front[there], rows[there].view("<u8").reshape(-1).astype(np.uint64)
        kinds: NDArray[np.uint8] = form.kinds(words, level)
        entry[front], kind[front] = words, kinds
        of_block = form.frames(words, kinds, level)
        within = (addresses[front] & np.uint64((1 << form.shift(level)) - 1)) >> np.uint64(
            form.page_shift
        )
        has_frame = (kinds == EntryKind.PAGE) | (kinds == EntryKind.FRAME)
        frame[front] = np.where(has_frame, of_block + within, np.uint64(0))
        pages[front] = 1 << (form.shift(level) - form.page_shift)
        down = kinds == EntryKind.TABLE
        front = front[down]
        table = form.physical(words[down]) + np.uint64(reader.space.direct_map)
    return LookUp(entry, kind, frame, pages, known)
