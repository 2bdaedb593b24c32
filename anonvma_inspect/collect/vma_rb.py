"""The VMAs of mms that keep them in a red-black tree and a list (up to v6.0)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.mms import SlotColumns
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.trees import MAX_DEPTH, Places, in_order
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.tags import rb_is_black, rb_parent
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import BoolColumn, ByteRows, U64Column

__all__ = ("walk_rb_trees",)

# include/linux/rbtree_augmented.h: a struct rb_node is aligned to longs, and nothing uses bit 1.
_RB_SPARE_BIT = np.uint64(2)
# A level of all trees: which tree, the node (address of a vm_rb), and its parent's (0 for a root);
# how many black nodes are above it, and whether the parent is red (so to speak, above a root); the
# parent's row among all that were met, on which side of it, and how deep.
_FRONT = np.dtype(
    [
        *(("tree", "i8"), ("node", "u8"), ("parent", "u8"), ("blacks", "i8"), ("red", "?")),
        *(("above", "i8"), ("side", "i1"), ("depth", "i2")),
    ]
)


def walk_rb_trees(
    reader: Reader, era: Era, numbers: RowColumn, mms: U64Column, roots: U64Column
) -> tuple[SlotColumns, BoolColumn]:
    """Enumerate the VMAs of many mms, a level of all trees a round.

    Follows ``mm->mm_rb`` (``mm/mmap.c``, v5.10). A node is followed if its parent is the node that
    the walk comes from or its ``vm_mm`` is this mm; none is followed twice.

    :param numbers: What to call each mm in the answer.
    :param mms: Their addresses.
    :param roots: ``mm_rb.rb_node`` of each.
    :return: The VMAs as entries, in the order of their trees, and which of the trees are whole.
    """
    vma = era.vma
    offset = np.uint64(vma.offset("vm_rb"))
    whole = np.ones(len(roots), dtype=bool)
    planted = np.flatnonzero(roots != 0)
    front = np.zeros(len(planted), dtype=_FRONT)
    front["tree"] = planted
    front["node"] = roots[planted]
    front["red"] = True
    front["above"] = NO_ROW
    count = 0
    visited = np.empty(0, dtype=np.uint64)
    met: list[tuple[NDArray[np.void], ByteRows]] = []
    ends: list[NDArray[np.void]] = [front[:0]]
    # Each round is one level further down.
    while len(front) and len(met) < MAX_DEPTH:
        reader.progress("VMAs", len(visited))
        wild = reader.space.wild(front["node"] - offset, vma.size)
        _note(reader, numbers, mms, offset, front[wild], "a pointer to a VMA is wild", whole)
        front = front[~wild]
        _, first = np.unique(front["node"], return_index=True)
        again = np.ones(len(front), dtype=bool)
        again[first] = False
        again |= np.isin(front["node"], visited)
        _note(reader, numbers, mms, offset, front[again], "a VMA is met twice", whole)
        front = front[~again]
        visited = np.concatenate([visited, front["node"]])
        rows, present = reader.rows(vma, front["node"] - offset)
        whole[front["tree"][~present]] = False
        front, rows = front[present], rows[present]
        linked = rb_parent(vma.column(rows, "vm_rb_parent_color")) == front["parent"]
        ours = vma.column(rows, "vm_mm") == mms[front["tree"]]
        _note(
            reader,
            numbers,
            mms,
            offset,
            front[~linked],
            "the VMA has another parent in vm_rb",
            whole,
        )
        front, rows = front[linked | ours], rows[linked | ours]
        met.append((front, rows))
        colour = vma.column(rows, "vm_rb_parent_color")
        black = rb_is_black(colour).astype(bool)
        for wrong, problem in (
            (
                ~black & front["red"],
                "the VMA is red in vm_rb, and so is its parent, or it is the root",
            ),
            ((colour & _RB_SPARE_BIT) != 0, "a bit of vm_rb is set that no red-black tree uses"),
        ):
            for entry, word in zip(front[wrong], colour[wrong], strict=True):
                number = int(numbers[entry["tree"]])
                holder = int(entry["node"] - offset)
                reader.broken(number, holder, "vm_area_struct", int(word), problem)
        below = np.repeat(front, 2)
        below["parent"] = below["node"]
        below["blacks"] += np.repeat(black, 2)
        below["red"] = np.repeat(~black, 2)
        below["above"] = np.repeat(np.arange(count, count + len(front)), 2)
        below["side"][1::2] = 1
        below["side"][0::2] = 0
        below["depth"] += 1
        count += len(front)
        below["node"][0::2] = vma.column(rows, "vm_rb_left")
        below["node"][1::2] = vma.column(rows, "vm_rb_right")
        ends.append(below[below["node"] == 0])
        front = below[below["node"] != 0]
    too_deep = "the tree of VMAs is deeper than any red-black tree"
    _note(reader, numbers, mms, offset, front, too_deep, whole)
    _check_heights(reader, numbers, mms, np.concatenate(ends), roots, whole)
    found = np.concatenate([part[0] for part in met] or [np.empty(0, dtype=_FRONT)])
    rows = np.concatenate([part[1] for part in met] or [np.empty((0, vma.size), np.uint8)])
    start, end = vma.column(rows, "vm_start"), vma.column(rows, "vm_end")
    places = Places(
        found["tree"],
        np.arange(len(found)),
        found["above"],
        found["side"],
        found["depth"],
        np.ones(len(found), dtype=bool),
    )
    order = np.lexsort((in_order(places), numbers[found["tree"]]))
    found, rows, start, end = found[order], rows[order], start[order], end[order]
    pointer = found["node"] - offset
    _check_list(reader, era, numbers, mms, found["tree"], pointer, rows, whole)
    slots = SlotColumns(numbers[found["tree"]], pointer, start, end - np.uint64(1), pointer)
    return slots, whole


# All ways down a tree have equally many black nodes.
def _check_heights(
    reader: Reader,
    numbers: RowColumn,
    mms: U64Column,
    ends: NDArray[np.void],
    roots: U64Column,
    whole: BoolColumn,
) -> None:
    least = np.full(len(roots), np.iinfo(np.int64).max)
    most = np.zeros(len(roots), dtype=np.int64)
    np.minimum.at(least, ends["tree"], ends["blacks"])
    np.maximum.at(most, ends["tree"], ends["blacks"])
    for tree in np.flatnonzero(whole & (most > least)):
        problem = "ways down the tree of VMAs differ in their number of black nodes"
        reader.broken(int(numbers[tree]), int(mms[tree]), "mm_struct", int(roots[tree]), problem)


# The list goes through the same VMAs in order of address; each VMA holds its own two links of it.
def _check_list(
    reader: Reader,
    era: Era,
    numbers: RowColumn,
    mms: U64Column,
    tree: RowColumn,
    pointer: U64Column,
    rows: ByteRows,
    whole: BoolColumn,
) -> None:
    same = tree[1:] == tree[:-1]
    after = np.zeros(len(pointer), dtype=np.uint64)
    after[:-1][same] = pointer[1:][same]
    before = np.zeros(len(pointer), dtype=np.uint64)
    before[1:][same] = pointer[:-1][same]
    for name, expected in (("vm_next", after), ("vm_prev", before)):
        link = era.vma.column(rows, name)
        for index in np.flatnonzero((link != expected) & whole[tree]):
            reader.broken(
                int(numbers[tree[index]]),
                int(pointer[index]),
                "vm_area_struct",
                int(link[index]),
                f"{name} is not its neighbour in the tree",
            )


# Notes words that cannot be right, by the VMA or mm that holds them.
def _note(
    reader: Reader,
    numbers: RowColumn,
    mms: U64Column,
    offset: np.uint64,
    front: NDArray[np.void],
    problem: str,
    whole: BoolColumn,
) -> None:
    for entry in front:
        tree, parent = entry["tree"], entry["parent"]
        holder, struct = (parent - offset, "vm_area_struct") if parent else (mms[tree], "mm_struct")
        reader.broken(int(numbers[tree]), int(holder), struct, int(entry["node"]), problem)
    whole[front["tree"]] = False
