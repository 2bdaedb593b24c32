"""Huge pages that are set aside, where they are anonymous memory."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.folios import FolioReader
from anonvma_inspect.collect.page_tables import look_up
from anonvma_inspect.collect.pages import page_sources
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.page_table import EntryKind
from anonvma_inspect.kernel.vm_flags import VM_HUGETLB, VM_SHARED
from anonvma_inspect.tables import NO_ROW, Folios, RowColumn, Tables
from anonvma_inspect.target.memory import U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("read_hugetlb",)

# More than a machine with 2 TiB of them has; what is beyond is left out.
_MOST = 1 << 20


def read_hugetlb(target: Target, tables: Tables) -> Folios | None:
    """Read the folios of hugetlb that private VMAs map.

    :param tables: Of this target.
    :return: ``None`` if folios cannot be read.
    """
    sources = page_sources(target)
    if isinstance(sources, str):
        return None
    reader, vmas = Reader(target), tables.vmas
    form = sources.form
    pages = FolioReader(reader, sources.era, sources.vmemmap)
    wanted = (vmas.vm_flags & (VM_HUGETLB | VM_SHARED)) == VM_HUGETLB
    wanted &= (vmas.anon_vma != 0) & (vmas.slot != NO_ROW)
    vma, address = _places(tables, np.flatnonzero(wanted), form.shift(2))
    pgd, _ = reader.words(tables.era.mm, tables.mms.address, "pgd")
    found = look_up(reader, form, np.append(pgd, np.uint64(0))[vmas.mm[vma]], address)
    mapped = (found.kind == EntryKind.PAGE) | (found.kind == EntryKind.FRAME)
    frame = found.frame[mapped]
    _, head, _ = pages.anonymous(frame[pages.in_ram(frame)])
    return pages.read(distinct(head))


# Where entries of huge pages can be: VMA, and address.
def _places(tables: Tables, vma: RowColumn, shift: int) -> tuple[RowColumn, U64Column]:
    start, end = tables.vmas.vm_start[vma], tables.vmas.vm_end[vma]
    sound = end > start
    vma, start, end = vma[sound], start[sound], end[sound]
    count = np.minimum((end - start) >> np.uint64(shift), np.uint64(_MOST)).astype(np.int64)
    before = np.cumsum(count) - count
    vma, start, before, count = (
        column[before + count <= _MOST] for column in (vma, start, before, count)
    )
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    address = np.repeat(start, count) + (within.astype(np.uint64) << np.uint64(shift))
    return np.repeat(vma, count), address
