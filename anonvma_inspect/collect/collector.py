"""From a target to tables, in rounds, to a fixpoint.

VMAs lead to AVCs (their chains), AVCs to anon_vmas, anon_vmas to AVCs (their trees), AVCs to VMAs,
VMAs to mms, and mms to more VMAs: trees hold VMAs that no task's mm lists (an exec's new mm, an mm
in fork or exit). The rounds go on until nothing new is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anonvma_inspect.collect.assemble import assemble
from anonvma_inspect.collect.index import batches
from anonvma_inspect.collect.ksm import KsmWalk, read_ksm
from anonvma_inspect.collect.lists import ListWalk, walk_lists
from anonvma_inspect.collect.met import Met
from anonvma_inspect.collect.mms import SlotColumns, looks_like_mm
from anonvma_inspect.collect.reader import Progress, Reader
from anonvma_inspect.collect.tag_scheme import find_tag_scheme
from anonvma_inspect.collect.tasks import Threads, read_threads
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.kernel.era import Era, Record, resolve_era
from anonvma_inspect.kernel.tags import AnonVmaKind, TagScheme, decode_anon_vma
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import NO_ROW, Tables, find_rows, marked
from anonvma_inspect.target.memory import BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("collect", "collect_from", "collect_tag_scheme")

_NO_ADDRESSES: U64Column = np.empty(0, dtype=np.uint64)


def collect(
    target: Target,
    pids: Sequence[int] = (),
    progress: Progress | None = None,
    *,
    anon_vmas: Sequence[int] = (),
) -> Tables:
    """Read the anonymous reverse map of a target.

    :param pids: Limit it to the families that these processes' VMAs belong to; a thread's id means
        its process. Empty: everything.
    :param progress: Called with what is being read, and how many of it so far.
    :param anon_vmas: Addresses of ``anon_vma`` objects to read as well, if no VMA leads to them.
    :raises TargetError: if the kernel is of no era that is understood, or the task list is out of
        reach.
    :raises NotFoundError: if a process does not exist, or has no mm.
    """
    era = resolve_era(target.layouts, target.page_size, target.release)
    reader = Reader(target, progress)
    threads = read_threads(reader, era, target)
    era = replace(era, tags=find_tag_scheme(target, era, threads))
    ksm = read_ksm(reader, target)
    seeds = _seeds(reader, era.anon_vma, anon_vmas)
    named = _mms_of(threads, pids) if pids else None
    tables = _Collector(reader, era, threads, ksm, named).run(tuple(pids), anon_vmas=seeds)
    again = _learn_more(target, tables, threads)
    if again == era.tags:
        return tables
    era, reader = replace(era, tags=again), Reader(target, progress)
    ksm = read_ksm(reader, target)
    return _Collector(reader, era, threads, ksm, named).run(tuple(pids), anon_vmas=seeds)


# Some tags may be met only in mms that no task has, as those of a child of fork are.
def _learn_more(target: Target, tables: Tables, threads: Threads) -> TagScheme:
    tags, vmas = tables.era.tags, tables.vmas
    if tags.name == "none" or tags.understood(vmas.anon_vma_tag).all():
        return tags
    return find_tag_scheme(target, tables.era, threads, vmas.address)


def collect_from(
    target: Target,
    *,
    vmas: Sequence[int] = (),
    anon_vmas: Sequence[int] = (),
    progress: Progress | None = None,
) -> Tables:
    """Read the families that some VMAs and anon_vmas belong to, as ``collect`` does with pids.

    No mm is walked: of the VMAs, those are read that are named here or met in the families' trees.

    :param vmas: Addresses of ``vm_area_struct`` objects. Nobody vouches for them: what is not there
        is a hole of the tables, and what is no VMA shows as one that contradicts itself.
    :param anon_vmas: Addresses of ``anon_vma`` objects, likewise.
    :param progress: See :func:`collect`.
    :raises TargetError: see :func:`collect`.
    :raises NotFoundError: if an address cannot be that of such an object.
    """
    era = resolve_era(target.layouts, target.page_size, target.release)
    reader = Reader(target, progress)
    seeds = [
        _seeds(reader, record, addresses)
        for record, addresses in ((era.vma, vmas), (era.anon_vma, anon_vmas))
    ]
    threads, ksm = read_threads(reader, era, target), read_ksm(reader, target)
    era = replace(era, tags=find_tag_scheme(target, era, threads))
    collector = _Collector(reader, era, threads, ksm, _NO_ADDRESSES)
    return collector.run((), *seeds)


def collect_tag_scheme(target: Target) -> TagScheme:
    """Find out how a target encodes ``vma->anon_vma``, and read nothing else.

    :raises TargetError: see :func:`collect`.
    """
    era = resolve_era(target.layouts, target.page_size, target.release)
    return find_tag_scheme(target, era, read_threads(Reader(target), era, target))


def _seeds(reader: Reader, record: Record, addresses: Sequence[int]) -> U64Column:
    column = np.array(sorted(set(addresses)), dtype=np.uint64)
    for address in column[reader.space.wild(column, record.size)]:
        raise NotFoundError(f"{int(address):#x} is no {record.struct}: it is not in RAM")
    return column


# The mms of the processes (thread groups) that were asked for.
def _mms_of(threads: Threads, pids: Sequence[int]) -> U64Column:
    tgids = []
    for pid in pids:
        found = np.flatnonzero((threads.pid == pid) | (threads.tgid == pid))
        if len(found):
            tgids.append(int(threads.tgid[found[0]]))
        elif pid in threads.pid_known:
            raise NotFoundError(f"PID {pid} has no memory of its own: a kernel thread or a zombie")
        else:
            raise NotFoundError(f"there is no PID {pid} in this target")
    return threads.mm[np.isin(threads.tgid, tgids)]


class _Collector:
    # named: only these mms are walked, and only their families are read; None: all.
    def __init__(
        self,
        reader: Reader,
        era: Era,
        threads: Threads,
        ksm: KsmWalk,
        named: U64Column | None,
    ) -> None:
        self._reader, self._era, self._threads, self._named = reader, era, threads, named
        self._ksm = ksm
        self._met = Met.nothing(reader, era)
        # Where AVCs lead that were met since the last round, but for the VMA whose list each is on.
        self._vma_pointers: list[U64Column] = []
        self._anon_vma_pointers: list[U64Column] = []

    def run(
        self,
        pids: tuple[int, ...],
        vmas: U64Column = _NO_ADDRESSES,
        anon_vmas: U64Column = _NO_ADDRESSES,
    ) -> Tables:
        """Go on until nothing new is met.

        :param vmas: VMAs to start from, beside those of the mms that are walked.
        :param anon_vmas: anon_vmas to start from.
        """
        self._start()
        met = self._met
        named = met.vmas.unknown(vmas)
        met.vmas.add(named, *met.vmas.read(named))
        stores = (met.mms, met.vmas, met.avcs, met.anon_vmas)
        before = None
        while (now := [len(store) for store in stores]) != before:
            before = now
            self._walk_new_chains()
            self._anon_vma_pointers.append(self._held_by_ksm())
            self._read_new_anon_vmas(anon_vmas)
            self._read_vmas_of_new_avcs()
        ksm = self._ksm.only(~self._of_others()) if self._limited else self._ksm
        return assemble(self._reader, self._era, self._threads, met, ksm, self._limited, pids)

    def _start(self) -> None:
        addresses = np.unique(self._threads.mm)
        self._add_vmas_of(self._met.mms.add(addresses, self._to_walk(addresses)), listed=True)

    @property
    def _limited(self) -> bool:
        return self._named is not None

    def _to_walk(self, mms: U64Column) -> BoolColumn:
        if self._named is None:
            return np.ones(len(mms), dtype=bool)
        return np.isin(mms, self._named)

    # VMAs that trees of mms hold. In the tree of an unlisted mm, an entry may be the parent's VMA
    # (fork) or a freed one (exit): only those that say that they belong to it are taken.
    def _add_vmas_of(self, slots: SlotColumns, *, listed: bool) -> None:
        wild = self._reader.space.wild(slots.pointer, self._era.vma.size)
        for index in np.flatnonzero(wild):
            self._reader.broken(
                int(slots.mm[index]),
                int(slots.holder[index]),
                "vm_area_struct" if self._era.maple_node is None else "maple_node",
                int(slots.pointer[index]),
                "a VMA is wild",
            )
        pointer = slots.pointer[~wild]
        vmas = self._met.vmas
        new = vmas.unknown(pointer)
        columns, chosen = vmas.read(new)
        if not listed:
            vma = find_rows(new, pointer)
            claimed = np.flatnonzero(vma != NO_ROW)
            mm = self._met.mms.address[slots.mm[~wild][claimed]]
            own = columns["vm_mm"][vma[claimed]] == mm
            chosen &= marked(len(new), vma[claimed[own]])
        vmas.add(new, columns, chosen)

    def _walk_new_chains(self) -> None:
        done = len(self._met.chain_end)
        if done == len(self._met.vmas):
            return
        vma = self._met.vmas.address[done:]
        walk: ListWalk = walk_lists(
            self._reader,
            self._era.avc,
            "same_vma",
            first=self._met.vmas.column("anon_vma_chain_next", done),
            head=vma + np.uint64(self._era.vma.offset("anon_vma_chain")),
            owner=("vma", vma),
            names=("vma", "anon_vma"),
        )
        self._met.chain_end = np.concatenate([self._met.chain_end, walk.end])
        self._met.chain_length = np.concatenate([self._met.chain_length, walk.length])
        self._met.links.append((walk.list + done, walk.position, walk.address))
        named = walk.columns["vma"]
        self._vma_pointers.append(named[named != vma[walk.list]])
        self._anon_vma_pointers.append(walk.columns["anon_vma"])
        self._follow(self._met.vmas.column("anon_vma", done))
        self._met.avcs.number(self._met.avcs.unknown(walk.address))

    # What vma->anon_vma leads to. A root VMA (ANON_VMA_LAZY) can be in no mm's tree any longer.
    # Tags that may mean anything are not followed.
    def _follow(self, words: U64Column) -> None:
        pointer, tag = decode_anon_vma(words)
        if self._era.tags.name == "none":
            self._anon_vma_pointers.append(pointer)
            return
        kind = self._era.tags.kinds(pointer, tag)
        self._vma_pointers.append(pointer[kind == AnonVmaKind.LAZY_VMA])
        followed = self._era.tags.understood(tag) & (kind != AnonVmaKind.LAZY_VMA)
        self._anon_vma_pointers.append(pointer[followed])

    # anon_vmas that are active, in a chain, root or parent of one; then their trees. Which parents
    # may be followed depends on the trees, so it takes a round for each generation of parents that
    # nothing else leads to; at rest there is none.
    def _read_new_anon_vmas(self, seeds: U64Column) -> None:
        store, trees = self._met.anon_vmas, self._met.trees
        pointers = [*self._anon_vma_pointers, seeds]
        listed = len(self._met.avcs)
        while True:
            asked = store.unknown(self._not_wild(pointers, store.record))
            columns, present = store.read(asked)
            if not present.any():
                break
            done = len(store)
            store.add(asked, columns, present)
            rb_root = store.column("rb_node", done)
            number = np.arange(done, len(store))
            whole = trees.walk(number, store.address[done:], rb_root, listed)
            self._met.tree_whole = np.concatenate([self._met.tree_whole, whole])
            pointers = [store.column("root", done)]
            if self._era.has_parent:
                pointers.append(store.column("parent", done)[rb_root != 0])
        # Of the AVCs that only trees know, those that belong there.
        self._vma_pointers += trees.vma_pointers
        self._anon_vma_pointers = trees.anon_vma_pointers
        trees.vma_pointers, trees.anon_vma_pointers = [], []

    # Those of some pointers that may lead to such an object.
    def _not_wild(self, pointers: Sequence[U64Column], record: Record) -> U64Column:
        def choose(part: U64Column) -> U64Column:
            return part[~self._reader.space.wild(part, record.size)]

        parts = [column[part] for column in pointers for part in batches(len(column))]
        return np.concatenate([_NO_ADDRESSES, *run_parallel(choose, parts)])

    # anon_vmas that KSM holds, perhaps nothing else: all, or those whose roots are known.
    def _held_by_ksm(self) -> U64Column:
        held = self._ksm.items.anon_vma
        return held[~self._of_others()] if self._limited else held

    # rmap_items that hold an anon_vma of another family than those that are read.
    def _of_others(self) -> BoolColumn:
        held, record, known = self._ksm.items.anon_vma, self._era.anon_vma, self._met.anon_vmas
        field = record.fields["root"]
        rows, present = self._reader.memory.gather(held + np.uint64(field.offset), field.size)
        root = record.column(rows, "root", field.offset)
        others = present & ~self._reader.space.wild(held, record.size)
        others &= (known.find(held) == NO_ROW) & (known.find(root) == NO_ROW)
        return others

    # A VMA that only an AVC leads to is believed if it looks like one; so is its mm.
    def _read_vmas_of_new_avcs(self) -> None:
        era, space = self._era, self._reader.space
        pointers = self._not_wild(self._vma_pointers, era.vma)
        self._vma_pointers = []
        vmas = self._met.vmas
        new = vmas.unknown(pointers)
        columns, present = vmas.read(new)
        start, end = columns["vm_start"], columns["vm_end"]
        inside = np.uint64(era.page_size - 1)
        credible = (
            present
            & (start < end)
            & (((start | end) & inside) == 0)
            & ~space.wild(columns["anon_vma_chain_next"])
            & ~space.wild(columns["vm_mm"], era.mm.size)
        )
        vmas.add(new, columns, credible)
        mm = self._met.mms.unknown(columns["vm_mm"][credible])
        mm = mm[looks_like_mm(self._reader, era, mm)]
        if len(mm):
            self._add_vmas_of(self._met.mms.add(mm, self._to_walk(mm)), listed=False)
