"""``__anon_vma_prepare()``, mm/rmap.c (v5.10 to v7.3): a VMA's first anonymous page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW

__all__ = ("recognise",)

_KINDS = (
    *kinds.EMPTY_LIST,
    *kinds.OUT_OF_TREE,
    *kinds.COUNTS,
)


def recognise(scene: Scene) -> Iterator[Operation]:
    """VMAs that get an anon_vma: a new one, or that of a neighbour whose chain has just that.

    Under the root's lock: ``vma->anon_vma`` is set, then the AVC goes on the list, then into the
    tree, then ``num_active_vmas`` goes up.
    """
    vmas = scene.tables.vmas
    odd = scene.closed & scene.in_mm & (vmas.active != NO_ROW)
    odd &= (vmas.chain_length <= 1) & take(scene.mm_writer | scene.mm_reader, vmas.mm, False)
    facts = scene.facts
    active = np.flatnonzero(odd)
    own_root = take(facts.root_row, vmas.active[active], NO_ROW) == vmas.active[active]
    own_root &= take(facts.root_writer, vmas.active[active], False)
    counted: set[int] = set()
    for vma in active[own_root].tolist():
        root = int(vmas.active[vma])
        if not scene.own_list(vma):
            continue
        if vmas.chain_length[vma] and int(scene.members(vma)[0]) != root:
            continue
        if scene.linked[vma]:
            # All is done but the count, which cannot be short twice.
            if root in counted or scene.active_surplus(root) != -1:
                continue
            counted.add(root)

        def settle(draft: Draft, vma: int = vma, root: int = root) -> None:
            draft.unlink(vma)
            draft.forget_anon_vma(vma)
            if not draft.size(root):
                draft.add_children(root, -1)
                draft.put(root)
            if draft.active_surplus(root) > 0:
                draft.add_active(root, -1)

        yield Operation(
            "anon_vma_prepare",
            scene.root_lock(root),
            _KINDS,
            settle,
            vmas=frozenset((vma,)),
            anon_vmas=frozenset((root,)),
            mms=frozenset((int(vmas.mm[vma]),)),
        )
