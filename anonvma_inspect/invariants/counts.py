"""The counters of anon_vmas.

A count that is lower than what is known to refer to the anon_vma is wrong whatever else there may
be. One that is higher is wrong only if everything is known that could refer to it
(``AnonVmas.family_whole``); and then words that are wrong in themselves, which another invariant
tells of, are taken for references to whatever they might have meant.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Verdict,
    at_least,
    count_text,
)
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import NOT_SURE, Facts
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, Tables, find_rows, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("INVARIANTS", "known_references")


def _count(rows: RowColumn, length: int) -> I64Column:
    return np.bincount(rows[rows != NO_ROW], minlength=length)


# How many children and active VMAs each anon_vma has, at least and at most.
def _children(facts: Facts) -> tuple[I64Column, I64Column]:
    anon_vmas = facts.tables.anon_vmas
    count = len(anon_vmas.address)
    # The parent of one that is in no chain of its own (AV104, AV302) says nothing: it may have been
    # any of the family.
    strayed = marked(count, facts.stray_parents[0])
    sure = (facts.nodes_in_tree > 0) & ~strayed
    least = _count(facts.parent_row[sure], count)
    # At most: also those whose trees are empty, but should not be, as AVCs on lists say (AV201).
    listed = marked(count, facts.link_anon_vma)
    full = (facts.tree_pointer != 0) | listed
    parent = facts.parent_row.copy()
    emptied = np.flatnonzero(listed & (facts.tree_pointer == 0))
    parent[emptied] = find_rows(anon_vmas.address, facts.parent[emptied])
    strayed |= full & (parent == NO_ROW)
    most = _count(parent[full & ~strayed], count)
    if strayed.any():
        family = np.where(facts.root_row == NO_ROW, np.arange(count), facts.root_row)
        most += _count(facts.root_row[strayed], count)[family]
    return least, most


def _active(facts: Facts) -> tuple[I64Column, I64Column]:
    tables = facts.tables
    count = len(tables.anon_vmas.address)
    active = tables.vmas.active
    links = tables.links
    # A VMA whose vma->anon_vma is not in its chain (AV105) may have had any of it.
    settled = tables.vmas.chain_length == 0
    fits = facts.link_anon_vma == active[links.vma]
    fits |= facts.link_tree == active[links.vma]
    settled |= marked(len(active), links.vma[fits])
    # One that has something else instead never had any of it. (Unless that leaves no room for a
    # chain: AV604.)
    settled |= facts.explained & ~facts.chain_denied
    # Nothing is known of a chain that is not known as a whole.
    settled |= ~facts.chain_whole & (active != NO_ROW)
    least = _count(active[settled], count)
    return least, least + _count(facts.link_anon_vma[~settled[links.vma]], count)


def _judge(
    facts: Facts, counter: I64Column, least: I64Column, most: I64Column
) -> tuple[RowColumn, BoolColumn]:
    # Rows whose counter is wrong, and of which the exact number is known.
    whole = facts.tables.anon_vmas.family_whole
    wrong = facts.believed & ((counter < least) | (whole & (counter > most)))
    exact: BoolColumn = whole & (least == most)
    return np.flatnonzero(wrong), exact


def _check_num_children(facts: Facts) -> Verdict:
    # * num_children is the number of anon_vmas that have this one as parent, itself included, and
    #   whose trees are not empty.
    # * Where the kernel has degree instead, it is that number and that of the VMAs that have this
    #   one active.
    anon_vmas = facts.tables.anon_vmas
    least, most = _children(facts)
    name, counter = "num_children", anon_vmas.num_children
    message = "num_children is not the number of anon_vmas that have this one as parent"
    if not facts.era.has_separate_counts:
        name, counter = "degree", anon_vmas.degree
        message = "degree is not the number of children and of VMAs that have this one active"
        of_vmas = _active(facts)
        least, most = least + of_vmas[0], most + of_vmas[1]
    rows, exact = _judge(facts, counter, least, most)
    return Verdict(
        int(np.count_nonzero(facts.believed)),
        [
            facts.of_anon_vmas(
                message, rows, name, at_least(least[rows], exact[rows]), count_text(counter[rows])
            )
        ],
    )


def _check_num_active_vmas(facts: Facts) -> Verdict:
    # * num_active_vmas is the number of VMAs whose vma->anon_vma is this one.
    anon_vmas = facts.tables.anon_vmas
    least, most = _active(facts)
    rows, exact = _judge(facts, anon_vmas.num_active_vmas, least, most)
    return Verdict(
        int(np.count_nonzero(facts.believed)),
        [
            facts.of_anon_vmas(
                "num_active_vmas is not the number of VMAs that have this one active",
                rows,
                "num_active_vmas",
                at_least(least[rows], exact[rows]),
                count_text(anon_vmas.num_active_vmas[rows]),
            )
        ],
    )


def _has_separate_counts(era: Era) -> str | None:
    if era.has_separate_counts:
        return None
    return "this kernel counts children and VMAs together, in degree (see AV401)"


def known_references(facts: Facts) -> tuple[I64Column, I64Column]:
    """How many references of each anon_vma are known: one for a tree that is not empty, one for
    each stable rmap_item, one for each VMA that has it from its parent (ANON_VMA_LAZY), and in a
    root one for each other anon_vma of the family.

    :return: At least (of those of which nothing is doubtful), and at most.
    """
    anon_vmas = facts.tables.anon_vmas
    count = len(anon_vmas.address)
    itself = np.arange(count)
    root = np.where(facts.root_row == itself, NO_ROW, facts.root_row)
    full = facts.nodes_in_tree > 0
    # Whose parent has another root (AV302) may belong to either family.
    parent = facts.parent_row
    parent_root = np.where(parent == itself, itself, take(facts.root_row, parent, NO_ROW))
    odd = (parent != NO_ROW) & (parent_root != facts.root_row)
    # A freed one holds nothing.
    held = (full & ~odd) | (anon_vmas.reached & (facts.ksm_references > 0))
    least = full + facts.ksm_references + _count(root[held & (anon_vmas.refcount > 0)], count)
    listed = marked(count, facts.link_anon_vma)
    most = ((facts.tree_pointer != 0) | listed) + _count(root[anon_vmas.reached], count)
    most += _count(parent_root[odd & anon_vmas.reached], count)
    most += _count(facts.tables.rmap_items.anon_vma_row, count)
    lent = facts.lent_references
    return (least + lent[0]).astype(np.int64), (most + lent[1]).astype(np.int64)


def _check_refcount_low(facts: Facts) -> Verdict:
    # * refcount is not 0 or less in an anon_vma that something leads to.
    # * It is not less than the references that are known: one if the tree is not empty, one for
    #   each stable rmap_item of KSM's, one for each VMA that has it from its parent, and in a root
    #   one for each other anon_vma of its family.
    anon_vmas = facts.tables.anon_vmas
    believed = facts.believed
    least, _ = known_references(facts)
    least = np.maximum(least, 1)
    dead = believed & (anon_vmas.refcount <= 0)
    low = np.flatnonzero(believed & ~dead & (anon_vmas.refcount < least))
    rows = np.flatnonzero(dead)
    return Verdict(
        int(np.count_nonzero(believed)),
        [
            facts.of_anon_vmas(
                "an anon_vma that is in use has no references",
                rows,
                "refcount",
                at_least(least[rows]),
                count_text(anon_vmas.refcount[rows]),
            ),
            facts.of_anon_vmas(
                "an anon_vma has fewer references than are known",
                low,
                "refcount",
                at_least(least[low]),
                count_text(anon_vmas.refcount[low]),
            ),
        ],
    )


# Something of KSM's is not in the target, or its lists lead astray, as they do while ksmd works on
# them: its references may be those that are too many.
def _ksm_in_doubt(tables: Tables) -> bool:
    if tables.ksm.astray:
        return True
    records = tables.ksm.records
    if tables.ksm.missing is None or records is None:
        return False
    structs = (records.rmap_item.struct, records.stable_node.struct, "rb_root", "list_head")
    return bool(np.isin(tables.holes.needed_for, structs).any())


def _check_refcount_high(facts: Facts) -> Verdict:
    # * refcount is not more than the references that are known; of families that are known as a
    #   whole.
    # Whoever takes a reference for a moment may be at work, and a holder may be one that is not
    # known here: a surplus is suspicious, no more.
    anon_vmas = facts.tables.anon_vmas
    judged = facts.believed & anon_vmas.family_whole
    if facts.believed.any() and not judged.any():
        why = "no family of anon_vmas is known as a whole"
        return Verdict(0, not_checked=why if facts.era.tags.certain else NOT_SURE)
    _, most = known_references(facts)
    if facts.pages is not None:
        most = most + facts.pages.pins
    # The anon_vma that an rmap_item should lead to, or its root, may be any.
    rows = np.flatnonzero(judged & (anon_vmas.refcount > most + facts.ksm_astray))
    message = "an anon_vma has more references than are known"
    missing = facts.tables.ksm.missing
    if len(rows) and _ksm_in_doubt(facts.tables):
        return Verdict(0, not_checked=f"what KSM holds is not known: {missing}")
    if missing is not None:
        message += f", and KSM may hold them ({missing})"
    return Verdict(
        int(np.count_nonzero(judged)),
        [
            facts.of_anon_vmas(
                message,
                rows,
                "refcount",
                count_text(most[rows]),
                count_text(anon_vmas.refcount[rows]),
            )
        ],
    )


_COUNT_LOCK = "The rwsem of the root, for write."

INVARIANTS = (
    Invariant(
        code="AV401",
        slug="num-children",
        severity=Severity.ERROR,
        statement=(
            "num_children is the number of anon_vmas with this parent, itself included, whose "
            "trees are not empty."
        ),
        why=(
            "A new root counts itself; fork adds one to the parent of the anon_vma that it makes; "
            "unlinking takes one away from the parent when an anon_vma's tree becomes empty, even "
            "if that anon_vma lives on. Too few is told in any case, too many only if all that "
            "could refer to it is known."
        ),
        consequence=(
            "Fork reuses an anon_vma without active VMAs and with fewer than two children: with a "
            "count too low it gives one to two generations (a page's mappings are then looked for "
            "in the wrong family, CVE-2022-42703), with one too high hierarchies grow for ever."
        ),
        lock=_COUNT_LOCK,
        source=(
            "__anon_vma_prepare(), anon_vma_clone(), anon_vma_fork(), unlink_anon_vmas() in "
            "mm/rmap.c (v6.1, v6.12)."
        ),
        eras=(
            "v6.0 and later, and stable kernels with the field. From v3.19 to there: degree, the "
            "sum of AV401's and AV402's numbers, is checked here."
        ),
        schemes=(
            "In force. Under ANON_VMA_LAZY fork adds nothing: a VMA that has its parent's anon_vma "
            "makes a child only when it is upgraded."
        ),
        objects="anon_vmas",
        check=_check_num_children,
    ),
    Invariant(
        code="AV402",
        slug="num-active-vmas",
        severity=Severity.ERROR,
        statement="num_active_vmas is the number of VMAs whose anon_vma pointer is this one.",
        why=(
            "It goes up when a VMA gets its first anon_vma, a copy of another VMA's, or one that "
            "fork makes or reuses, and down when the VMA is unlinked. Too few is told in any case, "
            "too many only if all VMAs that could refer to it are known."
        ),
        consequence=(
            "Fork reuses an anon_vma that has no active VMAs: with a count too low it hands one "
            "that is in use to another process's VMA, with one too high it never reuses it."
        ),
        lock=_COUNT_LOCK,
        source=(
            "__anon_vma_prepare(), anon_vma_clone(), anon_vma_fork(), unlink_anon_vmas() in "
            "mm/rmap.c (v6.1, v6.12)."
        ),
        eras="v6.0 and later, and stable kernels with the field. Before: see AV401.",
        schemes=(
            "In force, of plain pointers: a VMA that has a flag, a root VMA or its parent's "
            "anon_vma is counted nowhere."
        ),
        objects="anon_vmas",
        check=_check_num_active_vmas,
        applies=_has_separate_counts,
    ),
    Invariant(
        code="AV403",
        slug="refcount-low",
        severity=Severity.ERROR,
        statement=(
            "refcount of an anon_vma is at least 1, and at least the number of references known."
        ),
        why=(
            "An anon_vma has a reference for as long as its tree is not empty, one for each stable "
            "rmap_item of KSM's (even when no VMA is left), and a root one more for each other "
            "anon_vma of its family, until that one is freed. Migration and others hold further "
            "ones for a moment, so this is a lower bound. What KSM is about to give back, because "
            "the list of a stable node is shorter than it says, is not counted. The counter is "
            "read as a signed number of 32 bits, so one that has wrapped shows."
        ),
        consequence=(
            "It is freed while it is in use: VMAs and pages point into memory that becomes another "
            "anon_vma, or something else."
        ),
        lock="None: atomic.",
        source=(
            "anon_vma_alloc(), anon_vma_fork(), unlink_anon_vmas(), __put_anon_vma() in mm/rmap.c; "
            "get_anon_vma(), put_anon_vma() in include/linux/rmap.h; "
            "try_to_merge_with_ksm_page(), remove_node_from_stable_tree() in mm/ksm.c (v6.1, "
            "v6.12)."
        ),
        eras="v2.6.39 and later.",
        schemes=(
            "In force. Under ANON_VMA_LAZY each VMA that has its parent's anon_vma holds a "
            "reference more. (References to root VMAs are AV608's.)"
        ),
        objects="anon_vmas",
        check=_check_refcount_low,
    ),
    Invariant(
        code="AV404",
        slug="refcount-high",
        severity=Severity.WARNING,
        statement="refcount of an anon_vma is not higher than the number of references known.",
        why=(
            "What is known is one reference for a tree that is not empty, one for each stable "
            "rmap_item of KSM's, and in a root one for each other anon_vma of its family that "
            "something leads to. A surplus can be legal: migration and the splitting of huge pages "
            "hold one for a moment, ksmd one for each of the two pages that it is merging, and "
            "anon_vmas without VMAs that are held so hold their root. One that stays without any "
            "of these is a leak. If KSM's rmap_items could not be read, the finding says so: they "
            "may be all there is to it. Told only of families that are known as a whole."
        ),
        consequence=(
            "If it is a leak, the anon_vma and its root are never freed. If many families have one "
            "too many, pages may be in migration, hundreds at a time: audit --deep "
            "knows them."
        ),
        lock="None: atomic.",
        source=(
            "anon_vma_fork(), __put_anon_vma() in mm/rmap.c; folio_get_anon_vma() in mm/rmap.c and "
            "its callers; try_to_merge_with_ksm_page(), stable_tree_append() in mm/ksm.c (v6.1, "
            "v6.12)."
        ),
        eras="v2.6.39 and later.",
        schemes=(
            "In force. Under ANON_VMA_LAZY each VMA that has its parent's anon_vma holds a "
            "reference more. The series as posted takes one of the root for an anon_vma that is "
            "shared and not new, which nobody gives back."
        ),
        objects="anon_vmas",
        check=_check_refcount_high,
    ),
)
