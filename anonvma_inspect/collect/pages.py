"""Which pages of anonymous memory are mapped where, and what their folios say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.page_tables import Entries, PageTables, PageTableWalk, Spans
from anonvma_inspect.collect.reader import Progress, Reader
from anonvma_inspect.collect.swap_cache import SwapCache, find_swap_cache
from anonvma_inspect.errors import TargetError
from anonvma_inspect.kernel.folio import FolioEra, MappingKind, resolve_folio_era
from anonvma_inspect.kernel.page_table import EntryKind, PageTableFormat, resolve_page_tables
from anonvma_inspect.kernel.swap_cache import join_entry, split_entry
from anonvma_inspect.kernel.vm_flags import VM_NOT_ANONYMOUS
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import (
    NO_ROW,
    Folios,
    I64Column,
    Mappings,
    PageCoverage,
    Pages,
    RowColumn,
    Swapped,
    Tables,
    find_rows,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

__all__ = ("PAGES_WALK", "PageSources", "collect_pages", "page_sources")

#: What a snapshot calls the words of page tables and of the folios that they lead to.
PAGES_WALK = "pages"

# mms walked together.
_MMS = 1 << 12
# A multiplier of Knuth's: neighbouring blocks of memory are not chosen together.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_NO_WORDS: U64Column = np.empty(0, dtype=np.uint64)
_NO_ROWS: I64Column = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class PageSources:
    """What reading pages takes."""

    form: PageTableFormat
    era: FolioEra
    vmemmap: int


def page_sources(target: Target) -> PageSources | str:
    """Find what reading page tables and folios takes.

    :return: Or why they cannot be read.
    """
    if target.walks is not None and PAGES_WALK not in target.walks:
        return "not in this snapshot: it was taken without --pages"
    try:
        facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
    except TargetError as error:
        return str(error)
    form = resolve_page_tables(target.architecture, target.page_size, facts)
    if isinstance(form, str):
        return form
    era = resolve_folio_era(target.layouts, facts)
    if isinstance(era, str):
        return era
    vmemmap = find_vmemmap(target, facts)
    if vmemmap is None:
        return "where struct page is (vmemmap) is not known"
    return PageSources(form, era, vmemmap)


def collect_pages(
    target: Target, tables: Tables, progress: Progress | None = None, *, sample: int = 1
) -> Tables:
    """Walk the page tables of all mms whose VMAs are known.

    Looked at are VMAs that can hold anonymous memory.

    :param tables: As :func:`anonvma_inspect.collect.collect` has filled them from this target.
    :param progress: Called with what is being read, and how much of it so far.
    :param sample: Look at one in so many blocks of memory (of the size of a huge page); of these,
        all folios with all that maps them.
    :return: The same tables with :attr:`Tables.pages`, and what was missing among the holes.
    """
    sources = page_sources(target)
    if isinstance(sources, str):
        return dataclasses.replace(tables, pages=_not_read(sources))
    reader = Reader(target, progress)
    pages = _Pages(target, reader, tables, sources, sample).collect()
    return dataclasses.replace(tables, pages=pages, holes=reader.holes(tables.holes))


def _not_read(reason: str) -> Pages:
    empty = Folios(*([_NO_WORDS] * len(dataclasses.fields(Folios))))  # type: ignore[arg-type]
    nothing = Mappings(*([_NO_ROWS] * len(dataclasses.fields(Mappings))))  # type: ignore[arg-type]
    nowhere = np.zeros(0, dtype=bool)
    swapped = Swapped(
        *(reason, False, _NO_ROWS, _NO_WORDS, _NO_WORDS, _NO_WORDS),
        *(nowhere, _NO_ROWS, nowhere, empty),
    )
    return Pages(reason, empty, nothing, swapped, PageCoverage(), False, 0, 0, 0, 0, "page")


# Entries for swap areas.
@dataclass(frozen=True)
class _Slots:
    key: U64Column
    vma: RowColumn
    address: U64Column
    area: U64Column
    slot: U64Column
    exclusive: BoolColumn


# Entries that map anonymous pages, with the folio's address in place of its row, and those for swap
# areas.
@dataclass(frozen=True)
class _Found:
    key: U64Column
    mappings: Mappings
    head: U64Column
    slots: _Slots
    counts: Counter[str]


class _Pages:
    def __init__(
        self, target: Target, reader: Reader, tables: Tables, sources: PageSources, sample: int
    ) -> None:
        self._target, self._reader, self._tables = target, reader, tables
        self._form, self._era = sources.form, sources.era
        lazy = tables.era.tags.name == "lazy"
        self._folios = FolioReader(reader, sources.era, sources.vmemmap, lazy=lazy)
        self._sample = sample
        self._counts: Counter[str] = Counter()
        self._walk = PageTableWalk(reader, sources.form)
        self._unclear = np.zeros(len(tables.vmas.address), dtype=bool)

    def collect(self) -> Pages:
        mms = self._tables.mms
        words, present = self._reader.words(self._tables.era.mm, mms.address, "pgd")
        # Without users, it is being taken down, or what is there is no mm any more.
        alive = mms.listed | (mms.mm_users > 0)
        walked = np.flatnonzero(mms.walked & alive & present & (words != 0))
        self._counts["mms"] = len(walked)
        self._counts["mms_left_out"] = len(mms.address) - len(walked)
        found = []
        for at in range(0, len(walked), _MMS):
            chunk = walked[at : at + _MMS]
            found += self._chunk(chunk, words[chunk])
        head = np.concatenate([_NO_WORDS, *(each.head for each in found)])
        heads = distinct(head)
        folios = self._with_anon_vmas(self._folios.read(heads))
        mappings = _join([each.mappings for each in found], find_rows(heads, head))
        for each in found:
            self._counts += each.counts
        swapped = self._swapped(_join_slots([each.slots for each in found]))
        self._counts["swap_cached"] = int(np.count_nonzero(swapped.folio != NO_ROW))
        self._counts["swap_not_known"] = int(np.count_nonzero(~swapped.known))
        coverage = PageCoverage(
            page_tables=self._walk.read,
            page_tables_lost=self._walk.lost,
            sample=self._sample,
            **{name: self._counts[name] for name in _COUNTED},
        )
        record = self._era.page
        return Pages(
            None,
            folios,
            mappings,
            swapped,
            coverage,
            self._era.exclusive != 0,
            record.offset("mapping"),
            record.offset("index"),
            self._era.flags["locked"],
            self._era.busy,
            self._era.struct,
            np.flatnonzero(self._unclear),
        )

    # What the swap cache has for some slots.
    def _swapped(self, slots: _Slots) -> Swapped:
        found = find_swap_cache(self._target)
        marks = self._form.x86 and self._era.exclusive != 0
        count = len(slots.slot)
        folio, known = np.full(count, NO_ROW, dtype=np.int64), np.zeros(count, dtype=bool)
        folios = self._folios.read(_NO_WORDS)
        if not isinstance(found, str):
            era, variable = found
            cache = SwapCache(self._reader, era, variable, self._era, self._folios)
            key = join_entry(slots.area, slots.slot)
            single = distinct(key)
            area, slot = split_entry(single)
            self._reader.progress("swap slots", len(single))
            cached = cache.look_up(area, slot)
            folios = self._with_anon_vmas(cache.read(cached))
            row = find_rows(single, key)
            known = cached.known[row]
            folio = find_rows(folios.address, cached.folio[row])
            self._read_tails(folios)
        return Swapped(
            found if isinstance(found, str) else None,
            marks,
            *(slots.vma, slots.address, slots.area, slots.slot, slots.exclusive),
            *(folio, known, folios),
        )

    # What leads from the further pages of large folios to these: `rmap` begins there.
    def _read_tails(self, folios: Folios) -> None:
        large = np.flatnonzero(folios.pages > 1)
        for head, pages in zip(folios.address[large], folios.pages[large], strict=True):
            step = np.arange(1, int(pages), dtype=np.uint64) * np.uint64(self._era.page.size)
            self._reader.memory.gather(head + step, self._era.page.size)

    # Some mms, their VMAs in the order of their trees.
    def _chunk(self, mms: RowColumn, pgd: U64Column) -> list[_Found]:
        slots, vmas = self._tables.slots, self._tables.vmas
        number = np.full(len(self._tables.mms.address), NO_ROW, dtype=np.int64)
        number[mms] = np.arange(len(mms))
        slot = np.flatnonzero((number[slots.mm] != NO_ROW) & (slots.vma != NO_ROW))
        # Entries of fork's that are the parent's still, and what overlaps, are left out.
        own = vmas.mm[slots.vma[slot]] == slots.mm[slot]
        slot = slot[own & (slots.last[slot] < np.uint64(1 << self._form.address_bits))]
        vma = slots.vma[slot]
        wanted = (vmas.vm_flags[vma] & VM_NOT_ANONYMOUS) == 0
        self._counts["vmas_left_out"] += int(np.count_nonzero(~wanted))
        slot, vma = slot[wanted], vma[wanted]
        shift = np.uint64(self._form.page_shift)
        spans = Spans(
            number[slots.mm[slot]],
            slots.first[slot] >> shift,
            slots.last[slot] >> shift,
            self._form.address_bits - self._form.page_shift,
        )
        ordered = np.ones(len(slot), dtype=bool)
        ordered[1:] = spans.key(spans.mm[1:], spans.first[1:]) > spans.key(
            spans.mm[:-1], spans.last[:-1]
        )
        if not ordered.all():
            vma = vma[ordered]
            spans = Spans(spans.mm[ordered], spans.first[ordered], spans.last[ordered], spans.bits)
        self._counts["vmas"] += len(vma)
        huge, tables = self._walk.upper(spans, pgd)
        found = [self._look_at(entries, spans, vma) for entries in huge]

        def read(part: PageTables) -> _Found:
            entries = self._walk.leaves(part, spans)
            self._reader.progress("page tables", self._walk.read)
            return self._look_at(entries, spans, vma)

        found += run_parallel(read, tables)
        return [_in_order(found)]

    def _look_at(self, entries: Entries, spans: Spans, vma: RowColumn) -> _Found:
        kind = entries.kind
        counts = Counter({"stray": entries.stray})
        # Threads that mark the same VMA write the same.
        self._unclear[vma[entries.span[np.isin(kind, _UNCLEAR)]]] = True
        for name, kinds in _KINDS.items():
            counts[name] = int(np.count_nonzero(np.isin(kind, kinds)))
        rows = np.flatnonzero((kind == EntryKind.PAGE) | (kind == EntryKind.FRAME))
        in_ram = self._folios.in_ram(entries.frame[rows])
        present = kind[rows] == EntryKind.PAGE
        counts["special"] += int(np.count_nonzero(~in_ram & present))
        rows = rows[in_ram]
        if self._sample > 1:
            rows = rows[self._is_sampled(entries.frame[rows])]
        present = kind[rows] == EntryKind.PAGE
        counts["pages"] = int(np.count_nonzero(present))
        frame = entries.frame[rows]
        anonymous, head, exclusive = self._folios.anonymous(frame)
        counts["anonymous"] = int(np.count_nonzero(anonymous & present))
        rows = rows[anonymous]
        page = entries.page[rows]
        mappings = Mappings(
            vma=vma[entries.span[rows]],
            address=page << np.uint64(self._form.page_shift),
            pfn=frame[anonymous],
            folio=_NO_ROWS,
            pages=np.full(len(rows), entries.pages, dtype=np.int64),
            present=present[anonymous],
            exclusive=exclusive[anonymous],
        )
        slots = self._slots(entries, spans, vma)
        return _Found(spans.key(entries.mm[rows], page), mappings, head[anonymous], slots, counts)

    def _slots(self, entries: Entries, spans: Spans, vma: RowColumn) -> _Slots:
        # A huge page has none as a whole.
        swapped = entries.kind == EntryKind.SWAP
        rows = np.flatnonzero(swapped) if entries.pages == 1 else _NO_ROWS
        area, slot = self._form.swap_slots(entries.word[rows])
        if self._sample > 1:
            chosen = self._is_sampled(slot)
            rows, area, slot = rows[chosen], area[chosen], slot[chosen]
        page = entries.page[rows]
        return _Slots(
            key=spans.key(entries.mm[rows], page),
            vma=vma[entries.span[rows]],
            address=page << np.uint64(self._form.page_shift),
            area=area,
            slot=slot,
            exclusive=self._form.swap_exclusive(entries.word[rows]),
        )

    def _is_sampled(self, frame: U64Column) -> BoolColumn:
        block = frame >> np.uint64(self._form.index_bits)
        chosen: BoolColumn = ((block * _SPREAD) >> np.uint64(32)) % np.uint64(self._sample) == 0
        return chosen

    def _with_anon_vmas(self, folios: Folios) -> Folios:
        anon_vmas, record = self._tables.anon_vmas, self._tables.era.anon_vma
        anonymous = folios.kind == MappingKind.ANON
        row = np.where(anonymous, find_rows(anon_vmas.address, folios.pointer), NO_ROW)
        refcount = np.full(len(row), -1, dtype=np.int64)
        refcount[row != NO_ROW] = anon_vmas.refcount[row[row != NO_ROW]]
        lost = np.flatnonzero(anonymous & (row == NO_ROW))
        lost = lost[~self._reader.space.wild(folios.pointer[lost], record.size)]
        if len(lost):
            pointer = distinct(folios.pointer[lost])
            words, present = self._reader.words(record, pointer, "refcount")
            count = np.where(present, record.as_signed("refcount", words), -1)
            refcount[lost] = count[find_rows(pointer, folios.pointer[lost])]
        return dataclasses.replace(folios, anon_vma=row, anon_vma_refcount=refcount)


_KINDS = {
    "special": [EntryKind.SPECIAL],
    "swapped": [EntryKind.SWAP],
    "waiting": [EntryKind.FRAME],
    "markers": [EntryKind.MARKER],
    "absent": [EntryKind.ABSENT],
    "unknown": [EntryKind.OTHER],
}
# What waits may wait for a page of another kind, and what is absent be a guard's marker.
_UNCLEAR = [EntryKind.FRAME, EntryKind.ABSENT, EntryKind.OTHER]
_COUNTED = (
    *("mms", "mms_left_out", "vmas", "vmas_left_out", "pages", "anonymous"),
    *("special", "swapped", "swap_cached", "swap_not_known"),
    *("waiting", "markers", "absent", "unknown", "stray"),
)


# The parts of one chunk, by mm and address: huge pages come first, but stand in between.
def _in_order(parts: list[_Found]) -> _Found:
    key = np.concatenate([_NO_WORDS, *(part.key for part in parts)])
    head = np.concatenate([_NO_WORDS, *(part.head for part in parts)])
    mappings = _join([part.mappings for part in parts], np.zeros(len(key), dtype=np.int64))
    counts: Counter[str] = Counter()
    for part in parts:
        counts += part.counts
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable")
        columns = {
            column.name: getattr(mappings, column.name)[order]
            for column in dataclasses.fields(Mappings)
        }
        head, mappings = head[order], Mappings(**columns)
    slots = _join_slots([part.slots for part in parts])
    if (slots.key[1:] < slots.key[:-1]).any():
        order = np.argsort(slots.key, kind="stable")
        slots = _Slots(*(getattr(slots, column.name)[order] for column in _SLOT_COLUMNS))
    return _Found(_NO_WORDS, mappings, head, slots, counts)


_SLOT_COLUMNS = dataclasses.fields(_Slots)
_NO_SLOTS = _Slots(*(_NO_WORDS, _NO_ROWS, _NO_WORDS, _NO_WORDS, _NO_WORDS), np.zeros(0, dtype=bool))


def _join_slots(parts: list[_Slots]) -> _Slots:
    return _Slots(
        *(
            np.concatenate([getattr(part, column.name) for part in (_NO_SLOTS, *parts)])
            for column in _SLOT_COLUMNS
        )
    )


def _join(parts: list[Mappings], folio: RowColumn) -> Mappings:
    def column(name: str, dtype: type) -> Any:
        columns = [np.empty(0, dtype=dtype), *(getattr(part, name) for part in parts)]
        return np.concatenate(columns)

    return Mappings(
        vma=column("vma", np.int64),
        address=column("address", np.uint64),
        pfn=column("pfn", np.uint64),
        folio=folio,
        pages=column("pages", np.int64),
        present=column("present", bool),
        exclusive=column("exclusive", bool),
    )
