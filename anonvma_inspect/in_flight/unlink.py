"""``unlink_anon_vmas()``, mm/rmap.c (v5.10 to v7.3): a VMA leaves its anon_vmas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Lock, Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn, find_rows
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("families_with_an_unseen_vma", "recognise")

_KINDS = (
    *kinds.ACTIVE_NULL,
    *kinds.ACTIVE_AWAY,
    *kinds.EMPTY_LIST,
    *kinds.SHORT_LIST,
    *kinds.OUT_OF_TREE,
    *kinds.NOT_IN_MM,
    *kinds.COUNTS,
    *kinds.GONE,
    *kinds.PINNED,
    *kinds.FREED,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """VMAs whose AVCs are out of the trees, or on their way.

    The first loop, under the root's lock, takes the AVCs out of their trees one by one, from the
    list's head; those of anon_vmas whose trees are empty then stay on the list, and the parent's
    ``num_children`` goes down. ``num_active_vmas`` goes down and ``vma->anon_vma`` becomes NULL
    (before v5.12 it stays), the lock is left, and the second loop puts the anon_vmas that are left
    on the list, from its head, each before its AVC leaves the list.

    Of a VMA that has its parent's anon_vma (ANON_VMA_LAZY), the word goes before all that, and its
    reference after it.
    """
    yield from _unlink_unseen(scene)
    tables, facts = scene.tables, scene.facts
    vmas = tables.vmas
    odd = (scene.linked < vmas.chain_length) & (vmas.chain_length > 0)
    # The active one's AVC leaves the list at once if others are in its tree.
    odd |= (vmas.active != NO_ROW) & ~scene.has_active & take(scene.family_held, vmas.active, False)
    lazy = scene.may_be_lazy
    if lazy:
        odd |= (vmas.anon_vma == 0) & (vmas.chain_length > 0)
    odd |= _shortened(scene)
    odd &= scene.closed
    for vma in np.flatnonzero(odd).tolist():
        if not scene.own_list(vma):
            continue
        lock = scene.list_lock(vma, leaves=True)
        if lock is None:
            continue
        avcs, members = scene.chain(vma), scene.members(vma)
        linked = scene.in_tree(avcs)
        if not linked.any() and len(avcs) and _is_done(scene, vma):
            if _can_be_put(scene, members):
                yield _second_loop(scene, vma, members, lock)
        elif vmas.active[vma] != NO_ROW and scene.works_on(
            int(vmas.active[vma]), int(vmas.mm[vma])
        ):
            emptied = facts.tree_pointer[members] == 0
            if _is_first_loop(linked, emptied):
                held = scene.root_lock(int(vmas.active[vma]))
                yield _first_loop(scene, vma, members, linked, held)
        elif lazy and not vmas.anon_vma[vma] and len(avcs):
            if not linked.all():
                if not scene.works_on(int(members[-1]), int(vmas.mm[vma])):
                    continue
                lock = scene.root_lock(int(members[-1]))
            if _is_first_loop(linked, facts.tree_pointer[members] == 0):
                yield _first_loop(scene, vma, members, linked, lock)


# VMAs whose first AVCs are off the list already, since others are in the trees of those anon_vmas;
# what is left is whole. Of VMAs with one active anon_vma, any may be said to have the wrong list.
def _shortened(scene: Scene) -> BoolColumn:
    vmas = scene.tables.vmas
    told = [NO_ROW]
    named = np.zeros(len(vmas.address), dtype=bool)
    for group in (*scene.violations("AV104"), *scene.violations("AV106")):
        if group.vma is not None:
            named[group.vma[group.vma != NO_ROW]] = True
        if group.anon_vma is not None:
            told += group.anon_vma.tolist()
    told += vmas.active[named].tolist()
    leaves = (vmas.slot == NO_ROW) | take(scene.mm_exiting, vmas.mm, False)
    # mremap() with MREMAP_DONTUNMAP unlinks what stays in the mm's tree.
    leaves |= named & take(scene.mm_writer, vmas.mm, False)
    short: BoolColumn = leaves & (vmas.active != NO_ROW) & np.isin(vmas.active, told)
    return short & take(scene.family_held, vmas.active, False)


@dataclass(frozen=True)
class _Unseen:
    """Counts that a VMA which nothing leads to any more is still in.

    :ivar active: Row of the anon_vma for which it still counts, if that is known.
    :ivar parent: Row of the parent of the one that only it had, if that is known.
    """

    active: list[int]
    parent: list[int]


def families_with_an_unseen_vma(scene: Scene) -> set[int]:
    """Roots of families from which somebody takes a VMA that nothing leads to any more.

    See :func:`recognise`. Where references are not judged, nobody can tell: those as well.
    """
    anon_vmas, tables = scene.tables.anon_vmas, scene.tables
    roots = np.unique(scene.facts.root_row[scene.family_held])
    unsure = ~take(anon_vmas.family_whole, roots, False)
    if tables.ksm.missing is not None or scene.facts.ksm_astray:
        unsure[:] = True
    return set(_unseen(scene)) | set(roots[unsure].tolist())


# The AVCs of a VMA that munmap has taken out of its mm, or of the last one of an mm that exits, are
# off the list as far as others are in the trees, so that nothing leads to the VMA any more. It
# still counts for its anon_vma; and an anon_vma that nobody else has counts as a child, and refers
# to the root. Any task can be the one that does it: whose mm it is, nothing tells either, and who
# drops the last reference to an mm takes it down (exec the old one; a reader of /proc/PID/maps).
def _unseen(scene: Scene) -> dict[int, _Unseen]:
    told = _told(scene, "AV401"), _told(scene, "AV402"), _told(scene, "AV404")
    if not scene.tables.era.has_separate_counts:
        told = {}, told[0], told[2]
    found = {}
    for root in {root: None for rows in told for root in rows}:
        parent = [row for row in told[0].get(root, []) if scene.child_surplus(row) == 1][:1]
        active = [row for row in told[1].get(root, []) if scene.active_surplus(row) == 1][:1]
        if parent or active or root in told[2].get(root, []):
            found[root] = _Unseen(active, parent)
    return found


def _unlink_unseen(scene: Scene) -> Iterator[Operation]:
    for root, unseen in _unseen(scene).items():

        def settle(draft: Draft, root: int = root, unseen: _Unseen = unseen) -> None:
            for row in unseen.active:
                draft.add_active(row, -1)
            for row in unseen.parent:
                draft.add_children(row, -1)
            draft.pending[root] = draft.pending.get(root, 0) + 1

        yield Operation(
            "unlink",
            scene.root_lock(root),
            (*kinds.COUNTS, *kinds.PINNED),
            settle,
            anon_vmas=frozenset((root, *unseen.active, *unseen.parent)),
        )


# anon_vmas that a rule has something against, by their root, if a task holds its lock.
def _told(scene: Scene, code: str) -> dict[int, list[int]]:
    told: dict[int, list[int]] = {}
    for group in scene.violations(code):
        rows = np.empty(0, dtype=np.int64) if group.anon_vma is None else group.anon_vma
        for row in rows[take(scene.family_held, rows, False)].tolist():
            told.setdefault(int(scene.facts.root_row[row]), []).append(row)
    return told


# The first loop is over: the pointer is NULL, or as it was in kernels that leave it.
def _is_done(scene: Scene, vma: int) -> bool:
    vmas = scene.tables.vmas
    if not vmas.anon_vma_pointer[vma]:
        return True
    gone = scene.mm_exiting[vmas.mm[vma]] or vmas.slot[vma] == NO_ROW
    held = scene.root_held(int(scene.members(vma)[-1]))
    return scene.tables.era.maple_node is None and bool(gone) and not held


# All of them are empty and held; but the first may be put already, and freed, and even be somebody
# else's.
def _can_be_put(scene: Scene, members: RowColumn) -> bool:
    anon_vmas, facts = scene.tables.anon_vmas, scene.facts
    rest = members[1:] if _is_put(scene, int(members[0])) else members
    empty = facts.tree_pointer[rest] == 0
    return bool((empty & (anon_vmas.refcount[rest] > 0)).all())


def _is_put(scene: Scene, anon_vma: int) -> bool:
    anon_vmas = scene.tables.anon_vmas
    return bool(anon_vmas.refcount[anon_vma] == 0 or scene.facts.tree_pointer[anon_vma] != 0)


def _second_loop(scene: Scene, vma: int, members: RowColumn, lock: Lock) -> Operation:
    first = int(members[0])
    put = _is_put(scene, first)
    root = int(scene.facts.root_row[first])

    def settle(draft: Draft) -> None:
        draft.unlink(vma)
        draft.forget_anon_vma(vma, stale=True)
        if put:
            # Between the count and the free, and the reference to the root after that.
            draft.pending[root] = draft.pending.get(root, 0) + 1
        for anon_vma in members[1:].tolist() if put else members.tolist():
            draft.put(anon_vma)

    return _operation(scene, vma, members, lock, settle)


# From the head on: those whose trees are empty, then perhaps one that was taken out and is not off
# the list yet, then those that are still in.
def _is_first_loop(linked: BoolColumn, emptied: BoolColumn) -> bool:
    out = int(np.count_nonzero(~linked))
    in_order = not linked[:out].any()
    return in_order and bool(emptied[: max(out - 1, 0)].all())


def _first_loop(
    scene: Scene, vma: int, members: RowColumn, linked: BoolColumn, lock: Lock
) -> Operation:
    avcs = scene.chain(vma)
    active = int(scene.tables.vmas.active[vma])
    out = int(np.count_nonzero(~linked))

    def settle(draft: Draft) -> None:
        for place, (avc, anon_vma) in enumerate(zip(avcs.tolist(), members.tolist(), strict=True)):
            draft.remove(avc)
            parent = _parent(scene, anon_vma)
            if draft.size(anon_vma) or parent == NO_ROW:
                continue
            # Of the one that was taken out last, the parent may know already.
            if place >= out or (place == out - 1 and draft.child_surplus(parent) > 0):
                draft.add_children(parent, -1)
        draft.unlink(vma)
        draft.forget_anon_vma(vma)
        if active != NO_ROW and draft.active_surplus(active) > 0:
            draft.add_active(active, -1)
        for anon_vma in members.tolist():
            # Which of them the word led to, and has a reference of, nothing tells any more.
            if draft.size(anon_vma):
                if active == NO_ROW:
                    draft.pending[anon_vma] = draft.pending.get(anon_vma, 0) + 1
                continue
            draft.put(anon_vma)
            if active == NO_ROW and draft.references(anon_vma) == 1:
                draft.put(anon_vma)

    return _operation(scene, vma, members, lock, settle)


# Row of the parent, whatever the tree; NO_ROW if it is not known.
def _parent(scene: Scene, anon_vma: int) -> int:
    address = scene.tables.anon_vmas.address
    return int(find_rows(address, scene.facts.parent[anon_vma : anon_vma + 1])[0])


def _operation(
    scene: Scene, vma: int, members: RowColumn, lock: Lock, settle: Callable[[Draft], None]
) -> Operation:
    roots = take(scene.facts.root_row, members, NO_ROW)
    touched = np.concatenate([members, roots, scene.tables.vmas.active[vma : vma + 1]])
    return Operation(
        "unlink",
        lock,
        _KINDS,
        settle,
        vmas=frozenset((vma,)),
        anon_vmas=frozenset(touched[touched != NO_ROW].tolist()),
    )
