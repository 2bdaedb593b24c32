"""Bits of ``vm_area_struct.vm_flags`` (``include/linux/mm.h``; the same in v5.10 to v7.3)."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.kernel.era import Era

__all__ = (
    "VM_DONTCOPY",
    "VM_HUGETLB",
    "VM_NOT_ANONYMOUS",
    "VM_NOT_HUGE",
    "VM_SHARED",
    "VM_SOFTDIRTY",
    "VM_WIPEONFORK",
    "guard_flag",
)

VM_SHARED = np.uint64(0x8)
#: Maps huge pages of those set aside.
VM_HUGETLB = np.uint64(0x400000)

#: MADV_DONTFORK: a child does not get it.
VM_DONTCOPY = np.uint64(0x20000)
#: MADV_WIPEONFORK: a child gets it empty.
VM_WIPEONFORK = np.uint64(0x2000000)
#: VM_SHARED, VM_PFNMAP, VM_IO, VM_HUGETLB, VM_MIXEDMAP: what such a VMA maps is not anonymous, or
#: not counted page by page.
VM_NOT_ANONYMOUS = np.uint64(0x8 | 0x400 | 0x4000 | 0x400000 | 0x10000000)
#: VM_NOHUGEPAGE, VM_UFFD_WP, VM_IO, VM_DONTEXPAND, VM_PFNMAP, VM_MIXEDMAP, VM_HUGETLB: such a VMA
#: gets no huge page of a file's, or not by collapse (``retract_page_tables()``,
#: ``hugepage_vma_check()``, since v6.6 ``thp_vma_allowable_order()``; v6.1, v6.12, v7.3).
VM_NOT_HUGE = np.uint64(0x40000000 | 0x1000 | 0x4000 | 0x40000 | 0x400 | 0x10000000 | 0x400000)
#: Does not keep VMAs from being merged.
VM_SOFTDIRTY = np.uint64(0x8000000)


def guard_flag(era: Era) -> int:
    """``VM_MAYBE_GUARD``: there may be guard regions, so that fork must copy the page tables.

    Kernels with ``vm_area_struct.flags`` have it (Debian's 7.2 and 7.3), as
    ``VMA_MAYBE_GUARD_BIT``; before v5.16 the bit was another's.

    :return: 0 where there is no such flag.
    """
    return 1 << 11 if "vma_flags" in era.vma else 0
