"""KSM's stable rmap_items, and the anon_vmas that they hold.

How many references they hold, AV403 and AV404 count.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Text,
    Verdict,
    Violations,
    address_text,
    always,
    count_text,
)
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, ChainEnd, RowColumn
from anonvma_inspect.target.memory import U64Column

__all__ = ("INVARIANTS",)


_ENDS = {
    ChainEnd.LOOP: "an rmap_item that it met before",
    ChainEnd.WILD: "what cannot be right",
    ChainEnd.STRANGER: "no rmap_item of this node",
}


# What was read is judged even if it is not all.
def _not_checked(facts: Facts) -> Verdict | None:
    missing = facts.tables.ksm.missing
    if missing is None or len(facts.tables.stable_nodes.address):
        return None
    return Verdict(0, not_checked=f"what KSM holds is not known: {missing}")


def _violations(
    record: Record,
    message: str,
    addresses: U64Column,
    name: str,
    expected: Text,
    actual: Text,
    mm: RowColumn | None = None,
) -> Violations:
    return Violations(
        message,
        record.struct,
        addresses,
        expected,
        actual,
        word=addresses + np.uint64(record.offset(name)),
        mm=mm,
    )


def _check_lists(facts: Facts) -> Verdict:
    # * The list of a stable node leads to NULL.
    # * It is as long as rmap_hlist_len says.
    # * The stable rmap_items on it name the node as their head.
    # Holds while nobody has the ksm_thread_mutex; when its owner was interrupted, none of it may.
    unknown = _not_checked(facts)
    tables = facts.tables
    records, nodes, items = tables.ksm.records, tables.stable_nodes, tables.rmap_items
    if unknown is not None or records is None:
        return unknown or Verdict(0)
    closed = nodes.list_end == ChainEnd.CLOSED
    groups = []
    for end, what in _ENDS.items():
        rows = np.flatnonzero(nodes.list_end == end)
        groups.append(
            Violations(
                "the list of a stable node breaks off",
                records.stable_node.struct,
                nodes.address[rows],
                always("NULL at its end"),
                always(what),
            )
        )
    rows = np.flatnonzero(closed & (nodes.listed != nodes.rmap_hlist_len))
    groups.append(
        _violations(
            records.stable_node,
            "rmap_hlist_len is not the number of rmap_items on the list",
            nodes.address[rows],
            "rmap_hlist_len",
            count_text(nodes.listed[rows]),
            count_text(nodes.rmap_hlist_len[rows]),
        )
    )
    node = nodes.address[items.node]
    rows = np.flatnonzero(items.head != node)
    groups.append(
        _violations(
            records.rmap_item,
            "a stable rmap_item is on the list of another stable node than its head",
            items.address[rows],
            "head",
            address_text(node[rows]),
            address_text(items.head[rows]),
            items.mm_row[rows],
        )
    )
    return Verdict(len(nodes.address), groups)


def _check_anon_vma(facts: Facts) -> Verdict:
    # * anon_vma leads to memory where an anon_vma can be.
    # * What is there is one: a tree that has an AVC of its own, or none any more and a root.
    # That it is allocated, its refcount tells (AV403).
    unknown = _not_checked(facts)
    records, items = facts.tables.ksm.records, facts.tables.rmap_items
    if unknown is not None or records is None:
        return unknown or Verdict(0)
    row, anon_vma = items.anon_vma_row, facts.era.anon_vma
    wild = items.settled & facts.wild(items.anon_vma, row, anon_vma)
    # What is missing from the target may be what would tell.
    strange = items.settled & (row != NO_ROW) & ~take(facts.believed, row, True)
    if not facts.tables.complete:
        root = take(facts.root_row, row, NO_ROW)
        lost = facts.wild(take(facts.root, row, 0), root, anon_vma)
        lost |= (root != NO_ROW) & (take(facts.root_row, root, NO_ROW) != root)
        strange &= lost
    groups = []
    for message, which in (
        ("a stable rmap_item leads nowhere", wild),
        ("a stable rmap_item leads to something that is no anon_vma", strange),
    ):
        rows = np.flatnonzero(which)
        groups.append(
            _violations(
                records.rmap_item,
                message,
                items.address[rows],
                "anon_vma",
                always("an anon_vma"),
                address_text(items.anon_vma[rows]),
                items.mm_row[rows],
            )
        )
    return Verdict(int(np.count_nonzero(items.settled)), groups)


_SOURCE = (
    "stable_tree_append(), remove_rmap_item_from_tree(), remove_node_from_stable_tree(), "
    "try_to_merge_with_ksm_page() in mm/ksm.c (v5.10, v6.1, v6.12, v7.3)."
)

INVARIANTS = (
    Invariant(
        code="AV705",
        slug="ksm-lists",
        severity=Severity.WARNING,
        statement="The list of a stable node has as many stable rmap_items as the node says.",
        why=(
            "ksmd appends an rmap_item to the node of the page that it was merged into, counts it "
            "there, and marks it as stable. It does so, and undoes it, step by step: if it was "
            "interrupted there, one node may show it, and AV403 then counts none of that node's "
            "references."
        ),
        consequence=(
            "The rmap walk of a merged page misses mappings, or does not end; references to "
            "anon_vmas are never given back, or once too often."
        ),
        lock="ksm_thread_mutex, and the lock of the page.",
        source=_SOURCE,
        eras="v4.13 and later. Before v6.1 the structs are called stable_node and rmap_item.",
        objects="stable nodes",
        check=_check_lists,
    ),
    Invariant(
        code="AV706",
        slug="ksm-anon-vma",
        severity=Severity.ERROR,
        statement="The anon_vma of a stable rmap_item is an anon_vma.",
        why=(
            "ksmd takes a reference to the anon_vma of the VMA before it marks the rmap_item as "
            "stable, and gives it back before it takes the mark away. Until then the anon_vma "
            "lives, even when the processes that mapped the page are gone: with an empty tree, and "
            "KSM as its only holder. Nothing else leads to such an anon_vma; it goes when ksmd "
            "next comes by, or never if ksmd was stopped. That is no leak."
        ),
        consequence=(
            "Reclaim and migration of the merged page walk a tree of garbage under a lock that is "
            "garbage; when the rmap_item is removed, some word in memory goes down by one."
        ),
        lock="ksm_thread_mutex.",
        source=_SOURCE,
        eras="v4.13 and later. Before v6.1 the struct is called rmap_item.",
        objects="stable rmap_items",
        check=_check_anon_vma,
    ),
)
