"""``vma_prepare_anon_vma()`` of ANON_VMA_LAZY (2026-05): a lazy VMA gets an anon_vma of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Lock, Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("recognise",)

_KINDS = (
    *kinds.EMPTY_LIST,
    *kinds.ACTIVE_AWAY,
    *kinds.OUT_OF_TREE,
    *kinds.COUNTS,
    *kinds.PINNED,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """VMAs of which the pointer is published, and the AVC is not all that it will be.

    The pointer takes the tag's place first, with the mmap_lock held for write and no lock of a
    family; what the word held is put. Then, under the root's lock, the parent counts a new
    anon_vma, the AVC goes on the list, then into the tree, and ``num_active_vmas`` goes up. (What
    had a root VMA is under that lock as after a first fault.)
    """
    tables = scene.tables
    if not scene.may_be_lazy:
        return
    vmas = tables.vmas
    odd = scene.closed & scene.in_mm & (vmas.active != NO_ROW) & (vmas.anon_vma_tag == 0)
    odd &= take(scene.mm_writer, vmas.mm, False)
    for vma in np.flatnonzero(odd).tolist():
        members = scene.members(vma)
        if not _is_odd(scene, vma, members) or not scene.own_list(vma):
            continue
        if len(members) == 0:
            if _is_new_root(scene, int(vmas.active[vma])):
                yield _of_root_vma(scene, vma)
        elif (lock := _lock(scene, vma, members)) is not None:
            yield _of_child(scene, vma, members, lock)


def _is_odd(scene: Scene, vma: int, members: RowColumn) -> bool:
    active = int(scene.tables.vmas.active[vma])
    if not (members == active).any() or scene.linked[vma] < len(members):
        return True
    return scene.active_surplus(active) == -1 and not _is_copied(scene, vma)


# Another VMA has the same anon_vma, and is not all there yet: it is that one that is not counted.
def _is_copied(scene: Scene, vma: int) -> bool:
    vmas = scene.tables.vmas
    same = vmas.active == vmas.active[vma]
    same[vma] = False
    return bool((same & (~scene.in_mm | (scene.linked < vmas.chain_length))).any())


# What anon_vma_alloc() made, and nobody has counted yet.
def _is_new_root(scene: Scene, anon_vma: int) -> bool:
    facts = scene.facts
    return bool(
        _is_uncounted(scene, anon_vma)
        and facts.root[anon_vma] == scene.tables.anon_vmas.address[anon_vma]
        and facts.parent[anon_vma] == facts.root[anon_vma]
    )


def _is_uncounted(scene: Scene, anon_vma: int) -> bool:
    anon_vmas = scene.tables.anon_vmas
    counters = (anon_vmas.num_children, anon_vmas.num_active_vmas, anon_vmas.degree)
    return bool(
        scene.facts.tree_pointer[anon_vma] == 0
        and anon_vmas.rb_leftmost[anon_vma] == 0
        and anon_vmas.refcount[anon_vma] == 1
        and not any(counter[anon_vma] for counter in counters)
    )


def _of_root_vma(scene: Scene, vma: int) -> Operation:
    vmas = scene.tables.vmas
    mm = int(vmas.mm[vma])

    def settle(draft: Draft) -> None:
        draft.forget_anon_vma(vma, stale=True)

    return _operation(scene, vma, np.empty(0, dtype=np.int64), scene.mm_lock(mm), settle)


# What a child's VMA that is upgraded holds, if it looks like one: all of its chain is in the trees,
# but perhaps the AVC of the anon_vma that it gets, first on the list; and that one is the child of
# another one of the chain.
def _lock(scene: Scene, vma: int, members: RowColumn) -> Lock | None:
    facts, vmas = scene.facts, scene.tables.vmas
    active, mm = int(vmas.active[vma]), int(vmas.mm[vma])
    listed = bool(members[0] == active)
    inherited = members[1:] if listed else members
    parent = facts.parent[active]
    if (inherited == active).any() or not len(inherited):
        return None
    if not (scene.tables.anon_vmas.address[inherited] == parent).any():
        return None
    if (facts.root_row[inherited] != facts.root_row[active]).any():
        return None
    linked = scene.in_tree(scene.chain(vma))
    if not linked[1 if listed else 0 :].all():
        return None
    if listed:
        # Of one that is unlinked, the count goes down last.
        counted = scene.active_surplus(active) != -1
        return None if counted or not scene.works_on(active, mm) else scene.root_lock(active)
    if _is_uncounted(scene, active) or _is_neighbours(scene, vma, active, inherited):
        return scene.mm_lock(mm)
    return None


# It is the active one of another VMA of the mm, whose chain has all that this one's has.
def _is_neighbours(scene: Scene, vma: int, active: int, inherited: RowColumn) -> bool:
    vmas = scene.tables.vmas
    same = (vmas.active == active) & (vmas.mm == vmas.mm[vma]) & scene.in_mm
    same[vma] = False
    wanted = np.sort(np.append(inherited, active))
    return any(
        np.array_equal(np.sort(scene.members(other)), wanted)
        for other in np.flatnonzero(same).tolist()
    )


def _of_child(scene: Scene, vma: int, members: RowColumn, lock: Lock) -> Operation:
    tables, facts = scene.tables, scene.facts
    active = int(tables.vmas.active[vma])
    inherited = members[members != active]
    parent_of = {row: int(facts.parent_row[row]) for row in inherited.tolist()}
    parent = int(inherited[tables.anon_vmas.address[inherited] == facts.parent[active]][0])
    root = int(facts.root_row[active])
    listed = len(inherited) < len(members)

    def settle(draft: Draft) -> None:
        draft.unlink(vma)
        is_new = draft.size(active) == 0
        draft.forget_anon_vma(vma, stale=is_new)
        # What the word held may be put already; a new one refers to the root when it is listed.
        pending = [parent]
        if is_new and listed:
            draft.put(active)
        elif is_new:
            pending.append(root)
        for row, above in parent_of.items():
            if not draft.size(row) and above != NO_ROW:
                draft.add_children(above, -1)
                draft.put(row)
                if row == parent and draft.references(row) == 1:
                    draft.put(row)
        if draft.child_surplus(parent) > 0:
            draft.add_children(parent, -1)
        if not is_new and draft.active_surplus(active) > 0:
            draft.add_active(active, -1)
        for row in pending:
            draft.pending[row] = draft.pending.get(row, 0) + 1

    return _operation(scene, vma, members, lock, settle)


def _operation(
    scene: Scene, vma: int, members: RowColumn, lock: Lock, settle: Callable[[Draft], None]
) -> Operation:
    touched = np.append(members, scene.tables.vmas.active[vma])
    touched = np.append(touched, take(scene.facts.root_row, touched, NO_ROW))
    return Operation(
        "upgrade",
        lock,
        _KINDS,
        settle,
        vmas=frozenset((vma,)),
        anon_vmas=frozenset(touched[touched != NO_ROW].tolist()),
        mms=frozenset((int(scene.tables.vmas.mm[vma]),)),
    )
