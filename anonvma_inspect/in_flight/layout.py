"""Laying out interval trees anew."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.tables import NO_ROW, AnonVmas, Avcs, Nodes, RowColumn, Tables, find_rows
from anonvma_inspect.target.memory import U64Column

__all__ = ("copied", "lay_out")

Table = TypeVar("Table", bound=Any)

_BLACK = np.uint64(1)


@dataclasses.dataclass(frozen=True)
class _Tree:
    """Nodes in order: their AVCs, and for each the places of its parent and its children."""

    avc: RowColumn
    parent: RowColumn
    left: RowColumn
    right: RowColumn
    depth: RowColumn


def copied(table: Table, *names: str) -> Table:
    """A table with copies of some columns, which may be written to."""
    return dataclasses.replace(table, **{name: getattr(table, name).copy() for name in names})


def lay_out(
    tables: Tables, changed: RowColumn, tree_of: RowColumn, facts: Facts
) -> tuple[Nodes, Avcs, AnonVmas]:
    """Give some anon_vmas trees of their AVCs, as flat as can be and right in every word.

    :param tables: What it was read as.
    :param changed: Rows of the anon_vmas.
    :param tree_of: Row of the anon_vma that each AVC is to be in; NO_ROW: in none.
    """
    avcs = copied(tables.avcs, "rb_parent_color", "rb_left", "rb_right", "rb_subtree_last")
    anon_vmas = copied(tables.anon_vmas, "rb_root", "rb_leftmost", "parent_row", "tree_whole")
    nodes = tables.nodes
    kept = np.flatnonzero(~np.isin(nodes.anon_vma, changed))
    parts = [_cut(nodes, kept)]
    member = np.flatnonzero(np.isin(tree_of, changed))
    home = facts.home[member]
    order = np.lexsort((member, tables.vmas.key_first[home], tree_of[member]))
    member = member[order]
    begin = np.searchsorted(tree_of[member], changed)
    end = np.searchsorted(tree_of[member], changed, side="right")
    total = len(kept)
    for anon_vma, first, last in zip(changed.tolist(), begin.tolist(), end.tolist(), strict=True):
        tree = _balanced(member[first:last])
        _write(tables, avcs, anon_vmas, anon_vma, tree, facts)
        parts.append(_numbered(tree, anon_vma, total))
        total += last - first
    return _sorted(parts), avcs, anon_vmas


# The middle of each range is its root; the deepest level, if it is not full, is red.
def _balanced(avc: RowColumn) -> _Tree:
    count = len(avc)
    parent, left, right = np.full((3, count), NO_ROW, dtype=np.int64)
    depth = np.zeros(count, dtype=np.int64)
    ranges = [(0, count, NO_ROW, 0)] if count else []
    while ranges:
        first, end, above, level = ranges.pop()
        middle = (first + end) // 2
        parent[middle], depth[middle] = above, level
        if above != NO_ROW:
            (left if middle < above else right)[above] = middle
        if first < middle:
            ranges.append((first, middle, middle, level + 1))
        if middle + 1 < end:
            ranges.append((middle + 1, end, middle, level + 1))
    return _Tree(avc, parent, left, right, depth)


def _write(
    tables: Tables, avcs: Avcs, anon_vmas: AnonVmas, anon_vma: int, tree: _Tree, facts: Facts
) -> None:
    node = tables.avcs.rb_node
    count = len(tree.avc)
    anon_vmas.tree_whole[anon_vma] = True
    if not count:
        anon_vmas.rb_root[anon_vma] = anon_vmas.rb_leftmost[anon_vma] = 0
        anon_vmas.parent_row[anon_vma] = NO_ROW
        return

    def address(place: RowColumn) -> U64Column:
        return np.where(place == NO_ROW, np.uint64(0), node[tree.avc[place]])

    full_levels = (count + 1).bit_length() - 1
    colour = np.where(tree.depth < full_levels, _BLACK, np.uint64(0))
    avcs.rb_parent_color[tree.avc] = address(tree.parent) | colour
    avcs.rb_left[tree.avc] = address(tree.left)
    avcs.rb_right[tree.avc] = address(tree.right)
    largest = tables.vmas.key_last[facts.home[tree.avc]].copy()
    for place in np.argsort(-tree.depth, kind="stable").tolist():
        above = tree.parent[place]
        if above != NO_ROW:
            largest[above] = max(largest[above], largest[place])
    avcs.rb_subtree_last[tree.avc] = largest
    top = int(np.flatnonzero(tree.parent == NO_ROW)[0])
    anon_vmas.rb_root[anon_vma] = node[tree.avc[top]]
    anon_vmas.rb_leftmost[anon_vma] = node[tree.avc[0]] if tables.era.has_leftmost else 0
    anon_vmas.parent_row[anon_vma] = find_rows(
        anon_vmas.address, facts.parent[anon_vma : anon_vma + 1]
    )[0]


def _numbered(tree: _Tree, anon_vma: int, base: int) -> Nodes:
    count = len(tree.avc)

    def moved(place: RowColumn) -> RowColumn:
        return np.where(place == NO_ROW, NO_ROW, place + base)

    return Nodes(
        anon_vma=np.full(count, anon_vma, dtype=np.int64),
        avc=tree.avc,
        parent=moved(tree.parent),
        left=moved(tree.left),
        right=moved(tree.right),
        depth=tree.depth,
        again=np.zeros(count, dtype=bool),
    )


def _cut(nodes: Nodes, kept: RowColumn) -> Nodes:
    number = np.full(len(nodes.avc) + 1, NO_ROW, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    return Nodes(
        anon_vma=nodes.anon_vma[kept],
        avc=nodes.avc[kept],
        parent=number[nodes.parent[kept]],
        left=number[nodes.left[kept]],
        right=number[nodes.right[kept]],
        depth=nodes.depth[kept],
        again=nodes.again[kept],
    )


def _sorted(parts: list[Nodes]) -> Nodes:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    order = np.argsort(joined("anon_vma"), kind="stable")
    number = np.full(len(order) + 1, NO_ROW, dtype=np.int64)
    number[order] = np.arange(len(order))
    return Nodes(
        anon_vma=joined("anon_vma")[order],
        avc=joined("avc")[order],
        parent=number[joined("parent")[order]],
        left=number[joined("left")[order]],
        right=number[joined("right")[order]],
        depth=joined("depth")[order],
        again=joined("again")[order],
    )
