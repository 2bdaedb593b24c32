"""From a target to tables, in rounds, to a fixpoint.

VMAs lead to AVCs (their chains), AVCs to anon_vmas, anon_vmas to AVCs (their trees), AVCs to VMAs,
VMAs to mms, and mms to more VMAs: trees hold VMAs that no task's mm lists (an exec's new mm, an mm
in fork or exit). The rounds go on until nothing new is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.chains import ChainWalk, walk_chains
from anonvma_inspect.collect.mms import MmFields, SlotColumns, looks_like_mm, read_mms
from anonvma_inspect.collect.reader import ObjectStore, Progress, Reader
from anonvma_inspect.collect.tasks import Threads, read_threads
from anonvma_inspect.collect.trees import TreeWalker, in_order
from anonvma_inspect.collect.vma_maple import walk_maple_trees
from anonvma_inspect.collect.vma_rb import walk_rb_trees
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.kernel.era import Era, Record, resolve_era
from anonvma_inspect.kernel.locks import is_write_locked
from anonvma_inspect.kernel.tags import decode_anon_vma
from anonvma_inspect.tables import (
    NO_ROW,
    AnonVmas,
    Avcs,
    ChainEnd,
    I64Column,
    Links,
    Mms,
    Nodes,
    RowColumn,
    Slots,
    Tables,
    Tasks,
    U8Column,
    Vmas,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("collect", "collect_from")

_PAGE_SHIFT_OF = {1 << shift: shift for shift in range(12, 17)}
_NO_ADDRESSES: U64Column = np.empty(0, dtype=np.uint64)
_NO_NUMBERS: I64Column = np.empty(0, dtype=np.int64)


def collect(target: Target, pids: Sequence[int] = (), progress: Progress | None = None) -> Tables:
    """Read the anonymous reverse map of a target.

    :param pids: Limit it to the families that these processes' VMAs belong to; a thread's id means
        its process. Empty: everything.
    :param progress: Called with what is being read, and how many of it so far.
    :raises TargetError: if the kernel is of no era that is understood, or the task list is out of
        reach.
    :raises NotFoundError: if a process does not exist, or has no mm.
    """
    era = resolve_era(target.layouts, target.page_size, target.release)
    reader = Reader(target, progress)
    threads = read_threads(reader, era, target)
    return _Collector(reader, era, threads, _tgids(threads, pids), bool(pids)).run(tuple(pids))


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
    collector = _Collector(reader, era, read_threads(reader, era, target), _NO_NUMBERS, True)
    return collector.run((), *seeds)


def _seeds(reader: Reader, record: Record, addresses: Sequence[int]) -> U64Column:
    column = np.array(sorted(set(addresses)), dtype=np.uint64)
    for address in column[reader.space.wild(column, record.size)]:
        raise NotFoundError(f"{int(address):#x} is no {record.struct}: it is not in RAM")
    return column


# The processes (thread groups) that were asked for.
def _tgids(threads: Threads, pids: Sequence[int]) -> I64Column:
    tgids = []
    for pid in pids:
        found = np.flatnonzero((threads.pid == pid) | (threads.tgid == pid))
        if len(found):
            tgids.append(int(threads.tgid[found[0]]))
        elif pid in threads.pid_known:
            raise NotFoundError(f"PID {pid} has no memory of its own: a kernel thread or a zombie")
        else:
            raise NotFoundError(f"there is no PID {pid} in this target")
    return np.array(sorted(set(tgids)), dtype=np.int64)


class _Mms:
    """The mms met so far, numbered in the order in which they were met."""

    def __init__(self, reader: Reader, era: Era) -> None:
        self._reader, self._era = reader, era
        self.address: U64Column = _NO_ADDRESSES
        self.walked: BoolColumn = np.empty(0, dtype=bool)
        self.whole: BoolColumn = np.empty(0, dtype=bool)
        self.fields: list[MmFields] = []
        self.slots: list[SlotColumns] = []
        self._sorted = self.address
        self._order: RowColumn = np.empty(0, dtype=np.int64)

    def find(self, addresses: U64Column) -> RowColumn:
        """Numbers of the mms at these addresses."""
        if not len(self._sorted):
            return np.full(len(addresses), NO_ROW, dtype=np.int64)
        index = np.minimum(np.searchsorted(self._sorted, addresses), len(self._sorted) - 1)
        return np.where(self._sorted[index] == addresses, self._order[index], NO_ROW)

    def _walk(
        self, number: RowColumn, mms: U64Column, roots: U64Column
    ) -> tuple[SlotColumns, BoolColumn]:
        if self._era.maple_node is None:
            return walk_rb_trees(self._reader, self._era, number, mms, roots)
        return walk_maple_trees(self._reader, self._era.maple_node, number, mms, roots)

    def add(self, addresses: U64Column, walk: BoolColumn) -> SlotColumns:
        """Add mms, and enumerate the VMAs of those that are to be walked."""
        number = len(self.address) + np.arange(len(addresses))
        fields = read_mms(self._reader, self._era, addresses)
        walk = walk & fields.present
        slots, whole = self._walk(number[walk], addresses[walk], fields.vma_root[walk])
        self.address = np.concatenate([self.address, addresses])
        self.walked = np.concatenate([self.walked, walk])
        all_whole = np.zeros(len(addresses), dtype=bool)
        all_whole[walk] = whole
        self.whole = np.concatenate([self.whole, all_whole])
        self.fields.append(fields)
        self.slots.append(slots)
        self._order = np.argsort(self.address)
        self._sorted = self.address[self._order]
        return slots


class _Collector:
    # limited: only the mms of these tgids are walked, and only their families are read.
    def __init__(
        self, reader: Reader, era: Era, threads: Threads, tgids: I64Column, limited: bool
    ) -> None:
        self._reader, self._era, self._threads, self._tgids = reader, era, threads, tgids
        self._limited = limited
        self._mms = _Mms(reader, era)
        self._vmas = ObjectStore(era.vma)
        self._avcs = ObjectStore(era.avc)
        self._anon_vmas = ObjectStore(era.anon_vma)
        self._trees = TreeWalker(reader, self._avcs)
        self._tree_whole: BoolColumn = np.empty(0, dtype=bool)
        self._chain_end: U8Column = np.empty(0, dtype=np.uint8)
        self._chain_length: I64Column = np.empty(0, dtype=np.int64)
        self._links: list[tuple[RowColumn, I64Column, U64Column]] = [
            (_NO_NUMBERS, _NO_NUMBERS, _NO_ADDRESSES)
        ]
        # How far the fixpoint has come: objects with higher numbers are new.
        self._avcs_done = 0
        self._anon_vmas_done = 0

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
        rows, present = self._reader.rows(self._era.vma, self._vmas.missing(vmas))
        self._vmas.add(self._vmas.missing(vmas)[present], rows[present])
        while True:
            before = (
                len(self._mms.address),
                len(self._vmas),
                len(self._avcs),
                len(self._anon_vmas),
            )
            self._walk_new_chains()
            self._read_new_anon_vmas(anon_vmas)
            self._read_vmas_of_new_avcs()
            now = (len(self._mms.address), len(self._vmas), len(self._avcs), len(self._anon_vmas))
            if now == before:
                return self._tables(pids)

    def _start(self) -> None:
        addresses = np.unique(self._threads.mm)
        if self._limited:
            named = np.isin(self._threads.tgid, self._tgids)
            walk = np.isin(addresses, self._threads.mm[named])
        else:
            walk = np.ones(len(addresses), dtype=bool)
        self._add_vmas_of(self._mms.add(addresses, walk), listed=True)

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
        new = self._vmas.missing(pointer)
        rows, present = self._reader.rows(self._era.vma, new)
        if not listed:
            order = np.argsort(pointer)
            mm = self._mms.address[slots.mm[~wild][order]][np.searchsorted(pointer[order], new)]
            present &= self._era.vma.column(rows, "vm_mm") == mm
        self._vmas.add(new[present], rows[present])

    def _walk_new_chains(self) -> None:
        done = len(self._chain_end)
        if done == len(self._vmas):
            return
        walk: ChainWalk = walk_chains(
            self._reader,
            self._era,
            self._vmas.address[done:],
            self._vmas.column("anon_vma_chain_next", done),
        )
        self._chain_end = np.concatenate([self._chain_end, walk.end])
        self._chain_length = np.concatenate([self._chain_length, walk.length])
        self._links.append((walk.vma + done, walk.position, walk.address))
        unique, first = np.unique(walk.address, return_index=True)
        new = self._avcs.find(unique) == NO_ROW
        self._avcs.add(unique[new], walk.rows[first[new]])

    # anon_vmas that are active, in a chain, root or parent of one; then their trees. Which parents
    # may be followed depends on the trees, so it takes a round for each generation of parents that
    # nothing else leads to; at rest there is none.
    def _read_new_anon_vmas(self, seeds: U64Column) -> None:
        active, _ = decode_anon_vma(self._vmas.column("anon_vma"))
        pointers = [self._avcs.column("anon_vma", self._avcs_done), active, seeds]
        self._avcs_done = len(self._avcs)
        while True:
            wanted = np.concatenate(pointers)
            wanted = self._anon_vmas.missing(
                wanted[~self._reader.space.wild(wanted, self._era.anon_vma.size)]
            )
            rows, present = self._reader.rows(self._era.anon_vma, wanted)
            if not present.any():
                return
            self._anon_vmas.add(wanted[present], rows[present])
            done = self._anon_vmas_done
            self._anon_vmas_done = len(self._anon_vmas)
            rb_root = self._anon_vmas.column("rb_node", done)
            number = np.arange(done, len(self._anon_vmas))
            whole = self._trees.walk(number, self._anon_vmas.address[done:], rb_root)
            self._tree_whole = np.concatenate([self._tree_whole, whole])
            pointers = [self._anon_vmas.column("root", done)]
            if self._era.has_parent:
                pointers.append(self._anon_vmas.column("parent", done)[rb_root != 0])

    # A VMA that only an AVC leads to is believed if it looks like one; so is its mm.
    def _read_vmas_of_new_avcs(self) -> None:
        era, space = self._era, self._reader.space
        pointers = self._avcs.column("vma")
        new = self._vmas.missing(pointers[~space.wild(pointers, era.vma.size)])
        rows, present = self._reader.rows(era.vma, new)
        start, end = era.vma.column(rows, "vm_start"), era.vma.column(rows, "vm_end")
        inside = np.uint64(era.page_size - 1)
        credible = (
            present
            & (start < end)
            & (((start | end) & inside) == 0)
            & ~space.wild(era.vma.column(rows, "anon_vma_chain_next"))
            & ~space.wild(era.vma.column(rows, "vm_mm"), era.mm.size)
        )
        self._vmas.add(new[credible], rows[credible])
        mm = np.unique(era.vma.column(rows[credible], "vm_mm"))
        mm = mm[self._mms.find(mm) == NO_ROW]
        mm = mm[looks_like_mm(self._reader, era, mm)]
        if len(mm):
            walk = np.full(len(mm), not self._limited, dtype=bool)
            self._add_vmas_of(self._mms.add(mm, walk), listed=False)

    def _tables(self, pids: tuple[int, ...]) -> Tables:
        era = self._era
        vma_order, vma_rank = self._vmas.ranks()
        avc_order, avc_rank = self._avcs.ranks()
        anon_vma_order, anon_vma_rank = self._anon_vmas.ranks()
        mm_rank, mms, tasks = self._mm_tables()

        def rank_of(store: ObjectStore, rank: RowColumn, pointers: U64Column) -> RowColumn:
            number = store.find(pointers)
            return np.where(number == NO_ROW, NO_ROW, rank[number]) if len(rank) else number

        nodes = self._node_table(avc_rank, anon_vma_rank)
        links = self._link_table(vma_rank, avc_rank)
        avcs = Avcs(
            address=self._avcs.address[avc_order],
            vma=self._avcs.column("vma")[avc_order],
            anon_vma=self._avcs.column("anon_vma")[avc_order],
            next=self._avcs.column("same_vma_next")[avc_order],
            prev=self._avcs.column("same_vma_prev")[avc_order],
            list_node=self._avcs.address[avc_order] + np.uint64(era.avc.offset("same_vma")),
            rb_parent_color=self._avcs.column("rb_parent_color")[avc_order],
            rb_left=self._avcs.column("rb_left")[avc_order],
            rb_right=self._avcs.column("rb_right")[avc_order],
            rb_node=self._avcs.address[avc_order] + np.uint64(era.avc.offset("rb")),
            rb_subtree_last=self._avcs.column("rb_subtree_last")[avc_order],
            vma_row=rank_of(self._vmas, vma_rank, self._avcs.column("vma")[avc_order]),
            anon_vma_row=rank_of(
                self._anon_vmas, anon_vma_rank, self._avcs.column("anon_vma")[avc_order]
            ),
        )
        slots = self._slot_table(mm_rank, vma_rank)
        vmas = self._vma_table(vma_order, anon_vma_rank, mm_rank, slots)
        anon_vmas = self._anon_vma_table(anon_vma_order, anon_vma_rank, vmas, avcs, links, nodes)
        return Tables(
            era=era,
            space=self._reader.space,
            tasks=tasks,
            mms=mms,
            slots=slots,
            vmas=vmas,
            links=links,
            avcs=avcs,
            anon_vmas=anon_vmas,
            nodes=nodes,
            holes=self._reader.holes(),
            broken=self._reader.broken_words(mm_rank),
            pids=pids,
        )

    # Listed mms by the pid of their task, then unlisted ones by address; with --pid, only those
    # that some VMA of the tables belongs to.
    def _mm_tables(self) -> tuple[RowColumn, Mms, Tasks]:
        threads, all_mms = self._threads, self._mms
        number = all_mms.find(threads.mm)
        used = all_mms.walked.copy()
        if self._limited:
            owner = all_mms.find(self._vmas.column("vm_mm"))
            used[owner[owner != NO_ROW]] = True
        else:
            used[:] = True
        kept = (number != NO_ROW) & used[number]
        order = np.flatnonzero(kept)
        order = order[np.lexsort((threads.pid[order], threads.tgid[order]))]
        number = number[order]
        # The task that speaks for an mm: a leader if there is one, else the lowest pid.
        choice = np.lexsort((threads.pid[order], threads.pid[order] != threads.tgid[order], number))
        first = np.ones(len(choice), dtype=bool)
        first[1:] = number[choice][1:] != number[choice][:-1]
        task = np.full(len(used), NO_ROW, dtype=np.int64)
        task[number[choice[first]]] = choice[first]
        listed = task != NO_ROW
        mm_order = np.flatnonzero(used)
        mm_order = mm_order[
            np.lexsort(
                (
                    all_mms.address[mm_order],
                    np.where(listed[mm_order], task[mm_order], 0),
                    ~listed[mm_order],
                )
            )
        ]
        rank = np.full(len(used), NO_ROW, dtype=np.int64)
        rank[mm_order] = np.arange(len(mm_order))

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(fields, name) for fields in all_mms.fields])[mm_order]

        mms = Mms(
            address=all_mms.address[mm_order],
            mm_users=column("mm_users"),
            map_count=column("map_count"),
            flags=column("flags"),
            task=task[mm_order],
            listed=listed[mm_order],
            walked=all_mms.walked[mm_order],
            whole=all_mms.whole[mm_order],
            write_locked=column("write_locked"),
            start_brk=column("start_brk"),
            brk=column("brk"),
            start_stack=column("start_stack"),
            vdso=column("vdso"),
        )
        tasks = Tasks(
            address=threads.address[order],
            pid=threads.pid[order],
            tgid=threads.tgid[order],
            comm=threads.comm[order],
            mm=rank[number],
        )
        return rank, mms, tasks

    def _slot_table(self, mm_rank: RowColumn, vma_rank: RowColumn) -> Slots:
        parts = self._mms.slots
        mm = mm_rank[np.concatenate([part.mm for part in parts])]
        first = np.concatenate([part.first for part in parts])
        order = np.lexsort((first, mm))
        pointer = np.concatenate([part.pointer for part in parts])[order]
        number = self._vmas.find(pointer)
        return Slots(
            mm=mm[order],
            first=first[order],
            last=np.concatenate([part.last for part in parts])[order],
            pointer=pointer,
            vma=np.where(number == NO_ROW, NO_ROW, vma_rank[number]) if len(vma_rank) else number,
        )

    def _link_table(self, vma_rank: RowColumn, avc_rank: RowColumn) -> Links:
        vma = vma_rank[np.concatenate([part[0] for part in self._links])]
        position = np.concatenate([part[1] for part in self._links])
        address = np.concatenate([part[2] for part in self._links])
        order = np.lexsort((position, vma))
        number = self._avcs.find(address[order])
        return Links(
            vma=vma[order],
            position=position[order],
            avc=avc_rank[number] if len(avc_rank) else number,
        )

    def _node_table(self, avc_rank: RowColumn, anon_vma_rank: RowColumn) -> Nodes:
        met = self._trees.nodes()
        place = in_order(met["parent"], met["side"], met["depth"])
        anon_vma = anon_vma_rank[met["tree"]] if len(anon_vma_rank) else met["tree"]
        order = np.lexsort((place, anon_vma))
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        parent = met["parent"]
        children = []
        for side in (0, 1):
            child = np.full(len(order), NO_ROW, dtype=np.int64)
            is_child = np.flatnonzero((parent != NO_ROW) & (met["side"] == side))
            child[parent[is_child]] = rank[is_child]
            children.append(child[order])
        return Nodes(
            anon_vma=anon_vma[order],
            avc=avc_rank[met["avc"][order]] if len(avc_rank) else met["avc"],
            parent=np.where(parent[order] == NO_ROW, NO_ROW, rank[parent[order]]),
            left=children[0],
            right=children[1],
            depth=met["depth"][order],
            again=met["again"][order].astype(bool),
        )

    def _vma_table(
        self, order: RowColumn, anon_vma_rank: RowColumn, mm_rank: RowColumn, slots: Slots
    ) -> Vmas:
        store, era = self._vmas, self._era
        vm_start, vm_end = store.column("vm_start")[order], store.column("vm_end")[order]
        raw = store.column("anon_vma")[order]
        pointer, tag = decode_anon_vma(raw)
        active = self._anon_vmas.find(pointer)
        if len(anon_vma_rank):
            active = np.where(active == NO_ROW, NO_ROW, anon_vma_rank[active])
        vm_mm = store.column("vm_mm")[order]
        mm = self._mms.find(vm_mm)
        mm = np.where(mm == NO_ROW, NO_ROW, mm_rank[mm])
        slot = np.full(len(order), NO_ROW, dtype=np.int64)
        own = np.flatnonzero(slots.vma != NO_ROW)
        own = own[mm[slots.vma[own]] == slots.mm[own]]
        slot[slots.vma[own]] = own
        pgoff = store.column("vm_pgoff")[order]
        key = pgoff
        if "anon_pgoff_lo" in era.vma:
            low, high = store.column("anon_pgoff_lo")[order], store.column("anon_pgoff_hi")[order]
            key = low | (high << np.uint64(32))
        pages = (vm_end - vm_start) >> np.uint64(_PAGE_SHIFT_OF[era.page_size])
        address = store.address[order]
        return Vmas(
            address=address,
            vm_start=vm_start,
            vm_end=vm_end,
            vm_flags=store.column("vm_flags")[order],
            vm_pgoff=pgoff,
            vm_file=store.column("vm_file")[order],
            vm_mm=vm_mm,
            anon_vma=raw,
            anon_vma_pointer=pointer,
            anon_vma_tag=tag,
            chain_next=store.column("anon_vma_chain_next")[order],
            chain_prev=store.column("anon_vma_chain_prev")[order],
            chain_head=address + np.uint64(era.vma.offset("anon_vma_chain")),
            key_first=key,
            key_last=key + pages - np.uint64(1),
            mm=mm,
            slot=slot,
            active=active,
            chain_end=self._chain_end[order],
            chain_length=self._chain_length[order],
        )

    def _anon_vma_table(
        self,
        order: RowColumn,
        rank: RowColumn,
        vmas: Vmas,
        avcs: Avcs,
        links: Links,
        nodes: Nodes,
    ) -> AnonVmas:
        store, era = self._anon_vmas, self._era
        record = era.anon_vma
        zero_words = np.zeros(len(order), dtype=np.uint64)
        zeros = np.zeros(len(order), dtype=np.int64)

        def word(name: str) -> U64Column:
            return store.column(name)[order] if name in record else zero_words

        def counter(name: str) -> I64Column:
            return store.signed(name)[order] if name in record else zeros

        def row_of(pointers: U64Column) -> RowColumn:
            number = store.find(pointers)
            return np.where(number == NO_ROW, NO_ROW, rank[number]) if len(rank) else number

        rb_root = word("rb_node")
        root_row = row_of(word("root"))
        parent_row = row_of(word("parent"))
        parent_row[rb_root == 0] = NO_ROW
        tree_whole = self._tree_whole[order]
        reached = np.zeros(len(order), dtype=bool)
        for rows in (vmas.active, avcs.anon_vma_row[links.avc]):
            reached[rows[rows != NO_ROW]] = True
        roots = root_row[reached]
        reached[roots[roots != NO_ROW]] = True
        return AnonVmas(
            address=store.address[order],
            root=word("root"),
            parent=word("parent"),
            refcount=counter("refcount"),
            num_children=counter("num_children"),
            num_active_vmas=counter("num_active_vmas"),
            degree=counter("degree"),
            rb_root=rb_root,
            rb_leftmost=word("rb_leftmost"),
            write_locked=is_write_locked(
                word("rwsem_count") if "rwsem_count" in record else None,
                word("rwsem_readers") if "rwsem_readers" in record else None,
            ),
            root_row=root_row,
            parent_row=parent_row,
            tree_whole=tree_whole,
            reached=reached,
            family_whole=_whole_families(root_row, tree_whole, vmas, avcs, links, nodes),
        )


# Families of which everything is known. What is missing somewhere spoils the families of all
# anon_vmas that it could have led to: those of the chain, the tree or the VMA concerned.
def _whole_families(
    root_row: RowColumn,
    tree_whole: BoolColumn,
    vmas: Vmas,
    avcs: Avcs,
    links: Links,
    nodes: Nodes,
) -> BoolColumn:
    sound_vma = vmas.chain_end == ChainEnd.CLOSED
    sound_vma &= (vmas.active != NO_ROW) | (vmas.anon_vma_pointer == 0)
    lost = avcs.anon_vma_row[links.avc] == NO_ROW
    sound_vma[links.vma[lost]] = False
    spoiled = ~tree_whole | (root_row == NO_ROW)
    # A node without a VMA is not sound: NO_ROW takes the last.
    sound_node = np.append(sound_vma, False)[avcs.vma_row[nodes.avc]]
    spoiled[nodes.anon_vma[~sound_node]] = True
    link_av = avcs.anon_vma_row[links.avc]
    spoiled[link_av[(link_av != NO_ROW) & ~sound_vma[links.vma]]] = True
    spoiled[vmas.active[(vmas.active != NO_ROW) & ~sound_vma]] = True
    root = np.where(root_row == NO_ROW, np.arange(len(root_row)), root_row)
    bad_root = np.zeros(len(root_row), dtype=bool)
    bad_root[root[spoiled]] = True
    family_whole: BoolColumn = ~bad_root[root] & ~spoiled
    return family_whole
