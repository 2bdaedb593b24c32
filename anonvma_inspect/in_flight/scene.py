"""What operations half done are recognised by: who holds which lock, and what VMAs have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from anonvma_inspect.in_flight.operation import Lock
from anonvma_inspect.invariants.base import Result, Violations
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import NO_ROW, ChainEnd, I64Column, RowColumn, find_rows, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("Scene",)


class Scene:
    """What the tables say of locks and lists.

    :param facts: What is known.
    :param results: What was found wrong.
    """

    def __init__(self, facts: Facts, results: Sequence[Result]) -> None:
        self._results = results
        self.facts = facts
        self.tables = facts.tables

    def violations(self, code: str) -> list[Violations]:
        """What a rule found."""
        return [
            group
            for result in self._results
            if result.invariant.code == code
            for group in result.violations
            if len(group)
        ]

    @property
    def may_be_lazy(self) -> bool:
        """The kernel has ANON_VMA_LAZY, or what tags it has is not sure."""
        tags = self.tables.era.tags
        return tags.name == "lazy" or not tags.certain

    @cached_property
    def room(self) -> int:
        """How many VMAs memory has room for."""
        ram = self.tables.space.ram
        return int((ram[:, 1] - ram[:, 0]).sum()) // self.tables.era.vma.size

    # ---- locks

    @property
    def mm_writer(self) -> BoolColumn:
        """mms whose ``mmap_lock`` a task holds for write."""
        return self.facts.mm_writer

    @cached_property
    def mm_exiting(self) -> BoolColumn:
        """mms without users: what is left of them belongs to whoever dropped the last reference
        (``mmput()``, kernel/fork.c).
        """
        mms = self.tables.mms
        exiting: BoolColumn = mms.known & ~mms.listed & (mms.mm_users == 0)
        return exiting

    @cached_property
    def mm_reader(self) -> BoolColumn:
        """mms whose ``mmap_lock`` somebody holds for read."""
        mms = self.tables.mms
        reader: BoolColumn = mms.known & (mms.lock_readers > 0)
        return reader

    def root_held(self, anon_vma: int) -> bool:
        """Whether a task holds the lock of an anon_vma's family for write."""
        root = NO_ROW if anon_vma == NO_ROW else int(self.facts.root_row[anon_vma])
        return root != NO_ROW and bool(self.facts.root_writer[root])

    @cached_property
    def family_held(self) -> BoolColumn:
        """anon_vmas whose family's lock a task holds for write."""
        held: BoolColumn = take(self.facts.root_writer, self.facts.root_row, False)
        return held

    def works_on(self, anon_vma: int, mm: int) -> bool:
        """Whether the task that holds the lock of an anon_vma's family works on an mm: has it
        locked for write, or is one of its own where somebody has locked it for read; or nobody can
        tell, since it exits without a lock (before v6.1).
        """
        tables = self.tables
        mms, tasks = tables.mms, tables.tasks
        if not self.root_held(anon_vma):
            return False
        owner = tables.anon_vmas.lock_owner[int(self.facts.root_row[anon_vma])]
        if self.mm_writer[mm]:
            return bool(mms.lock_owner[mm] == owner)
        if self.mm_reader[mm]:
            return bool((tasks.mm[tasks.address == owner] == mm).any())
        return bool(self.mm_exiting[mm] and not mms.write_locked[mm])

    def mm_lock(self, mm: int, held: str | None = None) -> Lock:
        """The lock of an mm, as reports show it.

        :param held: How; ``None``: as the word says.
        """
        mms = self.tables.mms
        if held is None:
            writer, exiting = self.mm_writer[mm], self.mm_exiting[mm]
            held = "write" if writer else "exit" if exiting else "read"
        owner = int(mms.lock_owner[mm]) if held == "write" else 0
        return self._lock("mmap_lock", int(mms.address[mm]), held, owner)

    def list_lock(self, vma: int, *, leaves: bool = False) -> Lock | None:
        """The lock under which a VMA's list may be at work on; ``None`` if nobody has it.

        :param leaves: Only if the VMA may be leaving its anon_vmas: with the lock held for read
            that is the second half of munmap, with the VMA out of its mm's tree.
        """
        mm = int(self.tables.vmas.mm[vma])
        if mm == NO_ROW:
            return None
        if self.mm_exiting[mm] or self.mm_writer[mm]:
            return self.mm_lock(mm)
        if self.mm_reader[mm] and (not leaves or self.tables.vmas.slot[vma] == NO_ROW):
            return self.mm_lock(mm, "read")
        return None

    def root_lock(self, anon_vma: int, held: str = "write") -> Lock:
        """The lock of an anon_vma's family."""
        anon_vmas = self.tables.anon_vmas
        root = int(self.facts.root_row[anon_vma])
        owner = int(anon_vmas.lock_owner[root])
        return self._lock("anon_vma", int(anon_vmas.address[root]), held, owner)

    def _lock(self, kind: str, address: int, held: str, owner: int) -> Lock:
        holders = self.tables.holders
        row = int(find_rows(holders.address, np.array([owner], dtype=np.uint64))[0])
        if row == NO_ROW:
            return Lock(kind, address, held)
        return Lock(kind, address, held, int(holders.pid[row]), bytes(holders.comm[row]))

    # ---- lists

    @cached_property
    def _bounds(self) -> RowColumn:
        links = self.tables.links
        return np.searchsorted(links.vma, np.arange(len(self.tables.vmas.address) + 1))

    def chain(self, vma: int) -> RowColumn:
        """Rows of the AVCs on a VMA's list, in its order."""
        return self.tables.links.avc[self._bounds[vma] : self._bounds[vma + 1]]

    def members(self, vma: int) -> RowColumn:
        """Rows of the anon_vmas of a VMA's chain, in its order."""
        return self.facts.avc_anon_vma_row[self.chain(vma)]

    def in_tree(self, avcs: RowColumn) -> BoolColumn:
        """Which AVCs are in the tree that they should be in."""
        node = self.facts.node_of_avc[avcs]
        there: BoolColumn = take(self.facts.node_owned, node, False)
        return there

    def own_list(self, vma: int) -> bool:
        """Whether a VMA's list is sound, and every entry is the VMA's and leads to an anon_vma."""
        avcs = self.chain(vma)
        facts = self.facts
        return bool(
            facts.chain_sound[vma]
            and (facts.avc_vma_row[avcs] == vma).all()
            and (facts.avc_anon_vma_row[avcs] != NO_ROW).all()
        )

    @cached_property
    def linked(self) -> I64Column:
        """How many AVCs of each VMA's list are in the tree that they should be in."""
        links = self.tables.links
        there = self.in_tree(links.avc)
        return np.bincount(links.vma[there], minlength=len(self.tables.vmas.address))

    @cached_property
    def anon_vma(self) -> RowColumn:
        """Row of the anon_vma that each VMA has: its own, or its parent's (ANON_VMA_LAZY)."""
        active, facts = self.tables.vmas.active, self.facts
        lent = facts.vmas_of_kind(AnonVmaKind.LAZY_PARENT)
        if not len(lent):
            return active
        active = active.copy()
        active[lent] = facts.lent_by(lent)
        return active

    @cached_property
    def has_active(self) -> BoolColumn:
        """VMAs in whose chain their active anon_vma is."""
        links, active = self.tables.links, self.tables.vmas.active
        fits = (active[links.vma] != NO_ROW) & (self.facts.link_anon_vma == active[links.vma])
        return marked(len(active), links.vma[fits])

    @cached_property
    def closed(self) -> BoolColumn:
        """VMAs whose list was walked to its end."""
        closed: BoolColumn = self.tables.vmas.chain_end == ChainEnd.CLOSED
        return closed

    # ---- counts

    @cached_property
    def _users(self) -> I64Column:
        active = self.tables.vmas.active
        count = len(self.tables.anon_vmas.address)
        return np.bincount(active[active != NO_ROW], minlength=count)

    @cached_property
    def _children(self) -> I64Column:
        facts = self.facts
        parent = facts.parent_row[facts.nodes_in_tree > 0]
        count = len(self.tables.anon_vmas.address)
        return np.bincount(parent[parent != NO_ROW], minlength=count)

    def active_surplus(self, anon_vma: int) -> int:
        """How far the number of VMAs that have it active is above those that do.

        Where the kernel counts children with them: their sum above both.
        """
        anon_vmas = self.tables.anon_vmas
        if self.tables.era.has_separate_counts:
            return int(anon_vmas.num_active_vmas[anon_vma] - self._users[anon_vma])
        known = self._users[anon_vma] + self._children[anon_vma]
        return int(anon_vmas.degree[anon_vma] - known)

    def child_surplus(self, anon_vma: int) -> int:
        """How far the number of children is above those that there are; likewise."""
        if not self.tables.era.has_separate_counts:
            return self.active_surplus(anon_vma)
        count = self.tables.anon_vmas.num_children[anon_vma]
        return int(count - self._children[anon_vma])

    # ---- mms

    @cached_property
    def in_mm(self) -> BoolColumn:
        """VMAs that their mm's tree has; or that it may have, where it was not walked."""
        vmas, mms = self.tables.vmas, self.tables.mms
        in_mm: BoolColumn = (vmas.slot != NO_ROW) | ~take(mms.walked, vmas.mm, True)
        return in_mm

    def slots_over(self, vma: int) -> RowColumn:
        """Rows of the entries of its mm's tree that lie where a VMA does."""
        slots, vmas = self.tables.slots, self.tables.vmas
        begin, end = np.searchsorted(slots.mm, [vmas.mm[vma], vmas.mm[vma] + 1])
        first, last = slots.first[begin:end], slots.last[begin:end]
        over = (first < vmas.vm_end[vma]) & (last >= vmas.vm_start[vma])
        found: RowColumn = begin + np.flatnonzero(over)
        return found

    def key_base(self, vma: int) -> int:
        """Key of a VMA in trees less its page number: what all parts of one mapping share."""
        vmas = self.tables.vmas
        return int(vmas.key_first[vma]) - int(vmas.vm_start[vma]) // self.tables.era.page_size
