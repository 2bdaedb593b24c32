"""VMAs whose bounds are being changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("recognise",)

_KINDS = (
    *kinds.RANGES,
    *kinds.OUT_OF_TREE,
    *kinds.SHORT_LIST,
    *kinds.COUNTS,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """Splits, merges and growing stacks: VMAs that are out of their trees as a whole.

    Before a VMA's bounds or page offset change, all its AVCs leave their trees, from the list's
    head on, under the root's lock; they come back in the same order when the mm's tree has the new
    bounds (``vma_prepare()``, ``vma_complete()``, mm/mmap.c or mm/vma.c; ``__vma_adjust()``,
    v5.10).
    No list and no count changes. Two VMAs with a common border can be in this state at once.
    """
    tables = scene.tables
    vmas, has = tables.vmas, scene.anon_vma
    mm_of = vmas.mm
    odd = scene.closed & (scene.linked < vmas.chain_length) & scene.in_mm
    odd &= (has != NO_ROW) & take(scene.mm_writer | scene.mm_reader, mm_of, False)
    yield from _unfaulted(scene)
    for vma in np.flatnonzero(odd).tolist():
        if not scene.own_list(vma) or not scene.works_on(int(has[vma]), int(mm_of[vma])):
            continue
        avcs, members = scene.chain(vma), scene.members(vma)
        if not (members == has[vma]).any() or not _is_one_run(scene.in_tree(avcs)):
            continue

        def settle(draft: Draft, vma: int = vma, avcs: RowColumn = avcs) -> None:
            for avc in avcs.tolist():
                draft.insert(avc)
            _place(scene, draft, vma)

        yield Operation(
            "vma_adjust",
            scene.root_lock(int(has[vma])),
            _KINDS,
            settle,
            vmas=frozenset((vma,)),
            anon_vmas=frozenset(members.tolist()),
            mms=frozenset((int(mm_of[vma]),)),
        )


# VMAs that have no anon_vma have no lock but the mm's; one or two of an mm, at one end each.
def _unfaulted(scene: Scene) -> Iterator[Operation]:
    vmas, slots = scene.tables.vmas, scene.tables.slots
    nothing = (vmas.anon_vma == 0) | scene.facts.explained
    bare = np.flatnonzero(nothing & (vmas.chain_length == 0) & (vmas.slot != NO_ROW))
    bare = bare[take(scene.mm_writer, vmas.mm[bare], False)]
    slot = vmas.slot[bare]
    off = (slots.first[slot] != vmas.vm_start[bare]).astype(int)
    off += slots.last[slot] + np.uint64(1) != vmas.vm_end[bare]
    moved = bare[off == 1]
    number = np.bincount(vmas.mm[bare[off > 0]], minlength=len(scene.tables.mms.address))
    for vma in moved[number[vmas.mm[moved]] <= 2].tolist():

        def settle(draft: Draft, vma: int = vma) -> None:
            _place(scene, draft, vma)

        mm = int(vmas.mm[vma])
        yield Operation(
            "vma_adjust",
            scene.mm_lock(mm),
            kinds.RANGES,
            settle,
            vmas=frozenset((vma,)),
            mms=frozenset((mm,)),
        )


# Those that have left their trees are the first, or those that have come back are.
def _is_one_run(linked: BoolColumn) -> bool:
    return int(np.count_nonzero(linked[1:] != linked[:-1])) <= 1


# Let the mm's tree have the VMA where it says that it is, if one end of it fits, and drop what it
# has grown over.
def _place(scene: Scene, draft: Draft, vma: int) -> None:
    vmas, slots = scene.tables.vmas, scene.tables.slots
    slot = int(vmas.slot[vma])
    if slot == NO_ROW:
        return
    first, last = int(vmas.vm_start[vma]), int(vmas.vm_end[vma]) - 1
    fits = (int(slots.first[slot]) == first, int(slots.last[slot]) == last)
    if all(fits) or not any(fits):
        return
    over = scene.slots_over(vma)
    over = over[over != slot]
    inside = (slots.first[over] >= vmas.vm_start[vma]) & (slots.last[over] < vmas.vm_end[vma])
    draft.place(slot, first, last)
    draft.drop_slots(over[inside])
    for gone in slots.vma[over[inside]].tolist():
        if gone != NO_ROW:
            draft.forget_mm(gone)
    # They are counted until all is done.
    draft.add_map_count(int(vmas.mm[vma]), -int(np.count_nonzero(inside)))
