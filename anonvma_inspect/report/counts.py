"""What was collected, in numbers."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.report.words import counted
from anonvma_inspect.tables import Tables

__all__ = ("count_objects", "describe_counts")


def count_objects(tables: Tables) -> dict[str, int]:
    """Numbers of the objects in the tables, by the names that JSON answers give them."""
    listed = int(np.count_nonzero(tables.mms.listed))
    reached = tables.anon_vmas.reached
    is_root = tables.anon_vmas.root == tables.anon_vmas.address
    return {
        # Thread groups; the tables hold only threads that have an mm.
        "processes": len(np.unique(tables.tasks.tgid)),
        "mms": listed,
        "unlisted_mms": len(tables.mms.address) - listed,
        "vmas": len(tables.vmas.address),
        "avcs": len(tables.avcs.address),
        "anon_vmas": int(np.count_nonzero(reached)),
        "roots": int(np.count_nonzero(reached & is_root)),
    }


def describe_counts(counts: dict[str, int]) -> str:
    """The same in one line."""
    unlisted = f" (and {counts['unlisted_mms']:,} unlisted)" if counts["unlisted_mms"] else ""
    return (
        f"{counted(counts['processes'], 'process', 'processes')}, "
        f"{counted(counts['mms'], 'mm')}{unlisted}, {counted(counts['vmas'], 'VMA')}, "
        f"{counted(counts['avcs'], 'AVC')}, {counted(counts['anon_vmas'], 'anon_vma')}, "
        f"{counted(counts['roots'], 'root')}"
    )
