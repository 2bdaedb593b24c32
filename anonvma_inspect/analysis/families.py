"""Families: the anon_vmas with one root, who is whose parent, and whose VMAs are in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.kernel.tags import strip_lock_mark
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("Families", "find_families")


@dataclass(frozen=True)
class Families:
    """All families of some tables; nothing here is taken on trust, so that any tables will do.

    Columns without a prefix are by family, in the order of their roots; those with ``anon_vma_`` by
    row of :class:`~anonvma_inspect.tables.AnonVmas`, ``vma_`` by row of
    :class:`~anonvma_inspect.tables.Vmas`.
    """

    #: Row of the root. (An anon_vma whose root leads nowhere is a family for itself.)
    root: RowColumn
    #: How many there are of each: ``anon_vmas`` that are reached, VMAs whose chains lead to one of
    #: them or that have one active, AVCs that name one, mms of those VMAs, generations (1 for a
    #: root alone).
    anon_vmas: I64Column
    vmas: I64Column
    avcs: I64Column
    mms: I64Column
    generations: I64Column
    #: Of its anon_vmas: those without a tree, without an active VMA, and handed on by fork.
    zombies: I64Column
    waiting: I64Column
    reused: I64Column
    #: Bytes of the anon_vmas and AVCs, as structs.
    bytes: I64Column
    #: Row of the first of its mms, which is that of the lowest PID; NO_ROW if it has none.
    mm: RowColumn

    #: Which family; NO_ROW for what is not reached.
    anon_vma_family: RowColumn
    #: Row of the anon_vma to draw it below: its ``parent``; the root, if it has none that can be
    #: right; NO_ROW for a root.
    anon_vma_parent: RowColumn
    #: Generations above it: 0 for a root.
    anon_vma_depth: I64Column
    #: Row of the first mm of VMAs that have it active; NO_ROW if there is none.
    anon_vma_mm: RowColumn
    #: VMAs in its tree, and VMAs that have it active, counted.
    anon_vma_tree: I64Column
    anon_vma_active: I64Column
    #: anon_vmas drawn below it.
    anon_vma_children: I64Column
    #: Its tree is empty, but something refers to it still: KSM, a child, an operation under way.
    anon_vma_zombie: BoolColumn
    #: It has a tree, but no active VMA: only pages that it got when it had, and children, need it.
    anon_vma_waiting: BoolColumn
    #: Fork has handed it on to a VMA that has it now: see :func:`find_families`.
    anon_vma_reused: BoolColumn

    #: Which family; NO_ROW for one without an anon_vma.
    vma_family: RowColumn
    #: Pairs of family and VMA, sorted: at rest a VMA is in one at most.
    member_family: RowColumn
    member_vma: RowColumn

    def members(self, family: int) -> RowColumn:
        """Rows of a family's anon_vmas."""
        rows: RowColumn = np.flatnonzero(self.anon_vma_family == family)
        return rows

    def vmas_of(self, family: int) -> RowColumn:
        """Rows of a family's VMAs."""
        first, last = np.searchsorted(self.member_family, [family, family + 1])
        return self.member_vma[first:last]


def find_families(tables: Tables) -> Families:
    """Sort the anon_vmas of some tables into families.

    That fork has handed an anon_vma on (``anon_vma_clone()``, ``mm/rmap.c``, since v3.19) shows in
    the chain of the VMA that got it, and for certain in these cases only: there is a child or
    grandchild of it in the same chain, for a new one has none; or it stands neither first nor last,
    for a new one is put first, and all that a copy of the chain does is to turn it round (since
    v7.0). One whose VMA is gone again is not told.
    """
    vmas, avcs, anon_vmas, links = tables.vmas, tables.avcs, tables.anon_vmas, tables.links
    count = len(anon_vmas.address)
    own = np.arange(count)
    # What others call their root is one, whatever its own word says.
    named = marked(count, anon_vmas.root_row[anon_vmas.root_row != own])
    root = np.where(named | (anon_vmas.root_row == NO_ROW), own, anon_vmas.root_row)
    reached = anon_vmas.reached
    roots, number = np.unique(root[reached], return_inverse=True)
    family = np.full(count, NO_ROW, dtype=np.int64)
    family[reached] = number
    parent, depth = _lineage(tables, root, family)
    zombie = reached & (strip_lock_mark(anon_vmas.rb_root) == 0)
    active = _count(vmas.active, count)
    linked = avcs.anon_vma_row[links.avc]
    reused = _reused(tables, parent, depth, linked)
    of_vma = np.concatenate([np.arange(len(vmas.address)), links.vma])
    of_family = np.append(family, NO_ROW)[np.concatenate([vmas.active, linked])]
    vma_family = np.full(len(vmas.address), NO_ROW, dtype=np.int64)
    # What is active comes last, and wins.
    for part in (slice(len(vmas.address), None), slice(0, len(vmas.address))):
        known = of_family[part] != NO_ROW
        vma_family[of_vma[part][known]] = of_family[part][known]
    member_family, member_vma = _pairs(of_family, of_vma)
    mm_family, mm_row = _pairs(member_family, vmas.mm[member_vma])
    in_family = _count(np.append(family, NO_ROW)[avcs.anon_vma_row], len(roots))
    members = _count(family, len(roots))
    generations = np.zeros(len(roots), dtype=np.int64)
    np.maximum.at(generations, family[reached], depth[reached] + 1)
    waiting = reached & ~zombie & (active == 0)
    return Families(
        root=roots,
        anon_vmas=members,
        vmas=_count(member_family, len(roots)),
        avcs=in_family,
        mms=_count(mm_family, len(roots)),
        generations=generations,
        zombies=_count(family[zombie], len(roots)),
        waiting=_count(family[waiting], len(roots)),
        reused=_count(family[reused & reached], len(roots)),
        mm=_least(mm_family, mm_row, len(roots)),
        bytes=members * tables.era.anon_vma.size + in_family * tables.era.avc.size,
        anon_vma_family=family,
        anon_vma_parent=parent,
        anon_vma_depth=depth,
        anon_vma_mm=_least(vmas.active, vmas.mm, count),
        anon_vma_tree=_count(tables.nodes.anon_vma, count),
        anon_vma_active=active,
        anon_vma_children=_count(parent, count),
        anon_vma_zombie=zombie,
        anon_vma_waiting=waiting,
        anon_vma_reused=reused,
        vma_family=vma_family,
        member_family=member_family,
        member_vma=member_vma,
    )


# How often each row is named; NO_ROW does not count.
def _count(rows: RowColumn, count: int) -> I64Column:
    counted: I64Column = np.bincount(rows[rows != NO_ROW], minlength=count)
    return counted


# The lowest row that stands beside each; NO_ROW does not count.
def _least(rows: RowColumn, beside: RowColumn, count: int) -> RowColumn:
    kept = (rows != NO_ROW) & (beside != NO_ROW)
    most = np.iinfo(np.int64).max
    least = np.full(count, most)
    np.minimum.at(least, rows[kept], beside[kept])
    return np.where(least == most, NO_ROW, least)


# Different pairs, sorted, without those that have NO_ROW.
def _pairs(first: RowColumn, second: RowColumn) -> tuple[RowColumn, RowColumn]:
    kept = (first != NO_ROW) & (second != NO_ROW)
    first, second = first[kept], second[kept]
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[new], second[new]


# Who is drawn below whom, and how far below the root. What no chain of parents leads up from, a
# circle, is put right below the root.
def _lineage(tables: Tables, root: RowColumn, family: RowColumn) -> tuple[RowColumn, I64Column]:
    count = len(root)
    own = np.arange(count)
    parent = tables.anon_vmas.parent_row.copy()
    strange = (parent == NO_ROW) | (parent == own)
    strange |= np.append(family, NO_ROW)[parent] != family
    parent = np.where(strange, root, parent)
    up = np.where(root == own, own, parent)
    # Each round looks twice as far.
    for _ in range(max(count, 1).bit_length()):
        up = up[up]
    lost = root[up] != up
    parent = np.where(lost, root, parent)
    parent[root == own] = NO_ROW
    up = np.where(parent == NO_ROW, own, parent)
    depth = (parent != NO_ROW).astype(np.int64)
    for _ in range(max(count, 1).bit_length()):
        depth, up = depth + depth[up], up[up]
    return parent, depth


# See find_families(); linked: what the entries of chains lead to.
def _reused(tables: Tables, parent: RowColumn, depth: I64Column, linked: RowColumn) -> BoolColumn:
    vmas, links = tables.vmas, tables.links
    count = len(parent)
    active = vmas.active[links.vma]
    last = vmas.chain_length[links.vma] - 1
    inside = (links.position > 0) & (links.position < last)
    reused = marked(count, active[inside & (linked == active)])
    # Entries that are further down than what is active: is one of them below it?
    below = np.flatnonzero((linked != NO_ROW) & (active != NO_ROW))
    below = below[depth[linked[below]] > depth[active[below]]]
    at, goal = linked[below], active[below]
    steps = depth[at] - depth[goal]
    jump = np.where(parent == NO_ROW, np.arange(count), parent)
    while steps.any():
        odd = (steps & 1) != 0
        at = np.where(odd, jump[at], at)
        steps, jump = steps >> 1, jump[jump]
    return reused | marked(count, goal[at == goal])
