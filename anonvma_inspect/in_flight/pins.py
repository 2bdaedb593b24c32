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
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW

__all__ = ("recognise",)

_KINDS = kinds.PINNED

# include/linux/mm.h, the same in all eras.
_VM_MERGEABLE = np.uint64(0x80000000)


def recognise(scene: Scene) -> Iterator[Operation]:
    """References of anon_vmas and of root VMAs."""
    yield from _of_anon_vmas(scene)
    if scene.tables.era.tags.name == "lazy" and "root_refs" in scene.tables.era.vma:
        yield from _of_root_vmas(scene)
        yield from _merged_with_root_vmas(scene)


def _of_anon_vmas(scene: Scene) -> Iterator[Operation]:
    """One reference more than is known, whose holder shows.

    A walk of the reverse map that does not get the root's lock at once takes a reference to the
    anon_vma and then waits (``page_lock_anon_vma_read()``, v5.10; ``folio_lock_anon_vma_read()``):
    somebody waits for the lock. ksmd takes one before the rmap_item that holds it is on the list of
    its page (``try_to_merge_with_ksm_page()``, ``stable_tree_append()``, mm/ksm.c): it holds the
    ``mmap_lock`` of the mm for read, and the VMA is one that may be merged.
    """
    tables, facts = scene.tables, scene.facts
    anon_vmas, vmas = tables.anon_vmas, tables.vmas
    count = len(anon_vmas.address)
    waited = take(anon_vmas.lock_state, facts.root_row, LockState.IDLE) == LockState.QUEUED
    merging = (vmas.vm_flags & _VM_MERGEABLE) != 0
    merging &= (vmas.active != NO_ROW) & take(scene.mm_reader, vmas.mm, False)
    if tables.ksm.records is None:
        merging[:] = False
    scanned = np.full(count, NO_ROW, dtype=np.int64)
    scanned[vmas.active[merging]] = vmas.mm[merging]
    for group in scene.violations("AV404"):
        rows = np.empty(0, dtype=np.int64) if group.anon_vma is None else group.anon_vma
        for row in rows[waited[rows] | (scanned[rows] != NO_ROW)].tolist():
            if waited[row]:
                name, lock = "rmap", scene.root_lock(row, "waited for")
            else:
                name, lock = "ksm", scene.mm_lock(int(scanned[row]), "read")

            def settle(draft: Draft, row: int = row) -> None:
                draft.pending[row] = draft.pending.get(row, 0) + 1

            yield Operation(name, lock, _KINDS, settle, anon_vmas=frozenset((row,)))


def _of_root_vmas(scene: Scene) -> Iterator[Operation]:
    """References to root VMAs (ANON_VMA_LAZY) whose words are not there yet, or not any more.

    A first fault takes its reference before it sets the word, and a split before the new VMA is in
    the tree. An upgrade puts its reference after the word is gone, and munmap after the VMAs are
    out of the tree, all of them at once, by then with the ``mmap_lock`` held for read, perhaps; and
    a VMA that is unlinked is one of those until it is freed. Nothing leads to what munmap has taken
    out: of these references there can be as many as memory has room for VMAs.
    """
    tables, facts = scene.tables, scene.facts
    vmas = tables.vmas
    surplus = vmas.root_refs - facts.root_references[1]
    held = take((scene.mm_writer | scene.mm_reader) & facts.mm_complete, vmas.mm, False)
    held &= (surplus > 0) & (surplus <= scene.room)
    for mm in np.unique(vmas.mm[held]).tolist():
        rows = np.flatnonzero(held & (vmas.mm == mm)).tolist()

        def settle(draft: Draft, rows: list[int] = rows) -> None:
            draft.exact_roots.update(rows)

        yield Operation(
            "root_refs",
            scene.mm_lock(mm),
            kinds.ROOT_PINNED,
            settle,
            vmas=frozenset(rows),
            beside=True,
        )


def _merged_with_root_vmas(scene: Scene) -> Iterator[Operation]:
    """A VMA that is merged with a lazy one: its word is there before the reference.

    ``dup_anon_vma()``, mm/vma.c, copies the word and then has ``anon_vma_clone()`` do the rest; so
    two VMAs have it, and one mm has no other root VMA that is short.
    """
    vmas, facts = scene.tables.vmas, scene.facts
    lack = facts.root_references[0] - vmas.root_refs
    lack[~take(scene.mm_writer, vmas.mm, False)] = 0
    lazy = facts.vmas_of_kind(AnonVmaKind.LAZY_VMA)
    for root in np.flatnonzero(lack == 1).tolist():
        mm = vmas.mm[root]
        same = lazy[vmas.anon_vma_pointer[lazy] == vmas.address[root]]
        if np.count_nonzero((vmas.mm == mm) & (lack > 0)) > 1:
            continue
        if np.count_nonzero(facts.at_rest[same] & (vmas.mm[same] == mm)) < 2:
            continue

        def settle(draft: Draft, root: int = root) -> None:
            draft.exact_roots.add(root)

        yield Operation(
            "merge",
            scene.mm_lock(int(mm)),
            kinds.ROOT_SHORT,
            settle,
            vmas=frozenset((root,)),
            beside=True,
        )
