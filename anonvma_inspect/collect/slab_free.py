"""Free objects of slab caches: on freelists of slabs and of CPUs, and in sheaves.

An object that is on none of these can be free all the same: in a batch on its way from one of them
to another, on somebody's stack.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.lists import walk_lists
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_caches import Cache, per_cpu, read_words
from anonvma_inspect.kernel.slab import SheafEra, SlabEra, decode_link
from anonvma_inspect.tables import RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct

__all__ = ("FreeLists", "cpu_freelists", "sheaf_objects", "walk_freelists", "walk_steady")

_NOTHING: U64Column = np.empty(0, dtype=np.uint64)
# A sheaf has some dozens of objects.
_MAX_CAPACITY = 1 << 14


@dataclass(frozen=True)
class FreeLists:
    """What walking freelists came upon.

    :ivar objects: Free objects, unsorted.
    :ivar owner: Which list each is on.
    :ivar word: Addresses of words that lead astray; ``index`` says which list each is of.
    :ivar value: What they lead to.
    """

    objects: U64Column
    owner: RowColumn
    word: U64Column
    index: RowColumn
    value: U64Column

    def of_lists(self, number: RowColumn) -> FreeLists:
        """The same, with other numbers for its lists.

        :param number: The new one of each.
        """
        return dataclasses.replace(self, owner=number[self.owner], index=number[self.index])

    def only(self, lists: BoolColumn) -> FreeLists:
        """What some of the lists say.

        :param lists: Whether it is one of them, by number.
        """
        on, astray = lists[self.owner], lists[self.index]
        return FreeLists(
            self.objects[on],
            self.owner[on],
            self.word[astray],
            self.index[astray],
            self.value[astray],
        )

    def joined(self, other: FreeLists) -> FreeLists:
        """What both say."""
        return FreeLists(
            np.concatenate([self.objects, other.objects]),
            np.concatenate([self.owner, other.owner]),
            np.concatenate([self.word, other.word]),
            np.concatenate([self.index, other.index]),
            np.concatenate([self.value, other.value]),
        )


def walk_freelists(
    reader: Reader,
    cache: Cache,
    word: U64Column,
    first: U64Column,
    base: U64Column,
    count: U64Column,
) -> FreeLists:
    """Walk lists of free objects, all of them one step a round.

    Follows ``get_freepointer()``, ``mm/slub.c``. A list that leaves its slab, does not lead to the
    beginning of an object, or is longer than its slab has objects, is left where that shows.

    :param word: Where the head of each list stands.
    :param first: What stands there; not NULL.
    :param base: Where the objects of its slab begin.
    :param count: How many objects the slab has.
    """
    found: list[U64Column] = []
    owner: list[RowColumn] = [np.empty(0, dtype=np.int64)]
    astray: list[tuple[U64Column, RowColumn, U64Column]] = []
    index = np.arange(len(first))
    at, pointer = word, first
    swapped = _is_swapped(reader, cache, first, base, count)
    steps = 0
    while len(index):
        good = _is_object(cache, pointer, base[index], count[index])
        good &= steps < count[index]
        astray.append((at[~good], index[~good], pointer[~good]))
        index, pointer = index[good], pointer[good]
        found.append(pointer)
        owner.append(index)
        at = pointer + np.uint64(cache.offset)
        words, present = read_words(reader.memory, at)
        reader.hole(at[~present], 8, "freelist")
        pointer = decode_link(words, at, cache.random, swapped)
        more = present & (pointer != 0)
        index, at, pointer = index[more], at[more], pointer[more]
        steps += 1
    return FreeLists(
        np.concatenate([_NOTHING, *found]),
        np.concatenate(owner),
        np.concatenate([_NOTHING, *(part[0] for part in astray)]),
        np.concatenate([np.empty(0, dtype=np.int64), *(part[1] for part in astray)]),
        np.concatenate([_NOTHING, *(part[2] for part in astray)]),
    )


def walk_steady(
    reader: Reader,
    cache: Cache,
    word: U64Column,
    first: U64Column,
    base: U64Column,
    count: U64Column,
) -> FreeLists:
    """Walk lists of free objects of a kernel that runs, and believe those that rest meanwhile.

    A view has kept the pages of objects longer than the words that lists begin with, and links
    outlive that their object is allocated, where they stand behind it (``SLAB_TYPESAFE_BY_RCU``):
    a list that was put together of both leads through objects that are in use. So all of it is read
    anew, the beginnings before and after the links. Beside each stands what tells of every change:
    ``counters`` of a slab, and of a CPU's ``tid`` (``mm/slub.c``).

    :param word: See :func:`walk_freelists`.
    :param first: See there; what a view said.
    :param base: See there.
    :param count: See there.
    :return: Without what lists say that changed.
    """
    before, present = _beginnings(reader, word)
    now = before[:, 0]
    # A CPU may have gone on to another slab.
    here = _is_object(cache, now, base, count) | (now == first)
    kept = np.flatnonzero(present & here & (now != 0))
    fresh = copy.copy(reader)
    fresh.memory = reader.memory.uncached()
    found = walk_freelists(fresh, cache, word[kept], now[kept], base[kept], count[kept])
    after, present = _beginnings(reader, word)
    return found.of_lists(kept).only(present & (before == after).all(axis=1))


# Of each list the first word, and the one beside it, as they are now.
def _beginnings(reader: Reader, word: U64Column) -> tuple[NDArray[np.uint64], BoolColumn]:
    rows, present = reader.memory.uncached().gather(word, 16)
    words: NDArray[np.uint64] = rows.view("<u8").astype(np.uint64).reshape(len(word), 2)
    return words, present


# Whether addresses are those of objects of their slabs.
def _is_object(cache: Cache, address: U64Column, base: U64Column, count: U64Column) -> BoolColumn:
    number, rest = np.divmod(address - base, np.uint64(cache.size))
    good: BoolColumn = (rest == 0) & (number < count)
    return good


# Nothing tells which of its two encodings a kernel has, but the links themselves.
def _is_swapped(
    reader: Reader, cache: Cache, first: U64Column, base: U64Column, count: U64Column
) -> bool:
    if cache.random is None:
        return False
    fits = []
    at = first + np.uint64(cache.offset)
    words, present = read_words(reader.memory, at)
    for swapped in (True, False):
        pointer = decode_link(words, at, cache.random, swapped)
        good = present & ((pointer == 0) | _is_object(cache, pointer, base, count))
        fits.append(int(np.count_nonzero(good)))
    return fits[0] >= fits[1]


def cpu_freelists(
    reader: Reader, era: SlabEra, cache: Cache, cpus: U64Column
) -> tuple[U64Column, U64Column]:
    """Heads of the freelists of CPUs' slabs (up to v6.19).

    :return: Where they stand, and what stands there, of those that are not empty.
    """
    if era.cpu is None or not cache.cpu_slab:
        return _NOTHING, _NOTHING
    at = per_cpu(cache.cpu_slab, cpus, era.cpu, "freelist")
    words, present = read_words(reader.memory, at)
    reader.hole(at[~present], 8, era.cpu.struct)
    kept = present & (words != 0) & ~reader.space.wild(words, cache.size)
    return at[kept], words[kept]


def sheaf_objects(reader: Reader, era: SlabEra, cache: Cache, cpus: U64Column) -> U64Column:
    """Free objects in the sheaves of CPUs and nodes (since v6.18).

    Follows ``alloc_from_pcs()``, ``free_to_pcs()`` and ``barn_get_full_sheaf()``, ``mm/slub.c``
    (7.3). Objects that wait for a grace period of RCU (``rcu_free``) count as free.
    """
    sheaves = era.sheaves
    if sheaves is None or not cache.cpu_sheaves:
        return _NOTHING
    record = sheaves.per_cpu
    address: list[U64Column] = []
    for name in ("main", "spare", "rcu_free"):
        at = per_cpu(cache.cpu_sheaves, cpus, record, name)
        words, present = read_words(reader.memory, at)
        reader.hole(at[~present], 8, record.struct)
        address.append(words)
    busy = np.zeros(len(cpus), dtype=bool)
    if "acquired" in record:
        at = per_cpu(cache.cpu_sheaves, cpus, record, "acquired")
        rows, present = reader.memory.gather(at, 1)
        busy = ~present | (rows[:, 0] != 0)
    else:
        busy[:] = True
    main = address[0]
    full = _full_sheaves(reader, sheaves, cache)
    everywhere = distinct(np.concatenate([*address, full]))
    return _objects_of(reader, sheaves, cache, everywhere, main[busy])


# Sheaves on the lists of barns.
def _full_sheaves(reader: Reader, era: SheafEra, cache: Cache) -> U64Column:
    head = cache.barns + np.uint64(era.barn.offset("sheaves_full"))
    first, present = read_words(reader.memory, head)
    reader.hole(head[~present], 8, era.barn.struct)
    owner = np.full(np.count_nonzero(present), cache.address, dtype=np.uint64)
    return walk_lists(
        reader, era.sheaf, "barn_list", first[present], head[present], ("cache", owner)
    ).address


# What stands in sheaves.
def _objects_of(
    reader: Reader, era: SheafEra, cache: Cache, sheaf: U64Column, busy: U64Column
) -> U64Column:
    record = era.sheaf
    sheaf = sheaf[sheaf != 0]
    rows, present = reader.rows(record, sheaf)
    sheaf, rows = sheaf[present], rows[present]
    size = record.column(rows, "size").astype(np.int64)
    capacity = min(cache.sheaf_capacity, _MAX_CAPACITY)
    kept = (record.column(rows, "cache") == np.uint64(cache.address)) & (size <= capacity)
    sheaf, size = sheaf[kept], size[kept]
    # free_to_pcs() stores an object and counts it: in which order, the compiler decides.
    size = np.where(np.isin(sheaf, busy), size - 1, size)
    size = np.maximum(size, 0)
    within: NDArray[np.int64] = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    at = np.repeat(sheaf + np.uint64(record.offset("objects")), size) + (within * 8).astype(
        np.uint64
    )
    words, present = read_words(reader.memory, at)
    reader.hole(at[~present], 8, record.struct)
    return words[present]
