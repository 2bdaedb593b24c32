"""Mapped anonymous pages: what their folios say, against the VMAs that map them."""

from __future__ import annotations

from collections.abc import Callable

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
from anonvma_inspect.invariants.page_facts import PageFacts, group_rows
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.tables import NO_ROW, I64Column, RowColumn, find_rows, marked

__all__ = ("INVARIANTS", "NOT_ASKED")

#: Why nothing is known of mapped pages, mostly.
NOT_ASKED = "only looked at with --deep"


def _of_pages(check: Callable[[Facts, PageFacts], Verdict]) -> Callable[[Facts], Verdict]:
    def checked(facts: Facts) -> Verdict:
        pages = facts.tables.pages
        if pages is None:
            return Verdict(0, not_checked=NOT_ASKED)
        if pages.not_read is not None:
            return Verdict(0, not_checked=pages.not_read)
        assert facts.pages is not None
        verdict = check(facts, facts.pages)
        sample = pages.coverage.sample
        # Where there is nothing to look for, as before v5.19, nothing was left out either.
        if sample > 1 and verdict.violations and not verdict.objects:
            reason = f"nothing to check fell into the sample (--sample {sample})"
            return Verdict(0, not_checked=reason)
        return verdict

    return checked


# Violations whose objects are the folios of the first mapping of each group. (No word is named for
# what counts: it lies elsewhere in a large folio than in a small one.)
def _of_folios(
    deep: PageFacts,
    message: str,
    rows: RowColumn,
    count: I64Column,
    field: int | None,
    expected: Text,
    actual: Text,
) -> Violations:
    pages = deep.pages
    folio, vma = pages.mappings.folio[rows], pages.mappings.vma[rows]
    address = pages.folios.address[folio]
    word = None
    if field is not None:
        # If many say the same, it is not their word that is wrong.
        single = count <= np.maximum(pages.folios.pages[folio], 1)
        word = np.where(single, address + np.uint64(field), np.uint64(0))
    return Violations(
        message,
        pages.struct,
        address,
        expected,
        actual,
        word=word,
        vma=vma,
        anon_vma=pages.folios.anon_vma[folio],
    )


def _with_more(text: Text, count: I64Column, one: str = "page", many: str = "pages") -> Text:
    def of_row(index: int) -> str:
        more = int(count[index]) - 1
        what = one if more == 1 else many
        return text(index) + (f", and {more} more {what} of the VMA" if more else "")

    return of_row


@_of_pages
def _check_anon_vma(facts: Facts, deep: PageFacts) -> Verdict:
    # * mapping leads to memory where an anon_vma can be.
    # * What is there is in use: somebody holds it, and a VMA is in its tree.
    pages = deep.pages
    rows = deep.mapped
    folios = pages.folios
    groups = []
    for message, which, expected in (
        ("the mapping of a mapped anonymous folio leads nowhere", deep.wild, "an anon_vma"),
        (
            "the mapping of a mapped anonymous folio leads to a free anon_vma",
            deep.freed,
            "an anon_vma with a VMA in its tree",
        ),
    ):
        bad = rows[which[pages.mappings.folio[rows]]]
        folio = pages.mappings.folio[bad]
        first, count = group_rows(bad, pages.mappings.vma[bad], folios.pointer[folio])
        actual = address_text(folios.mapping[pages.mappings.folio[first]])
        groups.append(
            _of_folios(
                deep,
                message,
                first,
                count,
                pages.mapping_offset,
                always(expected),
                _with_more(actual, count),
            )
        )
    judged = marked(len(folios.address), pages.mappings.folio[rows])
    return Verdict(int(np.count_nonzero(judged)), groups)


@_of_pages
def _check_chain(facts: Facts, deep: PageFacts) -> Verdict:
    # * The anon_vma of a mapped folio is in the chain of the VMA that maps it.
    # * A VMA without an anon_vma maps no anonymous folio.
    # Not where AV701 has found the folio's word wrong.
    pages, vmas = deep.pages, facts.tables.vmas
    mappings, folios = pages.mappings, pages.folios
    runs = deep.runs
    judged = deep.vma_settled[mappings.vma[runs]]
    judged &= ~(deep.wild | deep.freed)[mappings.folio[runs]]
    bad = runs[judged]
    bad = bad[~facts.in_chain(mappings.vma[bad], deep.anon_vma_of(bad))]
    rows = deep.of_runs(bad)
    folio = mappings.folio[rows]
    first, count = group_rows(rows, mappings.vma[rows], folios.pointer[folio])
    has_none = vmas.anon_vma_pointer[mappings.vma[first]] == 0
    linked, bare = np.flatnonzero(~has_none), np.flatnonzero(has_none)
    named = folios.pointer[mappings.folio[first]]
    groups = [
        _of_folios(
            deep,
            "the anon_vma of a mapped folio is not in the chain of the VMA",
            first[linked],
            count[linked],
            pages.mapping_offset,
            always("an anon_vma of the VMA's chain"),
            _with_more(address_text(named[linked]), count[linked]),
        ),
        facts.of_vmas(
            "a VMA without an anon_vma maps anonymous folios",
            mappings.vma[first[bare]],
            "anon_vma",
            address_text(named[bare]),
            _with_more(address_text(vmas.anon_vma[mappings.vma[first[bare]]]), count[bare]),
        ),
    ]
    return Verdict(int(np.count_nonzero(deep.vma_settled[mappings.vma[deep.mapped]])), groups)


@_of_pages
def _check_index(facts: Facts, deep: PageFacts) -> Verdict:
    # * index, and how far into the folio the page is, make the key that the VMA has at the address.
    pages = deep.pages
    mappings = pages.mappings
    rows = deep.mapped
    rows = rows[deep.vma_at_rest[mappings.vma[rows]]]
    key, index = deep.page_key(rows), deep.page_index(rows)
    bad = np.flatnonzero(key != index)
    first, count = group_rows(rows[bad], mappings.vma[rows[bad]], (key - index)[bad])
    inside = mappings.pfn[first] - pages.folios.pfn[mappings.folio[first]]
    group = _of_folios(
        deep,
        "the index of a mapped folio is not where the VMA maps it",
        first,
        count,
        pages.index_offset,
        address_text(deep.page_key(first) - inside),
        _with_more(address_text(deep.page_index(first) - inside), count),
    )
    return Verdict(len(rows), [group])


@_of_pages
def _check_mapcount(facts: Facts, deep: PageFacts) -> Verdict:
    # * As many entries of page tables as were found, or more, are counted.
    pages = deep.pages
    folios, times = pages.folios, deep.times
    bad = (times > folios.most_mapcount) & (folios.pages > 0)
    first, count = _first_mappings(deep, np.flatnonzero(bad))
    folio = pages.mappings.folio[first]
    found = times[folio]
    group = _of_folios(
        deep,
        "a folio is mapped more often than it counts",
        first,
        count,
        None,
        lambda index: f"at least {int(found[index])}",
        count_text(folios.most_mapcount[folio]),
    )
    return Verdict(int(np.count_nonzero(times > 0)), [group])


# The first mapping of some folios.
def _first_mappings(deep: PageFacts, folio: RowColumn) -> tuple[RowColumn, I64Column]:
    mappings = deep.pages.mappings
    if not len(folio):
        return folio, folio
    chosen = np.zeros(len(deep.pages.folios.address), dtype=bool)
    chosen[folio] = True
    rows = np.flatnonzero(mappings.present & chosen[mappings.folio])
    return group_rows(rows, mappings.folio[rows])


@_of_pages
def _check_lost(facts: Facts, deep: PageFacts) -> Verdict:
    # * All that is counted was found.
    # Between counting a mapping and making it, and the other way round, there is a moment.
    pages, tables = deep.pages, facts.tables
    reason = _why_not_all(facts)
    if reason is not None:
        return Verdict(0, not_checked=reason)
    folios, mappings = pages.folios, pages.mappings
    judged = (folios.pages > 0) & ((folios.flags & np.uint64(pages.busy)) == 0)
    moving = ~take(tables.mms.lock_free, tables.vmas.mm, False) | ~deep.vma_at_rest
    judged[mappings.folio[moving[mappings.vma]]] = False
    judged[mappings.folio[~mappings.present]] = False
    judged &= deep.times > 0
    bad = np.flatnonzero(judged & (folios.mapcount > deep.times))
    first, count = _first_mappings(deep, bad)
    folio = mappings.folio[first]
    group = _of_folios(
        deep,
        "a folio counts more mappings than there are",
        first,
        count,
        None,
        count_text(deep.times[folio]),
        count_text(folios.mapcount[folio]),
    )
    return Verdict(int(np.count_nonzero(judged)), [group])


def _why_not_all(facts: Facts) -> str | None:
    tables = facts.tables
    assert tables.pages is not None
    coverage = tables.pages.coverage
    if tables.pids:
        return "other processes may map the same folios"
    if not tables.complete:
        return "something is missing from the target"
    for count, what in (
        (coverage.mms_left_out, "mms were left out"),
        (coverage.page_tables_lost, "page tables could not be followed"),
        (coverage.unknown, "entries of page tables are not understood"),
    ):
        if count:
            return f"{what}: {count:,}"
    return None


@_of_pages
def _check_reached(facts: Facts, deep: PageFacts) -> Verdict:
    # * The VMA is in the tree of the folio's anon_vma, where whoever looks for the folio's mappings
    #   looks for VMAs; at the folio's index, if AV703 has nothing to say.
    pages, nodes = deep.pages, facts.tables.nodes
    mappings = pages.mappings
    runs = deep.runs
    anon_vma = deep.anon_vma_of(runs)
    root = take(facts.root_row, anon_vma, NO_ROW)
    judged = deep.vma_at_rest[mappings.vma[runs]] & ~take(facts.root_writer, root, False)
    judged &= take(facts.tree_whole, anon_vma, False)
    judged &= facts.in_chain(mappings.vma[runs], anon_vma)
    bad, anon_vma = runs[judged], anon_vma[judged]
    vma = facts.avc_vma_row[nodes.avc]
    known = np.flatnonzero(facts.node_real & (vma != NO_ROW))
    in_trees = np.sort(facts.pair_key(vma[known], facts.node_tree[known]))
    there = find_rows(in_trees, facts.pair_key(mappings.vma[bad], anon_vma)) != NO_ROW
    rows = deep.of_runs(bad[~there])
    first, count = group_rows(rows, mappings.vma[rows], deep.anon_vma_of(rows))
    group = _of_folios(
        deep,
        "the reverse map of a folio does not lead to a VMA that maps it",
        first,
        count,
        None,
        always("the VMA in the tree of the folio's anon_vma"),
        _with_more(always("not there"), count),
    )
    return Verdict(len(deep.of_runs(runs[judged])), [group])


@_of_pages
def _check_exclusive(facts: Facts, deep: PageFacts) -> Verdict:
    # * A page that says that it belongs to one process is mapped once. A folio that is mapped as a
    #   whole says so in its first page.
    pages = deep.pages
    if not pages.exclusive_known:
        return Verdict(0)
    mappings = pages.mappings
    shared = mappings.present & (deep.times[mappings.folio] > 1)
    shared &= pages.folios.kind[mappings.folio] == MappingKind.ANON
    rows = np.flatnonzero(shared)
    frame = mappings.pfn[rows] << np.uint64(1) | (mappings.pages[rows] > 1).astype(np.uint64)
    _, inverse, times = np.unique(frame, return_inverse=True, return_counts=True)
    bad = rows[mappings.exclusive[rows] & (times[inverse] > 1)]
    first, count = group_rows(bad, mappings.pfn[bad])
    group = _of_folios(
        deep,
        "a page that is marked as exclusive is mapped more than once",
        first,
        count,
        None,
        always("mapped once"),
        lambda index: (
            f"mapped {int(count[index])} times, as page {int(mappings.pfn[first[index]]):#x}"
        ),
    )
    exclusive = np.count_nonzero(mappings.exclusive & mappings.present)
    return Verdict(int(exclusive), [group])


@_of_pages
def _check_ksm(facts: Facts, deep: PageFacts) -> Verdict:
    # * The stable node that a mapped folio of KSM's names is one of the stable tree.
    pages, tables = deep.pages, facts.tables
    if tables.ksm.missing is not None:
        return Verdict(0, not_checked=f"what KSM holds is not known: {tables.ksm.missing}")
    if tables.pids:
        return Verdict(0, not_checked="of KSM, only what these processes hold was read")
    folios = pages.folios
    # One that was merged a moment ago has no node yet, and while it is given one it is locked.
    judged = (folios.kind == MappingKind.KSM) & (folios.pointer != 0) & (deep.times > 0)
    judged &= (folios.flags & np.uint64(pages.busy)) == 0
    known = find_rows(tables.stable_nodes.address, folios.pointer) != NO_ROW
    first, count = _first_mappings(deep, np.flatnonzero(judged & ~known))
    group = _of_folios(
        deep,
        "the mapping of a merged folio does not lead to a stable node",
        first,
        np.ones_like(count),
        pages.mapping_offset,
        always("a node of the stable tree"),
        address_text(folios.pointer[pages.mappings.folio[first]]),
    )
    return Verdict(int(np.count_nonzero(judged)), [group])


@_of_pages
def _check_swap_cache(facts: Facts, deep: PageFacts) -> Verdict:
    # * Of an entry that is marked as that of a page of one process, the folio in the swap cache has
    #   an anon_vma of the VMA's chain, and the index that the VMA has there.
    # * Any other entry's folio with the same root and index has an anon_vma of the VMA's chain:
    #   with these, a fault maps it as it is. (With others it is copied, as after KSM.)
    pages = deep.pages
    swapped, vmas = pages.swapped, facts.tables.vmas
    if swapped.not_read is not None and pages.coverage.swapped:
        return Verdict(0, not_checked=f"the swap cache: {swapped.not_read}")
    rows, owned = deep.cached, deep.owned
    vma, folio = swapped.vma[rows], swapped.folio[rows]
    anon_vma = swapped.folios.anon_vma[folio]
    off = deep.slot_index(rows) - deep.slot_key(rows)
    root, own = (
        take(facts.root_row, anon_vma, NO_ROW),
        take(facts.root_row, vmas.active[vma], NO_ROW),
    )
    as_it_is = (root != NO_ROW) & (root == own) & (off == 0)
    strange = (owned | as_it_is) & ~facts.in_chain(vma, anon_vma)
    bad = rows[strange]
    pointer = swapped.folios.pointer[swapped.folio[bad]]
    first, count = group_rows(bad, swapped.vma[bad], pointer)
    groups = [
        _of_cached(
            deep,
            "the anon_vma of a folio in the swap cache is not in the chain of the VMA it is for",
            first,
            count,
            pages.mapping_offset,
            always("an anon_vma of the VMA's chain"),
            address_text(swapped.folios.pointer[swapped.folio[first]]),
        )
    ]
    moved = owned & (off != 0)
    bad = rows[moved]
    first, count = group_rows(bad, swapped.vma[bad], off[moved])
    index = swapped.folios.index[swapped.folio[first]]
    groups.append(
        _of_cached(
            deep,
            "the index of a folio in the swap cache is not that of the place it is for",
            first,
            count,
            pages.index_offset,
            address_text(index - (deep.slot_index(first) - deep.slot_key(first))),
            address_text(index),
        )
    )
    return Verdict(int(np.count_nonzero(owned | as_it_is)), groups)


# Violations whose objects are folios in the swap cache, of the first entry of each group.
def _of_cached(
    deep: PageFacts,
    message: str,
    rows: RowColumn,
    count: I64Column,
    field: int,
    expected: Text,
    actual: Text,
) -> Violations:
    swapped = deep.pages.swapped
    folio = swapped.folio[rows]
    address = swapped.folios.address[folio]

    def in_slot(index: int) -> str:
        area, slot = int(swapped.area[rows[index]]), int(swapped.slot[rows[index]])
        return f"{actual(index)}, for slot {slot} of swap area {area}"

    return Violations(
        message,
        deep.pages.struct,
        address,
        expected,
        _with_more(in_slot, count, "entry", "entries"),
        word=np.where(count == 1, address + np.uint64(field), np.uint64(0)),
        vma=swapped.vma[rows],
        anon_vma=swapped.folios.anon_vma[folio],
    )


_SOURCE = (
    "__folio_set_anon(), folio_move_anon_rmap(), __page_check_anon_rmap() and "
    "__folio_rmap_sanity_checks() in mm/rmap.c and include/linux/rmap.h (v5.10, v6.1, v6.12, v7.3)."
)
_WHERE = (
    "Every era. Looked at are the pages that present entries of page tables map in private VMAs, "
    "but those of devices and of huge pages set aside, and not KSM's."
)
_OF_ANON_VMAS = (
    "In force, of folios that name an anon_vma; under ANON_VMA_LAZY AV609 tells of those that name "
    "a VMA."
)
_LOCK = "The lock of the page table; the folio's lock, where pages move between anon_vmas."

INVARIANTS = (
    Invariant(
        code="AV701",
        slug="folio-anon-vma",
        severity=Severity.ERROR,
        statement="The mapping of a mapped anonymous folio leads to an anon_vma in use.",
        why=(
            "A folio holds no reference to its anon_vma: what keeps that alive is an AVC of each "
            "VMA that maps the folio. Pages are unmapped before AVCs are taken away. An unmapped "
            "folio keeps the word, and that may lead to what is free by then."
        ),
        consequence=(
            "Reclaim, migration, or compaction take the lock of a freed anon_vma, or of what lies "
            "there now, and walk it as a tree: a use after free, from any process."
        ),
        lock=_LOCK,
        source=_SOURCE,
        eras=_WHERE + " Since v6.18 the kernel has a check of its own for it.",
        schemes=_OF_ANON_VMAS,
        objects="folios",
        check=_check_anon_vma,
    ),
    Invariant(
        code="AV702",
        slug="folio-in-chain",
        severity=Severity.ERROR,
        statement="The anon_vma of a mapped folio is in the chain of every VMA that maps it.",
        why=(
            "A page gets the active anon_vma of the VMA that it is faulted in, or the root of the "
            "family; a fork copies the chain together with the page tables, and so do a split, a "
            "move and a merge. A VMA without an anon_vma has never had an anonymous page."
        ),
        consequence=(
            "Whoever looks for the folio's mappings does not find this one: it is written out or "
            "moved while still mapped. When the last VMA of the anon_vma's own goes, the word "
            "dangles: AV701."
        ),
        lock=_LOCK,
        source=_SOURCE + " vma_merge(), copy_vma(), dup_anon_vma() in mm/vma.c.",
        eras=_WHERE,
        schemes=_OF_ANON_VMAS,
        objects="mappings",
        check=_check_chain,
    ),
    Invariant(
        code="AV703",
        slug="folio-index",
        severity=Severity.ERROR,
        statement="The index of a mapped folio is the VMA's page offset of where it maps it.",
        why=(
            "It is set from the VMA when the folio is first mapped; a VMA that is moved keeps its "
            "offset, and one that is split or grown goes on counting."
        ),
        consequence="The rmap walk looks for the page at another address, and does not find it.",
        lock=_LOCK,
        source=_SOURCE + " linear_page_index(), linear_anon_page_index() in pagemap.h, rmap.h.",
        eras=(
            _WHERE + " Since v7.3 private mappings of files have an offset of their own for "
            "anonymous pages."
        ),
        objects="mappings",
        check=_check_index,
    ),
    Invariant(
        code="AV704",
        slug="folio-mapcount",
        severity=Severity.ERROR,
        statement="A folio counts at least as many mappings as page tables have of it.",
        why=(
            "A mapping is counted before its entry is made, and until after that is gone; so one "
            "more can be counted than there is, and never one less."
        ),
        consequence="The folio is taken for unmapped, and freed while a process still uses it.",
        lock=_LOCK,
        source=(
            "folio_add_anon_rmap_ptes(), folio_remove_rmap_ptes(), folio_dup_anon_rmap_ptes() in "
            "mm/rmap.c, zap_present_ptes(), copy_present_ptes() in mm/memory.c, "
            "__split_huge_pmd_locked() in mm/huge_memory.c (v5.10, v6.1, v6.12, v7.3)."
        ),
        eras=_WHERE.replace(", and not KSM's", "; KSM's, too"),
        objects="folios",
        check=_check_mapcount,
    ),
    Invariant(
        code="AV707",
        slug="folio-reached",
        severity=Severity.ERROR,
        statement="The tree of a mapped folio's anon_vma leads to every VMA that maps it.",
        why=(
            "That is what the reverse map is for. An AVC is in the tree from before its VMA maps "
            "the first page until after the last is gone. What is not even in the VMA's chain is "
            "AV702's."
        ),
        consequence="As with AV702: a mapping that nobody finds.",
        lock="The root's rwsem.",
        source=(
            "rmap_walk_anon() in mm/rmap.c, anon_vma_interval_tree_insert() in mm/interval_tree.c "
            "(v5.10, v6.12)."
        ),
        eras=_WHERE,
        objects="mappings",
        check=_check_reached,
    ),
    Invariant(
        code="AV708",
        slug="exclusive-once",
        severity=Severity.ERROR,
        statement="A page that is marked as belonging to one process is mapped once.",
        why=(
            "Who writes to such a page gets no copy. The mark is taken away before fork maps the "
            "page a second time, and before KSM merges it."
        ),
        consequence="One process sees what another writes, or reads what another has had.",
        lock=_LOCK,
        source=(
            "folio_try_dup_anon_rmap_pte(), folio_try_share_anon_rmap_pte() in "
            "include/linux/rmap.h; PG_anon_exclusive in page-flags.h (v6.1, v6.12, v7.3)."
        ),
        eras="Since v5.19, where there is such a mark.",
        objects="mappings",
        check=_check_exclusive,
    ),
    Invariant(
        code="AV710",
        slug="ksm-folio",
        severity=Severity.WARNING,
        statement="The mapping of a mapped folio of KSM's leads to a node of the stable tree.",
        why=(
            "It is through that node that the rmap_items, and so the mappings, of a merged page "
            "are found. A node is taken away only when nothing maps its page any more."
        ),
        consequence=(
            "Reclaim and migration walk a list of garbage; what is merged into the page is not "
            "found again."
        ),
        lock="The folio's lock, and ksm_thread_mutex.",
        source=(
            "stable_tree_insert(), remove_stable_node(), rmap_walk_ksm() in mm/ksm.c (v5.10, v6.1, "
            "v6.12, v7.3)."
        ),
        eras="v4.13 and later. Only if the whole stable tree was read.",
        objects="folios",
        check=_check_ksm,
    ),
    Invariant(
        code="AV711",
        slug="swap-cache-folio",
        severity=Severity.WARNING,
        statement=(
            "The folio that the swap cache has for a swapped page belongs where the page is mapped "
            "next."
        ),
        why=(
            "A folio that is swapped out keeps its anon_vma and index while it is in the swap "
            "cache, and a fault maps it again as it is. Who moves the entry has to change the "
            "folio. Looked at are entries that are marked as those of a page that belonged to one "
            "process, and others whose folio has the root and index by which the kernel takes it "
            "for the VMA's. An entry without the mark may lead to a folio of other places, for "
            "KSM's pages are swapped like all others: then the fault makes a copy."
        ),
        consequence=(
            "The fault maps a folio that the reverse map does not find there. With CONFIG_KSM a "
            "small one is copied instead, and nothing is seen of it; a large one is not."
        ),
        lock="The folio's lock, and that of the page table.",
        source=(
            "do_swap_page() in mm/memory.c, ksm_might_need_to_copy() in mm/ksm.c, "
            "try_to_unmap_one() in mm/rmap.c, move_swap_pte() in mm/userfaultfd.c (v6.1, v6.12, "
            "v7.3), where c50f8e6053b0 (v6.14) mended it."
        ),
        eras=(
            "Every era on x86-64; the mark since v5.19. A warning, for up to v6.12 a fault gives "
            "the slot back a moment before it maps the page, and the slot may be taken meanwhile."
        ),
        objects="swap entries",
        check=_check_swap_cache,
    ),
    Invariant(
        code="AV709",
        slug="mappings-found",
        severity=Severity.WARNING,
        statement="All mappings that a folio counts are in page tables.",
        why=(
            "What is counted and not there is a count that was not given back. For a moment one "
            "may be missing while a page is mapped or unmapped, so this is no proof; folios that "
            "somebody has locked, and mms that somebody has locked, are passed over."
        ),
        consequence="The folio is never freed, or is taken for shared and copied each time.",
        lock=_LOCK,
        source=(
            "folio_add_anon_rmap_ptes(), folio_remove_rmap_ptes() in mm/rmap.c (v5.10, v6.12, "
            "v7.3); AV704 has more."
        ),
        eras=(
            "As AV704. Only if all processes were looked at, and all of their page tables are in "
            "the target."
        ),
        objects="folios",
        check=_check_lost,
    ),
)
