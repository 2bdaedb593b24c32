"""The interval trees of anon_vmas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.index import AddressIndex, batches
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column, starts_run

__all__ = ("MAX_DEPTH", "Places", "TreeWalker", "in_order", "met_again")

#: A red-black tree of 2^64 nodes has no more levels than this. One that is deeper is none, and
#: would cost a round for each of its nodes.
MAX_DEPTH = 128


class Places(NamedTuple):
    """Places in trees, as columns, in the order in which they were met.

    :ivar tree: What the tree was called.
    :ivar avc: Number of the AVC.
    :ivar parent: Number of the parent's place in these columns, NO_ROW for a root.
    :ivar side: On which side of it: 0 left, 1 right.
    :ivar depth: 0 for a root.
    :ivar followed: The walk went on from here.
    """

    tree: RowColumn
    avc: RowColumn
    parent: RowColumn
    side: NDArray[np.int8]
    depth: NDArray[np.int16]
    followed: BoolColumn


class _Front(NamedTuple):
    """A level of all trees.

    :ivar tree: Which tree.
    :ivar node: The node, the address of the ``rb`` in an AVC.
    :ivar parent: Number of its parent.
    :ivar parent_node: Address of the parent's ``rb``.
    :ivar side: On which side of it: 0 left, 1 right.
    """

    tree: RowColumn
    node: U64Column
    parent: RowColumn
    parent_node: U64Column
    side: NDArray[np.int8]

    def pick(self, which: BoolColumn | slice) -> _Front:
        return _Front(
            self.tree[which],
            self.node[which],
            self.parent[which],
            self.parent_node[which],
            self.side[which],
        )

    @staticmethod
    def join(parts: Sequence[_Front]) -> _Front:
        return _Front(
            np.concatenate([part.tree for part in parts]),
            np.concatenate([part.node for part in parts]),
            np.concatenate([part.parent for part in parts]),
            np.concatenate([part.parent_node for part in parts]),
            np.concatenate([part.side for part in parts]),
        )


class _Level(NamedTuple):
    """What was read of a part of a level; nodes that could not be read are left out.

    :ivar avc: Number of each AVC, NO_ROW for one that has none yet.
    :ivar agrees: In one of two words with the tree.
    :ivar child: Both children of each node, the left one first.
    """

    front: _Front
    address: U64Column
    avc: RowColumn
    agrees: BoolColumn
    vma: U64Column
    anon_vma: U64Column
    child: U64Column


class TreeWalker:
    """Walks trees from ``rb_root`` down, a level of all of them a round.

    Which AVCs a tree holds is found only this way: the ``rb`` of an AVC that is listed, but not
    inserted, is garbage. A node is followed if it agrees with the tree in one of two words: its
    ``anon_vma`` is this one, or its ``rb`` parent is the node that the walk comes from. An AVC that
    was followed once is not followed again, in whatever tree, so every walk ends.

    :param avcs: Where AVCs are kept; those that only a tree knows are added.
    :ivar vma_pointers: ``vma`` of those AVCs, as far as they were followed.
    :ivar anon_vma_pointers: ``anon_vma`` of those.
    """

    def __init__(self, reader: Reader, record: Record, avcs: AddressIndex) -> None:
        self._reader = reader
        self._record = record
        self._avcs = avcs
        self._offset = np.uint64(record.offset("rb"))
        self._followed = np.zeros(0, dtype=bool)
        # Scratch space: for each AVC, its place in a level.
        self._place = np.empty(0, dtype=np.int64)
        self._places: list[Places] = []
        self._count = 0
        self.vma_pointers: list[U64Column] = []
        self.anon_vma_pointers: list[U64Column] = []

    def walk(
        self, tree: RowColumn, anon_vma: U64Column, rb_root: U64Column, listed: int
    ) -> BoolColumn:
        """Walk more trees.

        :param tree: What to call each of them.
        :param anon_vma: Address of the anon_vma of each.
        :param rb_root: Its ``rb_root.rb_node``.
        :param listed: Of AVCs with lower numbers it is known what they lead to.
        :return: Which of them are whole.
        """
        whole = np.ones(len(tree), dtype=bool)
        pointer = strip_lock_mark(rb_root)
        occupied = np.flatnonzero(pointer != 0)
        nothing = np.zeros(len(occupied), dtype=np.int64)
        front = _Front(
            occupied,
            pointer[occupied],
            nothing + NO_ROW,
            nothing.view(np.uint64),
            nothing.astype(np.int8),
        )
        depth = 0
        while len(front.tree) and depth < MAX_DEPTH:
            self._reader.progress("tree nodes", self._count)
            parts = [front.pick(part) for part in batches(len(front.tree))]
            levels = run_parallel(lambda part: self._read(part, anon_vma, whole), parts)
            front = _Front.join([self._step(level, tree, depth, whole, listed) for level in levels])
            depth += 1
        whole[front.tree] = False
        return whole

    def _read(self, front: _Front, anon_vma: U64Column, whole: BoolColumn) -> _Level:
        record = self._record
        wild = self._reader.space.wild(front.node - self._offset, record.size)
        if wild.any():
            whole[front.tree[wild]] = False
            front = front.pick(~wild)
        address = front.node - self._offset
        rows, present = self._reader.rows(record, address)
        if not present.all():
            whole[front.tree[~present]] = False
            front, rows, address = front.pick(present), rows[present], address[present]
        named = record.column(rows, "anon_vma")
        linked = rb_parent(record.column(rows, "rb_parent_color")) == front.parent_node
        child = np.empty(2 * len(rows), dtype=np.uint64)
        child[0::2] = record.column(rows, "rb_left")
        child[1::2] = record.column(rows, "rb_right")
        return _Level(
            front,
            address,
            self._avcs.find(address),
            (named == anon_vma[front.tree]) | linked,
            record.column(rows, "vma"),
            named,
            child,
        )

    def _step(
        self, level: _Level, tree: RowColumn, depth: int, whole: BoolColumn, listed: int
    ) -> _Front:
        front = level.front
        avc = self._number(level)
        followed = self._follow(avc, level.agrees)
        self._places.append(
            Places(
                tree[front.tree],
                avc,
                front.parent,
                front.side,
                np.full(len(avc), depth, dtype=np.int16),
                followed,
            )
        )
        number = self._count + np.arange(len(avc))
        self._count += len(avc)
        new = followed & (avc >= listed)
        if new.any():
            self.vma_pointers.append(level.vma[new])
            self.anon_vma_pointers.append(level.anon_vma[new])
        child = level.child
        if not followed.all():
            whole[front.tree[~followed]] = False
            child = np.where(np.repeat(followed, 2), child, np.uint64(0))
        there = np.flatnonzero(child)
        above = there // 2
        return _Front(
            front.tree[above],
            child[there],
            number[above],
            front.node[above],
            (there % 2).astype(np.int8),
        )

    # Numbers of AVCs, given to those now that have none yet.
    def _number(self, level: _Level) -> RowColumn:
        new = level.avc == NO_ROW
        if not new.any():
            return level.avc
        self._avcs.number(self._avcs.unknown(level.address[new]))
        return self._avcs.find(level.address)

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

    def places(self) -> Places:
        """Hand over all places, in the order in which they were met: the last thing to be asked."""
        parts, self._places = self._places, []
        return Places(
            np.concatenate([part.tree for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.avc for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.parent for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.side for part in parts] or [np.empty(0, np.int8)]),
            np.concatenate([part.depth for part in parts] or [np.empty(0, np.int16)]),
            np.concatenate([part.followed for part in parts] or [np.empty(0, np.bool_)]),
        )


def met_again(places: Places) -> BoolColumn:
    """All meetings of an AVC but one: the one that was followed, else the first."""
    again = np.zeros(len(places.avc), dtype=bool)
    if places.followed.all():
        return again
    often = np.flatnonzero(np.bincount(places.avc, minlength=1)[places.avc] > 1)
    order = often[np.lexsort((often, ~places.followed[often], places.avc[often]))]
    repeated = places.avc[order[1:]] == places.avc[order[:-1]]
    again[order[1:][repeated]] = True
    return again


def in_order(places: Places) -> RowColumn:
    """For each place, how many others of its tree come before it."""
    parent, side, depth = places.parent, places.side, places.depth
    count = len(parent)
    size = np.ones(count, dtype=np.int64)
    left_size = np.zeros(count, dtype=np.int64)
    # A level of several trees is met at once, after the one above it.
    edges = [*np.flatnonzero(starts_run(depth)), count]
    levels = [slice(first, end) for first, end in itertools.pairwise(edges) if depth[first]]
    for level in reversed(levels):
        left = side[level] == 0
        above, below = parent[level], size[level]
        left_size[above[left]] = below[left]
        size[above[left]] += below[left]
        size[above[~left]] += below[~left]
    start = np.zeros(count, dtype=np.int64)
    for level in levels:
        above = parent[level]
        start[level] = start[above]
        start[level] += np.where(side[level] == 0, 0, left_size[above] + 1)
    start += left_size
    return start
