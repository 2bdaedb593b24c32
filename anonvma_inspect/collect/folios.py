"""From page frames to the folios that they are part of."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.folio import FolioEra, MappingKind, decode_mapping
from anonvma_inspect.kernel.slab import SlabEra, head_of
from anonvma_inspect.tables import NO_ROW, Folios, I64Column, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct

__all__ = ("FolioReader",)

_ANONYMOUS = (MappingKind.ANON, MappingKind.KSM, MappingKind.LAZY_VMA)
# struct page read together.
_BATCH = 1 << 18


class FolioReader:
    """Reads ``struct page`` of page frames.

    :param vmemmap: Address of that of page frame 0.
    :param lazy: Folios of ANON_VMA_LAZY's lazy VMAs are anonymous memory, too.
    """

    def __init__(self, reader: Reader, era: FolioEra, vmemmap: int, *, lazy: bool = False) -> None:
        self._reader, self._era, self._lazy = reader, era, lazy
        self._vmemmap = np.uint64(vmemmap)
        self._size = np.uint64(era.page.size)
        self._shift = np.uint64(reader.space.page_size.bit_length() - 1)

    def in_ram(self, frames: U64Column) -> BoolColumn:
        """Which page frames are of RAM."""
        space = self._reader.space
        return space.in_ram(np.uint64(space.direct_map) + (frames << self._shift))

    def page_of(self, frames: U64Column) -> U64Column:
        """Address of the ``struct page`` of page frames."""
        return self._vmemmap + frames * self._size

    def frame_of(self, pages: U64Column) -> U64Column:
        """Page frames that ``struct page`` at some addresses are of."""
        return (pages - self._vmemmap) // self._size

    def head_of_frame(self, frame: int) -> tuple[int, int]:
        """Address of the ``struct page`` of a page frame, and of its folio's."""
        page = self.page_of(np.array([frame], dtype=np.uint64))
        info, _ = self._reader.words(self._era.page, page, "head")
        return int(page[0]), int(head_of(page, info, self._era.page.size)[0])

    def has_type(self, head: int, slab: SlabEra | None) -> bool:
        """Whether a page is used for something whose words mean other things: a slab, a page table,
        free memory. (Since v6.9 hugetlb's have a type, too, and are folios all the same.)

        :param head: Address of the ``struct page``, of no folio of hugetlb.
        """
        rows, _ = self._reader.rows(self._era.page, np.array([head], dtype=np.uint64))
        # PAGE_TYPE_BASE and what is above it read as counts far below zero.
        if int(self._era.page.signed(rows, "mapcount")[0]) < -1:
            return True
        return slab is not None and bool(slab.is_slab(rows)[0])

    def anonymous(self, frames: U64Column) -> tuple[BoolColumn, U64Column, BoolColumn]:
        """Which page frames hold anonymous memory.

        :param frames: Of RAM.
        :return: Whether they do; address of the folio's ``struct page``; and whether the page says
            that it belongs to one process.
        """
        era = self._era
        page = self.page_of(frames)
        rows, present = self._reader.memory.gather(page, era.page.size)
        if not present.all():
            self._reader.hole(page[~present], era.page.size, era.page.struct)
        info = era.page.column(rows, "head")
        mapping = era.page.column(rows, "mapping")
        head = page
        tails = np.flatnonzero((info & np.uint64(1)) != 0)
        if len(tails):
            head = head_of(page, info, era.page.size)
            heads = distinct(head[tails])
            words, there = self._reader.words(era.page, heads, "mapping")
            row = find_rows(heads, head[tails])
            mapping[tails] = words[row]
            # A tail that names no head is nothing that can be read as a folio.
            present[tails] &= there[row] & (head[tails] != page[tails])
        _, kind = decode_mapping(mapping, lazy=self._lazy)
        found: BoolColumn = present & np.isin(kind, _ANONYMOUS)
        flags = era.page.column(rows, "flags")
        return found, head, (flags & np.uint64(era.exclusive)) != 0

    def read(self, heads: U64Column) -> Folios:
        """Read folios.

        :param heads: Addresses of their ``struct page``, sorted.
        :return: Without what is known of their anon_vmas.
        """
        era = self._era
        page = era.page
        names = ("flags", "mapping", "index", "private", "mapcount", "refcount")
        words, _ = self._reader.columns(page, heads, names)
        pointer, kind = decode_mapping(words["mapping"], lazy=self._lazy)
        own = page.as_signed("mapcount", words["mapcount"]) + 1
        count = len(heads)
        pages = np.ones(count, dtype=np.int64)
        mapcount, most, entire = own, own.copy(), np.zeros(count, dtype=np.int64)
        hugetlb = np.zeros(count, dtype=bool)
        large = np.flatnonzero((words["flags"] & np.uint64(era.flags["head"])) != 0)
        if len(large):
            rows, present = self._reader.rows(era.large, heads[large])
            whole, _ = self._reader.rows(page, heads[large])
            pages[large] = np.where(present, era.nr_pages(rows), 0)
            entire[large] = era.large.signed(rows, "entire_mapcount") + 1
            hugetlb[large] = present & era.is_hugetlb(whole, rows)
            if "large_mapcount" in era.large:
                mapcount[large] = era.large.signed(rows, "large_mapcount") + 1
                most[large] = mapcount[large]
            else:
                # Of hugetlb there is nothing but the whole (hugepage_add_anon_rmap()).
                mapcount[large] = most[large] = entire[large]
                large = large[~hugetlb[large]]
                parts = self._mapcounts(heads[large], pages[large])
                most[large] += parts
                double = (self._second_flags(heads[large]) & np.uint64(era.double_map)) != 0
                mapcount[large] = most[large] - np.where(double, pages[large], 0)
        return Folios(
            address=heads,
            pfn=self.frame_of(heads),
            flags=words["flags"],
            mapping=words["mapping"],
            pointer=pointer,
            kind=kind,
            index=words["index"],
            private=words["private"],
            refcount=page.as_signed("refcount", words["refcount"]),
            pages=pages,
            mapcount=mapcount,
            most_mapcount=most,
            entire_mapcount=entire,
            hugetlb=hugetlb,
            anon_vma=np.full(count, NO_ROW, dtype=np.int64),
            anon_vma_refcount=np.full(count, -1, dtype=np.int64),
        )

    # PageDoubleMap() looks at the flags of the second page.
    def _second_flags(self, heads: U64Column) -> U64Column:
        words, _ = self._reader.words(self._era.page, heads + self._size, "flags")
        return words

    # How many entries map single pages of large folios, summed up.
    def _mapcounts(self, heads: U64Column, pages: I64Column) -> I64Column:
        page = self._era.page
        sums = np.zeros(len(heads), dtype=np.int64)
        ends = np.cumsum(pages)
        for batch in np.split(np.arange(len(heads)), np.flatnonzero(np.diff(ends // _BATCH)) + 1):
            count = pages[batch]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            at = np.repeat(heads[batch], count) + within.astype(np.uint64) * self._size
            words, present = self._reader.words(page, at, "mapcount")
            mapped = np.where(present, page.as_signed("mapcount", words) + 1, 0)
            owner = np.repeat(np.arange(len(batch)), count)
            sums[batch] = np.bincount(owner, mapped, len(batch)).astype(np.int64)
        return sums
