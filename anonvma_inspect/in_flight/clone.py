"""``anon_vma_clone()`` and ``anon_vma_fork()``, mm/rmap.c (v5.10 to v7.3): a VMA gets its chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("recognise",)

_KINDS = (
    *kinds.ACTIVE_NULL,
    *kinds.EMPTY_LIST,
    *kinds.ACTIVE_AWAY,
    *kinds.SHORT_LIST,
    *kinds.OUT_OF_TREE,
    *kinds.NOT_IN_MM,
    *kinds.COUNTS,
    *kinds.PINNED,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """VMAs that are being given the anon_vmas of another one.

    Up to v6.12 each AVC goes on the list and into its tree before the next one does; in v7.x all
    are on the list before the root's lock is taken, and go into the trees from the list's tail on.
    So those that are in no tree yet are the first ones of the list. ``num_active_vmas`` goes up
    last. A VMA that fork makes gets an anon_vma of its own after that: active, on the list, in its
    tree, and counted by its parent, in this order.
    """
    tables = scene.tables
    vmas = tables.vmas
    new = scene.closed & (vmas.mm != NO_ROW) & take(scene.mm_writer, vmas.mm, False)
    new &= (vmas.anon_vma_pointer != 0) | (vmas.chain_length > 0)
    # Of a child that was not walked, those that are not complete.
    partial = (scene.linked < vmas.chain_length) | (vmas.anon_vma_pointer == 0)
    partial |= ~scene.has_active
    unborn = ~take(tables.mms.listed, vmas.mm, True)
    outside = new & (~scene.in_mm | (unborn & (vmas.slot == NO_ROW) & partial))
    for vma in np.flatnonzero(outside).tolist():
        if not scene.own_list(vma) or not _in_order(scene, vma):
            continue
        mm = int(vmas.mm[vma])
        if tables.mms.listed[mm]:
            operation = _copied(scene, vma)
        else:
            operation = _forked(scene, vma) or _copied(scene, vma)
        if operation is not None:
            yield operation
    short = new & scene.in_mm & ~outside
    short &= (vmas.chain_length == 0) | (scene.linked < vmas.chain_length)
    for vma in np.flatnonzero(short & (vmas.anon_vma_pointer != 0)).tolist():
        if scene.own_list(vma) and _in_order(scene, vma):
            operation = _merged(scene, vma)
            if operation is not None:
                yield operation


# Those that are in no tree stand before those that are.
def _in_order(scene: Scene, vma: int) -> bool:
    linked = scene.in_tree(scene.chain(vma))
    return not linked[: int(np.count_nonzero(~linked))].any()


# The VMA of the parent's mm that fork copies: of the same range, and of an mm that the same task
# has locked.
def _parent_vma(scene: Scene, vma: int) -> int:
    tables = scene.tables
    mms, vmas = tables.mms, tables.vmas
    owner = mms.lock_owner[vmas.mm[vma]]
    parents = np.flatnonzero(mms.listed & scene.mm_writer & (mms.lock_owner == owner))
    if not owner or len(parents) != 1:
        return NO_ROW
    parent = parents[0]
    rows = np.flatnonzero((vmas.mm == parent) & scene.in_mm)
    same = (vmas.vm_start[rows] == vmas.vm_start[vma]) & (vmas.vm_end[rows] == vmas.vm_end[vma])
    same &= vmas.key_first[rows] == vmas.key_first[vma]
    rows = rows[same]
    return int(rows[0]) if len(rows) == 1 else NO_ROW


def _forked(scene: Scene, vma: int) -> Operation | None:
    vmas, facts = scene.tables.vmas, scene.facts
    source = _parent_vma(scene, vma)
    if source == NO_ROW or not scene.own_list(source):
        return None
    members, of_source = scene.members(vma), scene.members(source)
    active = int(vmas.active[vma])
    own = active != NO_ROW and not (of_source == active).any()
    parent = int(vmas.active[source])
    # ANON_VMA_LAZY: the parent's, with a tag, and a reference that is taken before that.
    lent = scene.tables.era.tags.name == "lazy" and parent != NO_ROW and active == NO_ROW
    if vmas.anon_vma_pointer[vma] and active == NO_ROW:
        lent &= bool(facts.vma_kind[vma] == AnonVmaKind.LAZY_PARENT)
        lent &= bool(vmas.anon_vma_pointer[vma] == scene.tables.anon_vmas.address[parent])
        if not lent:
            return None
    if own and not _is_own(scene, vma, source, active, members, of_source):
        return None
    inherited = members[members != active] if own else members
    if not _is_subset(inherited, of_source):
        return None

    def settle(draft: Draft) -> None:
        if lent:
            draft.pending[parent] = draft.pending.get(parent, 0) + 1
        counted = own and draft.size(active) > 0
        draft.forget_vma(vma)
        if own:
            if counted and draft.child_surplus(parent) > 0:
                draft.add_children(parent, -1)
            draft.add_active(active, -1)
            draft.put(active)
        elif active != NO_ROW and draft.active_surplus(active) > 0:
            draft.add_active(active, -1)

    mm = int(vmas.mm[vma])
    touched = np.concatenate([members, [active, parent], take(facts.root_row, members, NO_ROW)])
    return _operation(scene, "fork", vma, touched, settle, mm)


# The anon_vma that fork makes for a VMA: the child of the source's, with a list that has all of the
# source's.
def _is_own(
    scene: Scene,
    vma: int,
    source: int,
    active: int,
    members: RowColumn,
    of_source: RowColumn,
) -> bool:
    tables, facts = scene.tables, scene.facts
    anon_vmas = tables.anon_vmas
    parent = int(tables.vmas.active[source])
    if parent == NO_ROW:
        return False
    separate = tables.era.has_separate_counts
    counts = (
        anon_vmas.num_children[active] == 0 and anon_vmas.num_active_vmas[active] == 1
        if separate
        else anon_vmas.degree[active] == 1
    )
    return bool(
        counts
        and facts.parent[active] == anon_vmas.address[parent]
        and facts.root[active] == facts.root[parent]
        and anon_vmas.refcount[active] == 1
        and facts.nodes_in_tree[active] <= 1
        and len(members) - bool((members == active).any()) == len(of_source)
    )


# A copy of another VMA of the same mm, by a split or mremap().
def _copied(scene: Scene, vma: int) -> Operation | None:
    vmas = scene.tables.vmas
    source = _source(scene, vma)
    if source == NO_ROW:
        return None
    members = scene.members(vma)
    active = int(vmas.active[vma])

    def settle(draft: Draft) -> None:
        draft.forget_vma(vma)
        if draft.active_surplus(active) > 0:
            draft.add_active(active, -1)

    over = scene.slots_over(vma)
    name = "split" if len(over) else "mremap"
    mm = int(vmas.mm[vma])
    return _operation(scene, name, vma, np.append(members, active), settle, mm)


# A VMA without an anon_vma that is about to take over part of another one, or all of it.
def _merged(scene: Scene, vma: int) -> Operation | None:
    vmas = scene.tables.vmas
    source = _source(scene, vma)
    if source == NO_ROW:
        return None
    active = int(vmas.active[vma])
    if vmas.chain_length[vma] >= vmas.chain_length[source] and scene.linked[vma]:
        return None

    def settle(draft: Draft) -> None:
        draft.unlink(vma)
        draft.forget_anon_vma(vma)
        if draft.active_surplus(active) > 0:
            draft.add_active(active, -1)

    touched = np.append(scene.members(vma), active)
    return _operation(scene, "merge", vma, touched, settle, int(vmas.mm[vma]))


# Another VMA of the mm with the same anon_vma, whose whole chain is linked and has all of this one.
def _source(scene: Scene, vma: int) -> int:
    vmas = scene.tables.vmas
    active = int(vmas.active[vma])
    if active == NO_ROW:
        return NO_ROW
    same = (vmas.active == active) & (vmas.mm == vmas.mm[vma]) & scene.in_mm
    same &= vmas.chain_length > 0
    same[vma] = False
    members = scene.members(vma)
    for source in np.flatnonzero(same).tolist():
        if scene.own_list(source) and _is_subset(members, scene.members(source)):
            return int(source)
    return NO_ROW


def _is_subset(members: RowColumn, others: RowColumn) -> bool:
    once = len(np.unique(members)) == len(members)
    return once and bool(np.isin(members, others).all())


def _operation(
    scene: Scene,
    name: str,
    vma: int,
    touched: RowColumn,
    settle: Callable[[Draft], None],
    mm: int,
) -> Operation:
    return Operation(
        name,
        scene.mm_lock(mm),
        _KINDS,
        settle,
        vmas=frozenset((vma,)),
        anon_vmas=frozenset(touched[touched != NO_ROW].tolist()),
    )
