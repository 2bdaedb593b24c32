"""VMAs, and the mms that list them."""

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
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, RowColumn, marked
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("INVARIANTS",)

# include/linux/mm.h; the numbers are the same in all eras.
_VM_SHARED, _VM_MAYWRITE = np.uint64(0x8), np.uint64(0x20)


def _check_vma_mm(facts: Facts) -> Verdict:
    # * Every entry of the tree of an mm at rest is a VMA whose vm_mm is that mm.
    # * The list of tasks leads to tasks, and a task's mm to an mm.
    # The tree of a child of fork may be its parent's in part (Facts.slot_copied); what exit or a
    # fork that failed have left is not judged (Facts.mm_judged).
    tables = facts.tables
    slots, vmas, mms = tables.slots, tables.vmas, tables.mms
    judged = np.flatnonzero((slots.vma != NO_ROW) & facts.mm_judged[slots.mm] & ~facts.slot_copied)
    vma, mm = slots.vma[judged], slots.mm[judged]
    foreign = vmas.vm_mm[vma] != mms.address[mm]
    vma, mm = vma[foreign], mm[foreign]
    # A VMA that stands in the tree of the mm it names is in order: the other tree is not.
    settled = vmas.slot[vma] != NO_ROW
    strayed, owner = vma[~settled], mm[~settled]
    guests, host = vma[settled], mm[settled]
    groups = [
        facts.of_vmas(
            "a VMA in an mm's tree says that it belongs to another mm",
            strayed,
            "vm_mm",
            address_text(mms.address[owner]),
            address_text(vmas.vm_mm[strayed]),
        ),
        facts.of_mms(
            "the tree of an mm holds a VMA that is another mm's",
            host,
            None,
            always("VMAs of this mm"),
            address_text(vmas.address[guests]),
        ),
        *_broken(facts, tables.broken.mm == NO_ROW, "a walk of the tasks came upon"),
    ]
    return Verdict(len(judged), groups)


# Words that cannot be right in structures that the tables do not keep. The kinds are few.
def _broken(facts: Facts, which: BoolColumn, walk: str) -> list[Violations]:
    broken, mms = facts.tables.broken, facts.tables.mms
    groups = []
    kinds = sorted({(str(t), str(p)) for t, p in zip(broken.type, broken.problem, strict=True)})
    for type_, problem in kinds:
        rows = np.flatnonzero(which & (broken.type == type_) & (broken.problem == problem))
        # A word whose own place is not known is reported of its mm.
        placed = broken.address[rows] != 0
        for struct, group in ((type_, rows[placed]), ("mm_struct", rows[~placed])):
            mm = broken.mm[group]
            groups.append(
                Violations(
                    f"{walk} what cannot be right: {problem}",
                    struct,
                    broken.address[group] if struct == type_ else mms.address[mm],
                    always("a pointer that leads on"),
                    address_text(broken.value[group]),
                    mm=mm,
                )
            )
    return groups


# Broken words that nobody who changes a tree of VMAs writes. (Those of a node may have its colour.)
def _is_no_pointer(facts: Facts) -> BoolColumn:
    broken = facts.tables.broken
    of_list = np.char.startswith(broken.problem, "vm_")
    pointer = np.where(of_list, broken.value, broken.value & ~np.uint64(1))
    wild: BoolColumn = (pointer != 0) & facts.tables.space.wild(pointer)
    return wild


def _check_vma_range(facts: Facts) -> Verdict:
    # * The tree of an mm stores each VMA under just the addresses that it covers. As the entries of
    #   a tree are in order and disjoint, so are the VMAs.
    # * A VMA covers whole pages, and at least one, and none of the one below it.
    # * map_count is their number: judged of mms that were walked to the end.
    # * The walk of the tree met nothing that cannot be right.
    # Entries whose VMA is another mm's are AV001's.
    tables = facts.tables
    slots, vmas = tables.slots, tables.vmas
    one = np.uint64(1)
    known = slots.vma != NO_ROW
    own = np.zeros(len(slots.vma), dtype=bool)
    own[known] = vmas.mm[slots.vma[known]] == slots.mm[known]
    judged = np.flatnonzero(own & facts.mm_judged[slots.mm])
    vma = slots.vma[judged]
    start, end = slots.first[judged], slots.last[judged] + one
    wrong_start, wrong_end = vmas.vm_start[vma] != start, vmas.vm_end[vma] != end
    wrong = wrong_start | wrong_end
    placed = marked(len(vmas.address), vma[~wrong])

    # A VMA that stands where it should, too: this entry is one too many.
    extra = np.flatnonzero(wrong & placed[vma])
    # Neighbours that agree with each other about where one ends and the next starts: the tree does
    # not.
    pivot = np.zeros(len(judged), dtype=bool)
    pivot[:-1] = (
        (wrong_end[:-1] & wrong_start[1:])
        & (slots.mm[judged[:-1]] == slots.mm[judged[1:]])
        & (vmas.vm_end[vma[:-1]] == vmas.vm_start[vma[1:]])
        & (end[:-1] == start[1:])
        & ~placed[vma[:-1]]
        & ~placed[vma[1:]]
    )
    behind = np.zeros(len(judged), dtype=bool)
    behind[1:] = pivot[:-1]
    divided = np.flatnonzero(pivot)
    early = np.flatnonzero(wrong_start & ~placed[vma] & ~behind)
    late = np.flatnonzero(wrong_end & ~placed[vma] & ~pivot)

    # Where the tree agrees with a range that no VMA can have, both are wrong.
    inside = np.uint64(facts.era.page_size - 1)
    ragged = np.flatnonzero(~wrong & (((start | end) & inside) != 0))
    void = np.flatnonzero(~wrong & (start >= end))
    # Entries of a maple tree are disjoint; those of a red-black tree are what the VMAs say.
    over = np.zeros(len(judged), dtype=bool)
    over[1:] = (slots.mm[judged[1:]] == slots.mm[judged[:-1]]) & (start[1:] < end[:-1])
    over = np.flatnonzero(over & (start < end))
    # A red-black tree is out of order while it is changed; a maple tree is not, but for nodes that
    # are about to be replaced.
    broken = take(facts.mm_judged, tables.broken.mm, False)
    changing = take(facts.mm_writer, tables.broken.mm, False)
    if facts.era.maple_node is None:
        broken &= ~changing | _is_no_pointer(facts)
    else:
        broken &= ~(changing & _is_of_dead_node(facts))
    groups = [
        facts.of_vmas(
            "a VMA starts elsewhere than its entry in the mm's tree",
            vma[early],
            "vm_start",
            address_text(start[early]),
            address_text(vmas.vm_start[vma[early]]),
        ),
        facts.of_vmas(
            "a VMA ends elsewhere than its entry in the mm's tree",
            vma[late],
            "vm_end",
            address_text(end[late]),
            address_text(vmas.vm_end[vma[late]]),
        ),
        facts.of_mms(
            "the tree of an mm divides two VMAs elsewhere than they do",
            slots.mm[judged[divided]],
            None,
            address_text(vmas.vm_end[vma[divided]]),
            address_text(end[divided]),
        ),
        facts.of_mms(
            "the tree of an mm holds a VMA in a second place",
            slots.mm[judged[extra]],
            None,
            address_text(vmas.vm_start[vma[extra]]),
            address_text(start[extra]),
        ),
        facts.of_vmas(
            "a VMA does not cover whole pages",
            vma[ragged],
            None,
            always("a multiple of the page size"),
            _range_text(facts, vma[ragged]),
        ),
        facts.of_vmas(
            "a VMA begins before the one below it ends",
            vma[over],
            None,
            address_text(end[over - 1]),
            address_text(start[over]),
        ),
        facts.of_vmas(
            "a VMA covers nothing",
            vma[void],
            None,
            always("vm_start < vm_end"),
            _range_text(facts, vma[void]),
        ),
        _map_count(facts, known & ~own),
        *_broken(
            facts,
            broken,
            "a walk of an mm's tree came upon",
        ),
    ]
    return Verdict(len(judged), groups)


# mas_wmb_replace(), lib/maple_tree.c, v6.1: nodes are marked as dead before others take their place
# (later kernels do it after that), and hang on a list by what was their first pivot (mat_add()).
def _is_of_dead_node(facts: Facts) -> BoolColumn:
    broken = facts.tables.broken
    dead = broken.address[broken.problem == "the node is dead"]
    of_dead: BoolColumn = np.isin(broken.address, dead)
    return of_dead


def _range_text(facts: Facts, rows: RowColumn) -> Text:
    vmas = facts.tables.vmas

    def text(index: int) -> str:
        row = rows[index]
        return f"{int(vmas.vm_start[row]):#x}-{int(vmas.vm_end[row]):#x}"

    return text


# In an mm at rest a foreign entry is AV001's finding; whether map_count counts it is not known.
def _map_count(facts: Facts, foreign: BoolColumn) -> Violations:
    slots, mms = facts.tables.slots, facts.tables.mms
    count = len(mms.address)
    own = np.bincount(slots.mm[~foreign], minlength=count)
    guests = np.bincount(slots.mm[foreign], minlength=count)
    rows = np.flatnonzero(
        mms.walked
        & mms.whole
        & facts.mm_judged
        & ((mms.map_count < own) | (mms.map_count > own + guests))
    )
    return facts.of_mms(
        "map_count is not the number of VMAs in the mm's tree",
        rows,
        "map_count",
        count_text(own[rows]),
        count_text(mms.map_count[rows]),
    )


def _check_attached(facts: Facts) -> Verdict:
    # A VMA in the tree of its mm, in the place that it says is its own, is marked attached.
    tables = facts.tables
    slots, vmas = tables.slots, tables.vmas
    there = np.flatnonzero((vmas.slot != NO_ROW) & take(facts.mm_judged, vmas.mm, False))
    slot = vmas.slot[there]
    there = there[slots.first[slot] == vmas.vm_start[there]]
    rows = there[~vmas.attached[there]]
    name = "detached" if "detached" in facts.era.vma else "vm_refcnt"
    by_flag = name == "detached"
    return Verdict(
        len(there),
        [
            facts.of_vmas(
                "a VMA in its mm's tree is marked as detached from it",
                rows,
                name,
                always("false" if by_flag else "at least 1"),
                always("true" if by_flag else "0 or less"),
            )
        ],
    )


def _marks_attachment(era: Era) -> str | None:
    marks = "detached" in era.vma or "vm_refcnt" in era.vma
    return None if marks else "VMAs of this kernel have no such mark"


def _check_cow_mapping(facts: Facts) -> Verdict:
    vmas = facts.tables.vmas
    there = np.flatnonzero(
        (vmas.anon_vma_pointer != 0) & (vmas.slot != NO_ROW) & take(facts.mm_judged, vmas.mm, False)
    )
    rows = there[(vmas.vm_flags[there] & (_VM_SHARED | _VM_MAYWRITE)) != _VM_MAYWRITE]
    return Verdict(
        len(there),
        [
            facts.of_vmas(
                "a VMA that has an anon_vma is not a private mapping that may be written to",
                rows,
                "vm_flags",
                always("VM_MAYWRITE without VM_SHARED"),
                address_text(vmas.vm_flags[rows]),
            )
        ],
    )


INVARIANTS = (
    Invariant(
        code="AV001",
        slug="vma-mm",
        severity=Severity.ERROR,
        statement="Every VMA in an mm's tree has that mm as its vm_mm.",
        why=(
            "A VMA is stored in the tree of the mm it was made for, and changes neither. Fork is "
            "the exception: since v6.8 it copies the parent's whole tree and then replaces entry "
            "by entry, so a half-made child holds its parent's VMAs, at the same places, while one "
            "task has locked both mms for write; if fork fails, some stay behind, and the mm is "
            "marked MMF_UNSTABLE. So nothing is said of such entries, nor of an mm that no task "
            "has and that is unstable or has no users. A pointer that leads the walk of the tasks "
            "astray, or a task's mm that cannot be one, is reported here as well."
        ),
        consequence=(
            "Faults, unmapping and the reverse map work on another process's mapping: pages are "
            "charged, mapped or freed where they do not belong."
        ),
        lock="The mm's mmap_lock, for write.",
        source=(
            "vm_area_alloc() and dup_mmap() in kernel/fork.c (v6.1; v6.12 with __mt_dup() and "
            "XA_ZERO_ENTRY at the point of failure); insert_vm_struct() in mm/mmap.c."
        ),
        eras="All. Until v6.7 fork builds the child's tree VMA by VMA, and no exception is needed.",
        objects="entries of mms' trees",
        check=_check_vma_mm,
    ),
    Invariant(
        code="AV002",
        slug="vma-range",
        severity=Severity.ERROR,
        statement=(
            "VMAs lie in their mm's tree at the pages they cover, in order and disjoint, map_count "
            "many."
        ),
        why=(
            "Whatever changes vm_start or vm_end stores the VMA anew in the tree before it lets go "
            "of the mmap_lock, and map_count goes up and down with the entries. Not judged is an "
            "mm that no task has and that is unstable or has no users (its tree still names VMAs "
            "that are freed); map_count only where the walk saw all of the tree. A word that leads "
            "that walk astray is reported here."
        ),
        consequence=(
            "find_vma() answers wrongly: faults hit the wrong mapping or none, a page's index in "
            "its anon_vma no longer leads to its address, and exit stops at BUG_ON(count != "
            "mm->map_count)."
        ),
        lock="The mm's mmap_lock, for write.",
        source=(
            "validate_mm(), __vma_adjust(), exit_mmap() in mm/mmap.c (v6.1); validate_mm() and "
            "vma_complete() in mm/vma.c, exit_mmap() in mm/mmap.c (v6.12)."
        ),
        eras=(
            "All. Up to v6.0 the tree is a red-black one, which has no ranges of its own to "
            "compare with: there VMAs must not overlap, and the list of VMAs must go through the "
            "same ones."
        ),
        objects="entries of mms' trees",
        check=_check_vma_range,
    ),
    Invariant(
        code="AV003",
        slug="vma-attached",
        severity=Severity.ERROR,
        statement="A VMA in its mm's tree is marked as attached.",
        why=(
            "Page faults that take the VMA's own lock instead of the mmap_lock ask this mark "
            "whether the VMA is still there. It is taken away before the VMA leaves the tree, and "
            "given before or when it comes in, both under the mmap_lock for write."
        ),
        consequence=(
            "A fault takes the VMA for one that was replaced since it was found, and looks for it "
            "again, for ever; from v6.15 on, taking the mark away a second time brings the count "
            "below zero."
        ),
        lock="The mm's mmap_lock, for write.",
        source=(
            "vma_mark_detached(), vma_init() in include/linux/mm.h, lock_vma_under_rcu() in "
            "mm/memory.c, vms_gather_munmap_vmas() in mm/vma.c (v6.12); vma_mark_attached() in "
            "include/linux/mmap_lock.h (v7.2)."
        ),
        eras=(
            "v6.4 and later with CONFIG_PER_VMA_LOCK: detached; since v6.15 vm_refcnt, 0 for a "
            "detached VMA."
        ),
        objects="VMAs",
        check=_check_attached,
        applies=_marks_attachment,
    ),
    Invariant(
        code="AV004",
        slug="cow-mapping",
        severity=Severity.WARNING,
        statement="A VMA that has an anon_vma is a private mapping that may be written to.",
        why=(
            "Anonymous pages come from faults in private mappings, and from copying on write, for "
            "which VM_MAYWRITE is asked. A warning, because a driver may clear VM_MAYWRITE later."
        ),
        consequence=(
            "Fork decides by these flags whether to copy page tables with their anonymous pages, "
            "and write faults whether to copy a page: pages are shared that must not be, or lost."
        ),
        lock="The mm's mmap_lock, for write.",
        source="is_cow_mapping() in include/linux/mm.h; copy_page_range() in mm/memory.c (v6.12).",
        eras="All.",
        schemes="In force, of what has a pointer. A flag alone is set in any mapping with guards.",
        objects="VMAs",
        check=_check_cow_mapping,
    ),
)
