"""Which families, VMAs and mms two readings of a running kernel show alike, and at rest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

import numpy as np

from anonvma_inspect.invariants.base import Violations
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn, Slots, Tables, find_rows, marked
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("Steady",)

# The columns that hold words of the target; the others follow from these.
_TASK_WORDS = ("pid", "start_boottime", "self_exec_id")
_MM_WORDS = ("map_count", "flags", "lock_seq", "ctx_id")
_VMA_WORDS = (
    *("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_mm", "anon_vma", "attached"),
    *("chain_next", "chain_prev", "key_first", "key_last", "root_refs"),
)
_AVC_WORDS = (
    *("vma", "anon_vma", "next", "prev"),
    *("rb_parent_color", "rb_left", "rb_right", "rb_subtree_last"),
)
_ANON_VMA_WORDS = (
    *("root", "parent", "refcount", "num_children", "num_active_vmas", "degree"),
    *("rb_root", "rb_leftmost"),
)
_STABLE_NODE_WORDS = ("rmap_hlist_len", "list_end", "listed")
_FOLIO_WORDS = (
    *("mapping", "index", "flags", "pages", "mapcount", "anon_vma_refcount"),
    *("pfn", "entire_mapcount"),
)
_RMAP_ITEM_WORDS = ("anon_vma", "mm", "head", "page")


class _Table(Protocol):
    @property
    def address(self) -> U64Column: ...


class Steady:
    """Compares two readings, object by object.

    :param before: The earlier one.
    :param now: The later one, of the same processes; what is asked for are its rows.
    """

    def __init__(self, before: Tables, now: Tables) -> None:
        self._before, self._now = before, now

    def violations(self, group: Violations) -> BoolColumn:
        """Which violations are about nothing that changed or that somebody holds.

        :param group: Of the later reading. Those that belong to no mm, VMA or anon_vma, and are no
            object of KSM's, are taken as steady: nothing can be said of them here.
        """
        nodes, items = self._now.stable_nodes, self._now.rmap_items
        moving = np.zeros(len(group), dtype=bool)
        for rows, of in (
            (group.anon_vma, self._family_moves),
            (group.vma, self._vma_moves),
            (group.mm, self._mm_moves),
            (find_rows(nodes.address, group.address), self._stable_node_moves),
            (find_rows(items.address, group.address), self._stable_node_moves[items.node]),
        ):
            if rows is not None:
                moving |= take(of, rows, False)
        pages, before = self._now.pages, self._before.pages
        if pages is not None and before is not None:
            for earlier, now in (
                (before.folios, pages.folios),
                (before.swapped.folios, pages.swapped.folios),
            ):
                folio = find_rows(now.address, group.address)
                moving |= take(_changed(earlier, now, _FOLIO_WORDS), folio, False)
        return ~moving

    @cached_property
    def _root(self) -> RowColumn:
        # The root of each anon_vma, by row; where it is not known, the anon_vma itself.
        root = self._now.anon_vmas.root_row
        return np.where(root == NO_ROW, np.arange(len(root)), root)

    @cached_property
    def _mm_changed(self) -> BoolColumn:
        changed = _changed(self._before.mms, self._now.mms, _MM_WORDS)
        return changed | self._slots_changed | ~self._mm_kept

    # Which mms are the same ones, and not what was made of their memory after: some task, itself
    # the same and in the same program, had it in both readings. Children of one parent, one after
    # the other, get the same mm_struct, and do the same with it: mm_lock_seq does not tell them
    # apart. (ctx_id does, where there is one.)
    @cached_property
    def _mm_kept(self) -> BoolColumn:
        before, now = self._before, self._now
        kept = np.flatnonzero(~_changed(before.tasks, now.tasks, _TASK_WORDS))
        mm = now.tasks.mm[kept]
        earlier = before.tasks.mm[_find(before.tasks.address, now.tasks.address[kept])]
        return marked(len(now.mms.address), mm[before.mms.address[earlier] == now.mms.address[mm]])

    # Somebody writes, or wrote while it was read.
    @cached_property
    def _mm_written(self) -> BoolColumn:
        before, now = self._before.mms, self._now.mms
        written: BoolColumn = self._mm_changed | now.write_locked
        written |= take(before.write_locked, _find(before.address, now.address), False)
        return written

    @cached_property
    def _slots_changed(self) -> BoolColumn:
        before, now = self._before, self._now
        changed = np.zeros(len(now.mms.address), dtype=bool)
        there = _find(before.mms.address, now.mms.address)
        for row in np.flatnonzero(now.mms.walked & (there != NO_ROW)):
            changed[row] = not _same_entries(before.slots, int(there[row]), now.slots, int(row))
        return changed

    @cached_property
    def _vma_changed(self) -> BoolColumn:
        changed = _changed(self._before.vmas, self._now.vmas, _VMA_WORDS)
        return changed | take(self._mm_written, self._now.vmas.mm, False)

    @cached_property
    def _root_moves(self) -> BoolColumn:
        # Roots of families of which any object changed, or that are held for write.
        before, now = self._before, self._now
        count = len(now.anon_vmas.address)
        member, avcs, links, nodes = now.anon_vmas, now.avcs, now.links, now.nodes
        moves = _changed(before.anon_vmas, member, _ANON_VMA_WORDS) | member.write_locked
        earlier = find_rows(before.anon_vmas.address, member.address)
        moves |= take(before.anon_vmas.write_locked, earlier, False)
        moves |= marked(count, avcs.anon_vma_row[_changed(before.avcs, avcs, _AVC_WORDS)])
        for avc, vma in ((links.avc, links.vma), (nodes.avc, avcs.vma_row[nodes.avc])):
            moves |= marked(count, avcs.anon_vma_row[avc[take(self._vma_changed, vma, False)]])
        moves |= marked(count, now.rmap_items.anon_vma_row[self._rmap_item_changed])
        for gone in self._gone():
            moves |= marked(count, find_rows(member.address, gone))
        return marked(count, self._root[moves])

    # Stable nodes whose list or whose rmap_items are not what they were.
    @cached_property
    def _stable_node_moves(self) -> BoolColumn:
        before, now = self._before, self._now
        moves = _changed(before.stable_nodes, now.stable_nodes, _STABLE_NODE_WORDS)
        moves[now.rmap_items.node[self._rmap_item_changed]] = True
        # Where not one rmap_item was met, there is nothing to compare; and KSM takes the same nodes
        # and rmap_items again and again, so that they look alike each time.
        moves |= now.stable_nodes.listed == 0
        return moves

    @cached_property
    def _rmap_item_changed(self) -> BoolColumn:
        return _changed(self._before.rmap_items, self._now.rmap_items, _RMAP_ITEM_WORDS)

    # anon_vmas that objects belonged to which the later reading does not show.
    def _gone(self) -> Iterable[U64Column]:
        before, now = self._before, self._now
        lost = find_rows(now.avcs.address, before.avcs.address) == NO_ROW
        yield before.avcs.anon_vma[lost]
        lost = find_rows(now.anon_vmas.address, before.anon_vmas.address) == NO_ROW
        yield before.anon_vmas.root[lost]
        lost = find_rows(now.vmas.address, before.vmas.address) == NO_ROW
        yield before.avcs.anon_vma[before.links.avc[lost[before.links.vma]]]
        lost = find_rows(now.rmap_items.address, before.rmap_items.address) == NO_ROW
        yield before.rmap_items.anon_vma[lost]

    @cached_property
    def _family_moves(self) -> BoolColumn:
        return self._root_moves[self._root]

    @cached_property
    def _vma_moves(self) -> BoolColumn:
        now = self._now
        member = now.avcs.anon_vma_row[now.links.avc]
        moves = self._vma_changed.copy()
        moves[now.links.vma[take(self._family_moves, member, False)]] = True
        moves |= take(self._family_moves, now.vmas.active, False)
        return moves | take(self._mm_moves, now.vmas.mm, False)

    @cached_property
    def _mm_moves(self) -> BoolColumn:
        slots = self._now.slots
        moves = self._mm_written | ~self._now.mms.lock_free
        # One without users is being taken down, or is free memory by now; its lock tells neither.
        moves |= self._now.mms.mm_users == 0
        moves[slots.mm[take(self._vma_changed, slots.vma, False)]] = True
        return moves


# Rows of the later table whose words are not those of the earlier one.
def _changed(before: _Table, now: _Table, words: Iterable[str]) -> BoolColumn:
    earlier = _find(before.address, now.address)
    changed: BoolColumn = earlier == NO_ROW
    known = np.flatnonzero(~changed)
    for name in words:
        changed[known] |= getattr(before, name)[earlier[known]] != getattr(now, name)[known]
    return changed


# As find_rows(), in a column that need not be sorted.
def _find(column: U64Column, addresses: U64Column) -> RowColumn:
    order = np.argsort(column, kind="stable")
    return take(order, find_rows(column[order], addresses), NO_ROW)


def _same_entries(before: Slots, mm_before: int, now: Slots, mm_now: int) -> bool:
    parts = [
        slice(*np.searchsorted(slots.mm, [mm, mm + 1]))
        for slots, mm in ((before, mm_before), (now, mm_now))
    ]
    return all(
        np.array_equal(getattr(before, name)[parts[0]], getattr(now, name)[parts[1]])
        for name in ("first", "last", "pointer")
    )
