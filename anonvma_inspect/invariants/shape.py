"""Pointers of interval trees that do not lead where they should, and which of them is wrong.

A child pointer and the child's parent pointer answer each other. Where they do not, a third word
tells which is wrong: if what the child names as its parent has it for a child, then the pointer
that led to it is; else the child's own is. Nodes that agree with nothing (``Facts.node_real``) are
where wrong pointers lead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anonvma_inspect.invariants.columns import take
from anonvma_inspect.kernel.tags import rb_parent
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

if TYPE_CHECKING:
    from anonvma_inspect.invariants.facts import Facts

__all__ = ("TreePointers", "find_heirs", "find_wrong_pointers", "is_child")


@dataclass(frozen=True)
class TreePointers:
    """Wrong pointers of all trees.

    :ivar parent: Rows of AVCs with a wrong child pointer, each pointer once.
    :ivar is_left: It is ``rb_left``; else ``rb_right``.
    :ivar roots: Rows of anon_vmas whose ``rb_root`` is wrong.
    :ivar back: Rows of nodes whose parent pointer is wrong.
    :ivar lost: Rows of AVCs that a pointer which is NULL should lead to, and the address of that
        pointer.
    :ivar lost_word: See ``lost``.
    :ivar damaged: anon_vmas whose trees have any such pointer, or are not known as a whole.
    """

    parent: RowColumn
    is_left: BoolColumn
    roots: RowColumn
    back: RowColumn
    lost: RowColumn
    lost_word: U64Column
    damaged: BoolColumn


def is_child(facts: Facts, avc: RowColumn, parent: RowColumn) -> BoolColumn:
    """Whether AVCs are children of others by those others' words."""
    avcs = facts.tables.avcs
    rb = avcs.rb_node[avc]
    child: BoolColumn = (avcs.rb_left[parent] == rb) | (avcs.rb_right[parent] == rb)
    return child


def find_wrong_pointers(facts: Facts) -> TreePointers:
    """Compare all trees with themselves."""
    tables = facts.tables
    nodes, avcs = tables.nodes, tables.avcs
    real = facts.node_real
    damaged = ~facts.tree_whole
    rb_offset = np.uint64(facts.era.avc.offset("rb"))

    odd = np.flatnonzero(real & ~facts.node_linked)
    says = facts.find_node(rb_parent(avcs.rb_parent_color[nodes.avc[odd]]))
    claimed = says != NO_ROW
    claimed[claimed] = is_child(facts, nodes.avc[odd[claimed]], says[claimed])
    damaged[nodes.anon_vma[odd]] = True

    # Pointers that led to what is no node of the tree; where two roots lead to one tree, the
    # borrower's is wrong, not the owner's, even if the walk came to the owner second.
    astray = np.concatenate([np.flatnonzero(~real), odd[claimed]])
    of_root = nodes.parent[astray] == NO_ROW
    borrower = np.flatnonzero(facts.borrowed_from != NO_ROW)
    lender = facts.borrowed_from[borrower]
    of_owner = np.isin(nodes.anon_vma[astray], lender) & facts.node_owned[astray]
    roots = [nodes.anon_vma[astray[of_root & ~of_owner]], borrower]
    inner = astray[~of_root]
    # What hangs below a node that is none itself is that one's consequence.
    inner = inner[real[nodes.parent[inner]]]
    above = nodes.parent[inner]
    parents = [nodes.avc[above]]
    lefts = [nodes.left[above] == inner]

    # Pointers that led nowhere.
    for left, child, pointers in (
        (True, nodes.left, avcs.rb_left),
        (False, nodes.right, avcs.rb_right),
    ):
        ends = nodes.avc[real & (child == NO_ROW)]
        ends = ends[pointers[ends] != 0]
        wild = tables.space.wild(pointers[ends] - rb_offset, facts.era.avc.size)
        parents.append(ends[wild])
        lefts.append(np.full(int(np.count_nonzero(wild)), left))
    lost, gap, gap_is_left, hollow = _lost_children(facts)
    parents.append(gap)
    lefts.append(gap_is_left)
    parent, is_left = np.concatenate(parents), np.concatenate(lefts)
    _, first = np.unique(2 * parent + is_left, return_index=True)
    parent, is_left = parent[first], is_left[first]
    damaged[facts.node_tree[facts.node_of_avc[parent]]] = True

    there = facts.believed & (facts.tree_pointer != 0)
    there[nodes.anon_vma] = False
    there = np.flatnonzero(there)
    wild = tables.space.wild(facts.tree_pointer[there] - rb_offset, facts.era.avc.size)
    roots.append(there[wild])
    wrong_roots = np.unique(np.concatenate([*roots, hollow]))
    wrong_roots = wrong_roots[facts.believed[wrong_roots]]
    damaged[wrong_roots] = True
    return TreePointers(
        parent=parent,
        is_left=is_left,
        roots=wrong_roots,
        back=odd[~claimed],
        lost=lost,
        lost_word=_child_word(facts, gap, gap_is_left),
        damaged=damaged,
    )


# AVCs on lists that are in no tree although they name a node of their anon_vma's tree as their
# parent, and no other child is known to be in one of its places; that node, and whether the place
# is the left one. And anon_vmas in whose tree such an AVC should be the top one, if what is there
# instead is not in the target. While somebody holds the locks, an AVC that is taken out of its tree
# for a moment looks just so.
def _lost_children(facts: Facts) -> tuple[RowColumn, RowColumn, BoolColumn, RowColumn]:
    tables = facts.tables
    avcs, vmas, nodes = tables.avcs, tables.vmas, tables.nodes
    lost = facts.orphans
    anon_vma, home = facts.avc_anon_vma_row[lost], facts.home[lost]
    root, mm = take(facts.root_row, anon_vma, NO_ROW), take(vmas.mm, home, NO_ROW)
    held = take(tables.anon_vmas.write_locked, root, True)
    held |= take(tables.mms.write_locked | ~tables.mms.known, mm, True)
    says = rb_parent(avcs.rb_parent_color[lost])
    top = anon_vma[~held & (says == 0)]
    hollow = top[(facts.tree_pointer[top] != 0) & (facts.nodes_in_tree[top] == 0)]
    parent = facts.find_node(says)
    kept = ~held & (take(facts.avc_anon_vma_row, parent, NO_ROW) == anon_vma)
    kept &= (take(facts.node_of_avc, parent, NO_ROW) != NO_ROW) & (anon_vma != NO_ROW)
    kept &= take(facts.home, parent, NO_ROW) != NO_ROW
    lost, parent, home = lost[kept], parent[kept], home[kept]
    # Some wrong pointer can have kept the walk from going on at a node that is in order.
    kept = ~is_child(facts, lost, parent)
    lost, parent, home = lost[kept], parent[kept], home[kept]
    node = facts.node_of_avc[parent]
    is_free = []
    for child in (nodes.left[node], nodes.right[node]):
        sits = take(facts.node_real, child, False) & take(facts.node_linked, child, False)
        is_free.append(~sits)
    free_left, free_right = is_free
    some = np.flatnonzero(free_left | free_right)
    # If both places are free, the keys tell which one it was.
    before = vmas.key_first[home] < vmas.key_first[facts.home[parent]]
    is_left = free_left & (~free_right | before)
    return lost[some], parent[some], is_left[some], hollow


def _child_word(facts: Facts, avc: RowColumn, is_left: BoolColumn) -> U64Column:
    record = facts.era.avc
    offset = np.where(is_left, record.offset("rb_left"), record.offset("rb_right"))
    return facts.tables.avcs.address[avc] + offset.astype(np.uint64)


def find_heirs(facts: Facts, node: U64Column, anon_vma: RowColumn) -> U64Column:
    """Where wrong pointers of nodes should lead.

    That is an AVC of the same anon_vma which names the node as its parent, and which no child
    pointer leads to.

    :param node: Addresses of the nodes' ``rb``; 0 for the pointer of the tree's root.
    :param anon_vma: Rows of the anon_vmas.
    :return: Addresses of ``rb`` nodes; 0 where there is no such AVC, or more than one.
    """
    tables = facts.tables
    avcs, nodes = tables.avcs, tables.nodes
    if not len(node):
        return node
    says = rb_parent(avcs.rb_parent_color)
    at = np.flatnonzero(facts.avc_known & np.isin(says, node))
    place = facts.node_of_avc[at]
    there = place != NO_ROW
    settled = np.zeros(len(at), dtype=bool)
    settled[there] = facts.node_linked[place[there]] & (
        (nodes.parent[place[there]] != NO_ROW) | facts.node_owned[place[there]]
    )
    at = at[~settled]
    if not len(at):
        return np.zeros(len(node), dtype=np.uint64)
    wanted = np.unique(node)
    width = len(tables.anon_vmas.address) + 1
    key = np.searchsorted(wanted, node) * width + anon_vma
    found = np.searchsorted(wanted, says[at]) * width + facts.avc_anon_vma_row[at]
    order = np.argsort(found, kind="stable")
    first = np.searchsorted(found[order], key)
    behind = np.searchsorted(found[order], key, side="right")
    heir = avcs.rb_node[at[order[np.minimum(first, len(at) - 1)]]]
    return np.where(behind - first == 1, heir, np.uint64(0))
