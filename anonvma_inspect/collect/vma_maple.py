"""The VMAs of mms that keep them in a maple tree (since v6.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.mms import SlotColumns, slot_order
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel import maple
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import RowColumn
from anonvma_inspect.target.memory import BoolColumn, ByteRows, U64Column

__all__ = ("walk_maple_trees",)

# So many nodes are worked on at a time that what is made of them stays in the cache.
_BATCH = 1 << 10
# A maple tree of 64-bit indices with nodes at least half full is never this deep.
_MAX_DEPTH = 32
# A level of all trees: which tree, the encoded node or the pointer, what holds it (a maple_node or,
# for the root, the mm), and the range of indices that it stands for, inclusive.
_FRONT = np.dtype(
    [("tree", "i8"), ("entry", "u8"), ("holder", "u8"), ("first", "u8"), ("last", "u8")]
)


def walk_maple_trees(
    reader: Reader, record: Record, numbers: RowColumn, mms: U64Column, roots: U64Column
) -> tuple[SlotColumns, BoolColumn]:
    """Enumerate the entries of many mms' maple trees, a level of all trees a round.

    :param record: Layout of ``struct maple_node``.
    :param numbers: What to call each mm in the answer.
    :param mms: Their addresses.
    :param roots: ``mm_mt.ma_root`` of each.
    :return: The entries, sorted by mm and first address, and which of the trees are whole.
    """
    whole = np.ones(len(roots), dtype=bool)
    out = [np.empty(0, dtype=_FRONT)]
    planted = np.flatnonzero(roots != 0)
    front = np.zeros(len(planted), dtype=_FRONT)
    front["tree"] = planted
    front["entry"] = roots[planted]
    front["holder"] = mms[planted]
    front["last"] = 2**64 - 1
    is_node = maple.is_node(front["entry"])
    # A tree with a single entry at index 0 has no node; no VMA starts there.
    _note(reader, numbers, front[~is_node], "mm_struct", "ma_root is no node", whole)
    front = front[is_node]
    visited = np.empty(0, dtype=np.uint64)
    for depth in range(_MAX_DEPTH):
        if not len(front):
            break
        reader.progress("VMAs", sum(len(entries) for entries in out))
        holder = "maple_node" if depth else "mm_struct"
        front, visited = _sound_nodes(reader, record, numbers, front, holder, visited, whole)
        parts = [front[at : at + _BATCH] for at in range(0, len(front), _BATCH)]
        levels = run_parallel(lambda part: _level(reader, record, numbers, part, whole), parts)
        out += [leaf for leaf, _ in levels]
        front = np.concatenate([np.empty(0, dtype=_FRONT), *(below for _, below in levels)])
    whole[front["tree"]] = False
    found = np.concatenate(out)
    mm = numbers[found["tree"]]
    order = slot_order(mm, found["first"])
    slots = SlotColumns(
        mm[order], *(found[name][order] for name in ("holder", "first", "last", "entry"))
    )
    return slots, whole


# What some nodes hold: entries of the tree, and nodes below.
def _level(
    reader: Reader,
    record: Record,
    numbers: RowColumn,
    front: NDArray[np.void],
    whole: BoolColumn,
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    rows, present = reader.rows(record, maple.node_address(front["entry"]))
    whole[front["tree"][~present]] = False
    kinds = maple.node_type(front["entry"])
    out, below = [np.empty(0, dtype=_FRONT)], [np.empty(0, dtype=_FRONT)]
    for kind in maple.NODE_TYPES:
        chosen = present & (kinds == kind)
        if chosen.any():
            entries = _entries(reader, record, numbers, front[chosen], rows[chosen], kind, whole)
            (out if kind == maple.LEAF_64 else below).append(entries)
    return np.concatenate(out), np.concatenate(below)


# What the nodes of one type hold, the tree's own marks left out.
def _entries(
    reader: Reader,
    record: Record,
    numbers: RowColumn,
    front: NDArray[np.void],
    rows: ByteRows,
    kind: int,
    whole: BoolColumn,
) -> NDArray[np.void]:
    address = maple.node_address(front["entry"])
    nodes = maple.decode_nodes(record, rows, address, kind, front["first"], front["last"])
    for problem, bad in (("is dead", nodes.dead), ("has pivots out of order", ~nodes.sound)):
        itself = front[bad]
        itself["holder"] = address[bad]
        _note(reader, numbers, itself, "maple_node", f"the node {problem}", whole)
    usable = nodes.used & (nodes.slot != 0) & (nodes.sound & ~nodes.dead)[:, None]
    node, slot = np.nonzero(usable & ~maple.is_reserved(nodes.slot))
    entries = np.empty(len(node), dtype=_FRONT)
    entries["tree"] = front["tree"][node]
    entries["entry"] = nodes.slot[node, slot]
    entries["holder"] = address[node]
    entries["first"] = nodes.first[node, slot]
    entries["last"] = nodes.last[node, slot]
    return entries


# Which of a level's nodes can be read at all, each once; the rest is noted.
def _sound_nodes(
    reader: Reader,
    record: Record,
    numbers: RowColumn,
    front: NDArray[np.void],
    holder: str,
    visited: U64Column,
    whole: BoolColumn,
) -> tuple[NDArray[np.void], U64Column]:
    address = maple.node_address(front["entry"])
    wild = reader.space.wild(address, record.size, maple.NODE_ALIGNMENT)
    wild |= ~np.isin(maple.node_type(front["entry"]), maple.NODE_TYPES)
    _, first = np.unique(address, return_index=True)
    again = np.ones(len(address), dtype=bool)
    again[first] = False
    again |= np.isin(address, visited)
    _note(reader, numbers, front[wild], holder, "a pointer to a node is wild", whole)
    _note(reader, numbers, front[again & ~wild], holder, "a node is met twice", whole)
    kept = ~wild & ~again
    return front[kept], np.concatenate([visited, address[kept]])


# Notes words that cannot be right, by what holds them.
def _note(
    reader: Reader,
    numbers: RowColumn,
    front: NDArray[np.void],
    holder: str,
    problem: str,
    whole: BoolColumn,
) -> None:
    for entry in front:
        mm = int(numbers[entry["tree"]])
        reader.broken(mm, int(entry["holder"]), holder, int(entry["entry"]), problem)
    whole[front["tree"]] = False
