"""Whose the objects of the reverse map are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables

__all__ = ("Holdings", "find_holdings")


@dataclass(frozen=True)
class Holdings:
    """Objects by mm: row ``i`` is that of :class:`~anonvma_inspect.tables.Mms`, the last nobody's.

    A VMA belongs to its mm, an AVC to that of its VMA, an anon_vma to that of the VMAs that have it
    active. (At rest these are of one mm.) Those that wait, or that only KSM holds, are nobody's.
    """

    vmas: I64Column
    #: VMAs that have an anon_vma.
    with_anon_vma: I64Column
    avcs: I64Column
    anon_vmas: I64Column
    #: Of AVCs and anon_vmas, as structs.
    bytes: I64Column


def find_holdings(tables: Tables, families: Families) -> Holdings:
    """Count the objects of each mm."""
    vmas, avcs = tables.vmas, tables.avcs
    nobody = len(tables.mms.address)

    def by_mm(rows: RowColumn) -> I64Column:
        counts: I64Column = np.bincount(
            np.where(rows == NO_ROW, nobody, rows), minlength=nobody + 1
        )
        return counts

    of_vma = np.append(vmas.mm, NO_ROW)
    in_avcs = by_mm(of_vma[avcs.vma_row])
    in_anon_vmas = by_mm(families.anon_vma_mm[tables.anon_vmas.reached])
    era = tables.era
    return Holdings(
        vmas=by_mm(vmas.mm),
        with_anon_vma=by_mm(vmas.mm[vmas.active != NO_ROW]),
        avcs=in_avcs,
        anon_vmas=in_anon_vmas,
        bytes=in_avcs * era.avc.size + in_anon_vmas * era.anon_vma.size,
    )
