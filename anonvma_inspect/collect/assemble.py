"""From what was met to tables: rows sorted, pointers turned into row numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.index import ranks
from anonvma_inspect.collect.ksm import KsmWalk, held_by_ksm
from anonvma_inspect.collect.met import Met
from anonvma_inspect.collect.mms import slot_order
from anonvma_inspect.collect.reader import Columns, Reader
from anonvma_inspect.collect.tasks import Threads, read_holders
from anonvma_inspect.collect.trees import in_order, met_again
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.locks import is_write_locked, lock_states, owner_tasks
from anonvma_inspect.kernel.tags import AnonVmaKind, decode_anon_vma
from anonvma_inspect.parallel import run_both
from anonvma_inspect.tables import (
    NO_ROW,
    AnonVmas,
    Avcs,
    ChainEnd,
    I64Column,
    Links,
    Mms,
    Nodes,
    RmapItems,
    RowColumn,
    Slots,
    Tables,
    Tasks,
    Vmas,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn, U64Column, starts_run

__all__ = ("assemble",)

Scalar = TypeVar("Scalar", bound="np.generic[Any]")

# The fields that the table has.
_AVC_WORDS = (
    "vma",
    "anon_vma",
    "same_vma_next",
    "same_vma_prev",
    "rb_parent_color",
    "rb_left",
    "rb_right",
    "rb_subtree_last",
)
_PAGE_SHIFT_OF = {1 << shift: shift for shift in range(12, 17)}


def assemble(
    reader: Reader,
    era: Era,
    threads: Threads,
    met: Met,
    ksm: KsmWalk,
    limited: bool,
    pids: tuple[int, ...],
) -> Tables:
    """Build the tables.

    :param limited: Only some families were read: the mms of others are left out.
    """
    mm_rank, mms, tasks = _mm_tables(met, threads, limited)
    # From here on the numbers of these objects are their rows.
    vma_order, avc_order, anon_vma_order = (
        store.sort() for store in (met.vmas, met.avcs, met.anon_vmas)
    )
    (nodes, slots), (links, avcs) = run_both(
        lambda: (
            _node_table(met, ranks(avc_order), ranks(anon_vma_order)),
            _slot_table(met, era, mm_rank),
        ),
        lambda: (_link_table(met, vma_order), _avc_table(reader, met, era)),
    )
    vmas = _vma_table(met, era, vma_order, mm_rank, slots)
    rmap_items = replace(
        ksm.items,
        anon_vma_row=met.anon_vmas.find(ksm.items.anon_vma),
        mm_row=_mm_rows(met, mm_rank, ksm.items.mm),
    )
    anon_vmas = _anon_vma_table(met, era, anon_vma_order, vmas, avcs, links, nodes, rmap_items)
    return Tables(
        era=era,
        space=reader.space,
        tasks=tasks,
        holders=read_holders(
            reader, era, threads, np.concatenate([mms.lock_owner, anon_vmas.lock_owner])
        ),
        mms=mms,
        slots=slots,
        vmas=vmas,
        links=links,
        avcs=avcs,
        anon_vmas=anon_vmas,
        nodes=nodes,
        stable_nodes=ksm.nodes,
        rmap_items=rmap_items,
        ksm=ksm.ksm,
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
    first = starts_run(number[choice])
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
        lock_free=column("lock_free"),
        lock_seq=column("lock_seq"),
        ctx_id=column("ctx_id"),
        lock_owner=column("lock_owner"),
        lock_readers=column("lock_readers"),
        known=column("known"),
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
        start_boottime=threads.start_boottime[order],
        self_exec_id=threads.self_exec_id[order],
        mm=rank[number],
    )
    return rank, mms, tasks


def _slot_table(met: Met, era: Era, mm_rank: RowColumn) -> Slots:
    parts = met.mms.slots
    mm = mm_rank[np.concatenate([part.mm for part in parts])]
    first = np.concatenate([part.first for part in parts])
    # What a maple tree stores a VMA under is in order. A red-black tree has only what VMAs say: one
    # of them that is out of order shows if the others are left where they are.
    order = slot_order(mm, first) if era.maple_node is not None else np.argsort(mm, kind="stable")
    pointer = np.concatenate([part.pointer for part in parts])[order]
    return Slots(
        mm=mm[order],
        first=first[order],
        last=np.concatenate([part.last for part in parts])[order],
        pointer=pointer,
        vma=met.vmas.find(pointer),
    )


def _link_table(met: Met, vma_order: RowColumn) -> Links:
    length = met.chain_length[vma_order]
    # Row of the first entry of each VMA, by the VMA's old number.
    begin = np.empty(len(length), dtype=np.int64)
    begin[vma_order] = np.cumsum(length) - length
    vma = np.repeat(np.arange(len(length)), length)
    avc = np.empty(len(vma), dtype=np.int64)
    while met.links:
        number, position, address = met.links.pop()
        avc[begin[number] + position] = met.avcs.find(address)
    return Links(vma=vma, position=np.arange(len(vma)) - begin[vma_order][vma], avc=avc)


def _node_table(met: Met, avc_rank: RowColumn, anon_vma_rank: RowColumn) -> Nodes:
    places = met.trees.places()
    parent, side = places.parent, places.side
    anon_vma = anon_vma_rank[places.tree]
    size = np.bincount(anon_vma, minlength=len(anon_vma_rank))
    row = in_order(places)
    row += (np.cumsum(size) - size)[anon_vma]
    inner = np.flatnonzero(parent != NO_ROW)
    above = row[parent[inner]]
    left, right, up = np.full((3, len(row)), NO_ROW, dtype=np.int64)
    up[row[inner]] = above
    for child, chosen in ((left, side[inner] == 0), (right, side[inner] == 1)):
        child[above[chosen]] = row[inner[chosen]]

    def sorted_(column: NDArray[Scalar]) -> NDArray[Scalar]:
        out = np.empty_like(column)
        out[row] = column
        return out

    return Nodes(
        anon_vma=np.repeat(np.arange(len(size)), size),
        avc=sorted_(avc_rank[places.avc]),
        parent=up,
        left=left,
        right=right,
        depth=sorted_(places.depth).astype(np.int64),
        again=sorted_(met_again(places)),
    )


def _avc_table(reader: Reader, met: Met, era: Era) -> Avcs:
    address = met.avcs.address
    words, _ = reader.columns(era.avc, address, _AVC_WORDS)
    return Avcs(
        address=address,
        vma=words["vma"],
        anon_vma=words["anon_vma"],
        next=words["same_vma_next"],
        prev=words["same_vma_prev"],
        list_node=address + np.uint64(era.avc.offset("same_vma")),
        rb_parent_color=words["rb_parent_color"],
        rb_left=words["rb_left"],
        rb_right=words["rb_right"],
        rb_node=address + np.uint64(era.avc.offset("rb")),
        rb_subtree_last=words["rb_subtree_last"],
        vma_row=met.vmas.find(words["vma"]),
        anon_vma_row=met.anon_vmas.find(words["anon_vma"]),
    )


def _mm_rows(met: Met, mm_rank: RowColumn, addresses: U64Column) -> RowColumn:
    # Without a mm, NO_ROW takes what is appended.
    return np.append(mm_rank, NO_ROW)[met.mms.find(addresses)]


def _vma_table(met: Met, era: Era, order: RowColumn, mm_rank: RowColumn, slots: Slots) -> Vmas:
    address, words = met.vmas.address, met.vmas.columns
    pointer, tag = decode_anon_vma(words["anon_vma"])
    mm = _mm_rows(met, mm_rank, words["vm_mm"])
    slot = np.full(len(order), NO_ROW, dtype=np.int64)
    own = np.flatnonzero(slots.vma != NO_ROW)
    own = own[mm[slots.vma[own]] == slots.mm[own]]
    slot[slots.vma[own]] = own
    key = words["vm_pgoff"]
    if "anon_pgoff_lo" in era.vma:
        key = words["anon_pgoff_lo"] | (words["anon_pgoff_hi"] << np.uint64(32))
    pages = (words["vm_end"] - words["vm_start"]) >> np.uint64(_PAGE_SHIFT_OF[era.page_size])
    return Vmas(
        address=address,
        vm_start=words["vm_start"],
        vm_end=words["vm_end"],
        vm_flags=words["vm_flags"],
        vm_pgoff=words["vm_pgoff"],
        vm_file=words["vm_file"],
        vm_mm=words["vm_mm"],
        anon_vma=words["anon_vma"],
        anon_vma_pointer=pointer,
        anon_vma_tag=tag,
        attached=_attached(words, len(order)),
        chain_next=words["anon_vma_chain_next"],
        chain_prev=words["anon_vma_chain_prev"],
        chain_head=address + np.uint64(era.vma.offset("anon_vma_chain")),
        key_first=key,
        key_last=key + pages - np.uint64(1),
        mm=mm,
        slot=slot,
        root_refs=(
            era.vma.as_signed("root_refs", words["root_refs"])
            if "root_refs" in era.vma
            else np.zeros(len(order), dtype=np.int64)
        ),
        active=_active(met, era, pointer, tag),
        chain_end=met.chain_end[order],
        chain_length=met.chain_length[order],
    )


# A tag that the scheme explains makes the word something else than the VMA's own anon_vma; of
# others it is not known what it was.
def _active(met: Met, era: Era, pointer: U64Column, tag: U64Column) -> RowColumn:
    active = met.anon_vmas.find(pointer)
    if era.tags.name != "none":
        active[tag != 0] = NO_ROW
    return active


# The count of a VMA in no tree is 0: vma_mark_detached() in include/linux/mmap_lock.h (v6.15). As a
# refcount_t it is below 0 only where it has been dropped too often, and then it stays there.
def _attached(words: Columns, count: int) -> BoolColumn:
    if "detached" in words:
        attached: BoolColumn = words["detached"] == 0
    elif "vm_refcnt" in words:
        attached = words["vm_refcnt"].astype(np.uint32).view(np.int32) > 0
    else:
        attached = np.ones(count, dtype=bool)
    return attached


def _anon_vma_table(
    met: Met,
    era: Era,
    order: RowColumn,
    vmas: Vmas,
    avcs: Avcs,
    links: Links,
    nodes: Nodes,
    rmap_items: RmapItems,
) -> AnonVmas:
    record, address, words = era.anon_vma, met.anon_vmas.address, met.anon_vmas.columns
    zeros = np.zeros(len(order), dtype=np.int64)

    def word(name: str) -> U64Column:
        return words.get(name, zeros.view(np.uint64))

    def counter(name: str) -> I64Column:
        return record.as_signed(name, words[name]) if name in record else zeros

    rb_root = words["rb_node"]
    root_row = met.anon_vmas.find(words["root"])
    parent_row = met.anon_vmas.find(word("parent"))
    parent_row[rb_root == 0] = NO_ROW
    tree_whole = met.tree_whole[order]
    listed = avcs.anon_vma_row[links.avc]
    reached = marked(len(order), vmas.active) | marked(len(order), listed)
    if era.tags.name != "none":
        lent = era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag) == AnonVmaKind.LAZY_PARENT
        reached |= marked(len(order), met.anon_vmas.find(vmas.anon_vma_pointer[lent]))
    reached |= held_by_ksm(rmap_items, address, words, root_row, avcs, nodes)
    reached |= marked(len(order), root_row[reached])
    write_locked = is_write_locked(words.get("rwsem_count"), words.get("rwsem_readers"))
    realtime = "rwsem_readers" in record
    owner, is_reader = owner_tasks(word("rwsem_rt_owner" if realtime else "rwsem_owner"), realtime)
    return AnonVmas(
        address=address,
        root=words["root"],
        parent=word("parent"),
        refcount=counter("refcount"),
        num_children=counter("num_children"),
        num_active_vmas=counter("num_active_vmas"),
        degree=counter("degree"),
        rb_root=rb_root,
        rb_leftmost=word("rb_leftmost"),
        write_locked=write_locked,
        lock_state=lock_states(
            words.get("rwsem_count"), words.get("rwsem_readers"), "rwsem_owner" in record
        ),
        lock_owner=np.where(write_locked & ~is_reader, owner, np.uint64(0)),
        root_row=root_row,
        parent_row=parent_row,
        tree_whole=tree_whole,
        reached=reached,
        family_whole=_whole_families(
            root_row, tree_whole, _sound_words(met, era, vmas), vmas, avcs, links, listed, nodes
        ),
    )


# VMAs whose vma->anon_vma is NULL, or leads to what the tables have.
def _sound_words(met: Met, era: Era, vmas: Vmas) -> BoolColumn:
    pointer = vmas.anon_vma_pointer
    sound: BoolColumn = (vmas.active != NO_ROW) | (pointer == 0)
    if era.tags.name != "none":
        kind = era.tags.kinds(pointer, vmas.anon_vma_tag)
        sound |= kind == AnonVmaKind.LAZY_VMA
        sound |= (kind == AnonVmaKind.LAZY_PARENT) & (met.anon_vmas.find(pointer) != NO_ROW)
    return sound


# Families of which everything is known. What is missing somewhere spoils the families of all
# anon_vmas that it could have led to: those of the chain, the tree or the VMA concerned.
# sound_word: see _sound_words(). listed: what the entries of lists lead to.
def _whole_families(
    root_row: RowColumn,
    tree_whole: BoolColumn,
    sound_word: BoolColumn,
    vmas: Vmas,
    avcs: Avcs,
    links: Links,
    listed: RowColumn,
    nodes: Nodes,
) -> BoolColumn:
    sound_vma = sound_word & (vmas.chain_end == ChainEnd.CLOSED)
    sound_vma[links.vma[listed == NO_ROW]] = False
    spoiled = ~tree_whole | (root_row == NO_ROW)
    if sound_vma.all() and not spoiled.any() and (avcs.vma_row != NO_ROW).all():
        return np.ones(len(spoiled), dtype=bool)
    # A node without a VMA is not sound: NO_ROW takes the last.
    sound_node = np.append(sound_vma, False)[avcs.vma_row[nodes.avc]]
    spoiled[nodes.anon_vma[~sound_node]] = True
    spoiled |= marked(len(spoiled), listed[~sound_vma[links.vma]])
    spoiled |= marked(len(spoiled), vmas.active[~sound_vma])
    root = np.where(root_row == NO_ROW, np.arange(len(root_row)), root_row)
    bad_root = np.zeros(len(root_row), dtype=bool)
    bad_root[root[spoiled]] = True
    family_whole: BoolColumn = ~bad_root[root] & ~spoiled
    return family_whole
