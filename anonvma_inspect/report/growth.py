"""A part of ``stats``: how far families have grown, and what only waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.objects import describe_vma, process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import counted, hexadecimal
from anonvma_inspect.tables import I64Column, Tables

__all__ = ("Growth",)

_MAX_LISTED = 5
_MAX_TOLD = 100
# "mm: prevent endless growth of anon_vma hierarchy", 7a3ef208e662 (v3.19).
_BOUND = 2


@dataclass(frozen=True)
class Growth:
    """Families beside the bound that fork's rule of reuse is there for; the longest chains.

    An anon_vma without an active VMA and with one child at most is handed on by the next fork that
    meets it. So a family whose processes fork has at most twice as many anon_vmas as VMAs; one that
    is over that has lost VMAs and has not forked since.
    """

    tables: Tables
    families: Families

    key = "growth"

    # anon_vmas that have trees, a family.
    @cached_property
    def _live(self) -> I64Column:
        return self.families.anon_vmas - self.families.zombies

    # Families with more of them than VMAs, the worst first.
    @cached_property
    def _grown(self) -> list[int]:
        vmas = self.families.vmas
        more = np.flatnonzero((self._live > vmas) & (vmas > 0))
        order = np.lexsort((more, -self._live[more] / vmas[more]))
        return [int(family) for family in more[order]]

    @cached_property
    def _over(self) -> int:
        families = self.families
        over = (self._live > _BOUND * families.vmas) & (families.vmas > 0)
        return int(np.count_nonzero(over))

    @cached_property
    def _deepest(self) -> list[int]:
        length = self.tables.vmas.chain_length
        order = np.argsort(-length, kind="stable")[:_MAX_TOLD]
        return [int(row) for row in order if length[row] > 1]

    def document(self) -> Document:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        families = self.families
        return {
            "waiting": int(families.waiting.sum()),
            "zombies": int(families.zombies.sum()),
            "bound": _BOUND,
            "families_over": self._over,
            "families": [
                {
                    "root": hexadecimal(int(self.tables.anon_vmas.address[families.root[family]])),
                    "anon_vmas": int(self._live[family]),
                    "vmas": int(families.vmas[family]),
                    "ratio": round(float(self._live[family] / families.vmas[family]), 6),
                }
                for family in self._grown[:_MAX_TOLD]
            ],
            "deepest": [self._chain(row) for row in self._deepest],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        families = self.families
        over = counted(self._over, "family", "families")
        yield (
            f"{style.strong('growth')}: {counted(int(families.waiting.sum()), 'anon_vma')} without "
            f"an active VMA, {int(families.zombies.sum()):,} without any; "
            f"{style.warn(over) if self._over else over} with more than {_BOUND} anon_vmas a VMA, "
            "which forks keep down"
        )
        for family in self._grown[:_MAX_LISTED]:
            root = int(self.tables.anon_vmas.address[families.root[family]])
            live, vmas = int(self._live[family]), int(families.vmas[family])
            yield (
                f"  family of root {hexadecimal(root)}: {live:,} anon_vmas, "
                f"{counted(vmas, 'VMA')} ({live / vmas:.2f} each)"
            )
        for row in self._deepest[:_MAX_LISTED]:
            length = int(self.tables.vmas.chain_length[row])
            yield f"  {length:,} AVCs in the chain of {describe_vma(self.tables, row)}"

    def _chain(self, row: int) -> Document:
        vmas = self.tables.vmas
        process = process_of_mm(self.tables, int(vmas.mm[row]))
        return {
            "vma": hexadecimal(int(vmas.address[row])),
            "start": hexadecimal(int(vmas.vm_start[row])),
            "pid": None if process is None else process.pid,
            "chain_length": int(vmas.chain_length[row]),
        }
