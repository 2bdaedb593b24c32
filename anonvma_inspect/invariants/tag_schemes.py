"""VMAs whose ``vma->anon_vma`` has a tag, as two proposals put one there.

ANON_VMA_UNFAULTED marks with a lone flag that fork has to copy page tables although there is no
anon_vma. ANON_VMA_LAZY puts off the anon_vma until a fork: until then the word leads to a *root
VMA*, that of the first fault, which VMAs split from it or merged with it share; and in a child, to
the anon_vma of the VMA that fork copied. A VMA is judged in the tree of its mm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anonvma_inspect.invariants.base import (
    Check,
    Invariant,
    Severity,
    Verdict,
    Violations,
    address_text,
    always,
    at_least,
    count_text,
)
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.invariants.facts import NOT_SURE, TAG_BITS, Facts
from anonvma_inspect.invariants.pages import NOT_ASKED
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.kernel.tags import AnonVmaKind
from anonvma_inspect.tables import (
    NO_ROW,
    I64Column,
    PointerState,
    RowColumn,
    find_rows,
    marked,
)
from anonvma_inspect.target.memory import BoolColumn

__all__ = ("INVARIANTS",)


# A check that is only done if what the tags mean is sure.
def _if_certain(check: Check) -> Check:
    def checked(facts: Facts) -> Verdict:
        tags = facts.era.tags
        if not tags.certain:
            return Verdict(0, not_checked=NOT_SURE)
        return check(facts)

    return checked


def _at_rest(facts: Facts, *kinds: AnonVmaKind) -> RowColumn:
    rows = facts.vmas_of_kind(*kinds)
    return rows[facts.at_rest[rows]]


def _check_tag_word(facts: Facts) -> Verdict:
    # * Low bits of vma->anon_vma are a tag of the scheme's.
    # * The flag of an unfaulted VMA stands alone; a tag of ANON_VMA_LAZY's stands with a pointer.
    # Left out are tags whose values are not known, where they stand as those of the scheme do.
    vmas, tags = facts.tables.vmas, facts.era.tags
    rows = facts.vmas_of_kind(AnonVmaKind.TAGGED)
    tag, pointer = vmas.anon_vma_tag[rows], vmas.anon_vma_pointer[rows]
    impossible = tags.impossible(pointer, tag)
    judged = impossible | tags.understood(tag)
    left_out = len(rows) - int(np.count_nonzero(judged))
    if left_out and left_out == np.count_nonzero(vmas.anon_vma_tag):
        return Verdict(0, not_checked="the values of the scheme's tags are not known")
    rows, tag, impossible = rows[judged], tag[judged], impossible[judged]
    own = (tags.unfaulted,) if tags.name == "unfaulted" else (tags.vma, tags.parent)
    # A value that is not known may be this one.
    mistaken = impossible & (np.isin(tag, np.array(own, dtype=np.uint64)) | (not tags.whole))
    flagged, lone = mistaken & (tags.name == "unfaulted"), mistaken & (tags.name == "lazy")
    groups = []
    for which, message, expected in (
        (
            flagged,
            "the flag of an unfaulted VMA stands together with a pointer",
            "the flag alone, or a pointer without it",
        ),
        (lone, "the tag of a pointer stands without one", "a pointer with this tag, or 0x0"),
    ):
        wrong = rows[which]
        groups.append(
            facts.of_vmas(
                message, wrong, "anon_vma", always(expected), address_text(vmas.anon_vma[wrong])
            )
        )
    unknown = rows[~mistaken]
    groups.append(
        facts.of_vmas(
            "vma->anon_vma has low bits set that mean nothing",
            unknown,
            "anon_vma",
            address_text(vmas.anon_vma[unknown] & ~TAG_BITS),
            address_text(vmas.anon_vma[unknown]),
        )
    )
    return Verdict(len(vmas.address) - left_out, groups)


def _check_no_chain(facts: Facts) -> Verdict:
    # * The list of an unfaulted VMA is empty, and of one that leads to a root VMA.
    vmas = facts.tables.vmas
    rows = _at_rest(facts, AnonVmaKind.UNFAULTED, AnonVmaKind.LAZY_VMA)
    head = vmas.chain_head[rows]
    # Where both words of the head disagree, AV101 tells of it.
    full = rows[(vmas.chain_next[rows] != head) & (vmas.chain_prev[rows] != head)]
    return Verdict(
        len(rows),
        [
            facts.of_vmas(
                "vma->anon_vma says that there is no anon_vma, but the VMA's chain is not empty",
                full,
                "anon_vma",
                always("an anon_vma of its chain"),
                address_text(vmas.anon_vma[full]),
            )
        ],
    )


def _check_root_vma(facts: Facts) -> Verdict:
    # * The word leads to a VMA.
    # * That is of the same mm.
    # * It has no parent's anon_vma, and no flag: itself as root VMA, or an anon_vma since it was
    #   upgraded, or nothing since it was unmapped.
    tables = facts.tables
    vmas = tables.vmas
    rows = _at_rest(facts, AnonVmaKind.LAZY_VMA)
    root = facts.root_vma_of(rows)
    state = tables.pointer_state(vmas.anon_vma_pointer[rows], root, facts.era.vma.size)
    lost = rows[(state != PointerState.OBJECT) & (state != PointerState.HOLE)]
    rows, root = rows[root != NO_ROW], root[root != NO_ROW]
    foreign = ~facts.of_one_mm(rows, root)
    strangers, owner = rows[foreign], root[foreign]
    odd = np.isin(facts.vma_kind[root], (AnonVmaKind.LAZY_PARENT, AnonVmaKind.UNFAULTED))
    odd_roots = np.unique(root[odd & ~foreign])
    return Verdict(
        len(rows) + len(lost),
        [
            facts.of_vmas(
                "vma->anon_vma is tagged as a root VMA, and leads to no VMA",
                lost,
                "anon_vma",
                always("a VMA"),
                address_text(vmas.anon_vma[lost]),
            ),
            facts.of_vmas(
                "the root VMA of a VMA is of another mm",
                strangers,
                "anon_vma",
                _mm_text(facts, strangers),
                _mm_text(facts, owner),
            ),
            facts.of_vmas(
                "a VMA that others have as their root VMA has what no root VMA can have",
                odd_roots,
                "anon_vma",
                always("itself, an anon_vma, or 0x0"),
                address_text(vmas.anon_vma[odd_roots]),
            ),
        ],
    )


def _mm_text(facts: Facts, vmas: RowColumn) -> Callable[[int], str]:
    mm = facts.tables.vmas.vm_mm[vmas]
    return lambda index: f"a VMA of mm {int(mm[index]):#x}"


def _check_root_of_root(facts: Facts) -> Verdict:
    # * A root VMA that has a root VMA has itself.
    vmas = facts.tables.vmas
    rows = _at_rest(facts, AnonVmaKind.LAZY_VMA)
    root = facts.root_vma_of(rows)
    root = np.unique(root[facts.of_one_mm(rows, root)])
    lazy = root[facts.vma_kind[root] == AnonVmaKind.LAZY_VMA]
    wrong = lazy[vmas.anon_vma_pointer[lazy] != vmas.address[lazy]]
    return Verdict(
        len(root),
        [
            facts.of_vmas(
                "a VMA that others have as their root VMA has another one itself",
                wrong,
                "anon_vma",
                address_text(vmas.address[wrong] | np.uint64(facts.era.tags.vma)),
                address_text(vmas.anon_vma[wrong]),
            )
        ],
    )


def _check_root_refs(facts: Facts) -> Verdict:
    # * A VMA has a reference for each VMA that has it as root VMA, itself included, and one for
    #   being mapped.
    # At least: who is upgraded puts his after the word, and who is new gets his before.
    vmas = facts.tables.vmas
    least, _ = facts.root_references
    rows = np.flatnonzero(vmas.root_refs < least)
    return Verdict(
        int(np.count_nonzero(least)),
        [
            facts.of_vmas(
                "a VMA has fewer references than there are words that lead to it as root VMA",
                rows,
                "root_refs",
                at_least(least[rows]),
                count_text(vmas.root_refs[rows]),
            )
        ],
    )


def _check_root_refs_high(facts: Facts) -> Verdict:
    # * A VMA has no more references than that; of mms whose VMAs are all known.
    # A holder may be one that is not known here: a surplus is suspicious, no more.
    vmas = facts.tables.vmas
    judged = take(facts.mm_complete, vmas.mm, False)
    # One that is in no tree and has a word or a chain still, somebody is about to free.
    unlinked = (vmas.anon_vma == 0) & (vmas.chain_length == 0)
    least, most = facts.root_references
    judged &= facts.at_rest | (unlinked & (most > 0))
    if len(vmas.address) and not judged.any():
        return Verdict(0, not_checked="of no mm all VMAs are known")
    surplus = vmas.root_refs - most
    # What words that are wrong may have been, and what is missing from other VMAs of the mm.
    unsure = _strayed_words(facts)
    short = np.flatnonzero((vmas.root_refs < least) & (vmas.mm != NO_ROW))
    np.add.at(unsure, vmas.mm[short], (least - vmas.root_refs)[short])
    rows = np.flatnonzero(judged & (surplus > take(unsure, vmas.mm, 0)))
    return Verdict(
        int(np.count_nonzero(judged)),
        [
            facts.of_vmas(
                "a VMA has more references than there are words that lead to it as root VMA",
                rows,
                "root_refs",
                count_text(most[rows]),
                count_text(vmas.root_refs[rows]),
            )
        ],
    )


# How many VMAs of each mm have a word that another rule tells of, and that may have been a root
# VMA's: low bits that mean nothing, what leads to no VMA of the mm, an anon_vma without a chain.
def _strayed_words(facts: Facts) -> I64Column:
    tables = facts.tables
    vmas = tables.vmas
    strayed = marked(len(vmas.address), facts.vmas_of_kind(AnonVmaKind.TAGGED))
    lazy = facts.vmas_of_kind(AnonVmaKind.LAZY_VMA)
    strayed[lazy] = take(vmas.mm, facts.root_vma_of(lazy), NO_ROW) != vmas.mm[lazy]
    linked = facts.vmas_of_kind(AnonVmaKind.ANON_VMA, AnonVmaKind.LAZY_PARENT)
    strayed[linked] = vmas.chain_length[linked] == 0
    strayed &= vmas.mm != NO_ROW
    return np.bincount(vmas.mm[strayed], minlength=len(tables.mms.address))


def _check_folios(facts: Facts) -> Verdict:
    # * What is mapped in a VMA with a root VMA and names a VMA, names that one.
    # * What is mapped in another VMA and names a VMA, names one that is known; if all are.
    pages = facts.tables.pages
    if pages is None or pages.not_read is not None:
        return Verdict(0, not_checked=NOT_ASKED if pages is None else pages.not_read)
    deep, vmas = facts.pages, facts.tables.vmas
    assert deep is not None
    mappings, folios = pages.mappings, pages.folios
    lazy = marked(len(vmas.address), facts.vmas_of_kind(AnonVmaKind.LAZY_VMA))
    judged = deep.vma_at_rest
    if facts.tables.pids or not facts.tables.complete:
        judged = judged & lazy
    rows = np.flatnonzero(mappings.present & judged[mappings.vma])
    rows = rows[folios.kind[mappings.folio[rows]] == MappingKind.LAZY_VMA]
    vma, folio = mappings.vma[rows], mappings.folio[rows]
    named, is_lazy = folios.pointer[folio], lazy[vma]
    groups = []
    for message, wrong, expected in (
        (
            "a folio that is mapped in a lazy VMA names another root VMA",
            is_lazy & (named != vmas.anon_vma_pointer[vma]),
            None,
        ),
        (
            "a mapped folio names as a VMA what is no VMA that is known",
            ~is_lazy & (find_rows(vmas.address, named) == NO_ROW),
            always("a VMA"),
        ),
    ):
        address = folios.address[folio[wrong]]
        groups.append(
            Violations(
                message,
                pages.struct,
                address,
                expected or address_text(vmas.anon_vma_pointer[vma[wrong]]),
                address_text(named[wrong]),
                word=address + np.uint64(pages.mapping_offset),
                vma=vma[wrong],
            )
        )
    return Verdict(len(rows), groups)


def _check_lent(facts: Facts) -> Verdict:
    # * The word leads to what can be an anon_vma.
    # * That is in the VMA's chain: by what the entries say, or by the tree that one of them is in.
    tables = facts.tables
    vmas = tables.vmas
    rows = _at_rest(facts, AnonVmaKind.LAZY_PARENT)
    lent = facts.lent_by(rows)
    wild = facts.wild(vmas.anon_vma_pointer[rows], lent, facts.era.anon_vma)
    known: BoolColumn = facts.chain_whole[rows] & ~wild
    away = rows[known & ~facts.in_chain(rows, lent) & ~_unknown_entries(facts, rows)]
    lost = rows[wild]
    return Verdict(
        len(rows),
        [
            facts.of_vmas(
                "vma->anon_vma is tagged as the parent's anon_vma, and cannot be the address of "
                "one",
                lost,
                "anon_vma",
                always("an anon_vma of its chain"),
                address_text(vmas.anon_vma[lost]),
            ),
            facts.of_vmas(
                "the parent's anon_vma that a VMA has is not in the VMA's chain",
                away,
                "anon_vma",
                always("an anon_vma of its chain"),
                address_text(vmas.anon_vma[away]),
            ),
        ],
    )


# VMAs of whose chain some entry leads to what is not known.
def _unknown_entries(facts: Facts, rows: RowColumn) -> BoolColumn:
    links = facts.tables.links
    bad = np.zeros(len(facts.tables.vmas.address), dtype=bool)
    bad[links.vma[facts.link_anon_vma == NO_ROW]] = True
    return bad[rows]


def _has_tags(era: Era) -> str | None:
    return "vma->anon_vma has no tags in this kernel" if era.tags.name == "none" else None


def _is_lazy(era: Era) -> str | None:
    # Which scheme it is may not be sure.
    if era.tags.name == "lazy" or not era.tags.certain:
        return None
    return "this kernel has no ANON_VMA_LAZY"


def _counts_roots(era: Era) -> str | None:
    lazy = _is_lazy(era)
    counts = "root_refs" in era.vma
    return lazy if lazy or counts else "what counts references to root VMAs is not known"


_FAULT_LOCK = (
    "The mm's mmap_lock and page_table_lock where a fault or a guard sets the word; the mmap_lock "
    "for write elsewhere."
)
_NO_RELEASE = "No release."

INVARIANTS = (
    Invariant(
        code="AV603",
        slug="tag-word",
        severity=Severity.ERROR,
        statement="Low bits of vma->anon_vma are a tag that the kernel's scheme has.",
        why=(
            "ANON_VMA_UNFAULTED has one flag, which says that there is no anon_vma, so that it "
            "never stands together with a pointer. ANON_VMA_LAZY has two tags, which say what a "
            "pointer leads to. Nothing else is ever stored. What the values of the tags are, is "
            "learnt from the target; see target.tag_scheme_evidence."
        ),
        consequence=(
            "Whoever masks the word takes a VMA for an anon_vma, or follows a pointer that is a "
            "few bytes off; fork copies page tables that it need not, or leaves out those that it "
            "must."
        ),
        lock=_FAULT_LOCK,
        source=(
            "The proposals, for include/linux/mm_types.h and mm/rmap.c: [RFC PATCH 0/2] mm: "
            "introduce anon_vma flags, reduce kernel allocs (2025-03), and the series on "
            "ANON_VMA_LAZY (2026-05)."
        ),
        eras=f"{_NO_RELEASE} Elsewhere AV601 tells of low bits.",
        schemes="Both. It replaces AV601 for this word.",
        objects="VMAs",
        check=_if_certain(_check_tag_word),
        applies=_has_tags,
    ),
    Invariant(
        code="AV604",
        slug="no-chain",
        severity=Severity.ERROR,
        statement="The chain of a VMA without an anon_vma of its own or a parent's is empty.",
        why=(
            "The flag of an unfaulted VMA, and a root VMA, are set only where there is no anon_vma "
            "yet; the first AVC comes with the first anon_vma, which takes the tag's place before "
            "that. Unlinking takes away both."
        ),
        consequence=(
            "Unlinking passes by a VMA that says that it has nothing to unlink: its AVCs stay in "
            "the trees after the VMA is freed."
        ),
        lock=_FAULT_LOCK,
        source=(
            "vma_prepare_anon_vma_lazy(), vma_link_anon_vma_lazy_root(), vma_prepare_anon_vma() "
            "and unlink_anon_vmas() in mm/rmap.c of ANON_VMA_LAZY (2026-05)."
        ),
        eras=_NO_RELEASE,
        schemes="Both. It takes the place of AV105 for these VMAs.",
        objects="VMAs with such a tag",
        check=_if_certain(_check_no_chain),
        applies=_has_tags,
    ),
    Invariant(
        code="AV605",
        slug="root-vma",
        severity=Severity.ERROR,
        statement=("A root VMA is a VMA of the same mm, and has itself, an anon_vma, or nothing."),
        why=(
            "The first fault makes a VMA its own root VMA, and takes a reference of it. A VMA that "
            "is split from it, copied or merged with it in the same mm gets the same word and "
            "another reference, so that a root VMA can be unmapped long before the last of them. "
            "Fork gives a child's VMA no root VMA. When a VMA gets an anon_vma, those that have "
            "it as root VMA keep it."
        ),
        consequence=(
            "Pages name the root VMA: looked for in another mm, or in what has become of a freed "
            "VMA, their mappings are not found, and they are neither reclaimed nor migrated."
        ),
        lock=_FAULT_LOCK,
        source=(
            "vma_prepare_anon_vma_lazy(), vma_link_anon_vma_lazy_root(), "
            "vma_unlink_anon_vma_lazy() in mm/rmap.c of ANON_VMA_LAZY (2026-05)."
        ),
        eras=_NO_RELEASE,
        schemes="ANON_VMA_LAZY.",
        objects="VMAs that lead to a root VMA",
        check=_if_certain(_check_root_vma),
        applies=_is_lazy,
    ),
    Invariant(
        code="AV606",
        slug="lent-anon-vma",
        severity=Severity.ERROR,
        statement="The parent's anon_vma that a VMA has is in the VMA's chain.",
        why=(
            "Fork copies the whole chain of the parent's VMA, its active anon_vma included, and "
            "where nothing can be reused has the child's VMA lead to that, with a reference. The "
            "VMA is in the trees of all of its chain (AV201), but no anon_vma is its own: it is "
            "counted in no num_active_vmas, and in no num_children until it is upgraded."
        ),
        consequence=(
            "A fault stores that anon_vma in the new page, and nobody finds this VMA from the "
            "page; once the anon_vma is freed, the page has a pointer into freed memory."
        ),
        lock="The mmap_lock of both mms for write, while fork copies the VMA.",
        source=(
            "vma_fork_anon_vma_lazy(), vma_link_anon_vma_lazy_parent() in mm/rmap.c of "
            "ANON_VMA_LAZY (2026-05)."
        ),
        eras=_NO_RELEASE,
        schemes="ANON_VMA_LAZY. It takes the place of AV105 for these VMAs.",
        objects="VMAs that lead to a parent's anon_vma",
        check=_if_certain(_check_lent),
        applies=_is_lazy,
    ),
    Invariant(
        code="AV607",
        slug="root-of-root",
        severity=Severity.WARNING,
        statement="A root VMA that has a root VMA has itself.",
        why=(
            "The first fault makes a VMA its own root VMA; when it gets an anon_vma or is unlinked "
            "that is gone, not another. A warning, because mremap() with MREMAP_DONTUNMAP unlinks "
            "a VMA that stays mapped and that others may still have as theirs, and a merge can "
            "give that one another root VMA."
        ),
        consequence="Pages of one mapping name two root VMAs, and merging keeps one of them.",
        lock=_FAULT_LOCK,
        source=(
            "vma_prepare_anon_vma_lazy(), vma_unlink_anon_vma_lazy() in mm/rmap.c of ANON_VMA_LAZY "
            "(2026-05); dup_anon_vma() in mm/vma.c."
        ),
        eras=_NO_RELEASE,
        schemes="ANON_VMA_LAZY.",
        objects="root VMAs",
        check=_if_certain(_check_root_of_root),
        applies=_is_lazy,
    ),
    Invariant(
        code="AV608",
        slug="root-vma-refs",
        severity=Severity.ERROR,
        statement="A VMA has a reference for each that has it as root VMA, and one while mapped.",
        why=(
            "Whoever makes a word lead to a root VMA takes a reference of it first, and gives it "
            "back when the word is gone; the mapping has one until it is unmapped. (A merge sets "
            "the word first, with the mmap_lock held for write: that is told as in flight.) Of too "
            "many AV610 tells."
        ),
        consequence=(
            "The root VMA is freed while words and pages lead to it: walks for those pages go "
            "through memory that has become another VMA, or something else."
        ),
        lock="None: atomic.",
        source=(
            "vma_prepare_anon_vma_lazy(), vma_link_anon_vma_lazy_root(), "
            "vma_unlink_anon_vma_lazy() in mm/rmap.c of ANON_VMA_LAZY (2026-05)."
        ),
        eras=_NO_RELEASE,
        schemes=(
            "ANON_VMA_LAZY, where the count is known: what the series as posted counts in, is not."
        ),
        objects="VMAs",
        check=_if_certain(_check_root_refs),
        applies=_counts_roots,
    ),
    Invariant(
        code="AV609",
        slug="lazy-folio",
        severity=Severity.WARNING,
        statement=(
            "A folio that is mapped in a VMA with a root VMA, and names a VMA, names that one; "
            "elsewhere one that is known."
        ),
        why=(
            "The mapping of a folio that was faulted in a lazy VMA is the root VMA, with the "
            "second bit set alone. All VMAs that can map it before it is shared by a fork are "
            "parts of what that one was. What becomes of that word when the VMA is upgraded or "
            "shared by a fork, the posted part of the proposal does not say; of folios that other "
            "VMAs map, it is only asked that there is such a VMA, and only if all VMAs are known. "
            "A warning, because of the proposal only the part that is about VMAs was at hand."
        ),
        consequence=(
            "Who looks for the folio's mappings goes by the wrong VMA: it is neither reclaimed nor "
            "migrated, or both while it is still mapped."
        ),
        lock="The page table's lock, and the folio's.",
        source=(
            "The cover letter of the series on ANON_VMA_LAZY (2026-05), and its comments in "
            "mm/rmap.c."
        ),
        eras=_NO_RELEASE,
        schemes="ANON_VMA_LAZY.",
        objects="mappings",
        check=_if_certain(_check_folios),
        applies=_is_lazy,
    ),
    Invariant(
        code="AV610",
        slug="root-refs-high",
        severity=Severity.WARNING,
        statement="A VMA has no more references than those that AV608 counts.",
        why=(
            "What is known is one reference for each word that leads to it as root VMA, and one "
            "while it is mapped; nobody else takes any. A surplus is how it is for a moment in the "
            "middle of a fault, a split, an upgrade or munmap, under the mmap_lock: that is told "
            "as in flight. One that stays is a leak, or has a holder that is not known here, and "
            "so this is a warning. Told only of mms whose VMAs are all known, and only as far as "
            "no word of the mm that is wrong in itself may have been the one that is missing."
        ),
        consequence="If it is a leak, the VMA is never freed, long after it was unmapped.",
        lock="None: atomic.",
        source=(
            "vma_prepare_anon_vma_lazy(), vma_link_anon_vma_lazy_root(), "
            "vma_unlink_anon_vma_lazy() in mm/rmap.c of ANON_VMA_LAZY (2026-05)."
        ),
        eras=_NO_RELEASE,
        schemes=(
            "ANON_VMA_LAZY, where the count is known: what the series as posted counts in, is not."
        ),
        objects="VMAs",
        check=_if_certain(_check_root_refs_high),
        applies=_counts_roots,
    ),
)
