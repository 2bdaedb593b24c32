"""Who maps a page: a folio's reverse walk, and what page tables say at each place that it leads to.

As ``rmap_walk_anon()`` in ``mm/rmap.c`` and ``rmap_walk_ksm()`` in ``mm/ksm.c`` walk (v5.10, v6.12,
v7.3). For folios of lazy VMAs (ANON_VMA_LAZY) there is no such walk yet: they are mapped by VMAs
whose ``anon_vma`` names the same root VMA (``__folio_set_anon()`` with that proposal).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.collector import collect, collect_from
from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.page_tables import LookUp, look_up
from anonvma_inspect.collect.pages import PageSources, page_sources
from anonvma_inspect.collect.reader import Progress, Reader
from anonvma_inspect.collect.swap_cache import SwapCache, find_swap_cache
from anonvma_inspect.errors import MissingError, NotFoundError, TargetError
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.kernel.page_table import EntryKind
from anonvma_inspect.kernel.slab import resolve_slab_era
from anonvma_inspect.kernel.swap_cache import split_entry
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW, Folios, I64Column, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import KERNEL_HALF, BoolColumn, U64Column
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = ("Rmap", "RmapWalk", "find_frame", "frame_at", "read_rmap")

# Looked up at once; of more, only the page that was asked for is.
_MOST_PAGES = 1 << 22
_NO_ROWS: I64Column = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class RmapWalk:
    """The VMAs that the reverse map of a folio leads to, in the order of the walk.

    :ivar vma: Row in :class:`~anonvma_inspect.tables.Vmas`.
    :ivar address: Where it would map the first page of the folio that it covers.
    :ivar covered: How many pages of the folio it covers.
    :ivar mapped: How many of these its page tables map.
    :ivar whole: One entry maps them all.
    :ivar waiting: How many wait, e.g. while the folio is migrated.
    :ivar swapped: How many have an entry that names the place in swap that the folio has.
    :ivar absent: How many have an entry that maps nothing, and does not tell what it is instead.
    :ivar unknown: How many have an entry that is not understood.
    :ivar known: The page tables are in the target.
    :ivar item: Of a folio of KSM's, row in :class:`~anonvma_inspect.tables.RmapItems` of the first
        that leads there; else NO_ROW.
    :ivar visited: How many VMAs the walk visits; KSM's passes over more than it leads to, and comes
        to the same ones again for each rmap_item.
    """

    vma: RowColumn
    address: U64Column
    covered: I64Column
    mapped: I64Column
    whole: BoolColumn
    waiting: I64Column
    swapped: I64Column
    absent: I64Column
    unknown: I64Column
    known: BoolColumn
    item: RowColumn
    visited: int


@dataclass(frozen=True)
class Rmap:
    """A page, its folio, and who maps it.

    :ivar tables: At least the folio's family.
    :ivar frame: Number of the page frame.
    :ivar page: Address of its ``struct page``.
    :ivar folio: The one row of the folio.
    :ivar struct: C name of what describes it.
    :ivar flags: Names of the flags that it has.
    :ivar items: Rows in :class:`~anonvma_inspect.tables.RmapItems`, of a folio of KSM's.
    :ivar root_vma: Row in :class:`~anonvma_inspect.tables.Vmas` of the root VMA that a folio of
        lazy VMAs names; else NO_ROW.
    :ivar busy: Somebody is at work on the folio, or may give an anon_vma to VMAs that have none.
    :ivar swap: Swap area of the page, and slot in it; ``None`` if it is not in the swap cache.
    """

    tables: Tables
    frame: int
    page: int
    folio: Folios
    struct: str
    flags: tuple[str, ...]
    items: RowColumn
    root_vma: int
    busy: bool
    walk: RmapWalk
    swap: tuple[int, int] | None = None

    @property
    def kind(self) -> MappingKind:
        """What ``mapping`` leads to."""
        return MappingKind(int(self.folio.kind[0]))

    @property
    def tree_whole(self) -> bool:
        """All of the tree is known that the walk goes through, if it goes through one."""
        row = int(self.folio.anon_vma[0])
        return row == NO_ROW or bool(self.tables.anon_vmas.tree_whole[row])


def _sources(target: Target) -> PageSources:
    sources = page_sources(target)
    if isinstance(sources, str):
        raise TargetError(f"page tables and folios cannot be read: {sources}")
    return sources


def find_frame(target: Target, number: int) -> int:
    """The page frame that a number names.

    :param number: Of a page frame; or the address of a ``struct page``, or of memory in the direct
        map.
    :raises TargetError: if folios cannot be read in this target.
    :raises NotFoundError: if it names none of RAM.
    """
    sources = _sources(target)
    space = target.space
    shift = target.page_size.bit_length() - 1
    frame = number
    if number >= KERNEL_HALF:
        step, rest = divmod((number - sources.vmemmap) % 2**64, sources.era.page.size)
        in_direct_map = bool(space.in_ram(np.array([number], dtype=np.uint64))[0])
        if in_direct_map:
            frame = ((number - space.direct_map) % 2**64) >> shift
        elif rest == 0:
            frame = step
        else:
            raise NotFoundError(f"{number:#x} is neither a struct page nor in the direct map")
    at = (space.direct_map + (frame << shift)) % 2**64
    if frame >> (52 - shift) or not bool(space.in_ram(np.array([at], dtype=np.uint64))[0]):
        raise NotFoundError(f"{number:#x} is of no page frame of RAM")
    return frame


def frame_at(target: Target, tables: Tables, vma: int, address: int) -> int:
    """The page frame that a VMA maps at an address, or that the swap cache has for its entry.

    :param vma: Row in :class:`~anonvma_inspect.tables.Vmas`.
    :raises TargetError: if page tables cannot be read in this target.
    :raises NotFoundError: if there is none; it says what there is.
    :raises MissingError: if the page tables are not in the target.
    """
    sources = _sources(target)
    reader = Reader(target)
    found = _look_up(reader, sources, tables, np.array([vma]), np.array([address], dtype=np.uint64))
    kind = EntryKind(int(found.kind[0]))
    if kind in (EntryKind.PAGE, EntryKind.FRAME):
        return int(found.frame[0])
    what = _NOTHING.get(kind, "")
    if kind is EntryKind.SWAP:
        cached = _cached_frame(target, reader, sources, found.entry)
        if isinstance(cached, int):
            return cached
        what = cached
    if not found.known[0]:
        raise MissingError(f"the page tables for {address:#x} are not in this target")
    raise NotFoundError(f"no page is mapped at {address:#x}: {what}")


# The page frame that the swap cache has for an entry, or what there is instead.
def _cached_frame(
    target: Target, reader: Reader, sources: PageSources, entry: U64Column
) -> int | str:
    area, slot = sources.form.swap_slots(entry)
    place = f"it is in slot {int(slot[0])} of swap area {int(area[0])}"
    found = find_swap_cache(target)
    if isinstance(found, str):
        return f"{place}; whether the swap cache has it is not known: {found}"
    folios = FolioReader(reader, sources.era, sources.vmemmap)
    cache = SwapCache(reader, found[0], found[1], sources.era, folios)
    cached = cache.look_up(area, slot)
    if not cached.known[0]:
        return f"{place}; whether the swap cache has it is not known: what stands there is no folio"
    folio = cache.read(cached)
    if not len(folio.address):
        return (
            f"{place}, and no folio in the swap cache: there is no reverse map to walk until it is "
            "read again. Who may have it is in the trees of the VMA's anon_vmas: see chain and tree"
        )
    _, first = split_entry(folio.private)
    return int(folio.pfn[0]) + int(slot[0] - first[0])


_NOTHING = {
    EntryKind.NONE: "nothing was faulted in there",
    EntryKind.TABLE: "nothing was faulted in there",
    EntryKind.SPECIAL: "a page that is not counted is: the zero page, or a device's memory",
    EntryKind.MARKER: "a marker stands there, e.g. a guard's",
    EntryKind.ABSENT: "it is swapped out or in migration, or a guard's",
    EntryKind.OTHER: "what stands there is not understood",
}


def read_rmap(target: Target, frame: int, progress: Progress | None = None) -> Rmap:
    """Read a page frame's folio, and walk its reverse map.

    :param frame: Of RAM: see :func:`find_frame`.
    :raises TargetError: if folios cannot be read in this target.
    :raises MissingError: if that page frame's are not in the target.
    """
    sources = _sources(target)
    reader = Reader(target, progress)
    page, folio = _read_folio(target, reader, sources, frame)
    kind, pointer = MappingKind(int(folio.kind[0])), int(folio.pointer[0])
    wild = bool(target.space.wild(folio.pointer)[0])
    if kind is MappingKind.ANON and not wild:
        tables = collect_from(target, anon_vmas=[pointer], progress=progress)
    else:
        tables = collect(target, progress=progress)
    if kind is MappingKind.OTHER and tables.era.tag_scheme == "lazy":
        page, folio = _read_folio(target, reader, sources, frame, lazy=True)
        kind = MappingKind(int(folio.kind[0]))
    row = find_rows(tables.anon_vmas.address, folio.pointer)
    if kind is not MappingKind.ANON:
        row[:] = NO_ROW
    folio = dataclasses.replace(folio, anon_vma=row)
    items, root_vma = _NO_ROWS, NO_ROW
    if kind is MappingKind.ANON:
        walk = _walk_anon(reader, sources, tables, folio, frame)
    elif kind is MappingKind.LAZY_VMA:
        root_vma = int(find_rows(tables.vmas.address, folio.pointer)[0])
        vma = _lazy_vmas(tables, pointer)
        walk = _walk_vmas(reader, sources, tables, folio, vma, int(folio.index[0]), frame)
    elif kind is MappingKind.KSM:
        rmap_items = tables.rmap_items
        node = tables.stable_nodes.address[rmap_items.node]
        items = np.flatnonzero(node == folio.pointer[0])
        walk = _walk_ksm(reader, sources, tables, folio, items, frame)
    else:
        walk = _found(reader, sources, tables, folio, _NO_ROWS, folio.pointer[:0], _NO_ROWS, frame)
    flags = int(folio.flags[0])
    return Rmap(
        dataclasses.replace(tables, holes=reader.holes(tables.holes)),
        frame,
        page,
        folio,
        sources.era.struct,
        tuple(name for name, bit in sources.era.flags.items() if flags & bit),
        items,
        root_vma,
        bool(flags & sources.era.busy) or _upgrading(tables, root_vma),
        walk,
        _swap_place(sources, folio, frame),
    )


# Where a page of a folio in the swap cache is in swap.
def _swap_place(sources: PageSources, folio: Folios, frame: int) -> tuple[int, int] | None:
    flags, own = sources.era.flags, int(folio.flags[0])
    if not own & flags.get("swapcache", 0) or not own & flags.get("swapbacked", 0):
        return None
    area, slot = split_entry(folio.private)
    return int(area[0]), int(slot[0]) + frame - int(folio.pfn[0])


# The address of a page frame's struct page, and its folio.
def _read_folio(
    target: Target, reader: Reader, sources: PageSources, frame: int, *, lazy: bool = False
) -> tuple[int, Folios]:
    folios = FolioReader(reader, sources.era, sources.vmemmap, lazy=lazy)
    page, head = folios.head_of_frame(frame)
    folio = folios.read(np.array([head], dtype=np.uint64))
    slab = resolve_slab_era(target.layouts, parse_vmcoreinfo(target.vmcoreinfo, target.path))
    if not folio.hugetlb[0] and folios.has_type(head, None if isinstance(slab, str) else slab):
        kind_of = np.array([MappingKind.OTHER], dtype=np.uint8)
        folio = dataclasses.replace(folio, kind=kind_of, mapcount=folio.mapcount * 0)
    if len(reader.holes().address):
        what = f"the struct page of page frame {frame:#x} is not in this target"
        if target.walks is not None:
            what += ": a snapshot has those of mapped anonymous memory only; ask the dump"
        raise MissingError(what)
    return page, folio


# The VMAs in the tree of the folio's anon_vma.
def _walk_anon(
    reader: Reader, sources: PageSources, tables: Tables, folio: Folios, frame: int
) -> RmapWalk:
    nodes = tables.nodes
    first, last = np.searchsorted(nodes.anon_vma, [folio.anon_vma[0], folio.anon_vma[0] + 1])
    vma = tables.avcs.vma_row[nodes.avc[first:last][~nodes.again[first:last]]]
    if folio.anon_vma[0] == NO_ROW:
        vma = _NO_ROWS
    vma = vma[vma != NO_ROW]
    walks = [
        _walk_vmas(reader, sources, tables, folio, vma, index, frame)
        for index in _indexes(sources, folio)
    ]
    # The one that comes to what maps the folio; if none does, the first that comes to anything.
    return max(walks, key=lambda walk: (bool(walk.mapped.any()), walk.visited > 0))


# What a folio's index can be in pages. Of hugetlb's it is or was counted in huge pages.
def _indexes(sources: PageSources, folio: Folios) -> list[int]:
    index, pages = int(folio.index[0]), int(folio.pages[0])
    mark = sources.era.hugetlb
    if mark is None or not folio.hugetlb[0] or not pages or mark.huge_index is False:
        return [index]
    scaled = index * pages % 2**64
    if mark.huge_index or index % pages:
        return [scaled]
    return [index, scaled]


# A root VMA, and those whose words lead to it: what was split off from it.
def _lazy_vmas(tables: Tables, root: int) -> RowColumn:
    vmas = tables.vmas
    kinds = tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    named = (kinds == AnonVmaKind.LAZY_VMA) & (vmas.anon_vma_pointer == np.uint64(root))
    found = np.flatnonzero(named | (vmas.address == np.uint64(root)))
    return found[np.argsort(vmas.key_first[found], kind="stable")]


# An upgrade, under mmap_lock, gives a VMA an anon_vma before what it maps names that.
def _upgrading(tables: Tables, root_vma: int) -> bool:
    mm = NO_ROW if root_vma == NO_ROW else int(tables.vmas.mm[root_vma])
    return mm != NO_ROW and bool(tables.mms.write_locked[mm])


# Of some VMAs, those whose keys overlap the folio's pages.
def _walk_vmas(
    reader: Reader,
    sources: PageSources,
    tables: Tables,
    folio: Folios,
    vma: RowColumn,
    index: int,
    frame: int,
) -> RmapWalk:
    vmas = tables.vmas
    low = np.uint64(index)
    high = low + np.uint64(max(int(folio.pages[0]), 1) - 1)
    vma = vma[(vmas.key_first[vma] <= high) & (vmas.key_last[vma] >= low)]
    start = np.maximum(vmas.key_first[vma], low)
    end = np.minimum(vmas.key_last[vma], high)
    shift = np.uint64(sources.form.page_shift)
    address = vmas.vm_start[vma] + ((start - vmas.key_first[vma]) << shift)
    covered = (end - start).astype(np.int64) + 1
    page = folio.pfn[0] + (start - low)
    return _found(reader, sources, tables, folio, vma, address, covered, frame, page)


# For each rmap_item, the VMAs in the tree of its anon_vma that have its address: of its own mm, and
# of those that its mm was forked into. Where rmap_items have linear_page_index, only VMAs with that
# key are visited; else the whole tree is.
def _walk_ksm(
    reader: Reader,
    sources: PageSources,
    tables: Tables,
    folio: Folios,
    items: RowColumn,
    frame: int,
) -> RmapWalk:
    rmap_items, nodes, vmas = tables.rmap_items, tables.nodes, tables.vmas
    shift = np.uint64(sources.form.page_shift)
    records = tables.ksm.records
    by_index = records is not None and "linear_page_index" in records.rmap_item
    found, places, of, visited = [_NO_ROWS], [rmap_items.page[:0]], [_NO_ROWS], 0
    for item in items.tolist():
        anon_vma = int(rmap_items.anon_vma_row[item])
        if anon_vma == NO_ROW:
            continue
        first, last = np.searchsorted(nodes.anon_vma, [anon_vma, anon_vma + 1])
        vma = tables.avcs.vma_row[nodes.avc[first:last][~nodes.again[first:last]]]
        vma = vma[vma != NO_ROW]
        if by_index:
            index = rmap_items.linear_page_index[item]
            vma = vma[(vmas.key_first[vma] <= index) & (vmas.key_last[vma] >= index)]
        visited += len(vma)
        address = (rmap_items.page[item] >> shift) << shift
        vma = vma[(vmas.vm_start[vma] <= address) & (vmas.vm_end[vma] > address)]
        found.append(vma)
        places.append(np.full(len(vma), address))
        of.append(np.full(len(vma), item))
    vma, address = np.concatenate(found), np.concatenate(places)
    # Siblings lead to the same VMAs once more.
    _, first_of = np.unique(np.stack([vma.astype(np.uint64), address]), axis=1, return_index=True)
    chosen = np.sort(first_of)
    vma, address = vma[chosen], address[chosen]
    one = np.ones(len(vma), dtype=np.int64)
    walk = _found(reader, sources, tables, folio, vma, address, one, frame)
    return dataclasses.replace(walk, visited=visited, item=np.concatenate(of)[chosen])


def _found(
    reader: Reader,
    sources: PageSources,
    tables: Tables,
    folio: Folios,
    vma: RowColumn,
    address: U64Column,
    covered: I64Column,
    frame: int,
    page: U64Column | None = None,
) -> RmapWalk:
    looked, at, first = covered, address, page
    if first is None:
        first = np.full(len(vma), frame, dtype=np.uint64)
    size = np.uint64(1 << sources.form.page_shift)
    if int(covered.sum()) > _MOST_PAGES:
        inside = (np.uint64(frame) - first).astype(np.int64)
        within = (inside >= 0) & (inside < covered)
        looked = within.astype(np.int64)
        at = address + np.where(within, inside, 0).astype(np.uint64) * size
        first = np.full(len(vma), frame, dtype=np.uint64)
    which = np.repeat(np.arange(len(vma)), looked)
    within_run = np.arange(len(which)) - np.repeat(np.cumsum(looked) - looked, looked)
    step: U64Column = within_run.astype(np.uint64)
    entries = _look_up(reader, sources, tables, vma[which], at[which] + step * size)
    wanted: U64Column = first[which] + step
    same = entries.frame == wanted
    count = len(vma)

    def number(chosen: BoolColumn) -> I64Column:
        return np.bincount(which[chosen], minlength=count).astype(np.int64)

    mapped = same & (entries.kind == EntryKind.PAGE)
    whole = number(mapped & (entries.pages > 1)) > 0
    if folio.hugetlb[0]:
        # Entries of arm64 that are contiguous map one of hugetlb's pages together.
        whole |= (number(mapped) == looked) & (looked > 1)
    return RmapWalk(
        vma=vma,
        address=address,
        covered=covered,
        mapped=number(mapped),
        whole=whole,
        waiting=number(same & (entries.kind == EntryKind.FRAME)),
        swapped=number(_in_swap(sources, folio, entries, wanted)),
        absent=number(entries.kind == EntryKind.ABSENT),
        unknown=number(entries.kind == EntryKind.OTHER),
        known=number(~entries.known) == 0,
        item=np.full(count, NO_ROW, dtype=np.int64),
        visited=len(vma),
    )


# Which entries name the place in swap of some page frames of a folio in the swap cache.
def _in_swap(sources: PageSources, folio: Folios, entries: LookUp, frame: U64Column) -> BoolColumn:
    place = _swap_place(sources, folio, int(folio.pfn[0]))
    if place is None:
        return np.zeros(len(frame), dtype=bool)
    area, slot = sources.form.swap_slots(entries.entry)
    found: BoolColumn = (entries.kind == EntryKind.SWAP) & (area == np.uint64(place[0]))
    found &= slot == np.uint64(place[1]) + (frame - folio.pfn[0])
    return found


def _look_up(
    reader: Reader, sources: PageSources, tables: Tables, vma: RowColumn, address: U64Column
) -> LookUp:
    mms = tables.mms
    pgd, _ = reader.words(tables.era.mm, mms.address, "pgd")
    mm = tables.vmas.mm[vma]
    top = np.append(pgd, np.uint64(0))[mm]
    return look_up(reader, sources.form, top, address)
