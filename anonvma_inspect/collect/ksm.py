"""KSM's stable rmap_items, which hold references to anon_vmas.

They are found from the stable tree: its nodes are the merged pages, a node's list the rmap_items of
one page. The other way, from ``ksm_mm_head`` over the mms to all their rmap_items, goes through
lists as long as a process has mergeable pages, one step a round, and most of what is on them holds
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from anonvma_inspect.collect.lists import ListWalk, walk_lists
from anonvma_inspect.collect.reader import Columns, Reader
from anonvma_inspect.collect.trees import MAX_DEPTH
from anonvma_inspect.kernel.ksm import STABLE_FLAG, STABLE_NODE_CHAIN, KsmRecords, resolve_ksm
from anonvma_inspect.kernel.tags import rb_parent, strip_lock_mark
from anonvma_inspect.tables import (
    NO_ROW,
    Avcs,
    ChainEnd,
    I64Column,
    Ksm,
    Nodes,
    RmapItems,
    RowColumn,
    StableNodes,
)
from anonvma_inspect.target.memory import WORD, BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("KSM_WALK", "KsmWalk", "held_by_ksm", "read_ksm")

#: What a snapshot calls this walk.
KSM_WALK = "ksm"

# include/linux/numa.h: no configuration has more nodes.
_MAX_NODES = 1 << 10
_NO_WORDS: U64Column = np.empty(0, dtype=np.uint64)
_ITEM_WORDS = ("address", "anon_vma", "mm", "head", "linear_page_index")
_LIST_WORDS = ("hlist_first", "rmap_hlist_len")
_TREE_WORDS = (*_LIST_WORDS, "rb_parent_color", "rb_left", "rb_right")


@dataclass(frozen=True)
class KsmWalk:
    """What was read of KSM.

    :ivar items: Without row numbers in other tables: all are NO_ROW.
    """

    ksm: Ksm
    nodes: StableNodes
    items: RmapItems

    def only(self, kept: BoolColumn) -> KsmWalk:
        """The same with some of the rmap_items, and the nodes that these are on the lists of."""
        used = np.zeros(len(self.nodes.address), dtype=bool)
        used[self.items.node[kept]] = True
        items = _pick(self.items, kept)
        rank = np.cumsum(used) - 1
        return replace(
            self, nodes=_pick(self.nodes, used), items=replace(items, node=rank[items.node])
        )


Table = TypeVar("Table", StableNodes, RmapItems)


def _pick(table: Table, rows: BoolColumn) -> Table:
    columns = {column.name: getattr(table, column.name)[rows] for column in fields(table)}
    return replace(table, **columns)


def _nothing(missing: str | None) -> KsmWalk:
    words, rows = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    flags = np.empty(0, dtype=bool)
    return KsmWalk(
        Ksm(None, missing),
        StableNodes(words, rows, np.empty(0, dtype=np.uint8), rows),
        RmapItems(words, words, words, words, words, words, rows, rows, rows, flags),
    )


def read_ksm(reader: Reader, target: Target) -> KsmWalk:
    """Read KSM's stable rmap_items.

    Where KSM was never used, that is one word.
    """
    if target.walks is not None and KSM_WALK not in target.walks:
        return _nothing("not in this snapshot")
    records = resolve_ksm(target.layouts)
    if records is None:
        return _nothing(None)
    if records.missing:
        return _nothing(f"{', '.join(records.missing)} not found")
    return _Walker(reader, records, target.symbols).walk()


def held_by_ksm(
    items: RmapItems,
    address: U64Column,
    words: Mapping[str, U64Column],
    root_row: RowColumn,
    avcs: Avcs,
    nodes: Nodes,
) -> BoolColumn:
    """anon_vmas that KSM is sure to hold, and that look like ones.

    An AVC of their own is in the tree; or the tree is empty, as that of one that only KSM holds is,
    and the root is its own root and parent.

    :param address: Of the anon_vmas, by row.
    :param words: Their fields.
    :param root_row: Row of the root of each.
    """
    held = np.zeros(len(address), dtype=bool)
    named = items.anon_vma_row[items.settled]
    if not len(named):
        return held
    own_root = root_row == np.arange(len(address))
    if "parent" in words:
        own_root &= words["parent"] == address
    looks = strip_lock_mark(words["rb_node"]) == 0
    if "rb_leftmost" in words:
        looks &= words["rb_leftmost"] == 0
    looks &= np.append(own_root, False)[root_row]
    looks[nodes.anon_vma[avcs.anon_vma_row[nodes.avc] == nodes.anon_vma]] = True
    held[named[named != NO_ROW]] = True
    held &= looks
    return held


class _Walker:
    def __init__(self, reader: Reader, records: KsmRecords, symbols: Mapping[str, int]) -> None:
        self._reader, self._records, self._symbols = reader, records, symbols
        self._missing: str | None = None
        self._astray = False

    def walk(self) -> KsmWalk:
        record = self._records.stable_node
        found, words = self._listing_nodes()
        node, first = np.unique(found, return_index=True)
        walk = walk_lists(
            self._reader,
            self._records.rmap_item,
            "hlist",
            first=words["hlist_first"][first],
            head=node + np.uint64(record.offset("hlist")),
            owner=("head", node),
            names=[name for name in _ITEM_WORDS if name in self._records.rmap_item],
            open_ended=True,
        )
        self._expect_closed(walk, "a list of rmap_items")
        return self._stable(walk, node, self._lengths(words)[first])

    def _stable(self, walk: ListWalk, node: U64Column, length: I64Column) -> KsmWalk:
        stable = np.flatnonzero((walk.columns["address"] & np.uint64(STABLE_FLAG)) != 0)
        # Each once, even if lists run into each other.
        address, first = np.unique(walk.address[stable], return_index=True)
        kept = stable[first]
        words = {name: column[kept] for name, column in walk.columns.items()}
        of_node = walk.list[kept]
        listed = np.bincount(of_node, minlength=len(node))
        whole: BoolColumn = (walk.end == ChainEnd.CLOSED) & (listed == length)
        no_rows = np.full(len(kept), NO_ROW, dtype=np.int64)
        return KsmWalk(
            Ksm(self._records, self._missing, self._astray),
            StableNodes(address=node, rmap_hlist_len=length, list_end=walk.end, listed=listed),
            RmapItems(
                address=address,
                anon_vma=words["anon_vma"],
                mm=words["mm"],
                head=words["head"],
                page=words["address"],
                linear_page_index=words.get("linear_page_index", np.zeros_like(address)),
                node=of_node,
                anon_vma_row=no_rows,
                mm_row=no_rows,
                settled=whole[of_node] & (words["head"] == node[of_node]),
            ),
        )

    # All stable nodes but chains.
    def _listing_nodes(self) -> tuple[U64Column, Columns]:
        record = self._records.stable_node
        roots, migrate = self._heads()
        node, words = self._walk_trees(roots)
        is_chain = self._lengths(words) == STABLE_NODE_CHAIN
        found = [(node[~is_chain], {name: words[name][~is_chain] for name in _LIST_WORDS})]
        dups = walk_lists(
            self._reader,
            record,
            "dup",
            first=words["hlist_first"][is_chain],
            head=node[is_chain] + np.uint64(record.offset("hlist")),
            names=_LIST_WORDS,
            open_ended=True,
        )
        self._expect_closed(dups, "a chain of stable nodes")
        found.append((dups.address, dups.columns))
        first = self._words(migrate, "list_head")
        if len(first):
            migrating = walk_lists(
                self._reader,
                record,
                "list",
                first=first,
                head=migrate,
                owner=("head", migrate),
                names=_LIST_WORDS,
            )
            self._expect_closed(migrating, "the list of migrating stable nodes")
            found.append((migrating.address, migrating.columns))
        return _join(found, _LIST_WORDS)

    def _lengths(self, words: Columns) -> I64Column:
        return self._records.stable_node.as_signed("rmap_hlist_len", words["rmap_hlist_len"])

    # Addresses of the roots of the stable trees, and that of the list of nodes in migration.
    #
    # At first there is one tree for all nodes of the machine, its root a variable of the kernel
    # image, and nothing migrates. Since /sys/kernel/mm/ksm/merge_across_nodes was changed for the
    # first time, the roots are in memory that merge_across_nodes_store() allocated.
    def _heads(self) -> tuple[U64Column, U64Column]:
        if "root_stable_tree" not in self._symbols:
            # Without CONFIG_NUMA nothing changes the pointer, and it may be optimized away.
            return self._symbol("one_stable_tree", "root_stable_tree"), _NO_WORDS
        roots = self._words(self._symbol("root_stable_tree"), "rb_root")
        if not len(roots) or not self._reader.space.in_ram(roots)[0]:
            return roots, _NO_WORDS
        place = self._symbol("ksm_nr_node_ids")
        number, _ = self._reader.memory.gather(place, 4)
        count = int.from_bytes(number.tobytes(), "little")
        if not 0 < count <= _MAX_NODES:
            self._lack("the number of stable trees cannot be read")
            count = 1
        trees = roots + np.uint64(WORD) * np.arange(count, dtype=np.uint64)
        return trees, self._symbol("migrate_nodes")

    def _walk_trees(self, roots: U64Column) -> tuple[U64Column, Columns]:
        record = self._records.stable_node
        offset = np.uint64(record.offset("rb"))
        front = self._words(roots, "rb_root")
        front = front[front != 0]
        parent = np.zeros(len(front), dtype=np.uint64)
        met: list[tuple[U64Column, Columns]] = []
        while len(front) and len(met) < MAX_DEPTH:
            # Nodes name their parents, so that none is met twice but in one round.
            front, first = np.unique(front, return_index=True)
            sound = ~self._reader.space.wild(front - offset, record.size)
            whole = bool(sound.all())
            front, parent = front[sound], parent[first[sound]]
            words, present = self._reader.columns(record, front - offset, _TREE_WORDS)
            agrees = present & (rb_parent(words["rb_parent_color"]) == parent)
            if not whole or not agrees.all():
                self._leads_astray("the stable tree is not whole")
            front = front[agrees]
            words = {name: column[agrees] for name, column in words.items()}
            met.append((front - offset, words))
            parent = np.repeat(front, 2)
            front = np.stack([words["rb_left"], words["rb_right"]], axis=1).reshape(-1)
            parent, front = parent[front != 0], front[front != 0]
        if len(front):
            self._leads_astray("the stable tree is deeper than any red-black tree")
        return _join(met, _TREE_WORDS)

    def _symbol(self, name: str, called: str | None = None) -> U64Column:
        if name not in self._symbols:
            self._lack(f"the symbol {called or name} was not found")
            return _NO_WORDS
        return np.array([self._symbols[name]], dtype=np.uint64)

    def _words(self, places: U64Column, needed_for: str) -> U64Column:
        rows, present = self._reader.memory.gather(places, WORD)
        if not present.all():
            self._reader.hole(places[~present], WORD, needed_for)
            self._lack(f"a struct {needed_for} of KSM's is not in this target")
        return rows[present].view("<u8").reshape(-1).astype(np.uint64)

    def _expect_closed(self, walk: ListWalk, what: str) -> None:
        if (walk.end != ChainEnd.CLOSED).any():
            self._leads_astray(f"{what} breaks off")

    def _leads_astray(self, reason: str) -> None:
        self._astray = True
        self._lack(reason)

    # The first reason is the one that is told.
    def _lack(self, reason: str) -> None:
        self._missing = self._missing or reason


def _join(
    parts: list[tuple[U64Column, Columns]], names: tuple[str, ...]
) -> tuple[U64Column, Columns]:
    return np.concatenate([_NO_WORDS, *(part[0] for part in parts)]), {
        name: np.concatenate([_NO_WORDS, *(part[1][name] for part in parts)]) for name in names
    }
