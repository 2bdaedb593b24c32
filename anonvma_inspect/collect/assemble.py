"""From what was met to tables: rows sorted, pointers turned into row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.met import Met
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.tasks import Threads
from anonvma_inspect.collect.trees import in_order
from anonvma_inspect.kernel.era import Era
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
    Vmas,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("assemble",)

_PAGE_SHIFT_OF = {1 << shift: shift for shift in range(12, 17)}


def assemble(
    reader: Reader, era: Era, threads: Threads, met: Met, limited: bool, pids: tuple[int, ...]
) -> Tables:
    """Build the tables.

    :param limited: Only some families were read: the mms of others are left out.
    """
    mm_rank, mms, tasks = _mm_tables(met, threads, limited)
    nodes = _node_table(met)
    links = _link_table(met)
    avcs = _avc_table(met, era)
    slots = _slot_table(met, mm_rank)
    vmas = _vma_table(met, era, mm_rank, slots)
    return Tables(
        era=era,
        space=reader.space,
        tasks=tasks,
        mms=mms,
        slots=slots,
        vmas=vmas,
        links=links,
        avcs=avcs,
        anon_vmas=_anon_vma_table(met, era, vmas, avcs, links, nodes),
        nodes=nodes,
        holes=reader.holes(),
        broken=reader.broken_words(mm_rank),
        pids=pids,
    )


# Listed mms by the pid of their task, then unlisted ones by address; with --pid, only those
# that some VMA of the tables belongs to.
def _mm_tables(met: Met, threads: Threads, limited: bool) -> tuple[RowColumn, Mms, Tasks]:
    all_mms = met.mms
    number = all_mms.find(threads.mm)
    used = all_mms.walked.copy()
    if limited:
        owner = all_mms.find(met.vmas.column("vm_mm"))
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


def _slot_table(met: Met, mm_rank: RowColumn) -> Slots:
    parts = met.mms.slots
    mm = mm_rank[np.concatenate([part.mm for part in parts])]
    first = np.concatenate([part.first for part in parts])
    order = np.lexsort((first, mm))
    pointer = np.concatenate([part.pointer for part in parts])[order]
    return Slots(
        mm=mm[order],
        first=first[order],
        last=np.concatenate([part.last for part in parts])[order],
        pointer=pointer,
        vma=met.vmas.row_of(pointer),
    )


def _link_table(met: Met) -> Links:
    _, vma_rank = met.vmas.ranks()
    nothing = np.empty(0, dtype=np.int64)
    vma = vma_rank[np.concatenate([part[0] for part in met.links] or [nothing])]
    position = np.concatenate([part[1] for part in met.links] or [nothing])
    address = np.concatenate([part[2] for part in met.links] or [nothing.astype(np.uint64)])
    order = np.lexsort((position, vma))
    return Links(vma=vma[order], position=position[order], avc=met.avcs.row_of(address[order]))


def _node_table(met: Met) -> Nodes:
    _, avc_rank = met.avcs.ranks()
    _, anon_vma_rank = met.anon_vmas.ranks()
    places = met.trees.nodes()
    place = in_order(places["parent"], places["side"], places["depth"])
    anon_vma = anon_vma_rank[places["tree"]]
    order = np.lexsort((place, anon_vma))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    parent = places["parent"]
    children = []
    for side in (0, 1):
        child = np.full(len(order), NO_ROW, dtype=np.int64)
        is_child = np.flatnonzero((parent != NO_ROW) & (places["side"] == side))
        child[parent[is_child]] = rank[is_child]
        children.append(child[order])
    return Nodes(
        anon_vma=anon_vma[order],
        avc=avc_rank[places["avc"][order]],
        parent=np.where(parent[order] == NO_ROW, NO_ROW, rank[parent[order]]),
        left=children[0],
        right=children[1],
        depth=places["depth"][order],
        again=places["again"][order].astype(bool),
    )


def _avc_table(met: Met, era: Era) -> Avcs:
    store = met.avcs
    order, _ = store.ranks()

    def word(name: str) -> U64Column:
        return store.column(name)[order]

    address, vma, anon_vma = store.address[order], word("vma"), word("anon_vma")
    return Avcs(
        address=address,
        vma=vma,
        anon_vma=anon_vma,
        next=word("same_vma_next"),
        prev=word("same_vma_prev"),
        list_node=address + np.uint64(era.avc.offset("same_vma")),
        rb_parent_color=word("rb_parent_color"),
        rb_left=word("rb_left"),
        rb_right=word("rb_right"),
        rb_node=address + np.uint64(era.avc.offset("rb")),
        rb_subtree_last=word("rb_subtree_last"),
        vma_row=met.vmas.row_of(vma),
        anon_vma_row=met.anon_vmas.row_of(anon_vma),
    )


def _vma_table(met: Met, era: Era, mm_rank: RowColumn, slots: Slots) -> Vmas:
    store = met.vmas
    order, _ = store.ranks()
    vm_start, vm_end = store.column("vm_start")[order], store.column("vm_end")[order]
    raw = store.column("anon_vma")[order]
    pointer, tag = decode_anon_vma(raw)
    vm_mm = store.column("vm_mm")[order]
    mm = met.mms.find(vm_mm)
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
        active=met.anon_vmas.row_of(pointer),
        chain_end=met.chain_end[order],
        chain_length=met.chain_length[order],
    )


def _anon_vma_table(
    met: Met,
    era: Era,
    vmas: Vmas,
    avcs: Avcs,
    links: Links,
    nodes: Nodes,
) -> AnonVmas:
    store, record = met.anon_vmas, era.anon_vma
    order, _ = store.ranks()
    zero_words = np.zeros(len(order), dtype=np.uint64)
    zeros = np.zeros(len(order), dtype=np.int64)

    def word(name: str) -> U64Column:
        return store.column(name)[order] if name in record else zero_words

    def counter(name: str) -> I64Column:
        return store.signed(name)[order] if name in record else zeros

    rb_root = word("rb_node")
    root_row = store.row_of(word("root"))
    parent_row = store.row_of(word("parent"))
    parent_row[rb_root == 0] = NO_ROW
    tree_whole = met.tree_whole[order]
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
