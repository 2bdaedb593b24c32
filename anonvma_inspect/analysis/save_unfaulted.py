"""ANON_VMA_UNFAULTED: a flag instead of an anon_vma for VMAs that have guard regions only.

As in the series posted in March 2025: what tells fork to copy page tables is an anon_vma, so that
``madvise(MADV_GUARD_INSTALL)`` makes one where nothing anonymous was ever faulted in. Kernels since
2026 have a flag of VMAs for it (``VMA_MAYBE_GUARD_BIT``) and allocate nothing.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.saving import Saving, saving_of
from anonvma_inspect.kernel.vm_flags import guard_flag
from anonvma_inspect.tables import NO_ROW, Tables, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("save_unfaulted",)

# retract_page_tables() (mm/khugepaged.c) passes over mappings of files that have an anon_vma.
_HUGE = 2 << 20


def save_unfaulted(
    tables: Tables, families: Families, populated: BoolColumn | None = None
) -> Saving:
    """Predict ANON_VMA_UNFAULTED.

    :param populated: Which VMAs have an anonymous page, or an entry for one that is swapped out or
        on the move; ``None`` if that is not known.
    """
    vmas, avcs = tables.vmas, tables.avcs
    flag = np.uint64(guard_flag(tables.era))
    guarded = (vmas.vm_flags & flag) != 0
    faulted = vmas.active != NO_ROW
    figures = {
        "already_saved": int(np.count_nonzero(guarded & ~faulted)),
        "guarded_with_anon_vma": int(np.count_nonzero(guarded & faulted)),
    }
    gone: BoolColumn = np.zeros(len(tables.anon_vmas.address), dtype=bool)
    if populated is not None:
        # A family without a page is there for nothing: what its first VMA got, forks copied.
        filled = marked(len(families.root), families.member_family[populated[families.member_vma]])
        empty = ~filled & (families.vmas > 0)
        of = families.anon_vma_family
        gone = np.append(empty, False)[of]
        of_file = marked(
            len(families.root), families.member_family[vmas.vm_file[families.member_vma] != 0]
        )
        huge = -(-vmas.vm_start // np.uint64(_HUGE)) * np.uint64(_HUGE)
        room = (huge >= vmas.vm_start) & (huge + np.uint64(_HUGE) <= vmas.vm_end)
        refused = faulted & (vmas.vm_file != 0) & room
        refused &= np.append(empty, False)[families.vma_family]
        figures |= {
            "families": int(np.count_nonzero(empty)),
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
        ),
        not_known=None if populated is not None else "not known without page data",
    )
