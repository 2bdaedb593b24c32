"""What the slab allocator says of the objects in the tables."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Progress, Reader
from anonvma_inspect.collect.slab_caches import (
    Cache,
    read_cache,
    read_cpus,
    read_names,
    read_variable,
)
from anonvma_inspect.collect.slab_free import (
    FreeLists,
    cpu_freelists,
    sheaf_objects,
    walk_freelists,
    walk_steady,
)
from anonvma_inspect.collect.slab_kfence import Kfence
from anonvma_inspect.collect.slab_pages import SlabPages, open_slab_pages
from anonvma_inspect.collect.slab_unreached import find_unreached
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.slab import SlabEra
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import (
    NO_ROW,
    Allocation,
    CacheTotals,
    I64Column,
    ObjectState,
    Placement,
    RowColumn,
    Slabs,
    Tables,
    U8Column,
    find_rows,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("LEAKS_WALK", "SLABS_WALK", "collect_slabs")

#: What a snapshot calls the words that tell the slab of each object in it, and those of all slabs.
SLABS_WALK, LEAKS_WALK = "slabs", "leaks"
# Where no range of RAM is known, all that could be one counts as RAM: more than can be looked at.
_MAX_RAM = 1 << 46
_NOT_SAVED = "not in this snapshot"
# Names of caches are for messages: more are not read.
_MAX_NAMES = 100
_NOTHING: U64Column = np.empty(0, dtype=np.uint64)
_NO_ROWS: RowColumn = np.empty(0, dtype=np.int64)


def collect_slabs(
    target: Target, tables: Tables, progress: Progress | None = None, *, leaks: bool = False
) -> Tables:
    """Find the slab of each object of some tables, and which of them are free.

    :param tables: As :func:`anonvma_inspect.collect.collect` has filled them from this target.
    :param progress: Called with what is being read, and how much of it so far.
    :param leaks: Also look at all page frames for objects that are in no table.
    :return: The same tables with :attr:`Tables.allocation`, and what was missing among the holes.
    """
    reader = Reader(target, progress)
    found = _Slabs.of(target, tables, reader, leaks)
    if isinstance(found, str):
        holes = reader.holes(tables.holes)
        return dataclasses.replace(tables, allocation=_not_read(tables, found), holes=holes)
    allocation = found.collect()
    if isinstance(allocation, str):
        return dataclasses.replace(tables, allocation=_not_read(tables, allocation))
    return dataclasses.replace(tables, allocation=allocation, holes=reader.holes(tables.holes))


def _not_read(tables: Tables, reason: str) -> Allocation:
    def unknown(addresses: U64Column) -> Placement:
        count = len(addresses)
        return Placement(
            0,
            0,
            0,
            addresses,
            np.full(count, NO_ROW, dtype=np.int64),
            np.full(count, ObjectState.UNKNOWN, dtype=np.uint8),
        )

    return Allocation(
        not_read=reason,
        free_not_read=None,
        slabs=Slabs(_NOTHING, _NOTHING, _NOTHING),
        vmas=unknown(tables.vmas.address),
        avcs=unknown(tables.avcs.address),
        anon_vmas=unknown(tables.anon_vmas.address),
        cache_names={},
        slab_struct="slab",
        cache_offset=0,
        broken_word=_NOTHING,
        broken_slab=_NO_ROWS,
        broken_value=_NOTHING,
    )


@dataclass(frozen=True)
class _Kind:
    """Objects of one table, and what else pointers to such objects lead to.

    :ivar address: As :attr:`Placement.address`.
    :ivar rows: How many of them the table has.
    :ivar size: Bytes of one.
    :ivar variable: What points to their cache.
    """

    address: U64Column
    rows: int
    size: int
    variable: str

    @staticmethod
    def of(
        reader: Reader, record: Record, variable: str, table: U64Column, *pointers: U64Column
    ) -> _Kind:
        more = distinct(np.concatenate([_NOTHING, *pointers]))
        more = more[~reader.space.wild(more)]
        address = np.concatenate([table, more]) if len(more) else table
        return _Kind(address, len(table), record.size, variable)

    def find(self, addresses: U64Column) -> RowColumn:
        """Where some addresses stand."""
        row = find_rows(self.address[: self.rows], addresses)
        more = find_rows(self.address[self.rows :], addresses)
        return np.concatenate([row[row != NO_ROW], more[more != NO_ROW] + self.rows])


# Words that should lead to an object, and lead to no row; low bits are not the allocator's matter.
def _lost(words: U64Column, rows: RowColumn) -> U64Column:
    lost: U64Column = words[rows == NO_ROW] & ~np.uint64(7)
    return lost


# The words vma->anon_vma that lead to no row: those that should lead to VMAs, and to anon_vmas.
def _lost_by_vmas(tables: Tables) -> tuple[U64Column, U64Column]:
    vmas, tags = tables.vmas, tables.era.tags
    if tags.name == "none":
        return _NOTHING, _lost(vmas.anon_vma, vmas.active)
    kind = tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    root_vma = vmas.anon_vma_pointer[kind == AnonVmaKind.LAZY_VMA]
    known = (kind != AnonVmaKind.LAZY_VMA) & tags.understood(vmas.anon_vma_tag)
    anon_vma = vmas.anon_vma_pointer[known]
    return (
        _lost(root_vma, find_rows(vmas.address, root_vma)),
        _lost(anon_vma, find_rows(tables.anon_vmas.address, anon_vma)),
    )


@dataclass(frozen=True)
class _Slabs:
    target: Target
    reader: Reader
    era: SlabEra
    pages: SlabPages
    kinds: tuple[_Kind, ...]
    tables: Tables
    leaks: bool

    @staticmethod
    def of(target: Target, tables: Tables, reader: Reader, leaks: bool) -> _Slabs | str:
        if target.walks is not None and SLABS_WALK not in target.walks:
            return _NOT_SAVED
        opened = open_slab_pages(reader, target)
        if isinstance(opened, str):
            return opened
        era, pages = opened
        vmas, avcs, anon_vmas = tables.vmas, tables.avcs, tables.anon_vmas
        full = anon_vmas.rb_root != 0
        to_vmas, to_anon_vmas = _lost_by_vmas(tables)
        kinds = (
            _Kind.of(
                reader,
                tables.era.vma,
                "vm_area_cachep",
                vmas.address,
                _lost(avcs.vma, avcs.vma_row),
                to_vmas,
            ),
            _Kind.of(reader, tables.era.avc, "anon_vma_chain_cachep", avcs.address),
            _Kind.of(
                reader,
                tables.era.anon_vma,
                "anon_vma_cachep",
                anon_vmas.address,
                _lost(avcs.anon_vma, avcs.anon_vma_row),
                to_anon_vmas,
                _lost(anon_vmas.root, anon_vmas.root_row),
                _lost(anon_vmas.parent[full], anon_vmas.parent_row[full]),
            ),
        )
        return _Slabs(target, reader, era, pages, kinds, tables, leaks)

    def collect(self) -> Allocation | str:
        pages = self.pages
        slabs = [pages.slabs_of(kind.address) for kind in self.kinds]
        if not len(pages) and any(len(slab) for slab in slabs):
            return "the structs of pages (vmemmap) are not in this target"
        caches = [self._cache(kind, slab) for kind, slab in zip(self.kinds, slabs, strict=True)]
        cpus = read_cpus(self.reader, self.target)
        own = [cache for cache in caches if cache is not None]
        met = len(pages)
        not_looked_for = self._why_not_leaks(len(own))
        looked_for = self.leaks and not_looked_for is None
        if looked_for:
            pages.find_slabs(np.array([cache.address for cache in own], dtype=np.uint64))
        guarded = self._guarded(own)
        empty = (pages.column("inuse") == 0) & (np.arange(len(pages)) >= met)
        lists = [self._free(cache, cpus, guarded, empty) for cache in own]
        states = run_parallel(
            lambda of: self._states(*of, guarded), zip(self.kinds, slabs, caches, strict=True)
        )
        for kind, state in zip(self.kinds, states, strict=True):
            for part in lists:
                row = kind.find(part.objects)
                state[row[state[row] == ObjectState.ALLOCATED]] = ObjectState.FREE
        allocation = self._allocation(slabs, caches, states, lists, cpus is not None)
        if not looked_for:
            return dataclasses.replace(allocation, unreached_not_read=not_looked_for)
        objects = tuple(
            self._objects(cache, part, guarded, empty)
            for cache, part in zip(own, lists, strict=True)
        )
        unreached = find_unreached(self.reader, self.tables, objects)
        totals = tuple(
            self._totals(cache, kind, state, used, guarded)
            for cache, kind, state, (used, _) in zip(own, self.kinds, states, objects, strict=True)
        )
        return dataclasses.replace(allocation, unreached=unreached, totals=totals)

    # Why leaks cannot be looked for, if so.
    def _why_not_leaks(self, known: int) -> str | None:
        target = self.target
        if not self.leaks:
            return None
        if target.walks is not None and LEAKS_WALK not in target.walks:
            return _NOT_SAVED
        if known < len(self.kinds):
            return "not all of the slab caches are known"
        ram = target.space.ram
        if int((ram[:, 1] - ram[:, 0]).sum()) >= _MAX_RAM:
            return "where RAM is is not known"
        return None

    # All objects of a cache, in use and free.
    def _objects(
        self, cache: Cache, lists: FreeLists, guarded: _Guarded, empty: BoolColumn
    ) -> tuple[U64Column, U64Column]:
        pages = self.pages
        mine = pages.caches == np.uint64(cache.address)
        here = mine[guarded.slab]
        mine[guarded.slab] = False
        mine[: len(empty)] &= ~empty
        slab = np.flatnonzero(mine)
        count = self._counts(cache, slab)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        first = pages.base_of(pages.address[slab]) + np.uint64(cache.pad)
        address = np.repeat(first, count) + (within * cache.size).astype(np.uint64)
        free = distinct(lists.objects)
        used = address[find_rows(free, address) == NO_ROW]
        return np.concatenate([used, guarded.address[here & guarded.used]]), free

    # What a cache comes to; slabs with nothing in use count as well.
    def _totals(
        self, cache: Cache, kind: _Kind, state: U8Column, used: U64Column, guarded: _Guarded
    ) -> CacheTotals:
        mine = self.pages.caches == np.uint64(cache.address)
        fenced = int(np.count_nonzero(mine[guarded.slab] & guarded.used))
        mine[guarded.slab] = False
        slab = np.flatnonzero(mine)
        small = self.pages.column("objects")[slab] < np.uint64(cache.most)
        pages = np.where(small, cache.least_pages, cache.most_pages).sum()
        return CacheTotals(
            size=cache.size,
            slabs=len(slab),
            bytes=int(pages) * self.tables.era.page_size,
            objects=int(self._counts(cache, slab).sum()),
            allocated=len(used) - fenced,
            guarded=fenced,
            reached=int(np.count_nonzero(state[: kind.rows] == ObjectState.ALLOCATED)),
        )

    # What the variable of a kind of objects points to; 0 if that is not known.
    def _named(self, kind: _Kind) -> int:
        said = read_variable(self.reader, self.target, kind.variable)
        return 0 if said is None else int(said.view("<u8")[0])

    # The cache of a kind of objects: that which most of them are in, or which its variable points
    # to if that cannot be told. (A wrong variable would put all of them into the wrong place.)
    def _cache(self, kind: _Kind, slab: RowColumn) -> Cache | None:
        address = self._named(kind)
        if len(self.pages):
            count = np.bincount(slab[slab != NO_ROW], minlength=len(self.pages))
            used = np.flatnonzero(count)
            caches, count = self.pages.caches[used], count[used]
            if 2 * count[caches == np.uint64(address)].sum() <= len(slab):
                each, index = np.unique(caches, return_inverse=True)
                votes = np.bincount(index, weights=count)
                best = int(np.argmax(votes)) if len(votes) else 0
                if len(votes) and each[best] and 2 * votes[best] > len(slab):
                    address = int(each[best])
        cache = read_cache(self.reader, self.era, self.target, address) if address else None
        return cache if cache is not None and cache.size >= kind.size else None

    # Free objects of the slabs that were met or looked for. One that was looked for and has nothing
    # in use may be new, and its list be made just now: that is left out.
    def _free(
        self, cache: Cache, cpus: U64Column | None, guarded: _Guarded, empty: BoolColumn
    ) -> FreeLists:
        pages = self.pages
        word, first = _NOTHING, _NOTHING
        sheaves = _NOTHING
        if cpus is not None:
            word, first = cpu_freelists(self.reader, self.era, cache, cpus)
            sheaves = sheaf_objects(self.reader, self.era, cache, cpus)
        of_cpu = pages.slabs_of(first)
        mine = pages.caches == np.uint64(cache.address)
        # Of a CPU's slab, the page is set and cleared apart from the list.
        kept = (of_cpu != NO_ROW) & mine[of_cpu]
        freelist = pages.column("freelist")
        mine[guarded.slab] = False
        offset = np.uint64(self.era.slab.offset("freelist"))

        def walk(slab: RowColumn, word: U64Column, first: U64Column) -> FreeLists:
            base = pages.base_of(pages.address[slab]) + np.uint64(cache.pad)
            count = self._counts(cache, slab).astype(np.uint64)
            found = walk_freelists(self.reader, cache, word, first, base, count)
            if self.target.live:
                doubted = self._doubted(found, len(word))
                again = np.flatnonzero(doubted)
                found = found.only(~doubted)
                if len(again):
                    sure = walk_steady(
                        self.reader, cache, word[again], first[again], base[again], count[again]
                    )
                    found = found.joined(sure.of_lists(again))
            return found.of_lists(slab)

        mine &= freelist != 0
        doubtful = np.flatnonzero(mine[: len(empty)] & empty)
        mine[walk(doubtful, pages.address[doubtful] + offset, freelist[doubtful]).index] = False
        own = np.flatnonzero(mine)
        found = walk(
            np.concatenate([own, of_cpu[kept]]),
            np.concatenate([pages.address[own] + offset, word[kept]]),
            np.concatenate([freelist[own], first[kept]]),
        )
        return dataclasses.replace(
            found,
            objects=np.concatenate([found.objects, sheaves]),
            owner=np.concatenate([found.owner, np.full(len(sheaves), NO_ROW, dtype=np.int64)]),
        )

    # Lists that say what cannot be: they lead astray, or to an object that was met.
    def _doubted(self, found: FreeLists, lists: int) -> BoolColumn:
        doubted = marked(lists, found.index)
        for kind in self.kinds:
            met = find_rows(kind.address[: kind.rows], found.objects) != NO_ROW
            doubted |= marked(lists, found.owner[met])
        return doubted

    # How many objects slabs have; whatever a damaged struct says, not so many that they reach into
    # the next slab, so that all of them together find room in RAM.
    def _counts(self, cache: Cache, slab: RowColumn) -> I64Column:
        base = self.pages.base_of(self.pages.address[slab])
        count = self.pages.column("objects")[slab]
        starts = np.append(distinct(base), np.uint64(2**64 - 1))
        room = starts[np.searchsorted(starts, base) + 1] - base
        counts: I64Column = np.minimum(count, room // np.uint64(cache.size)).astype(np.int64)
        return counts

    # Slabs that hold one object where their cache has several are KFENCE's.
    def _guarded(self, caches: list[Cache]) -> _Guarded:
        none: BoolColumn = np.empty(0, dtype=bool)
        if self.era.kfence is None:
            return _Guarded(_NO_ROWS, _NOTHING, none, none)
        several = [cache.address for cache in caches if cache.least > 1]
        slab = np.flatnonzero(
            (self.pages.column("objects") == np.uint64(1))
            & np.isin(self.pages.caches, np.array(several, dtype=np.uint64))
        )
        kfence = Kfence.of(self.reader, self.era, self.target) if len(slab) else None
        if kfence is None:
            unknown = np.zeros(len(slab), dtype=bool)
            return _Guarded(slab, np.zeros(len(slab), dtype=np.uint64), unknown, unknown)
        address, used, known = kfence.look_up(self.pages.base_of(self.pages.address[slab]))
        # What is known to be none of the pool's is a slab as any other.
        kept = (address != 0) | ~known
        return _Guarded(slab[kept], address[kept], used[kept], known[kept])

    def _states(
        self, kind: _Kind, slab: RowColumn, cache: Cache | None, guarded: _Guarded
    ) -> U8Column:
        pages = self.pages
        if cache is None or not len(pages):
            return np.full(len(slab), ObjectState.UNKNOWN, dtype=np.uint8)
        of_slab = np.full(len(pages), ObjectState.ALLOCATED, dtype=np.uint8)
        of_slab[pages.caches != np.uint64(cache.address)] = ObjectState.OTHER_CACHE
        of_slab[~pages.is_slab] = ObjectState.NO_SLAB
        # What NO_ROW picks here is overwritten at the end.
        state: U8Column = of_slab[slab]
        first = pages.base_of(pages.address) + np.uint64(cache.pad)
        distance = kind.address - first[slab]
        number = distance // np.uint64(cache.size)
        inside = number * np.uint64(cache.size) != distance
        inside |= number >= pages.column("objects")[slab]
        if len(guarded.slab):
            place = np.full(len(pages), NO_ROW, dtype=np.int64)
            place[guarded.slab] = np.arange(len(guarded.slab))
            place = place[slab]
            here = np.flatnonzero((place != NO_ROW) & (state == ObjectState.ALLOCATED))
            place = place[here]
            known = guarded.known[place]
            inside[here] = known & (kind.address[here] != guarded.address[place])
            state[here[~guarded.used[place]]] = ObjectState.FREE
            state[here[~known]] = ObjectState.UNKNOWN
        state[inside & (state <= ObjectState.FREE)] = ObjectState.INSIDE
        state[slab == NO_ROW] = ObjectState.UNKNOWN
        return state

    def _allocation(
        self,
        slabs: list[RowColumn],
        caches: list[Cache | None],
        states: list[U8Column],
        lists: list[FreeLists],
        cpus_known: bool,
    ) -> Allocation:
        pages = self.pages
        used = np.zeros(len(pages), dtype=bool)
        for slab in slabs:
            used |= marked(len(pages), slab)
        for part in lists:
            used[part.index] = True
        number = np.flatnonzero(used)
        number = number[np.argsort(pages.address[number])]
        row = np.full(len(pages) + 1, NO_ROW, dtype=np.int64)
        row[number] = np.arange(len(number))
        address = pages.address[number]
        cache = pages.caches[number]
        placements = [
            Placement(
                0 if of is None else of.address,
                self.target.symbols.get(kind.variable, 0),
                self._named(kind),
                kind.address,
                row[slab],
                state,
            )
            for kind, slab, of, state in zip(self.kinds, slabs, caches, states, strict=True)
        ]
        return Allocation(
            not_read=None,
            free_not_read=None if cpus_known else "which CPUs there are is not known",
            slabs=Slabs(address, pages.base_of(address), cache),
            vmas=placements[0],
            avcs=placements[1],
            anon_vmas=placements[2],
            cache_names=read_names(self.reader, self.era, np.unique(cache)[:_MAX_NAMES]),
            slab_struct=self.era.slab.struct,
            cache_offset=self.era.slab.offset("slab_cache"),
            broken_word=np.concatenate([_NOTHING, *(part.word for part in lists)]),
            broken_slab=row[np.concatenate([_NO_ROWS, *(part.index for part in lists)])],
            broken_value=np.concatenate([_NOTHING, *(part.value for part in lists)]),
        )


@dataclass(frozen=True)
class _Guarded:
    """Slabs of KFENCE's, their objects, which of those are in use, and of which that is known."""

    slab: RowColumn
    address: U64Column
    used: BoolColumn
    known: BoolColumn
