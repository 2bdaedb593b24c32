"""The tables: everything that was read of the anonymous reverse map, one table a kind of object.

Collect fills them, everything else is a function of them. A table is a set of numpy columns of one
length; object ``i`` is row ``i`` of its table. Tables are immutable.

Words of the target are kept as they were read (columns named like the kernel's fields: addresses
are ``uint64`` and may be anything at all). A reference that leads to another object of the tables
is a *row number* in a column of its own (``int64``), :data:`NO_ROW` where the word leads to none:
because it is NULL, wild, or points into a hole. Which of these it is :meth:`Tables.pointer_state`
tells.

Rows of :class:`Vmas`, :class:`Avcs` and :class:`AnonVmas` are sorted by address, so that an address
is looked up with :func:`find_rows`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.ksm import KsmRecords
from anonvma_inspect.target.memory import AddressSpace, BoolColumn, U64Column

__all__ = (
    "NO_ROW",
    "Allocation",
    "AnonVmas",
    "Avcs",
    "Broken",
    "CacheTotals",
    "ChainEnd",
    "Folios",
    "Holders",
    "Holes",
    "Ksm",
    "Links",
    "LockKind",
    "LockTasks",
    "LockWaiters",
    "Locks",
    "Mappings",
    "Mms",
    "Nodes",
    "ObjectState",
    "OwnerState",
    "PageCoverage",
    "Pages",
    "Placement",
    "PointerState",
    "RmapItems",
    "RowColumn",
    "Rwsems",
    "Slabs",
    "Slots",
    "StableNodes",
    "Swapped",
    "Tables",
    "Tasks",
    "Unreached",
    "Vmas",
    "Wanted",
    "find_rows",
    "marked",
)

RowColumn = NDArray[np.int64]
I64Column = NDArray[np.int64]
U8Column = NDArray[np.uint8]
TextColumn = NDArray[np.bytes_]

#: In a column of row numbers: leads to no object of the tables.
NO_ROW = -1


def find_rows(sorted_addresses: U64Column, addresses: U64Column) -> RowColumn:
    """Rows of the objects at these addresses.

    :param sorted_addresses: The ``address`` column of a table that is sorted by it.
    :param addresses: Any values at all.
    :return: Row numbers, :data:`NO_ROW` where the table has no such object.
    """
    if not len(sorted_addresses):
        return np.full(len(addresses), NO_ROW, dtype=np.int64)
    index = np.searchsorted(sorted_addresses, addresses)
    index = np.minimum(index, len(sorted_addresses) - 1)
    return np.where(sorted_addresses[index] == addresses, index, NO_ROW)


def marked(count: int, rows: RowColumn) -> BoolColumn:
    """A column of flags, set for some rows.

    :param count: Its length.
    :param rows: Row numbers, repeated ones and NO_ROW too.
    """
    # One more than asked for, which NO_ROW picks.
    flags = np.zeros(count + 1, dtype=bool)
    flags[rows] = True
    return flags[:-1]


class PointerState(enum.IntEnum):
    """What became of a pointer (see :meth:`Tables.pointer_state`)."""

    OBJECT = 0
    NULL = 1
    #: Cannot be right: misaligned, not in RAM.
    WILD = 2
    #: May be right, but the target does not have the bytes.
    HOLE = 3
    #: Its bytes are there, but nothing about them agrees with being such an object, so that it was
    #: not followed.
    STRANGER = 4


class ChainEnd(enum.IntEnum):
    """How the walk of a list by ``next`` ended: of a VMA's ``anon_vma_chain``, or another."""

    #: Back at the head (of an ``hlist``: at NULL): the whole list is known.
    CLOSED = 0
    #: It came back to an entry that is not the head.
    LOOP = 1
    #: At a ``next`` that cannot be right.
    WILD = 2
    #: At an entry whose bytes the target does not have.
    HOLE = 3
    #: At something that does not look like an entry of this list (the word that names its owner,
    #: an AVC's ``vma``, and ``prev`` both disagree).
    STRANGER = 4
    #: The VMA itself was not walked.
    NOT_WALKED = 5


@dataclass(frozen=True)
class Tasks:
    """Threads that have an mm; kernel threads are not here."""

    address: U64Column
    pid: I64Column
    tgid: I64Column
    #: Command name, at most 15 bytes, anything at all in them.
    comm: TextColumn
    #: When it began, in nanoseconds since boot, and how many programs it and its ancestors have
    #: executed since: with the PID, what tells it from a task that had its memory before. 0 where
    #: the target does not have them.
    start_boottime: U64Column
    self_exec_id: U64Column
    #: Row in :class:`Mms`.
    mm: RowColumn


@dataclass(frozen=True)
class Holders:
    """Tasks on the list of tasks that hold a semaphore of the tables for write, by address.

    Kernel threads and tasks that have given up their mm (exiting ones) are here as well.
    """

    address: U64Column
    pid: I64Column
    #: Empty if it is not known.
    comm: TextColumn


@dataclass(frozen=True)
class Mms:
    """``mm_struct`` objects: those of tasks, then *unlisted* ones met through trees."""

    address: U64Column
    mm_users: I64Column
    map_count: I64Column
    flags: U64Column
    #: Row in :class:`Tasks` of a task that has it: the leader if it does, else the lowest pid.
    task: RowColumn
    #: Some task has it.
    listed: BoolColumn
    #: Its VMAs were enumerated (with ``--pid``, only those of the named processes are).
    walked: BoolColumn
    #: Nothing was missing, wild or looping while they were: :class:`Slots` has all of them.
    whole: BoolColumn
    #: ``mmap_lock`` is held for write.
    write_locked: BoolColumn
    #: Nobody holds ``mmap_lock``, nor waits for it.
    lock_free: BoolColumn
    #: ``mm_lock_seq``, which changes whenever a writer gives ``mmap_lock`` back; 0 where the kernel
    #: has none (before v6.4).
    lock_seq: U64Column
    #: x86-64's ``context.ctx_id``, which no two mms ever have, one after the other in the same
    #: memory neither; 0 where the target does not have it.
    ctx_id: U64Column
    #: By which task, as an address that nobody vouches for: 0 if that is not known, or if what is
    #: there was left by a reader.
    lock_owner: U64Column
    #: How many hold it for read.
    lock_readers: I64Column
    #: All its words were there; without some of them nobody knows whether it is at rest.
    known: BoolColumn
    #: What names the heap, the stack and the vdso among its VMAs (0 where the kernel has no such
    #: field).
    start_brk: U64Column
    brk: U64Column
    start_stack: U64Column
    vdso: U64Column


@dataclass(frozen=True)
class Slots:
    """Entries of the mms' trees of VMAs, by mm and in the order of its tree: that of addresses.

    One VMA can stand in two trees: ``dup_mmap()`` copies the parent's tree before it replaces the
    entries (since v6.8).
    """

    #: Row in :class:`Mms`.
    mm: RowColumn
    #: What the tree stores the entry under: first and last address, inclusive.
    first: U64Column
    last: U64Column
    #: The pointer stored.
    pointer: U64Column
    #: Row in :class:`Vmas`.
    vma: RowColumn


@dataclass(frozen=True)
class Vmas:
    """``vm_area_struct`` objects, sorted by address."""

    address: U64Column
    vm_start: U64Column
    vm_end: U64Column
    vm_flags: U64Column
    vm_pgoff: U64Column
    vm_file: U64Column
    vm_mm: U64Column
    #: The word in ``anon_vma``, low bits and all.
    anon_vma: U64Column
    #: Its pointer part, 0 if there is none, and its low bits (see kernel.tags).
    anon_vma_pointer: U64Column
    anon_vma_tag: U64Column
    #: It says that it is in the tree of its mm. True where the kernel keeps no such mark.
    attached: BoolColumn
    #: ``anon_vma_chain.next`` and ``.prev``.
    chain_next: U64Column
    chain_prev: U64Column
    #: Address of the list head itself, ``&vma->anon_vma_chain``.
    chain_head: U64Column
    #: Keys in an anon_vma's interval tree, in pages, inclusive: what ``rb`` order and
    #: ``rb_subtree_last`` go by in this era.
    key_first: U64Column
    key_last: U64Column
    #: Row of ``vm_mm`` in :class:`Mms`.
    mm: RowColumn
    #: Row in :class:`Slots` of its entry in the tree of its own mm.
    slot: RowColumn
    #: References that words of ANON_VMA_LAZY have to it, and one for being mapped; 0 where the
    #: kernel has no such count.
    root_refs: I64Column
    #: Row of ``anon_vma`` in :class:`AnonVmas` (for a tag that makes it something else: NO_ROW).
    active: RowColumn
    #: A :class:`ChainEnd`, and how many entries the walk met before it.
    chain_end: U8Column
    chain_length: I64Column


@dataclass(frozen=True)
class Links:
    """Entries met on the ``anon_vma_chain`` lists, walked by ``next``; sorted by VMA and position.

    :ivar avc: Never NO_ROW.
    """

    #: Row in :class:`Vmas` whose list it is (not what ``avc->vma`` says).
    vma: RowColumn
    #: 0 for the first behind the head.
    position: I64Column
    #: Row in :class:`Avcs`.
    avc: RowColumn


@dataclass(frozen=True)
class Avcs:
    """``anon_vma_chain`` objects, met on lists or in trees, sorted by address."""

    address: U64Column
    #: The words in ``vma`` and ``anon_vma``.
    vma: U64Column
    anon_vma: U64Column
    #: ``same_vma.next`` and ``.prev``, and the address of ``same_vma`` itself.
    next: U64Column
    prev: U64Column
    list_node: U64Column
    #: ``rb.__rb_parent_color``, ``.rb_left``, ``.rb_right``, and the address of ``rb`` itself.
    rb_parent_color: U64Column
    rb_left: U64Column
    rb_right: U64Column
    rb_node: U64Column
    rb_subtree_last: U64Column
    #: Rows of ``vma`` in :class:`Vmas` and of ``anon_vma`` in :class:`AnonVmas`.
    vma_row: RowColumn
    anon_vma_row: RowColumn


@dataclass(frozen=True)
class AnonVmas:
    """``anon_vma`` objects, sorted by address: active, in a chain, named by an rmap_item, parent or
    root of one.
    """

    address: U64Column
    root: U64Column
    parent: U64Column
    refcount: I64Column
    #: Signed, so that a count below 0 shows. Where the kernel has ``degree`` instead, it is in
    #: ``degree``, and these are 0; the other way round likewise.
    num_children: I64Column
    num_active_vmas: I64Column
    degree: I64Column
    #: The word in ``rb_root.rb_node``, with the low bit that ``mm_take_all_locks()`` sets.
    rb_root: U64Column
    #: The word in ``rb_leftmost`` (0 where the kernel does not cache it: see the era).
    rb_leftmost: U64Column
    #: Of its own ``rwsem``; only the root's is ever used.
    write_locked: BoolColumn
    #: A :class:`anonvma_inspect.kernel.locks.LockState`, likewise.
    lock_state: U8Column
    #: As in :class:`Mms`.
    lock_owner: U64Column
    #: Rows of ``root`` and ``parent`` in :class:`AnonVmas`. ``parent`` may dangle once the tree is
    #: empty, so it is followed only where the tree is not: NO_ROW there.
    root_row: RowColumn
    parent_row: RowColumn
    #: All nodes of its tree were met: nothing missing, wild, looping or strange.
    tree_whole: BoolColumn
    #: In a VMA's chain, active, or held by KSM, or the root of one: what counts as *reached*. The
    #: others were met only as somebody's parent, or where a word of KSM's leads that cannot be
    #: right.
    reached: BoolColumn
    #: Everything that can refer to an anon_vma of its family is known: the trees of the family and
    #: the chains of all VMAs in them are whole. Only then can a count be too high; one that is too
    #: low is too low in any case.
    family_whole: BoolColumn


@dataclass(frozen=True)
class Nodes:
    """Places in interval trees, as met from ``rb_root`` down; sorted by anon_vma and order.

    An AVC stands in one place of one tree; if it is met again, each meeting is a row, and all but
    one are marked: the one that was followed further down, else the first (``again``).
    """

    #: Row in :class:`AnonVmas` whose tree it is (not what ``avc->anon_vma`` says).
    anon_vma: RowColumn
    #: Row in :class:`Avcs`.
    avc: RowColumn
    #: Row in :class:`Nodes` of the parent node; NO_ROW for the root of the tree.
    parent: RowColumn
    #: Rows in :class:`Nodes` of the children.
    left: RowColumn
    right: RowColumn
    #: 0 for the root of the tree.
    depth: I64Column
    #: Another meeting of the same AVC counts, in this tree or another.
    again: BoolColumn


class ObjectState(enum.IntEnum):
    """What the slab allocator says of an address (see :class:`Allocation`)."""

    ALLOCATED = 0
    #: On a list of free objects.
    FREE = 1
    #: In a slab of the right cache, but not where an object begins.
    INSIDE = 2
    #: In a slab of another cache.
    OTHER_CACHE = 3
    #: In a page that is no slab.
    NO_SLAB = 4
    #: What would tell is not in the target.
    UNKNOWN = 5


@dataclass(frozen=True)
class Slabs:
    """Pages of the slab allocator, and others that objects seem to lie in; sorted by address."""

    #: Of the head's ``struct page``, which is the ``struct slab`` as well.
    address: U64Column
    #: Where its memory begins.
    base: U64Column
    #: The word in ``slab_cache``; 0 where the page is no slab.
    cache: U64Column


@dataclass(frozen=True)
class Placement:
    """Where the objects of one table lie, and where pointers lead that lead to no row of it.

    :ivar cache: Address of the ``kmem_cache`` that they should be of; 0 if that is not known.
    :ivar variable: Address of the variable that points to it; 0 if that is not known.
    :ivar named: What it points to; 0 if that is not known.
    :ivar address: The table's, row by row; then what those pointers lead to, sorted, each once.
    :ivar slab: Row in :class:`Slabs` of each; NO_ROW where that is not known.
    :ivar state: An :class:`ObjectState` each.
    """

    cache: int
    variable: int
    named: int
    address: U64Column
    slab: RowColumn
    state: U8Column


@dataclass(frozen=True)
class CacheTotals:
    """What the slab cache of one kind of objects comes to, in all of memory.

    :ivar size: Bytes from one object to the next.
    :ivar slabs: How many slabs it has.
    :ivar bytes: Of those.
    :ivar objects: That they have room for.
    :ivar allocated: Of these, those in use: on no list of free objects.
    :ivar guarded: Objects in use that KFENCE holds, in pages of its own.
    :ivar reached: Rows of the table that are among those in use.
    """

    size: int
    slabs: int
    bytes: int
    objects: int
    allocated: int
    guarded: int
    reached: int


@dataclass(frozen=True)
class Unreached:
    """Allocated objects that are in no other table, and free anon_vmas; each kind by address.

    :ivar vmas: Addresses.
    :ivar avcs: Addresses of all objects of the cache that AVCs are in; other things may share it.
    :ivar avc_vma: Their words ``vma`` and ``anon_vma``.
    :ivar avc_anon_vma: See there.
    :ivar avc_linked: They look like AVCs: both words point to such objects that are allocated, and
        ``same_vma`` is neither poisoned nor otherwise wild.
    :ivar avc_mm: The word ``vm_mm`` of the VMA of each of those; else 0.
    :ivar anon_vmas: Addresses.
    :ivar anon_vma_refcount: Their ``refcount``.
    :ivar anon_vma_rb_root: Their ``rb_root.rb_node``.
    :ivar anon_vma_root: Their ``root``.
    :ivar free_anon_vmas: Addresses of those on lists of free objects.
    :ivar free_refcount: Their ``refcount``.
    :ivar free_rb_root: Their ``rb_root.rb_node``.
    """

    vmas: U64Column
    avcs: U64Column
    avc_vma: U64Column
    avc_anon_vma: U64Column
    avc_linked: BoolColumn
    avc_mm: U64Column
    anon_vmas: U64Column
    anon_vma_refcount: I64Column
    anon_vma_rb_root: U64Column
    anon_vma_root: U64Column
    free_anon_vmas: U64Column
    free_refcount: I64Column
    free_rb_root: U64Column


@dataclass(frozen=True)
class Allocation:
    """What the slab allocator says of the objects in the tables.

    :ivar not_read: Why nothing is known of it; then all else is empty.
    :ivar free_not_read: Why some lists of free objects are not known, if so.
    :ivar cache_names: Names of caches by address, as far as they are known.
    :ivar slab_struct: C name of what describes a slab.
    :ivar cache_offset: Of ``slab_cache`` in it.
    :ivar broken_word: Addresses of words that lead a list of free objects astray.
    :ivar broken_slab: Row in :class:`Slabs` of the list's slab.
    :ivar broken_value: What each leads to.
    :ivar unreached: ``None`` if it was not looked for.
    :ivar totals: Of the caches of VMAs, AVCs and anon_vmas; empty if it was not looked for.
    :ivar unreached_not_read: Why it could not be looked for, if so.
    """

    not_read: str | None
    free_not_read: str | None
    slabs: Slabs
    vmas: Placement
    avcs: Placement
    anon_vmas: Placement
    cache_names: Mapping[int, bytes]
    slab_struct: str
    cache_offset: int
    broken_word: U64Column
    broken_slab: RowColumn
    broken_value: U64Column
    unreached: Unreached | None = None
    totals: tuple[CacheTotals, ...] = ()
    unreached_not_read: str | None = None


@dataclass(frozen=True)
class StableNodes:
    """``ksm_stable_node`` objects that list rmap_items: those of merged pages; sorted by address.

    Before v6.1 the struct is called ``stable_node``. Chains, which list other stable nodes, are not
    here.
    """

    address: U64Column
    #: Signed.
    rmap_hlist_len: I64Column
    #: How the walk of the list ended, a :class:`ChainEnd`, and how many stable rmap_items it met.
    list_end: U8Column
    listed: I64Column


@dataclass(frozen=True)
class RmapItems:
    """Stable ``ksm_rmap_item`` objects, met on the lists of stable nodes; sorted by address.

    Each holds a reference to its anon_vma. Before v6.1 the struct is called ``rmap_item``. Those
    that are not stable hold nothing, and are not here.
    """

    address: U64Column
    #: The words in ``anon_vma``, ``mm`` and ``head``.
    anon_vma: U64Column
    mm: U64Column
    head: U64Column
    #: The word in ``address``: a page of the mm's, with flags in the low bits.
    page: U64Column
    #: The word in ``linear_page_index``; 0 where the kernel has no such field.
    linear_page_index: U64Column
    #: Row in :class:`StableNodes` of the one whose list it is on.
    node: RowColumn
    #: Rows of ``anon_vma`` in :class:`AnonVmas` and of ``mm`` in :class:`Mms`.
    anon_vma_row: RowColumn
    mm_row: RowColumn
    #: Its ``head`` is that node, and the node's list is whole and as long as ``rmap_hlist_len``
    #: says. Only then is it sure that it holds its reference: an rmap_item that is being removed
    #: gives it back while it is still marked as stable, but not before the length has gone down
    #: (``remove_node_from_stable_tree()``, mm/ksm.c, v5.10 to v7.3).
    settled: BoolColumn


@dataclass(frozen=True)
class Ksm:
    """What is known of KSM.

    :ivar records: ``None`` if the kernel was built without it, or nothing was read.
    :ivar missing: Why there may be more stable nodes and rmap_items; ``None``: those of the tables
        are all (with ``--pid``, all that hold an anon_vma of the tables).
    :ivar astray: It is because a list or a tree leads astray, or was changed while it was read.
    """

    records: KsmRecords | None
    missing: str | None
    astray: bool = False


class LockKind(enum.IntEnum):
    """What a read-write semaphore protects."""

    #: The trees and counters of a family: the ``rwsem`` of its root ``anon_vma``.
    ANON_VMA = 0
    #: The VMAs of an mm: its ``mmap_lock`` (``mmap_sem`` before v5.8).
    MMAP_LOCK = 1


class OwnerState(enum.IntEnum):
    """Whom the owner's word of a read-write semaphore names."""

    #: Nobody: it is free, or held for write since a moment ago, or held for read only.
    NONE = 0
    #: The task that holds it for write.
    WRITER = 1
    #: The task that took it for read most recently. Nothing is written when that one gives it back,
    #: so that it may not be among the readers any more.
    LAST_READER = 2
    #: With PREEMPT_RT: the task that is next to have it. A writer keeps new readers out and waits
    #: for those inside; a reader is on its way.
    NEXT = 3
    #: What the word leads to is no task.
    STRANGER = 4


class Wanted(enum.IntEnum):
    """What a task waits for."""

    WRITE = 0
    READ = 1
    #: PREEMPT_RT's waiters do not tell.
    UNKNOWN = 2


@dataclass(frozen=True)
class Rwsems:
    """Semaphores of root anon_vmas (by row), then of mms (likewise)."""

    #: Of the ``rw_semaphore``.
    address: U64Column
    #: A :class:`LockKind`, and row in :class:`AnonVmas` or in :class:`Mms`.
    kind: U8Column
    row: RowColumn
    #: A :class:`anonvma_inspect.kernel.locks.LockState`, and the word that says it: ``count``, or
    #: ``rwbase.readers`` with PREEMPT_RT.
    state: U8Column
    word: U64Column
    #: How many have it for read; 0 where the state is impossible.
    readers: I64Column
    #: The owner's word, an :class:`OwnerState`, and row in :class:`LockTasks` of the task, which is
    #: NO_ROW for NONE and STRANGER.
    owner: U64Column
    owner_state: U8Column
    owner_task: RowColumn
    #: How many wait for it, as far as they were met, and how the walk of them ended: a
    #: :class:`ChainEnd`.
    waiters: I64Column
    waiters_end: U8Column


@dataclass(frozen=True)
class LockWaiters:
    """Tasks that wait for semaphores; sorted by semaphore and position."""

    #: Row in :class:`Rwsems`.
    lock: RowColumn
    #: 0 for the one whose turn is next.
    position: I64Column
    #: What is queued, on the kernel stack of the task: an ``rwsem_waiter``, or an
    #: ``rt_mutex_waiter``. 0 for a writer of a PREEMPT_RT kernel's that has nothing but the readers
    #: inside before it.
    address: U64Column
    #: Row in :class:`LockTasks`.
    task: RowColumn
    #: A :class:`Wanted`.
    wanted: U8Column
    #: How long, in milliseconds, to the tick; -1 where nothing tells.
    waited_ms: I64Column


@dataclass(frozen=True)
class LockTasks:
    """Threads that own semaphores or wait for them, kernel threads too; sorted by address."""

    address: U64Column
    pid: I64Column
    tgid: I64Column
    comm: TextColumn
    #: It is a kernel thread.
    kthread: BoolColumn
    #: ``__state`` (before v5.14, ``state``) and ``exit_state``.
    state: U64Column
    exit_state: U64Column
    #: A CPU is running it.
    on_cpu: BoolColumn
    #: How long ago, in milliseconds, it last came onto a CPU; -1 where nothing tells.
    last_ran_ms: I64Column
    #: Its kernel stack, and bytes of that.
    stack: U64Column
    stack_size: int
    #: Row in :class:`Mms` of its own mm; NO_ROW for a kernel thread.
    mm: RowColumn
    #: Row in :class:`Rwsems` of the semaphore that it waits for.
    waits_for: RowColumn


@dataclass(frozen=True)
class Locks:
    """Who has and who wants the semaphores that protect the reverse map.

    :ivar missing: Why owners or waiters are not known, if so.
    """

    rwsems: Rwsems
    waiters: LockWaiters
    tasks: LockTasks
    missing: str | None


@dataclass(frozen=True)
class Folios:
    """Folios of anonymous memory that page tables lead to, or the swap cache; sorted by address."""

    #: Of the head's ``struct page``, which is the folio's.
    address: U64Column
    #: Number of its first page frame.
    pfn: U64Column
    flags: U64Column
    #: The word in ``mapping``; its pointer part, and a
    #: :class:`anonvma_inspect.kernel.folio.MappingKind`.
    mapping: U64Column
    pointer: U64Column
    kind: U8Column
    index: U64Column
    #: What the word in ``private`` says depends on the flags.
    private: U64Column
    refcount: I64Column
    #: How many pages it has; 0 if that is not known.
    pages: I64Column
    #: How many entries of page tables map it or parts of it, as it counts them itself.
    mapcount: I64Column
    #: The same, but no less at any moment of a change that other figures of it take part in.
    most_mapcount: I64Column
    #: Of them, how many map it as a whole.
    entire_mapcount: I64Column
    #: It is of the huge pages set aside.
    hugetlb: BoolColumn
    #: Row of ``mapping`` in :class:`AnonVmas`.
    anon_vma: RowColumn
    #: The word in ``refcount`` of that, in the tables or not; -1 if it cannot be read.
    anon_vma_refcount: I64Column


@dataclass(frozen=True)
class Mappings:
    """Entries of page tables that lead to :class:`Folios`, by mm and address.

    Those of one VMA stand together.
    """

    #: Row in :class:`Vmas`.
    vma: RowColumn
    #: Of the first byte that it maps.
    address: U64Column
    #: Number of the page frame that this is in, and row in :class:`Folios`.
    pfn: U64Column
    folio: RowColumn
    #: How many pages it maps.
    pages: I64Column
    #: The page is mapped; else it waits to be, e.g. while it is migrated.
    present: BoolColumn
    #: That page says that it belongs to one process alone.
    exclusive: BoolColumn


@dataclass(frozen=True)
class Swapped:
    """Entries of page tables that name a slot of a swap area, by mm and address.

    :ivar not_read: Why the swap cache was not looked at; then no folio is known.
    :ivar exclusive_known: The kernel marks entries of pages that belonged to one process.
    """

    not_read: str | None
    exclusive_known: bool
    #: Row in :class:`Vmas`.
    vma: RowColumn
    address: U64Column
    #: Number of the swap area, and of the slot in it.
    area: U64Column
    slot: U64Column
    #: Marked as that of a page that belonged to one process alone.
    exclusive: BoolColumn
    #: What the swap cache has for the slot, a row in :attr:`folios`; NO_ROW if nothing.
    folio: RowColumn
    #: Whether that could be told.
    known: BoolColumn
    #: Whatever they hold: just read from the disk, they are nobody's yet.
    folios: Folios


@dataclass(frozen=True)
class PageCoverage:
    """How much was looked at.

    :ivar mms: Whose page tables were walked.
    :ivar mms_left_out: Whose page tables were not: those of other processes, or that cannot be.
    :ivar vmas: Within these.
    :ivar vmas_left_out: Of the same mms, but what they map is not anonymous or not counted: shared
        ones, those of devices, those of huge pages set aside.
    :ivar page_tables: Tables read.
    :ivar page_tables_lost: Tables that are not where an entry says, or were met before.
    :ivar pages: Entries that map a page.
    :ivar anonymous: Of these, those that map an anonymous one.
    :ivar special: Entries that map a page that is not counted, or is not in RAM.
    :ivar swapped: Entries that name a place in a swap area.
    :ivar swap_cached: Of these, those for which the swap cache has a folio.
    :ivar swap_not_known: Of these, those of which that is not known.
    :ivar waiting: Entries of pages that wait to be mapped, and of those that never will be.
    :ivar markers: Entries without a page.
    :ivar absent: Entries without a mapped page, of one of these kinds.
    :ivar unknown: Entries of which nothing is known.
    :ivar stray: Entries outside of VMAs.
    :ivar sample: One in so many blocks of memory was looked at.
    """

    mms: int = 0
    mms_left_out: int = 0
    vmas: int = 0
    vmas_left_out: int = 0
    page_tables: int = 0
    page_tables_lost: int = 0
    pages: int = 0
    anonymous: int = 0
    special: int = 0
    swapped: int = 0
    swap_cached: int = 0
    swap_not_known: int = 0
    waiting: int = 0
    markers: int = 0
    absent: int = 0
    unknown: int = 0
    stray: int = 0
    sample: int = 1


@dataclass(frozen=True)
class Pages:
    """Which pages of anonymous memory are mapped where.

    :ivar not_read: Why nothing is known of it; then all else is empty.
    :ivar exclusive_known: The kernel marks pages that belong to one process.
    """

    not_read: str | None
    folios: Folios
    mappings: Mappings
    swapped: Swapped
    coverage: PageCoverage
    exclusive_known: bool
    #: Offsets of ``mapping`` and of ``index`` in the struct.
    mapping_offset: int
    index_offset: int
    #: The bit of ``flags`` that says that somebody has locked it, and those that say that somebody
    #: is at work on it.
    locked: int
    busy: int
    #: C name of the struct.
    struct: str
    #: Rows in :class:`Vmas` of those with entries of which it is not told whether a page of
    #: anonymous memory belongs to them, each once.
    vmas_unclear: RowColumn = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Holes:
    """What the target does not have although something points there."""

    address: U64Column
    size: I64Column
    #: What it was needed for, e.g. ``anon_vma_chain``.
    needed_for: NDArray[np.str_]


@dataclass(frozen=True)
class Broken:
    """Places where a walk of tasks or of an mm's tree came upon what cannot be right.

    Chains and interval trees keep their words in the tables; these structures do not.
    """

    #: Row in :class:`Mms`; NO_ROW for the task list.
    mm: RowColumn
    #: The object that holds the word (``maple_node``, ``task_struct``, ...) and its type.
    address: U64Column
    type: NDArray[np.str_]
    #: The word, and what is wrong with it.
    value: U64Column
    problem: NDArray[np.str_]


@dataclass(frozen=True)
class Tables:
    """All that was read.

    :ivar pids: The processes that the collection was limited to; empty: all.
    :ivar allocation: ``None`` if slabs were not asked for.
    :ivar locks: ``None`` if they were not asked for.
    :ivar pages: Likewise.
    """

    era: Era
    space: AddressSpace
    tasks: Tasks
    holders: Holders
    mms: Mms
    slots: Slots
    vmas: Vmas
    links: Links
    avcs: Avcs
    anon_vmas: AnonVmas
    nodes: Nodes
    stable_nodes: StableNodes
    rmap_items: RmapItems
    ksm: Ksm
    holes: Holes
    broken: Broken
    pids: tuple[int, ...]
    allocation: Allocation | None = None
    locks: Locks | None = None
    pages: Pages | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing that was needed is missing from the target."""
        return not len(self.holes.address)

    def pointer_state(
        self, pointers: U64Column, rows: RowColumn, size: int, alignment: int = 8
    ) -> NDArray[np.uint8]:
        """Tell why pointers lead to no object of the tables.

        :param pointers: The words.
        :param rows: What they lead to, NO_ROW where to nothing.
        :param size: Bytes of the struct that they should point to.
        :return: A :class:`PointerState` each.
        """
        state = np.full(len(pointers), PointerState.OBJECT, dtype=np.uint8)
        lost = np.flatnonzero(rows == NO_ROW)
        if not len(lost):
            return state
        pointer = pointers[lost]
        starts = np.sort(self.holes.address)
        in_hole = np.zeros(len(lost), dtype=bool)
        if len(starts):
            in_hole = starts[np.minimum(np.searchsorted(starts, pointer), len(starts) - 1)] == (
                pointer
            )
        wild = self.space.wild(pointer, size, alignment)
        state[lost] = np.select(
            [pointer == 0, wild, in_hole],
            [PointerState.NULL, PointerState.WILD, PointerState.HOLE],
            PointerState.STRANGER,
        )
        return state
