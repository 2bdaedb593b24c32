"""The colours of red-black nodes: which trees break the rules, and which node is at fault.

A wrong colour shows elsewhere: the paths through the node's *parent* differ, or a red node has a
red child. So each tree that breaks the rules is tried with one node's colour changed; if that makes
a sound tree of it, and only one node's does, then that node is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.invariants.base import Violations, always, count_text
from anonvma_inspect.kernel.tags import rb_is_black
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, starts_run

if TYPE_CHECKING:
    from anonvma_inspect.invariants.facts import Facts

__all__ = ("find_wrong_colours",)

# So many nodes are looked at to find the one at fault; a dump in which more trees than that are
# broken has other troubles.
_BUDGET = 200_000
# One wrong colour leaves few candidates.
_MAX_CANDIDATES = 16


def find_wrong_colours(facts: Facts, judged: BoolColumn) -> list[Violations]:
    """Compare the colours of trees with the rules.

    :param judged: anon_vmas whose trees are known as a whole, and whose pointers are in order.
    """
    nodes = facts.tables.nodes
    black = rb_is_black(facts.node_word).astype(bool)
    kept = judged[nodes.anon_vma]
    has_parent = nodes.parent != NO_ROW
    # A NULL parent picks the last node here, and is masked.
    red_below_red = kept & has_parent & ~black
    red_below_red &= ~black[nodes.parent]
    red_root = kept & ~has_parent & ~black
    bad = np.zeros(len(judged), dtype=bool)
    bad[nodes.anon_vma[red_below_red | red_root]] = True
    bad[
        _uneven_trees(
            nodes.anon_vma, nodes.parent, nodes.left, nodes.right, nodes.depth, black, kept
        )
    ] = True
    wrong = _Wrong([], [], [], [], [], [])
    budget = _BUDGET
    for tree in np.flatnonzero(bad):
        first, end = np.searchsorted(nodes.anon_vma, [tree, tree + 1])
        budget -= int(end - first)
        if budget < 0:
            wrong.trees.append(int(tree))
            continue
        _judge_tree(facts, int(first), int(end), black[first:end].tolist(), wrong)
    return _report(facts, wrong)


# Trees in which paths differ in their number of black nodes, by going down all of them at once:
# a path ends where a node lacks a child.
def _uneven_trees(
    tree: RowColumn,
    parent: RowColumn,
    left: RowColumn,
    right: RowColumn,
    depth: I64Column,
    black: BoolColumn,
    kept: BoolColumn,
) -> RowColumn:
    # Sorting small numbers of 16 bits is much faster, and more of them fit into the cache.
    narrow = depth.astype(np.uint16) if len(depth) and int(depth.max()) < 2**16 - 1 else depth
    count: NDArray[np.integer[Any]] = black.astype(narrow.dtype)
    order = np.argsort(narrow, kind="stable")
    by_depth = narrow[order]
    bounds = np.flatnonzero(by_depth[1:] != by_depth[:-1]) + 1
    for level in np.split(order, bounds)[1:]:
        count[level] += count[parent[level]]
    end = np.flatnonzero(kept & ((left == NO_ROW) | (right == NO_ROW)))
    if not len(end):
        return end
    first = np.flatnonzero(starts_run(tree[end]))
    differ = np.minimum.reduceat(count[end], first) != np.maximum.reduceat(count[end], first)
    uneven: RowColumn = tree[end[first[differ]]]
    return uneven


@dataclass(frozen=True)
class _Wrong:
    """What is to be reported.

    :ivar should_be_black: Rows of nodes whose colour is wrong.
    :ivar should_be_red: Likewise.
    :ivar red_roots: Rows of nodes, where no single colour is at fault.
    :ivar red_children: Likewise.
    :ivar uneven: Rows of nodes whose sides differ, and the numbers of black nodes on both.
    :ivar trees: anon_vmas whose trees nobody has looked at closely.
    """

    should_be_black: list[int]
    should_be_red: list[int]
    red_roots: list[int]
    red_children: list[int]
    uneven: list[tuple[int, int, int]]
    trees: list[int]


class _Tree:
    def __init__(self, facts: Facts, first: int, end: int) -> None:
        nodes = facts.tables.nodes
        # Rows within this tree, -1 for none.
        self.left = [max(row - first, -1) for row in nodes.left[first:end].tolist()]
        self.right = [max(row - first, -1) for row in nodes.right[first:end].tolist()]
        self.parent = [max(row - first, -1) for row in nodes.parent[first:end].tolist()]
        self.upwards = np.argsort(-nodes.depth[first:end], kind="stable").tolist()

    # The nodes that break a rule: red roots, red children of red nodes, and the lowest nodes whose
    # sides differ with the number of black nodes on both.
    def problems(
        self, black: list[bool]
    ) -> tuple[list[int], list[int], list[tuple[int, int, int]]]:
        roots, children, uneven = [], [], []
        # Number of black nodes on the way down from each; -1 where that is not one number.
        height = [0] * len(black)
        for node in self.upwards:
            left = height[self.left[node]] if self.left[node] >= 0 else 0
            right = height[self.right[node]] if self.right[node] >= 0 else 0
            if left < 0 or right < 0:
                height[node] = -1
            elif left != right:
                uneven.append((node, left, right))
                height[node] = -1
            else:
                height[node] = left + black[node]
            if not black[node]:
                if self.parent[node] < 0:
                    roots.append(node)
                elif not black[self.parent[node]]:
                    children.append(node)
        return roots, children, uneven

    def is_sound(self, black: list[bool]) -> bool:
        return not any(self.problems(black))


def _judge_tree(facts: Facts, first: int, end: int, black: list[bool], wrong: _Wrong) -> None:
    tree = _Tree(facts, first, end)
    roots, children, uneven = tree.problems(black)
    candidates = set(roots)
    for child in children:
        candidates |= {child, tree.parent[child]}
    for node, _, _ in uneven:
        candidates |= {tree.left[node], tree.right[node]}
    candidates.discard(-1)
    culprits = []
    if len(candidates) <= _MAX_CANDIDATES:
        for candidate in candidates:
            black[candidate] = not black[candidate]
            if tree.is_sound(black):
                culprits.append(candidate)
            black[candidate] = not black[candidate]
    if len(culprits) == 1:
        culprit = culprits[0]
        (wrong.should_be_red if black[culprit] else wrong.should_be_black).append(first + culprit)
        return
    wrong.red_roots.extend(first + node for node in roots)
    wrong.red_children.extend(first + node for node in children)
    wrong.uneven.extend((first + node, left, right) for node, left, right in uneven)


def _report(facts: Facts, wrong: _Wrong) -> list[Violations]:
    nodes = facts.tables.nodes

    def avc(rows: list[int]) -> RowColumn:
        return nodes.avc[np.array(rows, dtype=np.int64)]

    left = np.array([entry[1] for entry in wrong.uneven], dtype=np.int64)
    right = np.array([entry[2] for entry in wrong.uneven], dtype=np.int64)
    colour = "rb_parent_color"
    red, black = always("red"), always("black")
    return [
        facts.of_avcs(
            "a node has the wrong colour for its tree to be balanced",
            avc(wrong.should_be_black),
            colour,
            black,
            red,
        ),
        facts.of_avcs(
            "a node has the wrong colour for its tree to be balanced",
            avc(wrong.should_be_red),
            colour,
            red,
            black,
        ),
        facts.of_avcs("the root of a tree is red", avc(wrong.red_roots), colour, black, red),
        facts.of_avcs("a red node has a red child", avc(wrong.red_children), colour, black, red),
        facts.of_avcs(
            "the sides of a node differ in their number of black nodes",
            avc([entry[0] for entry in wrong.uneven]),
            None,
            count_text(left),
            count_text(right),
        ),
        facts.of_anon_vmas(
            "a tree breaks the rules of colours",
            np.array(wrong.trees, dtype=np.int64),
            None,
            always("a balanced tree"),
            always("red below red, or paths that differ"),
        ),
    ]
