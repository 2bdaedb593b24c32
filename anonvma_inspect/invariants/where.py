"""Where in the machine a finding is: the mapping it belongs to, and its family."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from anonvma_inspect.invariants.base import Violations, Where
from anonvma_inspect.tables import NO_ROW, RowColumn, Tables

__all__ = ("Locator",)


class Locator:
    """Tells where rows of the tables belong; made for one finding at a time.

    :param tables: What was read.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def where(self, violations: Violations, index: int) -> Where:
        """The mapping that one of the violations belongs to.

        That is the VMA it names; for an anon_vma, the first VMA in its tree, or else the first one
        that has it active; for an mm, its process alone.
        """
        vma = violations.row(violations.vma, index)
        if vma == NO_ROW:
            vma = self._vma_of_anon_vma(violations.row(violations.anon_vma, index))
        if vma != NO_ROW:
            return self.where_vma(vma)
        pid, comm = self._process(violations.row(violations.mm, index))
        return Where(pid, comm)

    def where_vma(self, vma: int) -> Where:
        """The mapping that a VMA is, by its row."""
        vmas = self._tables.vmas
        pid, comm = self._process(int(vmas.mm[vma]))
        return Where(pid, comm, int(vmas.vm_start[vma]), int(vmas.vm_end[vma]))

    def root(self, violations: Violations, index: int) -> int | None:
        """Address of the root of the family that one of the violations belongs to, if known."""
        anon_vma = violations.row(violations.anon_vma, index)
        vma = violations.row(violations.vma, index)
        if anon_vma == NO_ROW and vma != NO_ROW:
            anon_vma = int(self._tables.vmas.active[vma])
        if anon_vma == NO_ROW:
            return None
        root = int(self._tables.anon_vmas.root_row[anon_vma])
        return None if root == NO_ROW else int(self._tables.anon_vmas.address[root])

    def _process(self, mm: int) -> tuple[int | None, bytes | None]:
        if mm == NO_ROW:
            return None, None
        task = int(self._tables.mms.task[mm])
        if task == NO_ROW:
            return None, None
        # A process is known by the id of its thread group, whichever thread speaks for its mm.
        return int(self._tables.tasks.tgid[task]), bytes(self._tables.tasks.comm[task])

    def _vma_of_anon_vma(self, anon_vma: int) -> int:
        if anon_vma == NO_ROW:
            return NO_ROW
        nodes, avcs, vmas = self._tables.nodes, self._tables.avcs, self._tables.vmas
        first, end = np.searchsorted(nodes.anon_vma, [anon_vma, anon_vma + 1])
        in_tree = avcs.vma_row[nodes.avc[first:end]]
        in_tree = in_tree[in_tree != NO_ROW]
        if len(in_tree):
            return int(in_tree[0])
        order = self._vmas_by_active
        first = int(np.searchsorted(vmas.active, anon_vma, sorter=order))
        if first < len(order) and vmas.active[order[first]] == anon_vma:
            return int(order[first])
        return NO_ROW

    @cached_property
    def _vmas_by_active(self) -> RowColumn:
        return np.argsort(self._tables.vmas.active, kind="stable")
