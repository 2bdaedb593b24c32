"""What the target has at addresses that may be anything at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.pages import page_sources
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_lookup import SlabPlaces, look_up_objects
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, Folios, ObjectState, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("LookedUp", "look_up")


@dataclass(frozen=True)
class LookedUp:
    """What was found at some addresses.

    :ivar objects: What the slab allocator says.
    :ivar pages_not_read: Why no folio is known, if so.
    :ivar folios: Folios that addresses are of: of their ``struct page``, or of memory in them that
        is no slab.
    :ivar folio: Row in ``folios`` of each address.
    :ivar leads_to: The ``anon_vma`` that an object of the reverse map which is not in the tables,
        perhaps a free one, has a pointer to; 0 for all else.
    """

    objects: SlabPlaces
    pages_not_read: str | None
    folios: Folios | None
    folio: RowColumn
    leads_to: U64Column


def look_up(target: Target, tables: Tables, addresses: U64Column) -> LookedUp:
    """Look at some addresses.

    :param tables: Of this target, with what the slab allocator says.
    :param addresses: Any values at all.
    """
    objects = look_up_objects(target, addresses)
    reader = Reader(target, None)
    not_read, folios, folio = _folios(target, reader, addresses, objects)
    return LookedUp(objects, not_read, folios, folio, _leads(reader, tables, addresses, objects))


def _folios(
    target: Target, reader: Reader, addresses: U64Column, objects: SlabPlaces
) -> tuple[str | None, Folios | None, RowColumn]:
    row = np.full(len(addresses), NO_ROW, dtype=np.int64)
    sources = page_sources(target)
    if isinstance(sources, str):
        return sources, None, row
    pages = FolioReader(reader, sources.era, sources.vmemmap)
    memory = target.space.in_ram(addresses) & (objects.state == ObjectState.NO_SLAB)
    shift = np.uint64(target.page_size.bit_length() - 1)
    frame = np.where(
        memory,
        (addresses - np.uint64(target.space.direct_map)) >> shift,
        pages.frame_of(addresses),
    )
    asked = np.flatnonzero(pages.in_ram(frame) & (memory | ~target.space.in_ram(addresses)))
    found, head, _ = pages.anonymous(frame[asked])
    asked, head = asked[found], head[found]
    heads = distinct(head)
    row[asked] = find_rows(heads, head)
    return None, pages.read(heads), row


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
