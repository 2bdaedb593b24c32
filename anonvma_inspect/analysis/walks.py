"""What it costs to find the mappings of a page: the VMAs that a walk of the reverse map visits.

``rmap_walk_anon()`` (``mm/rmap.c``) goes through those VMAs in the tree of the page's anon_vma
whose keys cover the page's index, and looks into the page tables of each. How many those are is the
cost that chains of anon_vmas were made to keep down: before v2.6.34 all VMAs that descend from one
first mapping shared one anon_vma, and each of them was visited for each page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.analysis.families import Families
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables
from anonvma_inspect.target.memory import U64Column

__all__ = ("WalkCost", "walk_cost")

F64Column = NDArray[np.float64]

# More than there can be; words that cannot be right make such sums.
_MOST = 2.0**62


@dataclass(frozen=True)
class WalkCost:
    """The cost of walks, by row of :class:`~anonvma_inspect.tables.AnonVmas`.

    Where page tables were read, each folio that they map counts for the anon_vma that it names.
    Where they were not: new pages of a VMA go to the anon_vma that it has active, so each page of
    the VMA counts for that one, as if it were there.

    :ivar weights: What counts: ``folios`` or ``vmas``.
    """

    weights: str
    #: Folios of it; or pages of the VMAs that have it active, as far as its tree has them.
    pages: I64Column
    #: VMAs that walks for each of those visit, all together.
    visits: F64Column
    #: VMAs that the walk for the most expensive one of them visits.
    worst: I64Column
    #: VMAs of its family: what each walk visited when a family had one anon_vma.
    single: I64Column

    def total(self, rows: RowColumn) -> tuple[int, float, float]:
        """Of some anon_vmas: pages; visits a page on average, and if there were one anon_vma."""
        pages = self.pages[rows]
        weight = float(pages.sum(dtype=np.float64))
        if not weight:
            return 0, 0.0, 0.0
        single = float((pages.astype(np.float64) * self.single[rows]).sum())
        return int(weight), float(self.visits[rows].sum()) / weight, single / weight


@dataclass(frozen=True)
class _Ranges:
    """Ranges of keys in trees, which VMAs have: half-open."""

    anon_vma: RowColumn
    vma: RowColumn
    first: U64Column
    end: U64Column


def walk_cost(tables: Tables, families: Families) -> WalkCost:
    """Count the VMAs that walks visit, for each folio, or each page that an anon_vma can get."""
    vmas, nodes = tables.vmas, tables.nodes
    count = len(tables.anon_vmas.address)
    vma = tables.avcs.vma_row[nodes.avc]
    first, end = vmas.key_first[vma], vmas.key_last[vma] + np.uint64(1)
    # What wraps around is no range of pages.
    kept = np.flatnonzero((vma != NO_ROW) & (first < end))
    ranges = _Ranges(nodes.anon_vma[kept], vma[kept], first[kept], end[kept])
    known = tables.pages is not None and tables.pages.not_read is None
    weigh = _by_folios if known else _by_vmas
    pages, visits, worst = weigh(tables, ranges, count)
    return WalkCost(
        weights="folios" if known else "vmas",
        pages=pages,
        visits=visits,
        worst=worst,
        single=np.append(families.vmas, 0)[families.anon_vma_family],
    )


# A folio's walk visits the VMAs that begin before its end, less those that end before it begins.
def _by_folios(
    tables: Tables, ranges: _Ranges, count: int
) -> tuple[I64Column, F64Column, I64Column]:
    assert tables.pages is not None
    folios = tables.pages.folios
    row = np.flatnonzero((folios.anon_vma != NO_ROW) & (folios.kind == MappingKind.ANON))
    of = folios.anon_vma[row]
    length = np.maximum(folios.pages[row], 1).astype(np.uint64)
    first = folios.index[row]
    end = np.where(first + length < first, np.uint64(2**64 - 1), first + length)
    held, asked = len(ranges.first), len(row)
    # At one place: VMAs that end, folios that begin, folios that end, VMAs that begin.
    position = np.concatenate([ranges.end, first, end, ranges.first])
    turn = np.repeat(np.arange(4), [held, asked, asked, held])
    group = np.concatenate([ranges.anon_vma, of, of, ranges.anon_vma])
    order = np.lexsort((turn, position, group))
    turn = turn[order]
    ended, begun = np.cumsum(turn == 0), np.cumsum(turn == 3)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    visited = begun[rank[held + asked : held + 2 * asked]] - ended[rank[held : held + asked]]
    worst = np.zeros(count, dtype=np.int64)
    np.maximum.at(worst, of, visited)
    visits = np.zeros(count)
    np.add.at(visits, of, visited)
    pages: I64Column = np.bincount(of, minlength=count)
    return pages, visits, worst


def _by_vmas(tables: Tables, ranges: _Ranges, count: int) -> tuple[I64Column, F64Column, I64Column]:
    held = len(ranges.first)
    asked = np.flatnonzero(tables.vmas.active[ranges.vma] == ranges.anon_vma)
    # How many VMAs cover a page changes only where one begins or ends. Where one ends another
    # begins: the end comes first.
    position = np.concatenate([ranges.first, ranges.end])
    change = np.repeat(np.array([1, -1]), held)
    order = np.lexsort((change, position, np.concatenate([ranges.anon_vma, ranges.anon_vma])))
    position = position[order].astype(np.float64)
    covering = np.cumsum(change[order])
    # From each change to the next; between two trees nothing covers anything.
    before = np.concatenate([[0.0], np.cumsum(np.diff(position) * covering[:-1])])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    start, stop = rank[asked], rank[asked + held]
    of = ranges.anon_vma[asked]
    length = (ranges.end[asked] - ranges.first[asked]).astype(np.float64)
    pages = np.bincount(of, weights=length, minlength=count)
    visits = np.zeros(count)
    np.add.at(visits, of, before[stop] - before[start])
    worst = np.zeros(count, dtype=np.int64)
    if len(asked):
        pairs = np.stack([start, stop], axis=1).ravel()
        np.maximum.at(worst, of, np.maximum.reduceat(covering, pairs)[::2])
    return np.minimum(pages, _MOST).astype(np.int64), visits, worst
