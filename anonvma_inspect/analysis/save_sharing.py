"""Reusing the parent's mergeable anon_vma at fork.

As in "mm/rmap.c: reuse mergeable anon_vma as parent when fork" (2019; 4e4a9eb92133 in v5.5, gone
before v5.10): where the parent's VMA shares its anon_vma with the VMA before it, the child's copy
takes ``dst->vm_prev->anon_vma`` instead of a new one. ``dst`` was a copy of the parent's VMA, and
so its ``vm_prev`` was the parent's: the child's VMA got the parent's own anon_vma. Meant was that
of the child's VMA before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.saving import Saving, listed_vmas, saving_of
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("save_sharing",)

# No family is so deep.
_MAX_GENERATIONS = 10_000


def save_sharing(tables: Tables, families: Families) -> Saving:
    """Predict the reuse of neighbours' anon_vmas at fork, as it was merged."""
    # What stands before a child's VMA, only the tree of its mm tells.
    others = tables.pids and (~np.append(tables.mms.walked, True)[tables.vmas.mm]).any()
    gone = _shared(tables, families, meant=False)
    meant = _shared(tables, families, meant=True)
    avcs = np.append(gone, False)[tables.avcs.anon_vma_row]
    return saving_of(
        tables,
        families,
        slug="sharing",
        title="a child's VMA shares an anon_vma as its parent's does with the VMA before it",
        status="in 5.5, gone before 5.10",
        figures={}
        if others
        else {
            "shared_as_merged": int(np.count_nonzero(gone)),
            "shared_as_meant": int(np.count_nonzero(meant)),
        },
        avcs=avcs,
        anon_vmas=gone,
        assumed=(
            "VMAs that stand beside each other in a child stood so in its parent when it forked",
            "the figures are those of the patch as it was merged; as it was meant, the child's VMA "
            "is linked to the anon_vma that it shares: no AVC is saved",
        ),
        cannot_tell=(
            "VMAs that came or went after the fork, and MADV_DONTFORK, which puts another VMA "
            "before the child's",
        ),
        not_known="neighbours of other processes' VMAs are not read with --pid" if others else None,
        why_gone=(
            "as merged, VMAs of two processes have the same anon_vma active, so that the child's "
            "new pages go to the parent's and every walk looks into both: the isolation that "
            "chains are there for is lost (the author measured 20 % fewer allocations and 11.6 % "
            "less system time in a kernel build)"
        ),
    )


# anon_vmas of children that the patch would not have made: those of VMAs whose parents' VMAs had
# the same one active as the VMAs before them. Generation by generation, as what is shared in one
# decides about the next.
def _shared(tables: Tables, families: Families, *, meant: bool) -> BoolColumn:
    count = len(tables.anon_vmas.address)
    instead = np.arange(count)
    shared = np.zeros(count, dtype=bool)
    for before, own in _pairs(tables, families):
        parent = families.anon_vma_parent[own]
        same = instead[parent] == instead[families.anon_vma_parent[before]]
        own, before, parent = own[same], before[same], parent[same]
        if not meant:
            instead[own] = instead[parent]
        else:
            # In order of address, so that the one before is settled; a run of them is one.
            for mine, theirs in zip(own.tolist(), before.tolist(), strict=True):
                instead[mine] = instead[theirs]
        shared[own] = True
    return shared


# Pairs of children's anon_vmas, by generation and in order of address: of a VMA, and of the one
# before it in its mm.
def _pairs(tables: Tables, families: Families) -> Iterator[tuple[RowColumn, RowColumn]]:
    vmas = tables.vmas
    rows = listed_vmas(tables)
    low, high = rows[:-1], rows[1:]
    beside = vmas.mm[low] == vmas.mm[high]
    before, own = vmas.active[low[beside]], vmas.active[high[beside]]
    # The lowest VMA that has it is the one that it was made for.
    lowest = marked(len(vmas.address), rows[np.unique(vmas.active[rows], return_index=True)[1]])
    kept = (before != NO_ROW) & (own != NO_ROW) & (before != own) & lowest[high[beside]]
    before, own = before[kept], own[kept]
    # What was handed on was not made by this fork.
    kept = (families.anon_vma_parent[own] != NO_ROW) & (families.anon_vma_parent[before] != NO_ROW)
    kept &= ~families.anon_vma_reused[own]
    before, own = before[kept], own[kept]
    depth = families.anon_vma_depth[own]
    order = np.argsort(depth, kind="stable")
    before, own, depth = before[order], own[order], depth[order]
    ends = np.flatnonzero(np.diff(depth, append=-1)) + 1
    start = 0
    for end in ends[:_MAX_GENERATIONS].tolist():
        yield before[start:end], own[start:end]
        start = end
