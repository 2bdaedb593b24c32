"""What a change to the kernel would save of what is there now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("Saving", "listed_vmas", "saving_of")


@dataclass(frozen=True)
class Saving:
    """What one proposal comes to.

    :ivar slug: Its name in answers.
    :ivar title: What it is, in one line.
    :ivar status: What became of it.
    :ivar vmas: Objects that would not be there.
    :ivar avcs: Likewise.
    :ivar anon_vmas: Likewise.
    :ivar bytes: Of those, as structs.
    :ivar avcs_gone: Which rows of :class:`~anonvma_inspect.tables.Avcs` these are; ``None``: none.
    :ivar anon_vmas_gone: Likewise, of :class:`~anonvma_inspect.tables.AnonVmas`.
    :ivar by_mm: The same by row of :class:`~anonvma_inspect.tables.Mms`; the last is nobody's.
    :ivar figures: What the proposal turns on, counted.
    :ivar assumed: What these figures take for granted.
    :ivar cannot_tell: What no snapshot tells.
    :ivar not_known: Why nothing is predicted, if so.
    :ivar why_gone: Why the kernel had it and has it no more, if so.
    """

    slug: str
    title: str
    status: str
    vmas: int
    avcs: int
    anon_vmas: int
    bytes: int
    by_mm: I64Column
    figures: Mapping[str, int]
    assumed: tuple[str, ...]
    cannot_tell: tuple[str, ...]
    not_known: str | None = None
    why_gone: str | None = None
    avcs_gone: BoolColumn | None = None
    anon_vmas_gone: BoolColumn | None = None


def saving_of(
    tables: Tables,
    families: Families,
    *,
    slug: str,
    title: str,
    status: str,
    figures: Mapping[str, int],
    assumed: tuple[str, ...],
    cannot_tell: tuple[str, ...],
    vmas: BoolColumn | None = None,
    avcs: BoolColumn | None = None,
    anon_vmas: BoolColumn | None = None,
    not_known: str | None = None,
    why_gone: str | None = None,
) -> Saving:
    """Add up what would not be there.

    :param vmas: Which rows; ``None``: none. Likewise ``avcs`` and ``anon_vmas``.
    """
    nobody, era = len(tables.mms.address), tables.era
    by_mm = np.zeros(nobody + 1, dtype=np.int64)

    def add(mm: RowColumn, chosen: BoolColumn | None, size: int) -> int:
        if chosen is None:
            return 0
        whose = np.where(mm == NO_ROW, nobody, mm)[chosen]
        by_mm[:] += np.bincount(whose, minlength=nobody + 1) * size
        return len(whose)

    counts = (
        add(tables.vmas.mm, vmas, era.vma.size),
        add(np.append(tables.vmas.mm, NO_ROW)[tables.avcs.vma_row], avcs, era.avc.size),
        add(families.anon_vma_mm, anon_vmas, era.anon_vma.size),
    )
    return Saving(
        slug=slug,
        title=title,
        status=status,
        vmas=counts[0],
        avcs=counts[1],
        anon_vmas=counts[2],
        bytes=int(by_mm.sum()),
        by_mm=by_mm,
        figures=figures,
        assumed=assumed,
        cannot_tell=cannot_tell,
        not_known=not_known,
        why_gone=why_gone,
        avcs_gone=avcs,
        anon_vmas_gone=anon_vmas,
    )


def listed_vmas(tables: Tables) -> RowColumn:
    """VMAs that stand in the tree of their own mm: by mm, and there by address.

    With ``--pid``, only those of the named processes: of others' the trees are not read.
    """
    slots = tables.slots
    own = np.flatnonzero(slots.vma != NO_ROW)
    own = own[tables.vmas.slot[slots.vma[own]] == own]
    rows: RowColumn = slots.vma[own]
    return rows
