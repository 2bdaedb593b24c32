"""Tables to be changed: what they would be without the operations that are under way.

Rows keep their numbers, but for those of lists, trees and mms' entries. A tree whose members change
is laid out anew; its shape is not judged by a draft.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np

from anonvma_inspect.in_flight.layout import copied, lay_out
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.counts import known_references
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import (
    NO_ROW,
    AnonVmas,
    Avcs,
    ChainEnd,
    I64Column,
    Links,
    Nodes,
    RowColumn,
    Slots,
    Tables,
    Vmas,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("Draft",)


class Draft:
    """A copy of tables.

    :param facts: What is known of them.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        tables = facts.tables
        self._tables = tables
        self._vmas = copied(
            tables.vmas,
            *("anon_vma", "anon_vma_pointer", "anon_vma_tag", "active", "mm", "attached"),
            *("chain_next", "chain_prev", "chain_end", "chain_length"),
        )
        self._anon_vmas = copied(
            tables.anon_vmas, "refcount", "num_children", "num_active_vmas", "degree"
        )
        self._slots = copied(tables.slots, "first", "last")
        self._map_count = tables.mms.map_count.copy()
        self._link_kept = np.ones(len(tables.links.avc), dtype=bool)
        self._slot_kept = np.ones(len(tables.slots.mm), dtype=bool)
        self._tree = np.full(len(tables.avcs.address), NO_ROW, dtype=np.int64)
        real = np.flatnonzero(facts.node_real & facts.node_owned)
        self._tree[tables.nodes.avc[real]] = facts.node_tree[real]
        self._changed: set[int] = set()
        self._touched: set[int] = set()
        self._stale: set[int] = set()
        #: References that may or may not be given back yet, by row of the anon_vma.
        self.pending: dict[int, int] = {}
        #: VMAs that have just the references that are known, as root VMAs: by row.
        self.exact_roots: set[int] = set()
        #: anon_vmas that nothing leads to any more, though their counts say otherwise; known once
        #: the tables are made.
        self.leftovers: RowColumn = np.empty(0, dtype=np.int64)
        #: anon_vmas that only somebody who is not known keeps, as they had as many references too
        #: many before; likewise.
        self.kept: RowColumn = np.empty(0, dtype=np.int64)

    # ---- trees and lists

    def insert(self, avc: int) -> None:
        """Put an AVC into the tree of its anon_vma."""
        anon_vma = int(self._facts.avc_anon_vma_row[avc])
        self._tree[avc] = anon_vma
        self._change(anon_vma)

    def remove(self, avc: int) -> None:
        """Take an AVC out of the tree that it is in, if it is in one."""
        anon_vma = int(self._tree[avc])
        if anon_vma != NO_ROW:
            self._tree[avc] = NO_ROW
            self._change(anon_vma)

    def put_back(self, avc: int) -> None:
        """Put an AVC into the tree of its anon_vma, unless it has been taken off its list."""
        links = self._tables.links
        if self._link_kept[links.avc == avc].any():
            self.insert(avc)

    def lay_out(self, anon_vma: int) -> None:
        """Give an anon_vma a tree that is in order, of the same AVCs."""
        self._change(anon_vma)

    def _change(self, anon_vma: int) -> None:
        self._changed.add(anon_vma)
        self._touched.add(anon_vma)

    def size(self, anon_vma: int) -> int:
        """How many AVCs a tree has."""
        return int(np.count_nonzero(self._tree == anon_vma))

    def unlink(self, vma: int) -> None:
        """Empty a VMA's list, and take what was on it out of the trees."""
        links, vmas = self._tables.links, self._vmas
        begin, end = np.searchsorted(links.vma, [vma, vma + 1])
        for avc in links.avc[begin:end].tolist():
            self.remove(avc)
            anon_vma = int(self._facts.avc_anon_vma_row[avc])
            if anon_vma != NO_ROW:
                self._touched.add(anon_vma)
        self._link_kept[begin:end] = False
        vmas.chain_next[vma] = vmas.chain_prev[vma] = vmas.chain_head[vma]
        vmas.chain_end[vma], vmas.chain_length[vma] = ChainEnd.CLOSED, 0

    def forget_anon_vma(self, vmas: RowColumn | int, *, stale: bool = False) -> None:
        """Make ``vma->anon_vma`` NULL.

        :param stale: What it leads to is not the VMA's any more: freed, or somebody else's.
        """
        columns = self._vmas
        active = np.unique(columns.active[vmas])
        group = self._stale if stale else self._touched
        group.update(active[active != NO_ROW].tolist())
        columns.anon_vma[vmas] = columns.anon_vma_pointer[vmas] = columns.anon_vma_tag[vmas] = 0
        columns.active[vmas] = NO_ROW

    def forget_mm(self, vma: int) -> None:
        """Take a VMA out of its mm, which has no entry for it."""
        self._vmas.mm[vma] = NO_ROW

    def forget_vma(self, vma: int) -> None:
        """Take a VMA out of everything that it is in."""
        self.unlink(vma)
        self.forget_anon_vma(vma)
        self.forget_mm(vma)

    def attach(self, vmas: RowColumn) -> None:
        """Mark VMAs as attached."""
        self._vmas.attached[vmas] = True

    # ---- counters

    def references(self, anon_vma: int) -> int:
        """The reference count as it is now."""
        return int(self._anon_vmas.refcount[anon_vma])

    def put(self, anon_vma: int) -> None:
        """Give back a reference, and with the last one that of the root."""
        refcount = self._anon_vmas.refcount
        refcount[anon_vma] -= 1
        self._touched.add(anon_vma)
        root = int(self._facts.root_row[anon_vma])
        if refcount[anon_vma] == 0 and root not in (anon_vma, NO_ROW):
            refcount[root] -= 1
            self._touched.add(root)

    def add_children(self, anon_vma: int, delta: int) -> None:
        """Change the number of children."""
        self._counter("num_children")[anon_vma] += delta

    def add_active(self, anon_vma: int, delta: int) -> None:
        """Change the number of VMAs that have it active."""
        self._counter("num_active_vmas")[anon_vma] += delta

    def active_surplus(self, anon_vma: int) -> int:
        """How far the number of VMAs that have it active is above those that do.

        Where the kernel counts children with them: their sum above both.
        """
        if not self._facts.era.has_separate_counts:
            return self._degree_surplus(anon_vma)
        users = int(np.count_nonzero(self._vmas.active == anon_vma))
        return int(self._anon_vmas.num_active_vmas[anon_vma]) - users

    def child_surplus(self, anon_vma: int) -> int:
        """How far the number of children is above those that there are; likewise."""
        if not self._facts.era.has_separate_counts:
            return self._degree_surplus(anon_vma)
        return int(self._anon_vmas.num_children[anon_vma]) - self._children(anon_vma)

    def _degree_surplus(self, anon_vma: int) -> int:
        users = int(np.count_nonzero(self._vmas.active == anon_vma))
        return int(self._anon_vmas.degree[anon_vma]) - users - self._children(anon_vma)

    def _children(self, anon_vma: int) -> int:
        anon_vmas = self._tables.anon_vmas
        children = np.flatnonzero(self._facts.parent == anon_vmas.address[anon_vma])
        full = marked(len(anon_vmas.address), self._tree)
        return int(np.count_nonzero(full[children]))

    def _counter(self, name: str) -> I64Column:
        separate = self._facts.era.has_separate_counts
        counter: I64Column = getattr(self._anon_vmas, name if separate else "degree")
        return counter

    # ---- mms

    def place(self, slot: int, first: int, last: int) -> None:
        """Change what an entry of an mm's tree covers."""
        self._slots.first[slot], self._slots.last[slot] = first, last

    def drop_slots(self, slots: RowColumn) -> None:
        """Take entries out of mms' trees."""
        self._slot_kept[slots] = False

    def add_map_count(self, mm: int, delta: int) -> None:
        """Change ``map_count``."""
        self._map_count[mm] += delta

    # ---- the result

    def tables(self) -> Tables:
        """The tables as they are now."""
        tables = self._tables
        links = tables.links
        kept = np.flatnonzero(self._link_kept)
        new_links = Links(links.vma[kept], links.position[kept], links.avc[kept])
        slots, vma_slot = self._new_slots()
        vmas = dataclasses.replace(self._vmas, slot=vma_slot)
        nodes, avcs, anon_vmas = self._new_trees(vmas)
        anon_vmas = dataclasses.replace(
            anon_vmas, reached=self._new_reached(vmas, new_links, anon_vmas)
        )
        self._give_back(anon_vmas, nodes)
        made = dataclasses.replace(
            tables,
            mms=dataclasses.replace(tables.mms, map_count=self._map_count),
            slots=slots,
            vmas=vmas,
            links=new_links,
            avcs=avcs,
            anon_vmas=anon_vmas,
            nodes=nodes,
        )
        return self._count_roots(made) if self.exact_roots else made

    def _new_slots(self) -> tuple[Slots, RowColumn]:
        slots = self._slots
        kept = np.flatnonzero(self._slot_kept)
        number = np.full(len(slots.mm), NO_ROW, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        cut = {
            column.name: getattr(slots, column.name)[kept] for column in dataclasses.fields(Slots)
        }
        return Slots(**cut), take(number, self._tables.vmas.slot, NO_ROW)

    def _new_trees(self, vmas: Vmas) -> tuple[Nodes, Avcs, AnonVmas]:
        changed = np.array(sorted(self._changed), dtype=np.int64)
        tables = dataclasses.replace(self._tables, vmas=vmas, anon_vmas=self._anon_vmas)
        return lay_out(tables, changed, self._tree, self._facts)

    # What is pending, as far as it is in the count.
    def _give_back(self, anon_vmas: AnonVmas, nodes: Nodes) -> None:
        for anon_vma, count in self.pending.items():
            family = (self._facts.root_row == anon_vma) & anon_vmas.reached
            family[anon_vma] = (nodes.anon_vma == anon_vma).any()
            known = np.count_nonzero(family) + self._facts.ksm_references[anon_vma]
            known += np.count_nonzero(self._lent() == anon_vma)
            surplus = int(anon_vmas.refcount[anon_vma] - known)
            anon_vmas.refcount[anon_vma] -= min(max(surplus, 0), count)

    def _count_roots(self, made: Tables) -> Tables:
        least, most = Facts(made).root_references
        rows = np.array(sorted(self.exact_roots), dtype=np.int64)
        vmas = copied(made.vmas, "root_refs")
        vmas.root_refs[rows] = np.clip(vmas.root_refs[rows], least[rows], most[rows])
        return dataclasses.replace(made, vmas=vmas)

    # Rows of the anon_vmas that VMAs have from their parents (ANON_VMA_LAZY).
    def _lent(self) -> RowColumn:
        vmas = self._facts.vmas_of_kind(AnonVmaKind.LAZY_PARENT)
        return self._facts.lent_by(vmas[self._vmas.anon_vma[vmas] != 0])

    # An anon_vma that nothing leads to any more is not judged.
    def _new_reached(self, vmas: Vmas, links: Links, anon_vmas: AnonVmas) -> BoolColumn:
        tables = self._tables
        count = len(anon_vmas.address)
        held = marked(count, vmas.active)
        held |= marked(count, self._facts.avc_anon_vma_row[links.avc])
        held |= marked(count, tables.rmap_items.anon_vma_row)
        held |= marked(count, self._lent())
        held |= marked(count, self._facts.root_row[held])
        reached = anon_vmas.reached.copy()
        stale = np.array(sorted(self._stale), dtype=np.int64)
        touched = np.array(sorted(self._touched), dtype=np.int64)
        touched = np.union1d(touched, self._facts.root_row[touched])
        touched = touched[touched != NO_ROW]
        reached[np.union1d(touched, stale)] &= held[np.union1d(touched, stale)]
        counted = anon_vmas.refcount != 0
        for name in ("num_children", "num_active_vmas"):
            counted |= self._counter(name) != 0
        left = touched[~held[touched] & counted[touched]]
        # Whoever had a reference that nobody knows of has it still, and so the anon_vma its own to
        # the root.
        kept = (anon_vmas.refcount > 0) & (anon_vmas.refcount <= self._surplus)
        for name in ("num_children", "num_active_vmas"):
            kept &= self._counter(name) == 0
        self.leftovers, self.kept = left[~kept[left]], left[kept[left]]
        reached[self.kept] = True
        return reached

    # References too many that each anon_vma had before, if AV404 says so.
    @cached_property
    def _surplus(self) -> I64Column:
        facts, anon_vmas = self._facts, self._tables.anon_vmas
        _, most = known_references(facts)
        judged = facts.believed & anon_vmas.family_whole
        surplus: I64Column = np.where(judged, anon_vmas.refcount - most, 0)
        return surplus
