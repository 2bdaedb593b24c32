"""The interval trees of anon_vmas."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.reader import ObjectStore, Reader
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("TreeWalker", "in_order")

# A level of all trees: which tree, the node (address of the rb in an AVC), its parent (number, and
# address of its rb), and on which side of it.
_FRONT = np.dtype(
    [("tree", "i8"), ("node", "u8"), ("parent", "i8"), ("parent_node", "u8"), ("side", "i8")]
)


# A red-black tree of 2^64 nodes has no more levels than this. One that is deeper is none, and would
# cost a round for each of its nodes.
_MAX_DEPTH = 128


class TreeWalker:
    """Walks trees from ``rb_root`` down, a level of all of them a round.

    Which AVCs a tree holds is found only this way: the ``rb`` of an AVC that is listed, but not
    inserted, is garbage. A node is followed if it agrees with the tree in one of two words: its
    ``anon_vma`` is this one, or its ``rb`` parent is the node that the walk comes from. An AVC that
    was followed once is not followed again, in whatever tree, so every walk ends.

    :param avcs: Where AVCs are kept; those that only a tree knows are added.
    """

    def __init__(self, reader: Reader, avcs: ObjectStore) -> None:
        self._reader = reader
        self._avcs = avcs
        self._offset = np.uint64(avcs.record.offset("rb"))
        self._followed = np.zeros(0, dtype=bool)
        # Scratch space: for each AVC, its place in a level.
        self._place = np.empty(0, dtype=np.int64)
        self._nodes: list[dict[str, RowColumn]] = []
        self._count = 0

    def walk(self, tree: RowColumn, anon_vma: U64Column, rb_root: U64Column) -> BoolColumn:
        """Walk more trees.

        :param tree: What to call each of them.
        :param anon_vma: Address of the anon_vma of each.
        :param rb_root: Its ``rb_root.rb_node``.
        :return: Which of them are whole.
        """
        whole = np.ones(len(tree), dtype=bool)
        record = self._avcs.record
        pointer = strip_lock_mark(rb_root)
        occupied = np.flatnonzero(pointer != 0)
        front = np.empty(len(occupied), dtype=_FRONT)
        front["tree"] = occupied
        front["node"] = pointer[occupied]
        front["parent"] = NO_ROW
        front["parent_node"] = 0
        front["side"] = 0
        depth = 0
        while len(front) and depth < _MAX_DEPTH:
            self._reader.progress("tree nodes", self._count)
            wild = self._reader.space.wild(front["node"] - self._offset, record.size)
            whole[front["tree"][wild]] = False
            front = front[~wild]
            avc = self._find(front["node"] - self._offset)
            whole[front["tree"][avc == NO_ROW]] = False
            front, avc = front[avc != NO_ROW], avc[avc != NO_ROW]
            rows = self._avcs.rows[avc]
            ours = record.column(rows, "anon_vma") == anon_vma[front["tree"]]
            linked = rb_parent(record.column(rows, "rb_parent_color")) == front["parent_node"]
            followed = self._follow(avc, ours | linked)
            whole[front["tree"][~followed]] = False
            number = self._count + np.arange(len(avc))
            self._nodes.append(
                {
                    "tree": tree[front["tree"]],
                    "avc": avc,
                    "parent": front["parent"],
                    "side": front["side"],
                    "depth": np.full(len(avc), depth, dtype=np.int64),
                    "followed": followed.astype(np.int64),
                }
            )
            self._count += len(avc)
            below = np.repeat(front[followed], 2)
            below["parent"] = np.repeat(number[followed], 2)
            below["parent_node"] = below["node"]
            below["side"] = np.arange(len(below)) % 2
            below["node"][0::2] = record.column(rows[followed], "rb_left")
            below["node"][1::2] = record.column(rows[followed], "rb_right")
            front = below[below["node"] != 0]
            depth += 1
        whole[front["tree"]] = False
        return whole

    # Numbers of AVCs, read now if need be; NO_ROW in a hole.
    def _find(self, address: U64Column) -> RowColumn:
        avc = self._avcs.find(address)
        new = np.unique(address[avc == NO_ROW])
        if len(new):
            rows, present = self._reader.rows(self._avcs.record, new)
            self._avcs.add(new[present], rows[present])
            avc = self._avcs.find(address)
        return avc

    # Which of a level's places are followed: those that are wanted, each AVC once in all.
    def _follow(self, avc: RowColumn, wanted: BoolColumn) -> BoolColumn:
        self._grow()
        places = np.flatnonzero(wanted & ~self._followed[avc])
        chosen = avc[places]
        self._followed[chosen] = True
        # Of several places of one AVC in this level the first one: written backwards, it stays.
        self._place[chosen[::-1]] = places[::-1]
        follow = np.zeros(len(avc), dtype=bool)
        follow[places[self._place[chosen] == places]] = True
        return follow

    def _grow(self) -> None:
        if len(self._followed) < len(self._avcs):
            size = max(len(self._avcs), 2 * len(self._followed))
            self._followed = np.append(self._followed, np.zeros(size - len(self._followed), bool))
            self._place = np.empty(size, dtype=np.int64)

    def followed(self, first: int) -> BoolColumn:
        """Which AVCs, from number ``first`` on, were followed in a tree."""
        self._grow()
        return self._followed[first : len(self._avcs)]

    def nodes(self) -> dict[str, RowColumn]:
        """All nodes met so far: ``tree``, ``avc``, ``parent``, ``side`` (0 left), ``depth``, and
        ``again`` for all meetings of an AVC but one: the one that was followed, else the first; in
        the order in which they were met, ``parent`` by this numbering.
        """
        names = ("tree", "avc", "parent", "side", "depth", "followed")
        nodes = {
            name: np.concatenate([level[name] for level in self._nodes] or [np.empty(0, np.int64)])
            for name in names
        }
        nodes["again"] = np.zeros(len(nodes["avc"]), dtype=np.int64)
        often = np.flatnonzero(np.bincount(nodes["avc"], minlength=1)[nodes["avc"]] > 1)
        order = often[np.lexsort((often, -nodes["followed"][often], nodes["avc"][often]))]
        repeated = nodes["avc"][order[1:]] == nodes["avc"][order[:-1]]
        nodes["again"][order[1:][repeated]] = 1
        return nodes


def in_order(parent: RowColumn, side: RowColumn, depth: I64Column) -> RowColumn:
    """Place of each node in the in-order sequence of its own tree.

    :param parent: Number of the parent of each, NO_ROW for a root.
    :param side: 0 for a left child, 1 for a right one.
    :param depth: 0 for a root.
    """
    count = len(parent)
    size = np.ones(count, dtype=np.int64)
    left_size = np.zeros(count, dtype=np.int64)
    by_depth = np.argsort(depth, kind="stable")
    levels = np.split(by_depth, np.flatnonzero(np.diff(depth[by_depth])) + 1) if count else []
    for level in reversed(levels[1:]):
        np.add.at(size, parent[level], size[level])
        left = level[side[level] == 0]
        left_size[parent[left]] = size[left]
    start = np.zeros(count, dtype=np.int64)
    for level in levels[1:]:
        above = parent[level]
        start[level] = np.where(side[level] == 0, start[above], start[above] + left_size[above] + 1)
    return start + left_size
