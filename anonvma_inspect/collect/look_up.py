"""What the target has at addresses that may be anything at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.pages import PageSources, page_sources
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_lookup import SlabPlaces, look_up_objects
from anonvma_inspect.collect.stacks import KernelStacks, read_kernel_stacks
from anonvma_inspect.errors import TargetError
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.slab import head_of
from anonvma_inspect.tables import (
    NO_ROW,
    Folios,
    I64Column,
    ObjectState,
    RowColumn,
    Tables,
    find_rows,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

__all__ = ("LookedUp", "look_up")

_MACHINES = ("kcore", "qemu", "gdb")
# Physical addresses have 52 bits at most, and pages 12 or more.
_MOST_FRAMES = 1 << 40


@dataclass(frozen=True)
class LookedUp:
    """What was found at some addresses.

    :ivar objects: What the slab allocator says.
    :ivar pages_not_read: Why no folio is known, if so.
    :ivar folios: Folios that addresses are of: of their ``struct page``, or of memory in them that
        is no slab.
    :ivar folio: Row in ``folios`` of each address.
    :ivar page: ``page``, with the fields that are known.
    :ivar frame: Number of the page frame whose ``struct page`` each address lies in; -1: in none.
    :ivar page_start: Where that begins; 0 likewise.
    :ivar head: Address of the ``struct page`` of its folio; 0 if that is not known.
    :ivar stacks: Kernel stacks.
    :ivar stack: Row in ``stacks`` of each address.
    :ivar readable: Something is in the target at that address, whatever it is; only known of files.
    :ivar leads_to: The ``anon_vma`` that an object of the reverse map which is not in the tables,
        perhaps a free one, has a pointer to; 0 for all else.
    """

    objects: SlabPlaces
    pages_not_read: str | None
    folios: Folios | None
    folio: RowColumn
    page: Record
    frame: I64Column
    page_start: U64Column
    head: U64Column
    stacks: KernelStacks
    stack: RowColumn
    readable: BoolColumn
    leads_to: U64Column


def look_up(target: Target, tables: Tables, addresses: U64Column) -> LookedUp:
    """Look at some addresses.

    :param tables: Of this target, with what the slab allocator says.
    :param addresses: Any values at all.
    """
    objects = look_up_objects(target, addresses)
    reader = Reader(target, None)
    frame, page_start, size = _pages(target, addresses)
    memory = target.space.in_ram(addresses) & (objects.state == ObjectState.NO_SLAB)
    shift = np.uint64(target.page_size.bit_length() - 1)
    of_memory = (addresses - np.uint64(target.space.direct_map)) >> shift
    either = np.where(memory, of_memory.astype(np.int64), frame)
    sources = page_sources(target)
    folio = np.full(len(addresses), NO_ROW, dtype=np.int64)
    head = np.zeros(len(addresses), dtype=np.uint64)
    not_read, folios, page = None, None, Record("page", size, {})
    if isinstance(sources, str):
        not_read = sources
    else:
        page = sources.era.page
        lazy = tables.era.tag_scheme == "lazy"
        pages = FolioReader(reader, sources.era, sources.vmemmap, lazy=lazy)
        folios = _folios(reader, sources, pages, either, folio, head)
    stacks = read_kernel_stacks(reader, tables.era, target)
    return LookedUp(
        objects=objects,
        pages_not_read=not_read,
        folios=folios,
        folio=folio,
        page=page,
        frame=frame,
        page_start=page_start,
        head=np.where(frame < 0, np.uint64(0), head),
        stacks=stacks,
        stack=stacks.find(addresses),
        readable=_readable(target, addresses),
        leads_to=_leads(reader, tables, addresses, objects),
    )


# Of a machine, what is not RAM is not asked for: it could be a device's register.
def _readable(target: Target, addresses: U64Column) -> BoolColumn:
    if target.kind in _MACHINES:
        return np.zeros(len(addresses), dtype=bool)
    _, present = target.memory.gather(addresses, 1)
    return present


# Which addresses are of struct page, and where that begins; and bytes of it.
def _pages(target: Target, addresses: U64Column) -> tuple[I64Column, U64Column, int]:
    frame = np.full(len(addresses), -1, dtype=np.int64)
    start = np.zeros(len(addresses), dtype=np.uint64)
    size = target.layouts.size("page") or 0
    try:
        facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
    except TargetError:
        return frame, start, size
    vmemmap = find_vmemmap(target, facts)
    if vmemmap is None or not size:
        return frame, start, size
    space, shift = target.space, np.uint64(target.page_size.bit_length() - 1)
    step = (addresses - np.uint64(vmemmap)) // np.uint64(size)
    there = (step < np.uint64(_MOST_FRAMES)) & ~space.in_ram(addresses)
    there &= space.in_ram(np.uint64(space.direct_map) + (step << shift))
    frame[there] = step[there].astype(np.int64)
    start[there] = np.uint64(vmemmap) + step[there] * np.uint64(size)
    return frame, start, size


# Folios of some page frames, -1 for none; fills in the row of each, and its head.
def _folios(
    reader: Reader,
    sources: PageSources,
    pages: FolioReader,
    frame: I64Column,
    row: RowColumn,
    head: U64Column,
) -> Folios:
    asked = np.flatnonzero(frame >= 0)
    page = pages.page_of(frame[asked].astype(np.uint64))
    # Of a tail, a snapshot has no other word than the one that leads to the head.
    info, present = reader.words(sources.era.page, page, "head")
    asked, page, info = asked[present], page[present], info[present]
    head[asked] = head_of(page, info, sources.era.page.size)
    found, _, _ = pages.anonymous(pages.frame_of(head[asked]))
    asked = asked[found]
    heads = distinct(head[asked])
    row[asked] = find_rows(heads, head[asked])
    return pages.read(heads)


# Of objects that are in no table: which anon_vma a word of theirs names.
def _leads(reader: Reader, tables: Tables, addresses: U64Column, objects: SlabPlaces) -> U64Column:
    leads = np.zeros(len(addresses), dtype=np.uint64)
    allocation, era = tables.allocation, tables.era
    if allocation is None:
        return leads

    def read(record: Record, cache: int, name: str) -> None:
        rows = np.flatnonzero((objects.cache == np.uint64(cache)) & (objects.start != 0))
        if cache and name in record:
            leads[rows], _ = reader.words(record, objects.start[rows], name)

    read(era.vma, allocation.vmas.cache, "anon_vma")
    read(era.avc, allocation.avcs.cache, "anon_vma")
    read(era.anon_vma, allocation.anon_vmas.cache, "root")
    return leads
