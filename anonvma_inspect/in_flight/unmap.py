"""VMAs that are taken out of their mm, and are in trees of anon_vmas still."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("recognise",)

_KINDS = kinds.NOT_IN_MM


def recognise(scene: Scene) -> Iterator[Operation]:
    """In ``do_munmap()`` and in merges: VMAs that their mm's tree does not have any more.

    munmap takes the VMAs out of the mm, marks them as detached, and only then unmaps their pages
    and unlinks them, by then with the ``mmap_lock`` held for read, perhaps
    (``mmap_write_downgrade()``). Nobody can map anything there until that is done. A merge lets one
    VMA grow over the other, whose anon_vma is the same, before it unlinks that one (mm/mmap.c,
    v5.10 and v6.1; mm/vma.c, v6.12 and v7.3).
    """
    tables = scene.tables
    vmas = tables.vmas
    gone = scene.closed & (vmas.slot == NO_ROW) & (vmas.mm != NO_ROW)
    gone &= (scene.anon_vma != NO_ROW) & (scene.linked == vmas.chain_length)
    gone &= vmas.chain_length > 0
    writer, reader = (take(held, vmas.mm, False) for held in (scene.mm_writer, scene.mm_reader))
    gone &= (writer | reader) & (~vmas.attached if marks_attachment(tables.era) else True)
    for vma in np.flatnonzero(gone).tolist():
        if not scene.own_list(vma):
            continue
        over = scene.slots_over(vma)
        name = "munmap"
        if len(over):
            if not writer[vma] or not _is_merged(scene, vma, over):
                continue
            name = "merge"

        def settle(draft: Draft, vma: int = vma) -> None:
            draft.forget_mm(vma)

        members = scene.members(vma)
        yield Operation(
            name,
            scene.mm_lock(int(vmas.mm[vma]), None if writer[vma] else "read"),
            _KINDS,
            settle,
            vmas=frozenset((vma,)),
            anon_vmas=frozenset(members.tolist()),
        )


def marks_attachment(era: Era) -> bool:
    """VMAs say themselves whether they are in the tree of their mm."""
    return "detached" in era.vma or "vm_refcnt" in era.vma


# What lies there now is one VMA with the same anon_vma, and the keys of both agree.
def _is_merged(scene: Scene, vma: int, over: RowColumn) -> bool:
    vmas, slots = scene.tables.vmas, scene.tables.slots
    if len(over) != 1:
        return False
    other = int(slots.vma[over[0]])
    return bool(
        other != NO_ROW
        and vmas.anon_vma[other] == vmas.anon_vma[vma]
        and scene.key_base(other) == scene.key_base(vma)
        and vmas.vm_start[other] <= vmas.vm_start[vma]
        and vmas.vm_end[other] >= vmas.vm_end[vma]
    )
