"""Merging VMAs that have different anon_vmas.

As in the RFC of February 2022 (``reconnect_pages()``): a VMA may be merged into its neighbour
although the two have different anon_vmas, if no other process shares its pages; their ``mapping``
is rewritten, page by page. What the posted patch tests is the anon_vma of one of the two
(``is_mergeable_anon_vma()``), and what it asserts, that of the other (``anon_vma_merge()``);
``rbt_no_children()`` is not shown. Here an anon_vma has no children if it is its own root, no other
anon_vma is in its family, and all VMAs in its tree are of one mm.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.saving import Saving, listed_vmas, saving_of
from anonvma_inspect.kernel.vm_flags import VM_SOFTDIRTY, guard_flag
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("save_merging",)

# VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP: VM_SPECIAL, include/linux/mm.h.
_VM_SPECIAL = np.uint64(0x4000 | 0x40000 | 0x400 | 0x10000000)


def save_merging(tables: Tables, families: Families) -> Saving:
    """Predict merging across anon_vmas: where both that is tested and that is asserted hold."""
    vmas, anon_vmas = tables.vmas, tables.anon_vmas
    low, high = _alike(tables)
    of = families.anon_vma_family
    free = (np.append(families.anon_vmas, 0)[of] == 1) & (np.append(families.mms, 0)[of] == 1)
    free &= anon_vmas.reached & (families.anon_vma_tree > 0)
    tested, asserted = free[vmas.active[low]], free[vmas.active[high]]
    only = families.anon_vma_tree == 1
    strict = tested & asserted & only[vmas.active[low]] & only[vmas.active[high]]
    merged = tested & asserted
    gone = marked(len(vmas.address), high[merged])
    in_avcs = np.append(gone, False)[tables.avcs.vma_row]
    # An anon_vma goes with the last of its VMAs.
    left = np.bincount(
        tables.avcs.anon_vma_row[~in_avcs & (tables.avcs.anon_vma_row != NO_ROW)],
        minlength=len(anon_vmas.address),
    )
    without = marked(len(anon_vmas.address), vmas.active[high[merged]]) & (left == 0)
    return saving_of(
        tables,
        families,
        slug="merging",
        title="merging VMAs with different anon_vmas",
        status="RFC of February 2022, not merged",
        figures={
            "neighbours_alike": len(low),
            "tested": int(np.count_nonzero(tested)),
            "asserted": int(np.count_nonzero(asserted)),
            "merges": int(np.count_nonzero(merged)),
            "merges_of_single_vmas": int(np.count_nonzero(strict)),
            **_price(tables, gone),
        },
        vmas=gone,
        avcs=in_avcs,
        anon_vmas=without,
        assumed=(
            "an anon_vma has no children if its family is itself and its VMAs are of one mm; both "
            "that of the lower VMA (which the patch tests) and that of the upper one (which it "
            "asserts, and whose folios it rewrites) must be so",
            "flags, file and offsets are all that keeps VMAs apart",
            "each is merged where it could be: the kernel does so only when a range is changed",
        ),
        cannot_tell=(
            "memory policies, userfaultfd, names of mappings and close() of drivers, which keep "
            "VMAs apart as well (less is saved)",
            "how long it takes: each folio's mapping must be rewritten, under its lock (how many "
            "there are is not known without page data)",
        ),
    )


# Folios whose mapping must be rewritten if some VMAs go.
def _price(tables: Tables, gone: BoolColumn) -> dict[str, int]:
    vmas, pages = tables.vmas, tables.pages
    if pages is not None and pages.not_read is None:
        mapped = pages.mappings.folio[gone[pages.mappings.vma]]
        return {"folios_to_rewrite": len(np.unique(mapped))}
    room = (vmas.vm_end[gone] - vmas.vm_start[gone]) // np.uint64(tables.era.page_size)
    return {"most_folios_to_rewrite": int(room.sum(dtype=np.float64))}


# Neighbours in an mm that only their anon_vmas keep apart.
def _alike(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    vmas = tables.vmas
    rows = np.concatenate([listed_vmas(tables), _of_others(tables)])
    low, high = rows[:-1], rows[1:]
    # Not compared when VMAs are merged; the second is taken over by the other.
    loose = VM_SOFTDIRTY | np.uint64(guard_flag(tables.era))
    alike: BoolColumn = (vmas.mm[low] == vmas.mm[high]) & (vmas.vm_end[low] == vmas.vm_start[high])
    alike &= ((vmas.vm_flags[low] ^ vmas.vm_flags[high]) & ~loose) == 0
    alike &= (vmas.vm_flags[high] & _VM_SPECIAL) == 0
    alike &= vmas.vm_file[low] == vmas.vm_file[high]
    pages = (vmas.vm_end[low] - vmas.vm_start[low]) // np.uint64(tables.era.page_size)
    alike &= vmas.vm_pgoff[low] + pages == vmas.vm_pgoff[high]
    alike &= vmas.key_last[low] + np.uint64(1) == vmas.key_first[high]
    alike &= (vmas.active[low] != NO_ROW) & (vmas.active[high] != NO_ROW)
    alike &= vmas.active[low] != vmas.active[high]
    return low[alike], high[alike]


# VMAs of mms whose trees were not read, by mm and address: nothing stands between two that touch.
def _of_others(tables: Tables) -> RowColumn:
    vmas = tables.vmas
    rows = np.flatnonzero(~np.append(tables.mms.walked, True)[vmas.mm])
    return rows[np.lexsort((vmas.vm_start[rows], vmas.mm[rows]))]
