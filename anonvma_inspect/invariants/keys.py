"""The keys that interval trees are ordered by, and VMAs that are not where their keys say.

An AVC has no key of its own: its tree goes by its VMA's page offsets. If these change while the AVC
is in the tree, the order of the tree, or ``rb_subtree_last``, tells.
"""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn, marked
from anonvma_inspect.target.memory import BoolColumn, U64Column

if TYPE_CHECKING:
    from anonvma_inspect.invariants.facts import Facts

__all__ = ("Keys",)

_MAX = np.uint64(2**64 - 1)


class Keys:
    """Keys of all nodes of trees.

    :param facts: What is known. It holds these keys, and must outlive them.
    """

    def __init__(self, facts: Facts) -> None:
        # Two that hold each other, and all tables, would stay until the interpreter looks for
        # cycles: one audit after the other in memory, of a target that runs.
        self._facts: Facts = weakref.proxy(facts)

    @cached_property
    def home(self) -> RowColumn:
        """Row of the VMA whose keys each node goes by; NO_ROW if not known, or no real node."""
        facts = self._facts
        return np.where(facts.node_real, facts.home[facts.tables.nodes.avc], NO_ROW)

    @cached_property
    def known(self) -> BoolColumn:
        """Nodes whose keys are known."""
        known: BoolColumn = self.home != NO_ROW
        return known

    @cached_property
    def first(self) -> U64Column:
        """First page of each node, 0 if not known."""
        return self._of_vma(self._facts.tables.vmas.key_first)

    @cached_property
    def last(self) -> U64Column:
        """Last page of each node, 0 if not known."""
        return self._of_vma(self._facts.tables.vmas.key_last)

    def _of_vma(self, column: U64Column) -> U64Column:
        return take(column, self.home, 0)

    @cached_property
    def stored(self) -> U64Column:
        """``rb_subtree_last`` of each node."""
        tables = self._facts.tables
        stored: U64Column = tables.avcs.rb_subtree_last[tables.nodes.avc]
        return stored

    @cached_property
    def _child(self) -> tuple[RowColumn, RowColumn]:
        nodes, real = self._facts.tables.nodes, self._facts.node_real
        if real.all():
            return nodes.left, nodes.right
        sides = []
        for child in (nodes.left, nodes.right):
            found = child.copy()
            there = np.flatnonzero(child != NO_ROW)
            found[there[~real[child[there]]]] = NO_ROW
            sides.append(found)
        return sides[0], sides[1]

    @cached_property
    def settled(self) -> BoolColumn:
        """Nodes whose children are known, and whose key is."""
        facts = self._facts
        nodes, avcs = facts.tables.nodes, facts.tables.avcs
        settled = self.known.copy()
        for child, pointers in zip(self._child, (avcs.rb_left, avcs.rb_right), strict=True):
            end = np.flatnonzero(child == NO_ROW)
            settled[end[pointers[nodes.avc[end]] != 0]] = False
        # A NULL that should not be one.
        cut = facts.tree_pointers.parent
        if len(cut):
            settled &= ~marked(len(avcs.address), cut)[nodes.avc]
        return settled

    @cached_property
    def computed(self) -> U64Column:
        """What ``rb_subtree_last`` of each node must be, by what its children have there."""
        return self._largest(self.stored)

    def _largest(self, of_children: U64Column) -> U64Column:
        largest = self.last.copy()
        # NO_ROW picks what is appended.
        of_children = np.append(of_children, np.uint64(0))
        for child in self._child:
            np.maximum(largest, of_children[child], out=largest)
        return largest

    @cached_property
    def wrong_last(self) -> BoolColumn:
        """Nodes whose ``rb_subtree_last`` is wrong.

        A node is compared with what its children have stored, not with what is below them: then one
        wrong word shows in its own node and not in all above. In the node above it shows only if
        that one was made from the wrong word; so a node is right, too, if it fits what its children
        should have.
        """
        below = np.where(self.settled, self.computed, self.stored)
        wrong: BoolColumn = self.settled & (self.stored != self.computed)
        if wrong.any():
            wrong &= self.stored != self._largest(below)
        # Where a child is not known, it can only be too small.
        wrong |= self.known & (self.stored < self.last)
        return wrong

    def fits_unmoved(self, nodes: RowColumn) -> BoolColumn:
        """Whether ``rb_subtree_last`` of nodes is what an anonymous VMA that was never moved has.

        :param nodes: Rows of nodes whose keys are known.
        """
        vmas, avcs = self._facts.tables.vmas, self._facts.tables.avcs
        avc, vma = self._facts.tables.nodes.avc[nodes], self.home[nodes]
        page = np.uint64(self._facts.era.page_size)
        last: BoolColumn = self.stored[nodes] == vmas.vm_end[vma] // page - np.uint64(1)
        leaf = (avcs.rb_left[avc] == 0) & (avcs.rb_right[avc] == 0)
        last &= leaf & (vmas.vm_file[vma] == 0)
        return last

    @cached_property
    def doubtful(self) -> BoolColumn:
        """VMAs whose own last page contradicts a node without children, or above what is stored."""
        avcs, nodes = self._facts.tables.avcs, self._facts.tables.nodes
        leaf = (avcs.rb_left[nodes.avc] == 0) & (avcs.rb_right[nodes.avc] == 0)
        odd = self.wrong_last & (leaf | (self.stored < self.last))
        flags = np.zeros(len(self._facts.tables.vmas.address), dtype=bool)
        flags[self.home[odd & self.known]] = True
        return flags

    @cached_property
    def misplaced(self) -> tuple[RowColumn, U64Column, U64Column]:
        """VMAs that are out of order in a tree: rows, and between which keys they stand.

        Each once. Of two neighbours that are in the wrong order, the one is reported without which
        the order is right; if that says nothing, the one that ``doubtful`` has, else the second.
        """
        facts = self._facts
        nodes = facts.tables.nodes
        tree = nodes.anon_vma
        count = len(tree)
        key, known = self.first, self.known
        whole = facts.tree_whole[facts.node_tree] & known
        together = np.zeros(count, dtype=bool)
        together[:-1] = (tree[:-1] == tree[1:]) & whole[:-1] & whole[1:]
        wrong = np.flatnonzero(together[:-1] & (key[:-1] > key[1:])) if count else together[:0]
        first, second = wrong, wrong + 1
        # Where a tree is not known as a whole, neighbours in it may be no neighbours; but a child
        # and its parent are in order all the same.
        for child, is_left in zip(self._child, (True, False), strict=True):
            above = np.flatnonzero((child != NO_ROW) & known & ~whole)
            below = child[above]
            kept = known[below] & facts.node_linked[below]
            above, below = above[kept], below[kept]
            low, high = (below, above) if is_left else (above, below)
            out = key[low] > key[high]
            first, second = np.append(first, low[out]), np.append(second, high[out])
        if not len(first):
            return first, key[first], key[first]
        # What stands before and behind the two, if they are neighbours.
        next_to = second == first + 1
        before, behind = first - 1, np.minimum(second + 1, count - 1)
        has_before = next_to & (before >= 0) & (tree[before] == tree[first]) & known[before]
        has_behind = next_to & (behind > second) & (tree[behind] == tree[second]) & known[behind]
        without_first = ~has_before | (key[before] <= key[second])
        without_second = ~has_behind | (key[first] <= key[behind])
        suspect = self.doubtful
        one, two = self.home[first], self.home[second]
        prefer_first = np.where(
            without_first == without_second, suspect[one] & ~suspect[two], without_first
        )
        row = np.where(prefer_first, one, two)
        floor: U64Column = np.where(
            prefer_first,
            np.where(has_before, key[before], np.uint64(0)),
            key[first],
        )
        ceiling: U64Column = np.where(
            prefer_first,
            key[second],
            np.where(has_behind, key[behind], _MAX),
        )
        row, index = np.unique(row, return_index=True)
        return row, floor[index], ceiling[index]
