"""VMAs that have left their anon_vmas for good, in an mm that nobody uses any more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("recognise",)

_KINDS = (
    *kinds.EMPTY_LIST,
    *kinds.COUNTS,
    *kinds.GONE,
    *kinds.PINNED,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """In ``exit_mmap()``: VMAs whose list is empty and whose ``anon_vma`` was left as it was.

    Before Linux kernel commit ee8ab1903e3d ("mm: rmap: explicitly reset vma->anon_vma in
    unlink_anon_vmas()") (in v5.12) ``unlink_anon_vmas()`` did not make it NULL; what it points to
    may be free, or another's. Told by the red-black tree of VMAs, which is older than v6.1.
    """
    tables = scene.tables
    vmas = tables.vmas
    if tables.era.maple_node is not None:
        return
    left = scene.closed & (vmas.chain_length == 0) & (vmas.anon_vma_pointer != 0)
    left &= (vmas.chain_next == vmas.chain_head) & (vmas.chain_prev == vmas.chain_head)
    left &= scene.in_mm & take(scene.mm_exiting, vmas.mm, False)
    for mm in np.unique(vmas.mm[left]).tolist():
        rows = np.flatnonzero(left & (vmas.mm == mm))
        active = vmas.active[rows]

        def settle(draft: Draft, rows: RowColumn = rows) -> None:
            draft.forget_anon_vma(rows, stale=True)

        yield Operation(
            "exit_mmap",
            scene.mm_lock(mm),
            _KINDS,
            settle,
            vmas=frozenset(rows.tolist()),
            anon_vmas=frozenset(active[active != NO_ROW].tolist()),
            mms=frozenset((mm,)),
        )
