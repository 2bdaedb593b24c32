"""The mms, and the VMAs in their maple trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel import maple
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.locks import is_write_locked
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("MmFields", "SlotColumns", "looks_like_mm", "read_mms", "walk_trees")

# include/linux/mm_types.h, MM_MT_FLAGS: gaps tracked and an external lock, whatever the height; RCU
# mode comes and goes with fork and exit.
_MT_FLAGS_MASK = 0x301
_MT_FLAGS = 0x301
# A maple tree of 64-bit indices with nodes at least half full is never this deep.
_MAX_DEPTH = 32


@dataclass(frozen=True)
class MmFields:
    """Fields of mms, as columns, in the order asked for.

    :ivar present: Which mms could be read.
    """

    address: U64Column
    mm_users: I64Column
    map_count: I64Column
    flags: U64Column
    write_locked: BoolColumn
    start_brk: U64Column
    brk: U64Column
    start_stack: U64Column
    vdso: U64Column
    ma_root: U64Column
    present: BoolColumn


@dataclass(frozen=True)
class SlotColumns:
    """Entries of trees of VMAs; ``mm`` as the caller numbered them."""

    mm: RowColumn
    first: U64Column
    last: U64Column
    pointer: U64Column


def read_mms(reader: Reader, era: Era, addresses: U64Column) -> MmFields:
    """Read the fields of mms that are needed."""

    def words(name: str) -> U64Column:
        if name not in era.mm:
            return np.zeros(len(addresses), dtype=np.uint64)
        return reader.words(era.mm, addresses, name)[0]

    def signed32(name: str) -> I64Column:
        return words(name).astype(np.uint32).view(np.int32).astype(np.int64)

    ma_root, present = reader.words(era.mm, addresses, "ma_root")
    return MmFields(
        address=addresses,
        mm_users=signed32("mm_users"),
        map_count=signed32("map_count"),
        flags=words("mm_flags"),
        write_locked=is_write_locked(
            words("mmap_lock_count") if "mmap_lock_count" in era.mm else None,
            words("mmap_lock_readers") if "mmap_lock_readers" in era.mm else None,
        ),
        start_brk=words("start_brk"),
        brk=words("brk"),
        start_stack=words("start_stack"),
        vdso=words("vdso"),
        ma_root=ma_root,
        present=present,
    )


def looks_like_mm(reader: Reader, era: Era, addresses: U64Column) -> BoolColumn:
    """Whether the bytes at addresses that no task vouches for are an ``mm_struct``.

    A VMA that was freed, or a corrupted ``vm_mm``, leads anywhere. What an mm always has is a page
    table in RAM, on a page's boundary, and the flags of its maple tree.
    """
    sound: BoolColumn = ~reader.space.wild(addresses, era.mm.size)
    at = addresses[sound]
    pgd, pgd_present = reader.words(era.mm, at, "pgd")
    flags, flags_present = reader.words(era.mm, at, "ma_flags")
    sound[sound] = (
        pgd_present
        & flags_present
        & ~reader.space.wild(pgd, era.page_size, era.page_size)
        & ((flags & np.uint64(_MT_FLAGS_MASK)) == _MT_FLAGS)
    )
    return sound


def walk_trees(
    reader: Reader, era: Era, numbers: RowColumn, roots: U64Column
) -> tuple[SlotColumns, BoolColumn]:
    """Enumerate the entries of many mms' maple trees, a level of all trees a round.

    :param numbers: What to call each mm in the answer.
    :param roots: ``mm_mt.ma_root`` of each.
    :return: The entries, sorted by mm and first address, and which of the trees are whole.
    """
    whole = np.ones(len(roots), dtype=bool)
    out: list[tuple[RowColumn, U64Column, U64Column, U64Column]] = []
    tree = np.flatnonzero(roots != 0)
    entry = roots[tree]
    for index in np.flatnonzero(~maple.is_node(entry)):
        # A tree with a single entry at index 0 has no node; no VMA starts there.
        reader.broken(
            int(numbers[tree[index]]), 0, "maple_tree", int(entry[index]), "ma_root is no node"
        )
        whole[tree[index]] = False
    is_node = maple.is_node(entry)
    tree, entry = tree[is_node], entry[is_node]
    low = np.zeros(len(tree), dtype=np.uint64)
    high = np.full(len(tree), 2**64 - 1, dtype=np.uint64)
    visited = np.empty(0, dtype=np.uint64)
    for _ in range(_MAX_DEPTH):
        if not len(tree):
            break
        reader.progress("VMAs", sum(len(columns[0]) for columns in out))
        kept, visited = _sound_nodes(reader, era, numbers, tree, entry, visited, whole)
        tree, entry, low, high = tree[kept], entry[kept], low[kept], high[kept]
        address = maple.node_address(entry)
        rows, present = reader.rows(era.maple_node, address)
        whole[tree[~present]] = False
        below: list[tuple[RowColumn, U64Column, U64Column, U64Column]] = []
        kinds = maple.node_type(entry)
        for kind in maple.NODE_TYPES:
            of_kind = np.flatnonzero(present & (kinds == kind))
            if not len(of_kind):
                continue
            nodes = maple.decode_nodes(
                era.maple_node, rows[of_kind], address[of_kind], kind, low[of_kind], high[of_kind]
            )
            for problem, bad in (("is dead", nodes.dead), ("has pivots out of order", ~nodes.sound)):
                for index in of_kind[bad]:
                    reader.broken(
                        int(numbers[tree[index]]),
                        int(address[index]),
                        "maple_node",
                        int(entry[index]),
                        f"the node {problem}",
                    )
                whole[tree[of_kind[bad]]] = False
            usable = nodes.used & (nodes.slot != 0) & (nodes.sound & ~nodes.dead)[:, None]
            usable &= ~maple.is_reserved(nodes.slot)
            node, slot = np.nonzero(usable)
            found = (
                tree[of_kind[node]],
                nodes.slot[node, slot],
                nodes.first[node, slot],
                nodes.last[node, slot],
            )
            (out if kind == maple.LEAF_64 else below).append(found)
        empty = (np.empty(0, np.int64), *(np.empty(0, np.uint64) for _ in range(3)))
        tree, entry, low, high = (
            np.concatenate(columns)  # type: ignore[arg-type]
            for columns in zip(*below, empty, strict=True)
        )
    whole[tree] = False
    columns = [np.concatenate(column) for column in zip(*out, strict=True)] if out else None
    if columns is None:
        nothing = np.empty(0, dtype=np.uint64)
        return SlotColumns(np.empty(0, np.int64), nothing, nothing, nothing), whole
    mm, pointer, first, last = numbers[columns[0]], columns[1], columns[2], columns[3]
    order = np.lexsort((first, mm))
    return SlotColumns(mm[order], first[order], last[order], pointer[order]), whole


# Which of a level's nodes can be read at all, each once; the rest is noted.
def _sound_nodes(
    reader: Reader,
    era: Era,
    numbers: RowColumn,
    tree: RowColumn,
    entry: U64Column,
    visited: U64Column,
    whole: BoolColumn,
) -> tuple[RowColumn, U64Column]:
    address = maple.node_address(entry)
    wild = reader.space.wild(address, era.maple_node.size, 256)
    wild |= ~np.isin(maple.node_type(entry), maple.NODE_TYPES)
    _, first = np.unique(address, return_index=True)
    again = np.ones(len(address), dtype=bool)
    again[first] = False
    again |= np.isin(address, visited)
    for index in np.flatnonzero(wild | again):
        reader.broken(
            int(numbers[tree[index]]),
            int(address[index]),
            "maple_node",
            int(entry[index]),
            "a pointer to a node is wild" if wild[index] else "the node is met twice",
        )
        whole[tree[index]] = False
    kept = np.flatnonzero(~wild & ~again)
    return kept, np.concatenate([visited, address[kept]])
