"""What the next fork of each process would allocate, and insert under the locks of roots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.analysis.saving import listed_vmas
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.kernel.vm_flags import VM_DONTCOPY, VM_WIPEONFORK
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("ForkCost", "fork_cost")


@dataclass(frozen=True)
class ForkCost:
    """By row of :class:`~anonvma_inspect.tables.Mms`: what ``dup_mmap()`` would do now."""

    #: VMAs to copy.
    vmas: I64Column
    #: AVCs to allocate and to insert: one for each of the parent's, and one for each new anon_vma.
    avcs: I64Column
    #: anon_vmas to allocate.
    anon_vmas: I64Column
    #: anon_vmas to hand on instead of new ones.
    reused: I64Column
    #: VMAs whose copies are linked under the lock of a root.
    locked: I64Column


def fork_cost(tables: Tables) -> ForkCost:
    """Work out the next fork of each process.

    Follows ``anon_vma_fork()`` and ``anon_vma_clone()``, ``mm/rmap.c``, and ``dup_mmap()``,
    ``kernel/fork.c`` (v6.1, v6.12): which anon_vma is handed on depends on the order of the chain,
    that one is does not, but where several VMAs compete for the same ones. With ANON_VMA_LAZY it is
    the parent's VMAs that get anon_vmas, those that have none; unless they share a neighbour's,
    which is left out here.
    """
    vmas = tables.vmas
    row = listed_vmas(tables)
    row = row[(vmas.vm_flags[row] & VM_DONTCOPY) == 0]
    mm = vmas.mm[row]
    count = len(tables.mms.address)

    def by_mm(chosen: BoolColumn, weight: I64Column | None = None) -> I64Column:
        weights = None if weight is None else weight[chosen]
        return np.bincount(mm[chosen], weights=weights, minlength=count).astype(np.int64)

    tags = tables.era.tags
    kinds = tags.kinds(vmas.anon_vma_pointer[row], vmas.anon_vma_tag[row])
    bare = (kinds == AnonVmaKind.LAZY_VMA) | (kinds == AnonVmaKind.LAZY_PARENT)
    linked = (vmas.active[row] != NO_ROW) | bare
    linked &= (vmas.vm_flags[row] & VM_WIPEONFORK) == 0
    handed_on = np.zeros(len(vmas.address), dtype=bool)
    handed_on[_handed_on(tables, row[linked])] = True
    reused = handed_on[row] & linked
    fresh = linked & ~reused
    # An AVC of a new anon_vma: the child's; or the parent's, and a copy of that.
    own = fresh.astype(np.int64)
    if tags.name == "lazy" and tags.enabled is not False:
        fresh = linked & bare
        own = 2 * fresh.astype(np.int64)
    return ForkCost(
        vmas=by_mm(np.ones(len(row), dtype=bool)),
        avcs=by_mm(linked, vmas.chain_length[row] + own),
        anon_vmas=by_mm(fresh),
        reused=by_mm(reused),
        locked=by_mm(linked),
    )


# VMAs (of those, in order) whose copies are handed an anon_vma of their chain.
def _handed_on(tables: Tables, rows: RowColumn) -> list[int]:
    anon_vmas, vmas, links = tables.anon_vmas, tables.vmas, tables.links
    if not tables.era.has_parent:
        return []
    if tables.era.has_separate_counts:
        free = (anon_vmas.num_active_vmas == 0) & (anon_vmas.num_children <= 1)
    else:
        free = anon_vmas.degree < 2
    anon_vma = tables.avcs.anon_vma_row[links.avc]
    usable = (anon_vma != NO_ROW) & np.append(free, False)[anon_vma]
    usable &= anon_vma != vmas.active[links.vma]
    place = np.full(len(vmas.address), NO_ROW, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    link = np.flatnonzero(usable & (place[links.vma] != NO_ROW))
    # Each VMA from the end of its chain on.
    link = link[np.lexsort((-links.position[link], place[links.vma[link]]))]
    mm = vmas.mm[links.vma[link]]
    # Few anon_vmas are free to be handed on; each is, once a fork.
    taken: set[tuple[int, int]] = set()
    served: list[int] = []
    for vma, whose, candidate in zip(
        links.vma[link].tolist(), mm.tolist(), anon_vma[link].tolist(), strict=True
    ):
        if (whose, candidate) in taken or (served and served[-1] == vma):
            continue
        taken.add((whose, candidate))
        served.append(vma)
    return served
