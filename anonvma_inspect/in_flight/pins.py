"""References that are held for a moment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.locks import LockState
from anonvma_inspect.tables import NO_ROW

__all__ = ("recognise",)

_KINDS = kinds.PINNED

# include/linux/mm.h, the same in all eras.
_VM_MERGEABLE = np.uint64(0x80000000)


def recognise(scene: Scene) -> Iterator[Operation]:
    """One reference more than is known, whose holder shows.

    A walk of the reverse map that does not get the root's lock at once takes a reference to the
    anon_vma and then waits (``page_lock_anon_vma_read()``, v5.10; ``folio_lock_anon_vma_read()``):
    somebody waits for the lock. ksmd takes one before the rmap_item that holds it is on the list of
    its page (``try_to_merge_with_ksm_page()``, ``stable_tree_append()``, mm/ksm.c): it holds the
    ``mmap_lock`` of the mm for read, and the VMA is one that may be merged.
    """
    tables, facts = scene.tables, scene.facts
    anon_vmas, vmas = tables.anon_vmas, tables.vmas
    for result in scene.results:
        if result.invariant.code != "AV404":
            continue
        for group in result.violations:
            for row in [] if group.anon_vma is None else group.anon_vma.tolist():
                root = int(facts.root_row[row])
                here = vmas.mm[(vmas.active == row) & ((vmas.vm_flags & _VM_MERGEABLE) != 0)]
                here = here[take(scene.mm_reader, here, False)]
                if root != NO_ROW and anon_vmas.lock_state[root] == LockState.QUEUED:
                    name, lock = "rmap", scene.root_lock(row, "waited for")
                elif len(here) and tables.ksm.records is not None:
                    name, lock = "ksm", scene.mm_lock(int(here[0]), "read")
                else:
                    continue

                def settle(draft: Draft, row: int = row) -> None:
                    draft.pending[row] = draft.pending.get(row, 0) + 1

                yield Operation(name, lock, _KINDS, settle, anon_vmas=frozenset((row,)))
