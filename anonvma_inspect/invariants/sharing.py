"""VMAs that share their active anon_vma: what they must have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.invariants.base import (
    Invariant,
    Severity,
    Text,
    Verdict,
    address_text,
)
from anonvma_inspect.invariants.facts import Facts
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import U64Column

__all__ = ("INVARIANTS",)

# A finding names so many of a chain's anon_vmas.
_NAMED = 8


def _check_same_chain(facts: Facts) -> Verdict:
    # * The chain of a VMA whose active anon_vma is a root has only that root.
    # * VMAs with the same active anon_vma have the same anon_vmas in their chains.
    vmas = facts.tables.vmas
    judged = np.flatnonzero(facts.chain_settled)
    active = vmas.active[judged]
    is_root = facts.root_row[active] == active
    longer = judged[is_root & (vmas.chain_length[judged] > 1)]
    sharers, reference = _unlike_others(facts, judged[~is_root])
    return Verdict(
        len(judged),
        [
            facts.of_vmas(
                "vma->anon_vma is a root, but the chain has more than that",
                longer,
                None,
                address_text(vmas.anon_vma_pointer[longer]),
                _chain_text(facts, longer),
            ),
            facts.of_vmas(
                "VMAs with the same anon_vma have different chains",
                sharers,
                None,
                _chain_text(facts, reference),
                _chain_text(facts, sharers),
            ),
        ],
    )


# VMAs whose chain is another than that of most with the same active anon_vma; and one of these.
def _unlike_others(facts: Facts, vma: RowColumn) -> tuple[RowColumn, RowColumn]:
    vmas = facts.tables.vmas
    users = np.bincount(vmas.active[vma], minlength=len(facts.tables.anon_vmas.address))
    vma = vma[users[vmas.active[vma]] > 1]
    vma = vma[np.argsort(vmas.active[vma], kind="stable")]
    active, sets = vmas.active[vma], _chain_sets(facts, vma)
    differ = np.zeros(len(vma), dtype=bool)
    differ[1:] = (active[1:] == active[:-1]) & (sets[1:] != sets[:-1])
    odd: list[int] = []
    usual: list[int] = []
    for anon_vma in np.unique(active[differ]):
        begin, end = np.searchsorted(active, [anon_vma, anon_vma + 1])
        _, first, kind, count = np.unique(
            sets[begin:end], return_index=True, return_inverse=True, return_counts=True
        )
        # Of two that are equally frequent, the one of the lowest address counts as usual.
        most = np.lexsort((first, -count))[0]
        others = vma[begin:end][kind != most]
        odd.extend(others.tolist())
        usual.extend([int(vma[begin + first[most]])] * len(others))
    return np.array(odd, dtype=np.int64), np.array(usual, dtype=np.int64)


# A number for the set of anon_vmas in each VMA's chain: the same for the same set in whatever
# order, and another one for another set in all likelihood.
def _chain_sets(facts: Facts, vma: RowColumn) -> U64Column:
    length = facts.tables.vmas.chain_length[vma]
    end = np.cumsum(length)
    begin = np.searchsorted(facts.tables.links.vma, vma)
    links = np.arange(int(length.sum())) + np.repeat(begin - (end - length), length)
    # splitmix64 of the rows.
    mixed = (facts.link_anon_vma[links] + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    total = np.append(np.uint64(0), np.cumsum(mixed, dtype=np.uint64))
    sets: U64Column = total[end] - total[end - length]
    return sets


def _chain_text(facts: Facts, rows: RowColumn) -> Text:
    links, address = facts.tables.links, facts.tables.anon_vmas.address

    def text(index: int) -> str:
        first, end = np.searchsorted(links.vma, [rows[index], rows[index] + 1])
        members = np.sort(address[facts.link_anon_vma[first:end]])
        named = " ".join(f"{int(member):#x}" for member in members[:_NAMED])
        return named if len(members) <= _NAMED else f"{named} and {len(members) - _NAMED} more"

    return text


def _check_one_mm(facts: Facts) -> Verdict:
    # VMAs with the same active anon_vma are of one mm. The lowest address speaks for the others.
    tables = facts.tables
    vmas, mms = tables.vmas, tables.mms
    judged = np.flatnonzero(facts.chain_settled)
    active, mm = vmas.active[judged], vmas.mm[judged]
    first = _first_of_each(active, judged, len(tables.anon_vmas.address))
    home = vmas.mm[first[active]]
    strayed = np.flatnonzero(mm != home)
    return Verdict(
        len(judged),
        [
            facts.of_vmas(
                "VMAs of different mms have the same anon_vma",
                judged[strayed],
                None,
                _owner_text(mms.address[home[strayed]]),
                _owner_text(mms.address[mm[strayed]]),
            )
        ],
    )


def _first_of_each(active: RowColumn, vma: RowColumn, count: int) -> NDArray[np.int64]:
    first = np.full(count, NO_ROW, dtype=np.int64)
    first[active[::-1]] = vma[::-1]
    return first


def _owner_text(mm: U64Column) -> Text:
    return lambda index: f"mm {int(mm[index]):#x}"


def _has_two_counters(era: Era) -> str | None:
    return (
        "kernels with degree let fork reuse an anon_vma that is in use" if era.has_degree else None
    )


INVARIANTS = (
    Invariant(
        code="AV106",
        slug="same-chain",
        severity=Severity.ERROR,
        statement=(
            "VMAs with the same vma->anon_vma have the same anon_vmas in their chains; if it is a "
            "root, only that root."
        ),
        why=(
            "VMAs come to share an anon_vma by being split or copied, with the whole chain; or in "
            "a fault, from a neighbour whose chain has a single entry. Fork reuses an anon_vma "
            "only if no VMA has it as its active one, and never a root. Merging relies on it: of "
            "two VMAs with the same anon_vma it throws one chain away. Judged of VMAs in their "
            "mm's tree while nobody holds the mmap_lock for write."
        ),
        consequence=(
            "When such VMAs are merged, anon_vmas that pages of one of them still name leave the "
            "chain; when the last other user goes, they are freed, and a mapped page points into "
            "freed memory (CVE-2022-42703)."
        ),
        lock="The mm's mmap_lock for write, and the root's rwsem for write.",
        source=(
            "reusable_anon_vma(), anon_vma_clone(), anon_vma_fork() in mm/rmap.c, mm/mmap.c "
            "(v6.1), mm/vma.c (v6.12); commit 2555283eb40d (v6.0)."
        ),
        eras=(
            "v2.6.34 and later. Kernels with degree (v3.19 to v5.19 without the fix) can break it "
            "themselves: that is CVE-2022-42703."
        ),
        schemes=(
            "In force, of plain pointers. ANON_VMA_LAZY as posted can break it itself: a VMA that "
            "is upgraded takes the anon_vma of a neighbour even if that has a longer chain, and "
            "not the chain."
        ),
        objects="VMAs",
        check=_check_same_chain,
    ),
    Invariant(
        code="AV107",
        slug="one-mm",
        severity=Severity.ERROR,
        statement="All VMAs with the same vma->anon_vma belong to one mm.",
        why=(
            "Only fork makes a VMA of another mm from one that has an anon_vma, and it gives the "
            "child's VMA an anon_vma of its own, or one that no VMA has as its active one."
        ),
        consequence=(
            "Pages of both mms name the same anon_vma: each looks for its own among the other's "
            "mappings, and neither may treat an anonymous page as its own alone."
        ),
        lock="The mmap_lock of both mms for write, while fork copies the VMA.",
        source="anon_vma_fork(), anon_vma_clone() in mm/rmap.c (v6.1, v6.12, v7.3).",
        eras=(
            "Kernels with num_active_vmas: v6.0 and later, and stable ones with that fix. Two "
            "forks in one family can break it there, too: anon_vma_clone() lets go of the root's "
            "lock when an allocation fails, and counts the user of what it chose only later "
            "(v6.1, v6.12). "
            "With degree, fork took one user for one child, and reused what was in use."
        ),
        schemes=(
            "In force, of plain pointers: under ANON_VMA_LAZY a child's VMA has its parent's "
            "anon_vma with a tag."
        ),
        objects="VMAs",
        check=_check_one_mm,
        applies=_has_two_counters,
    ),
)
