"""The interval trees of anon_vmas."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.reader import ObjectStore, Reader
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("TreeWalker", "in_order")


class TreeWalker:
    """Walks trees from ``rb_root`` down, a level of all of them a round.

    Which AVCs a tree holds is found only this way: the ``rb`` of an AVC that is listed, but not
    inserted, is garbage. A node is followed if it agrees with the tree in one of two words: its
    ``anon_vma`` is this one, or its ``rb`` parent is the node that the walk comes from. An AVC that
    is met a second time, in whatever tree, is noted and not followed again, so that every walk ends.

    :param avcs: Where AVCs are kept; those that only a tree knows are added.
    """

    def __init__(self, reader: Reader, avcs: ObjectStore) -> None:
        self._reader = reader
        self._avcs = avcs
        self._offset = np.uint64(avcs.record.offset("rb"))
        self._visited = np.zeros(0, dtype=bool)
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
        pointer = strip_lock_mark(rb_root)
        index = np.flatnonzero(pointer != 0)
        pointer = pointer[index]
        parent = np.full(len(index), NO_ROW, dtype=np.int64)
        parent_address = np.zeros(len(index), dtype=np.uint64)
        side = np.zeros(len(index), dtype=np.int64)
        depth = 0
        while len(index):
            self._reader.progress("tree nodes", self._count)
            address = pointer - self._offset
            wild = self._reader.space.wild(address, self._avcs.record.size)
            whole[index[wild]] = False
            index, parent, parent_address, side, address = (
                column[~wild] for column in (index, parent, parent_address, side, address)
            )
            avc = self._find(address)
            whole[index[avc == NO_ROW]] = False
            there = avc != NO_ROW
            index, parent, parent_address, side, avc = (
                column[there] for column in (index, parent, parent_address, side, avc)
            )
            rows = self._avcs.rows[avc]
            record = self._avcs.record
            ours = record.column(rows, "anon_vma") == anon_vma[index]
            linked = rb_parent(record.column(rows, "rb_parent_color")) == parent_address
            again = self._meet(avc)
            followed = (ours | linked) & ~again
            whole[index[~followed]] = False
            row = self._count + np.arange(len(avc))
            self._nodes.append(
                {
                    "tree": tree[index],
                    "avc": avc,
                    "parent": parent,
                    "side": side,
                    "depth": np.full(len(avc), depth, dtype=np.int64),
                    "again": again.astype(np.int64),
                }
            )
            self._count += len(avc)
            children = [record.column(rows, name) for name in ("rb_left", "rb_right")]
            here = address[there] + self._offset
            pointer = np.concatenate([child[followed] for child in children])
            index = np.tile(index[followed], 2)
            parent = np.tile(row[followed], 2)
            parent_address = np.tile(here[followed], 2)
            side = np.repeat(np.array([0, 1], dtype=np.int64), np.count_nonzero(followed))
            exists = pointer != 0
            pointer, index, parent, parent_address, side = (
                column[exists] for column in (pointer, index, parent, parent_address, side)
            )
            depth += 1
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

    # Which of the AVCs were met before, here or earlier in this level.
    def _meet(self, avc: RowColumn) -> BoolColumn:
        if len(self._visited) < len(self._avcs):
            grown = np.zeros(max(len(self._avcs), 2 * len(self._visited)), dtype=bool)
            grown[: len(self._visited)] = self._visited
            self._visited = grown
        again = self._visited[avc]
        self._visited[avc] = True
        fresh = np.flatnonzero(~again)
        _, first = np.unique(avc[fresh], return_index=True)
        if len(first) != len(fresh):
            repeated = np.ones(len(fresh), dtype=bool)
            repeated[first] = False
            again[fresh[repeated]] = True
        return again

    def nodes(self) -> dict[str, RowColumn]:
        """All nodes met so far: ``tree``, ``avc``, ``parent``, ``side`` (0 left), ``depth``,
        ``again``; in the order in which they were met, ``parent`` by this numbering.
        """
        names = ("tree", "avc", "parent", "side", "depth", "again")
        return {
            name: np.concatenate([level[name] for level in self._nodes] or [np.empty(0, np.int64)])
            for name in names
        }


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
        start[level] = np.where(
            side[level] == 0, start[above], start[above] + left_size[above] + 1
        )
    return start + left_size
