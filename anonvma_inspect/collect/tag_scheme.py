"""Finding out how a target encodes ``vma->anon_vma``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anonvma_inspect.collect.mm_store import MmStore
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_caches import read_variable
from anonvma_inspect.collect.slab_pages import SlabPages, open_slab_pages
from anonvma_inspect.collect.tasks import Threads
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.tag_schemes import SWITCHES, SeenTags, choose_scheme, declared_scheme
from anonvma_inspect.kernel.tags import TagScheme, decode_anon_vma
from anonvma_inspect.tables import NO_ROW, I64Column, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("find_tag_scheme",)

# So many objects tell which slab cache those of their kind are in.
_SAMPLE = 1 << 10


def find_tag_scheme(
    target: Target, era: Era, threads: Threads, others: U64Column | None = None
) -> TagScheme:
    """Find out how ``vma->anon_vma`` is encoded.

    That takes a look at all VMAs of all processes, but only where the layouts do not say that the
    field is a pointer, or somebody says that it is something else.

    :param others: VMAs of other mms, to be looked at as well.
    """
    declared = declared_scheme(target.layouts)
    if target.scheme == "none" or (target.scheme is None and declared.is_pointer):
        return choose_scheme(declared, SeenTags(), target.scheme)
    # What cannot be read here, the collection meets again, and keeps account of.
    reader = Reader(target)
    vmas = _listed_vmas(reader, era, threads)
    if others is not None:
        vmas = distinct(np.concatenate([vmas, others]))
    seen = _Evidence(reader, target, era).look(vmas)
    scheme = choose_scheme(declared, seen, target.scheme)
    return replace(scheme, enabled=_switch(reader, target, scheme.name))


def _listed_vmas(reader: Reader, era: Era, threads: Threads) -> U64Column:
    mms = distinct(threads.mm)
    slots = MmStore(reader, era).add(mms, np.ones(len(mms), dtype=bool))
    vmas = distinct(slots.pointer)
    return vmas[~reader.space.wild(vmas, era.vma.size)]


# The lowest byte tells of a bool, an int and a static key (whose first word counts) alike.
def _switch(reader: Reader, target: Target, scheme: str) -> bool | None:
    for name in SWITCHES.get(scheme, ()):
        byte = read_variable(reader, target, name, 1)
        if byte is not None and byte[0] < 0x80:
            return bool(byte[0])
    return None


class _Evidence:
    """Tells what pointers with tags lead to."""

    def __init__(self, reader: Reader, target: Target, era: Era) -> None:
        self._reader, self._target, self._era = reader, target, era

    def look(self, vmas: U64Column) -> SeenTags:
        """Look at the words of some VMAs.

        :param vmas: Sorted, each once.
        """
        record = self._era.vma
        columns, present = self._reader.columns(record, vmas, ("anon_vma", "anon_vma_chain_next"))
        pointer, tag = decode_anon_vma(columns["anon_vma"])
        pointer[~present], tag[~present] = 0, 0
        head = vmas + np.uint64(record.offset("anon_vma_chain"))
        empty = columns["anon_vma_chain_next"] == head
        plain = distinct(pointer[tag == 0])
        rows = np.flatnonzero(tag)
        pointer, tag, empty = pointer[rows], tag[rows], empty[rows]
        lone = pointer == 0
        is_vma, is_anon_vma = self._kinds(pointer, vmas, plain[plain != 0])
        is_vma &= ~lone
        is_anon_vma &= ~lone & ~is_vma

        def count(which: BoolColumn) -> I64Column:
            return np.bincount(tag[which].astype(np.int64), minlength=8)

        return SeenTags(
            lone=count(lone & empty),
            lone_chained=count(lone & ~empty),
            vmas=count(is_vma),
            anon_vmas=count(is_anon_vma),
            others=count(~lone & ~is_vma & ~is_anon_vma),
        )

    # Which pointers lead to VMAs, and which to anon_vmas: by the slab caches that they lie in, else
    # by what is there.
    def _kinds(
        self, pointer: U64Column, vmas: U64Column, anon_vmas: U64Column
    ) -> tuple[BoolColumn, BoolColumn]:
        known = find_rows(vmas, pointer) != NO_ROW
        sound = ~self._reader.space.wild(pointer, self._era.vma.size)
        opened = open_slab_pages(self._reader, self._target)
        if isinstance(opened, str) or not len(pointer):
            there = np.where(sound, pointer, np.uint64(0))
            is_vma = known | (sound & self._looks_like_vma(there))
            return is_vma, sound & ~is_vma & self._looks_like_anon_vma(there)
        _, pages = opened
        cache_of_vmas = self._cache(pages, "vm_area_cachep", vmas)
        cache_of_anon_vmas = self._cache(pages, "anon_vma_cachep", anon_vmas)
        cache = np.zeros(len(pointer), dtype=np.uint64)
        cache[sound] = _caches(pages, pointer[sound])
        unknown = sound & (cache == 0)
        there = np.where(unknown, pointer, np.uint64(0))
        is_vma = known | ((cache == cache_of_vmas) & (cache != 0))
        is_vma |= unknown & self._looks_like_vma(there)
        is_anon_vma = (cache == cache_of_anon_vmas) & (cache != 0)
        return is_vma, is_anon_vma | (unknown & self._looks_like_anon_vma(there))

    # The cache of a kind of objects: that of most that are known, else the one that is named.
    def _cache(self, pages: SlabPages, variable: str, objects: U64Column) -> np.uint64:
        objects = objects[~self._reader.space.wild(objects)][:_SAMPLE]
        each, count = np.unique(_caches(pages, objects), return_counts=True)
        count[each == 0] = 0
        if len(count) and 2 * int(count.max()) > len(objects):
            return np.uint64(each[np.argmax(count)])
        said = read_variable(self._reader, self._target, variable)
        return np.uint64(0 if said is None else int(said.view("<u8")[0]))

    def _looks_like_vma(self, addresses: U64Column) -> BoolColumn:
        era, space = self._era, self._reader.space
        names = ("vm_start", "vm_end", "vm_mm", "anon_vma_chain_next")
        columns, present = self._read("vma", addresses, names)
        start, end = columns["vm_start"], columns["vm_end"]
        present &= (start < end) & (((start | end) & np.uint64(era.page_size - 1)) == 0)
        present &= ~space.wild(columns["vm_mm"], era.mm.size)
        looks: BoolColumn = present & ~space.wild(columns["anon_vma_chain_next"])
        return looks

    def _looks_like_anon_vma(self, addresses: U64Column) -> BoolColumn:
        columns, present = self._read("anon_vma", addresses, ("root",))
        root = np.where(present, columns["root"], np.uint64(0))
        above, there = self._read("anon_vma", root, ("root",))
        looks: BoolColumn = present & there & (above["root"] == root)
        return looks

    # Fields of objects that may be anything; what is 0 or wild is not there.
    def _read(
        self, kind: str, addresses: U64Column, names: tuple[str, ...]
    ) -> tuple[dict[str, U64Column], BoolColumn]:
        record = self._era.vma if kind == "vma" else self._era.anon_vma
        there = np.flatnonzero((addresses != 0) & ~self._reader.space.wild(addresses, record.size))
        present = np.zeros(len(addresses), dtype=bool)
        rows, present[there] = self._reader.memory.gather(addresses[there], record.size)
        columns = {}
        for name in names:
            columns[name] = np.zeros(len(addresses), dtype=np.uint64)
            columns[name][there] = record.column(rows, name)
        return columns, present


# The slab cache that each of some objects lies in, 0 where that is not known.
def _caches(pages: SlabPages, addresses: U64Column) -> U64Column:
    slab = pages.slabs_of(addresses)
    caches = np.append(pages.caches, np.uint64(0))
    return caches[slab]
