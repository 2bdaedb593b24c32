"""What the slab allocator says of addresses that may be anything at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_caches import Cache, read_cache, read_cpus, read_names
from anonvma_inspect.collect.slab_free import cpu_freelists, sheaf_objects, walk_freelists
from anonvma_inspect.collect.slab_kfence import Kfence
from anonvma_inspect.collect.slab_pages import SlabPages, open_slab_pages
from anonvma_inspect.collect.slabs import SLABS_WALK
from anonvma_inspect.kernel.slab import SlabEra
from anonvma_inspect.tables import NO_ROW, ObjectState, RowColumn, U8Column
from anonvma_inspect.target.memory import U64Column
from anonvma_inspect.target.target import Target

__all__ = ("SlabPlaces", "look_up_objects")


@dataclass(frozen=True)
class SlabPlaces:
    """Where addresses lie, one each.

    :ivar not_read: Why nothing is known, if so.
    :ivar cache: Address of the ``kmem_cache``; 0 if it is in none, or if that is not known.
    :ivar start: Where the object begins; 0 likewise.
    :ivar size: Bytes from one object of the cache to the next.
    :ivar state: An :class:`~anonvma_inspect.tables.ObjectState`.
    :ivar names: Names of caches by address.
    """

    not_read: str | None
    cache: U64Column
    start: U64Column
    size: U64Column
    state: U8Column
    names: Mapping[int, bytes]


def look_up_objects(target: Target, addresses: U64Column) -> SlabPlaces:
    """Find the object that each address lies in, whatever its cache is.

    :param addresses: Any values at all.
    """
    count = len(addresses)
    places = SlabPlaces(
        not_read=None,
        cache=np.zeros(count, dtype=np.uint64),
        start=np.zeros(count, dtype=np.uint64),
        size=np.zeros(count, dtype=np.uint64),
        state=np.full(count, ObjectState.UNKNOWN, dtype=np.uint8),
        names={},
    )
    found = _Lookup.of(target)
    if isinstance(found, str):
        return SlabPlaces(found, places.cache, places.start, places.size, places.state, {})
    return found.fill(addresses, places)


@dataclass(frozen=True)
class _Lookup:
    target: Target
    reader: Reader
    era: SlabEra
    pages: SlabPages

    @staticmethod
    def of(target: Target) -> _Lookup | str:
        if target.walks is not None and SLABS_WALK not in target.walks:
            return "not in this snapshot"
        reader = Reader(target, None)
        opened = open_slab_pages(reader, target)
        return opened if isinstance(opened, str) else _Lookup(target, reader, *opened)

    def fill(self, addresses: U64Column, places: SlabPlaces) -> SlabPlaces:
        pages = self.pages
        inside = np.flatnonzero(self.target.space.in_ram(addresses))
        slab = pages.slabs_of(addresses[inside])
        inside, slab = inside[slab != NO_ROW], slab[slab != NO_ROW]
        if not len(slab):
            return places
        here = pages.caches[slab]
        places.state[inside[here == 0]] = ObjectState.NO_SLAB
        inside, slab, here = inside[here != 0], slab[here != 0], here[here != 0]
        places.cache[inside] = here
        cpus = read_cpus(self.reader, self.target)
        for address in np.unique(here).tolist():
            cache = read_cache(self.reader, self.era, self.target, address)
            if cache is not None:
                mine = here == np.uint64(address)
                self._of_cache(cache, addresses, inside[mine], slab[mine], cpus, places)
        names = read_names(self.reader, self.era, np.unique(here))
        return SlabPlaces(None, places.cache, places.start, places.size, places.state, names)

    # Addresses in slabs of one cache.
    def _of_cache(
        self,
        cache: Cache,
        addresses: U64Column,
        rows: RowColumn,
        slab: RowColumn,
        cpus: U64Column | None,
        places: SlabPlaces,
    ) -> None:
        pages = self.pages
        base = pages.base_of(pages.address[slab]) + np.uint64(cache.pad)
        size = np.uint64(cache.size)
        number = (addresses[rows] - base) // size
        objects = pages.column("objects")[slab]
        # KFENCE's slabs have one object, wherever in its page.
        fenced = (objects == 1) & (cache.least > 1)
        real = (number < objects) & ~fenced
        rows_real, slab_real = rows[real], slab[real]
        places.start[rows_real] = base[real] + number[real] * size
        places.size[rows_real] = size
        places.state[rows_real] = ObjectState.ALLOCATED
        places.state[rows[~real & ~fenced]] = ObjectState.INSIDE
        free = self._free(cache, np.unique(slab_real), cpus)
        on_list = np.isin(places.start[rows_real], free)
        places.state[rows_real[on_list]] = ObjectState.FREE
        if fenced.any():
            self._guarded(rows[fenced], pages.base_of(pages.address[slab[fenced]]), places, size)

    # Free objects of some slabs, and those that CPUs and nodes keep of the cache.
    def _free(self, cache: Cache, slab: RowColumn, cpus: U64Column | None) -> U64Column:
        pages, reader, era = self.pages, self.reader, self.era
        first = pages.column("freelist")[slab]
        word = pages.address[slab] + np.uint64(era.slab.offset("freelist"))
        owner, sheaves = slab, np.empty(0, dtype=np.uint64)
        if cpus is not None:
            more_word, more = cpu_freelists(reader, era, cache, cpus)
            of = pages.slabs_of(more)
            kept = np.isin(of, slab)
            word, first = np.append(word, more_word[kept]), np.append(first, more[kept])
            owner = np.append(owner, of[kept])
            sheaves = sheaf_objects(reader, era, cache, cpus)
        begun = first != 0
        word, first, owner = word[begun], first[begun], owner[begun]
        base = pages.base_of(pages.address[owner]) + np.uint64(cache.pad)
        # No more objects than there is room for in a slab, whatever a damaged struct says.
        count = np.minimum(pages.column("objects")[owner], np.uint64(max(cache.most, 1)))
        found = walk_freelists(reader, cache, word, first, base, count)
        return np.concatenate([found.objects, sheaves])

    def _guarded(
        self, rows: RowColumn, page: U64Column, places: SlabPlaces, size: np.uint64
    ) -> None:
        kfence = Kfence.of(self.reader, self.era, self.target)
        if kfence is None:
            return
        address, used, known = kfence.look_up(page)
        places.start[rows] = address
        places.size[rows] = size
        state = np.where(used, ObjectState.ALLOCATED, ObjectState.FREE)
        places.state[rows] = np.where(known & (address != 0), state, ObjectState.UNKNOWN)
