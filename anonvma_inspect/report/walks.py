"""A part of ``stats``: what it costs to find the mappings of a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.analysis.walks import WalkCost, walk_cost
from anonvma_inspect.report.escape import escape
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.objects import process_of_mm
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import hexadecimal, table
from anonvma_inspect.tables import Tables

__all__ = ("Walks",)

# Lines that a person reads, and hot spots that are worth telling.
_MAX_LISTED = 5
_MAX_SPOTS = 100


@dataclass(frozen=True)
class Walks:
    """VMAs that a walk of the reverse map visits, a page."""

    tables: Tables
    families: Families

    key = "walks"

    @cached_property
    def _cost(self) -> WalkCost:
        return walk_cost(self.tables, self.families)

    def document(self) -> Document:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        everything = np.flatnonzero(self.tables.anon_vmas.reached)
        return {
            "weights": self._cost.weights,
            **self._figures(everything),
            "families": [self._family(family) for family in self._dearest[:_MAX_SPOTS]],
            "hot_spots": [self._spot(row) for row in self._hottest[:_MAX_SPOTS]],
        }

    def text(self, style: Style) -> Iterator[str]:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        cost = self._cost
        everything = np.flatnonzero(self.tables.anon_vmas.reached)
        pages, mean, single = cost.total(everything)
        yield (
            f"{style.strong('VMAs that a walk of the reverse map visits, a page')}: mean "
            f"{mean:,.3f}, worst {int(cost.worst.max(initial=0)):,}; if each family had one "
            f"anon_vma, as before 2.6.34: mean {single:,.3f}"
        )
        if cost.weights == "folios":
            whose = " of these processes" if self.tables.pids else ""
            yield f"each of the {pages:,} folios that page tables{whose} map counts, KSM's aside"
        else:
            yield (
                f"each of the {pages:,} pages that VMAs have room for counts, in the anon_vma that "
                "new ones go to; which are there is not known without page data"
            )
        rows = []
        for family in self._dearest[:_MAX_LISTED]:
            root = int(self.families.root[family])
            members = self.families.members(family)
            pages, mean, single = cost.total(members)
            rows.append(
                (
                    hexadecimal(int(self.tables.anon_vmas.address[root])),
                    f"{pages:,}",
                    f"{mean:,.3f}",
                    f"{int(cost.worst[members].max()):,}",
                    f"{single:,.3f}",
                    str(process_of_mm(self.tables, int(self.families.mm[family])) or "no task"),
                )
            )
        headers = (
            "FAMILY",
            cost.weights.replace("vmas", "pages").upper(),
            "MEAN",
            "WORST",
            "ONE ANON_VMA",
            "FIRST PROCESS",
        )
        align = ("left", "right", "right", "right", "right", "left")
        yield from table(rows, headers, align)
        rows = []
        for row in self._hottest[:_MAX_LISTED]:
            rows.append(
                (
                    hexadecimal(int(self.tables.anon_vmas.address[row])),
                    f"{int(cost.pages[row]):,}",
                    f"{cost.visits[row] / cost.pages[row]:,.3f}",
                    f"{int(cost.worst[row]):,}",
                    f"{int(self.families.anon_vma_tree[row]):,}",
                    str(process_of_mm(self.tables, int(self.families.anon_vma_mm[row]))),
                )
            )
        if not rows:
            return
        headers = (
            "HOT SPOT",
            cost.weights.replace("vmas", "pages").upper(),
            "MEAN",
            "WORST",
            "TREE",
            "PROCESS",
        )
        yield from table(rows, headers, align)

    # Of some anon_vmas.
    def _figures(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Document:
        pages, mean, single = self._cost.total(rows)
        return {
            "pages": pages,
            "mean": round(mean, 6),
            "worst": int(self._cost.worst[rows].max(initial=0)),
            "one_anon_vma": round(single, 6),
        }

    def _family(self, family: int) -> Document:
        root = int(self.families.root[family])
        return {
            "root": hexadecimal(int(self.tables.anon_vmas.address[root])),
            **self._figures(self.families.members(family)),
        }

    def _spot(self, row: int) -> Document:
        cost, families = self._cost, self.families
        process = process_of_mm(self.tables, int(families.anon_vma_mm[row]))
        return {
            "anon_vma": hexadecimal(int(self.tables.anon_vmas.address[row])),
            "pages": int(cost.pages[row]),
            "mean": round(float(cost.visits[row] / cost.pages[row]), 6),
            "worst": int(cost.worst[row]),
            "tree": int(families.anon_vma_tree[row]),
            "pid": None if process is None else process.pid,
            "comm": None if process is None else escape(process.comm),
        }

    # Families, that with most visits first.
    @cached_property
    def _dearest(self) -> list[int]:
        of = self.families.anon_vma_family
        kept = of >= 0
        visits = np.bincount(
            of[kept], weights=self._cost.visits[kept], minlength=len(self.families.root)
        )
        order = np.argsort(-visits, kind="stable")[:_MAX_SPOTS]
        found: list[int] = order[visits[order] > 0].tolist()
        return found

    # anon_vmas in which walks visit more than they would have to, that with most visits first.
    @cached_property
    def _hottest(self) -> list[int]:
        cost = self._cost
        order = np.argsort(-cost.visits, kind="stable")[:_MAX_SPOTS]
        found: list[int] = order[cost.visits[order] > cost.pages[order]].tolist()
        return found
