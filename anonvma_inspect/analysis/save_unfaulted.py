"""ANON_VMA_UNFAULTED: a flag instead of an anon_vma for VMAs that have guard regions only.

As in the series posted in March 2025: what tells fork to copy page tables is an anon_vma, so that
``madvise(MADV_GUARD_INSTALL)`` makes one where nothing anonymous was ever faulted in. Kernels since
2026 have a flag of VMAs for it (``VMA_MAYBE_GUARD_BIT``) and allocate nothing.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.saving import Saving, saving_of
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.kernel.vm_flags import VM_NOT_ANONYMOUS, VM_NOT_HUGE, guard_flag
from anonvma_inspect.tables import NO_ROW, Tables, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("save_unfaulted",)

_NOT_READ = "--pages"


def save_unfaulted(tables: Tables, families: Families) -> Saving:
    """Predict ANON_VMA_UNFAULTED: which anon_vmas have no page, page tables tell."""
    vmas, avcs = tables.vmas, tables.avcs
    flag = np.uint64(guard_flag(tables.era))
    guarded = (vmas.vm_flags & flag) != 0
    faulted = vmas.active != NO_ROW
    kinds = tables.era.tags.kinds(vmas.anon_vma_pointer, vmas.anon_vma_tag)
    guarded |= kinds == AnonVmaKind.UNFAULTED
    figures = {
        "already_saved": int(np.count_nonzero(guarded & ~faulted)),
        "guarded_with_anon_vma": int(np.count_nonzero(guarded & faulted)),
    }
    gone: BoolColumn = np.zeros(len(tables.anon_vmas.address), dtype=bool)
    pages = tables.pages
    not_known = _NOT_READ if pages is None else pages.not_read
    if pages is not None and pages.coverage.page_tables_lost:
        not_known = "some page tables are missing"
    if pages is not None and not_known is None:
        populated = marked(len(vmas.address), pages.mappings.vma)
        populated |= marked(len(vmas.address), pages.swapped.vma)
        # Of these, nothing is known: they may have pages.
        unclear = marked(len(vmas.address), pages.vmas_unclear)
        unclear |= (vmas.vm_flags & VM_NOT_ANONYMOUS) != 0
        unclear |= ~np.append(tables.mms.walked & tables.mms.listed, False)[vmas.mm]

        def have(vma: BoolColumn) -> BoolColumn:
            return marked(len(families.root), families.member_family[vma[families.member_vma]])

        # A family without a page is there for nothing: what its first VMA got, forks copied.
        empty = ~have(populated) & (families.vmas > 0)
        not_told = empty & have(unclear)
        empty &= ~not_told
        of = families.anon_vma_family
        gone = np.append(empty, False)[of]
        of_file = marked(
            len(families.root), families.member_family[vmas.vm_file[families.member_vma] != 0]
        )
        refused = faulted & _fits_huge_page(tables)
        refused &= np.append(empty, False)[families.vma_family]
        figures |= {
            "families": int(np.count_nonzero(empty)),
            "families_not_told": int(np.count_nonzero(not_told)),
            "anon_vmas_of_files": int(np.count_nonzero(gone & np.append(of_file, False)[of])),
            "collapse_refused": int(np.count_nonzero(refused)),
        }
    return saving_of(
        tables,
        families,
        slug="unfaulted",
        title="ANON_VMA_UNFAULTED: no anon_vma for guard regions alone",
        status="RFC of March 2025, not merged; 7.x has a flag of VMAs instead",
        figures=figures,
        avcs=np.append(gone, False)[avcs.anon_vma_row],
        anon_vmas=gone,
        assumed=(
            "a family of which no VMA maps an anonymous page got its anon_vma for guard regions",
        ),
        cannot_tell=(
            "anon_vmas whose pages were freed or unmapped again (less is saved)",
            "guard regions in VMAs that have pages as well: they need their anon_vma",
            "whether huge pages are collapsed in these files at all: the type of the file, the "
            "kernel's configuration, sysfs, prctl() and guards in the range have a say as well",
        ),
        not_known=None if not_known is None else f"not known without page data ({not_known})",
    )


# VMAs of files in which a huge page could stand, were it not for an anon_vma: it fits between their
# ends, and begins at the same place in the file as in memory (retract_page_tables(),
# mm/khugepaged.c, v6.1, v6.12, v7.3; those with an anon_vma it passes over first of all).
def _fits_huge_page(tables: Tables) -> BoolColumn:
    vmas, page = tables.vmas, np.uint64(tables.era.page_size)
    # HPAGE_PMD_NR: a page of entries of eight bytes each.
    count = page // np.uint64(8)
    huge = page * count
    first = -(-vmas.vm_start // huge) * huge
    fits: BoolColumn = (first >= vmas.vm_start) & (first + huge <= vmas.vm_end)
    fits &= (vmas.vm_start // page - vmas.vm_pgoff) % count == 0
    fits &= (vmas.vm_file != 0) & ((vmas.vm_flags & VM_NOT_HUGE) == 0)
    return fits
