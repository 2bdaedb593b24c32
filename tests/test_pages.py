"""Mapped pages: what page tables and folios say, against the guest's own word and against itself.

The guest read ``/proc/PID/pagemap``, ``/proc/kpagecount`` and ``/proc/kpageflags`` right before it
was dumped.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import drgn
import numpy as np
import pytest
from drgn.helpers import ValidationError

from anonvma_inspect.collect import (
    collect,
    collect_audit,
    collect_pages,
    find_frame,
    frame_at,
    read_rmap,
    save_snapshot,
)
from anonvma_inspect.collect.pages import page_sources
from anonvma_inspect.confirm import audit_running
from anonvma_inspect.errors import NotFoundError, TargetError
from anonvma_inspect.helpers import for_each_page_mapping
from anonvma_inspect.in_flight import Audit, audit
from anonvma_inspect.invariants import pages as rules
from anonvma_inspect.invariants.base import Finding, State
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.report.pages import describe_coverage
from anonvma_inspect.tables import NO_ROW, Pages, RowColumn, Tables
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.memory import OverlayMemory

from .captures import CAPTURES, Capture
from .clirun import Cli
from .programs import program
from .running import field_words, running, words_of

DEEP = [capture for capture in CAPTURES if "deep-pages" in capture.name]
EACH = pytest.mark.parametrize("capture", DEEP, ids=[capture.name for capture in DEEP])


@functools.cache
def _tables(core: Path, leaks: bool) -> Tables:
    capture = next(capture for capture in DEEP if capture.core == core)
    return collect_audit(capture.target, leaks=leaks, deep=1)


def deep_tables(capture: Capture) -> Tables:
    return _tables(capture.core, True)


def pages_of(tables: Tables) -> Pages:
    assert tables.pages is not None
    assert tables.pages.not_read is None
    return tables.pages


# ---- the guest's word


@EACH
def test_mappings_are_those_of_pagemap(capture: Capture) -> None:
    tables = deep_tables(capture)
    pages, shift = pages_of(tables), capture.target.page_size.bit_length() - 1
    said: dict[tuple[int, int], int] = {}
    for process in capture.processes():
        for run in process.get("pages", ()):
            page, frame, length, _ = run.split()
            for step in range(int(length)):
                said[process["pid"], int(page, 16) + step] = int(frame, 16) + step
    tgids: dict[int, set[int]] = {}
    for mm, tgid in zip(tables.tasks.mm.tolist(), tables.tasks.tgid.tolist(), strict=True):
        tgids.setdefault(mm, set()).add(tgid)
    mappings = pages.mappings
    found: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(mappings.present).tolist():
        first = int(mappings.address[row]) >> shift
        for pid in tgids[int(tables.vmas.mm[mappings.vma[row]])]:
            for step in range(int(mappings.pages[row])):
                found[pid, first + step] = int(mappings.pfn[row]) + step
    assert len(said) > 300
    assert found == said


@EACH
def test_counts_are_those_of_kpagecount(capture: Capture) -> None:
    pages = pages_of(deep_tables(capture))
    said: dict[int, int] = {}
    for process in capture.processes():
        for run in process.get("pages", ()):
            _, frame, length, count = run.split()
            for step in range(int(length)):
                said[int(frame, 16) + step] = int(count)
    found: Counter[int] = Counter()
    mappings = pages.mappings
    for row in np.flatnonzero(mappings.present).tolist():
        for step in range(int(mappings.pages[row])):
            found[int(mappings.pfn[row]) + step] += 1
    assert dict(found) == said


@EACH
def test_folios_of_ksm_are_as_many_as_it_says(capture: Capture) -> None:
    # A merged page whose processes are gone is counted until ksmd comes by again.
    tables = deep_tables(capture)
    pages = pages_of(tables)
    of_ksm = pages.folios.kind == MappingKind.KSM
    nodes = set(tables.stable_nodes.address.tolist())
    assert len(nodes) == int(capture.manifest["word"]["facts"]["ksm_pages_shared"])
    assert set(pages.folios.pointer[of_ksm].tolist()) <= nodes
    assert of_ksm.any()


@EACH
def test_places_of_ksm_are_as_many_as_it_says(capture: Capture) -> None:
    # A child of fork has merged pages of its parent's, which are not counted as its own; and who
    # wrote to one has it counted until ksmd comes by again.
    tables = deep_tables(capture)
    pages = pages_of(tables)
    of_ksm = pages.folios.kind[pages.mappings.folio] == MappingKind.KSM
    mm = tables.vmas.mm[pages.mappings.vma[of_ksm]]
    sharers = [each for each in capture.processes() if each["comm"] == "ksm-sharer"]
    assert sharers
    for process in sharers:
        if "ksm" not in process:
            pytest.skip("this kernel does not tell")
        own = tables.tasks.mm[tables.tasks.tgid == process["pid"]]
        assert int(np.count_nonzero(mm == own[0])) == process["ksm"]


@EACH
def test_folios_count_what_was_found(capture: Capture) -> None:
    pages = pages_of(deep_tables(capture))
    times = np.bincount(
        pages.mappings.folio[pages.mappings.present], minlength=len(pages.folios.address)
    )
    assert times.tolist() == pages.folios.mapcount.tolist()
    assert (pages.folios.pages > 1).any()


@EACH
def test_clean(capture: Capture) -> None:
    audited = audit(deep_tables(capture))
    assert list(audited.findings()) == []
    states = {result.invariant.code: result.state for result in audited.results}
    assert {states[each.code] for each in rules.INVARIANTS} == {State.OK}
    assert audited.complete


# ---- words changed

CAPTURE = next(capture for capture in DEEP if capture.name == "deep-pages-6.12")
#: New words by address.
Change = dict[int, int]
CASES: dict[str, tuple[str, Callable[[Tables], Change]]] = {}


def case(code: str) -> Callable[[Callable[[Tables], Change]], Callable[[Tables], Change]]:
    """Name the code that is to find what a function changes."""

    def remember(change: Callable[[Tables], Change]) -> Callable[[Tables], Change]:
        CASES[change.__name__] = (code, change)
        return change

    return remember


def some_folio(tables: Tables, shared: bool = False) -> tuple[int, RowColumn]:
    """Row of an ordinary folio of one page that is mapped once, or more often, and rows of its
    mappings.
    """
    deep = pages_of(tables)
    count = np.bincount(deep.mappings.folio, minlength=len(deep.folios.address))
    fits = (deep.folios.kind == MappingKind.ANON) & (deep.folios.pages == 1)
    row = int(np.flatnonzero(fits & (count > 1 if shared else count == 1))[0])
    return row, np.flatnonzero(deep.mappings.folio == row)


def word_of(tables: Tables, folio: int, offset: int) -> int:
    return int(pages_of(tables).folios.address[folio]) + offset


def lower_half(address: int, value: int, target: Target) -> Change:
    """Change four bytes."""
    at = address & ~7
    rows, present = target.memory.gather(np.array([at], dtype=np.uint64), 8)
    assert present.all()
    shift = 8 * (address - at)
    old = int.from_bytes(rows[0].tobytes(), "little")
    return {at: old & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift}


@case("AV701")
def wild_mapping(tables: Tables) -> Change:
    folio, _ = some_folio(tables)
    return {word_of(tables, folio, pages_of(tables).mapping_offset): 0x1235}


@case("AV701")
def stale_mapping(tables: Tables) -> Change:
    # CVE-2022-42703, the end of it: what the folio names was freed.
    allocation = tables.allocation
    assert allocation is not None
    assert allocation.unreached is not None
    folio, _ = some_folio(tables)
    freed = int(allocation.unreached.free_anon_vmas[0])
    return {word_of(tables, folio, pages_of(tables).mapping_offset): freed | 1}


@case("AV702")
def mapping_of_another_family(tables: Tables) -> Change:
    # CVE-2022-42703, the middle of it: a chain was dropped when two VMAs were merged.
    folio, rows = some_folio(tables)
    own = int(tables.vmas.active[pages_of(tables).mappings.vma[rows[0]]])
    full = (tables.anon_vmas.rb_root != 0) & tables.anon_vmas.reached
    full &= tables.anon_vmas.root_row != tables.anon_vmas.root_row[own]
    other = int(tables.anon_vmas.address[np.flatnonzero(full)[0]])
    return {word_of(tables, folio, pages_of(tables).mapping_offset): other | 1}


@case("AV702")
def mapping_of_a_child(tables: Tables) -> Change:
    # What ea90002b0fa7 mended: the parent maps the page, too, and does not have the child's
    # anon_vma in its chain.
    deep, anon_vmas = pages_of(tables), tables.anon_vmas
    folios, mappings = deep.folios, deep.mappings
    roots = np.arange(len(anon_vmas.address)) == anon_vmas.root_row
    plain = (folios.kind == MappingKind.ANON) & (folios.pages == 1) & (folios.mapcount > 1)
    for folio in np.flatnonzero(plain & np.append(roots, False)[folios.anon_vma]).tolist():
        active = tables.vmas.active[mappings.vma[mappings.folio == folio]]
        children = active[(active != NO_ROW) & ~np.append(roots, False)[active]]
        if len(children) and roots[active].any():
            child = int(anon_vmas.address[children[0]])
            return {word_of(tables, folio, deep.mapping_offset): child | 1}
    raise AssertionError("no page of a root that a child maps")


@case("AV702")
def pages_moved_into_a_bare_vma(tables: Tables) -> Change:
    # CVE-2026-23077: the page tables have moved, the anon_vma has not come with them, and the VMA
    # that it was of is gone.
    deep, vmas, anon_vmas = pages_of(tables), tables.vmas, tables.anon_vmas
    plain = deep.folios.kind[deep.mappings.folio] == MappingKind.ANON
    trees = np.bincount(tables.nodes.anon_vma, minlength=len(anon_vmas.address))
    alone = (vmas.chain_length == 1) & (vmas.active != NO_ROW) & (trees[vmas.active] == 1)
    vma = int(deep.mappings.vma[plain & alone[deep.mappings.vma]][0])
    head = int(vmas.chain_head[vma])
    record, anon_vma = tables.era.anon_vma, int(anon_vmas.address[vmas.active[vma]])
    return {
        int(vmas.address[vma]) + tables.era.vma.offset("anon_vma"): 0,
        head: head,
        head + 8: head,
        anon_vma + record.offset("rb_node"): 0,
        anon_vma + record.offset("rb_leftmost"): 0,
    }


@case("AV703")
def wrong_index(tables: Tables) -> Change:
    folio, _ = some_folio(tables)
    deep = pages_of(tables)
    return {word_of(tables, folio, deep.index_offset): int(deep.folios.index[folio]) + 1}


@case("AV704")
def count_too_low(tables: Tables) -> Change:
    # What CVE-2026-63950 leaves.
    folio, _ = some_folio(tables, shared=True)
    return lower_half(word_of(tables, folio, MAPCOUNT), 0, CAPTURE.target)


@case("AV709")
def count_too_high(tables: Tables) -> Change:
    folio, rows = some_folio(tables, shared=True)
    return lower_half(word_of(tables, folio, MAPCOUNT), len(rows), CAPTURE.target)


@case("AV707")
def lost_from_the_tree(tables: Tables) -> Change:
    # A leaf of a tree that its parent does not lead to any more; the list still has it.
    nodes, avcs, deep = tables.nodes, tables.avcs, pages_of(tables)
    folio_of = {
        (int(deep.folios.anon_vma[folio]), int(vma)): True
        for folio, vma in zip(deep.mappings.folio, deep.mappings.vma, strict=True)
    }
    for node in np.flatnonzero((nodes.left == NO_ROW) & (nodes.right == NO_ROW)).tolist():
        parent = int(nodes.parent[node])
        vma = int(avcs.vma_row[nodes.avc[node]])
        if parent != NO_ROW and folio_of.get((int(nodes.anon_vma[node]), vma)):
            name = "rb_left" if nodes.left[parent] == node else "rb_right"
            above = int(avcs.address[nodes.avc[parent]])
            return {above + tables.era.avc.offset(name): 0}
    raise AssertionError("no leaf whose VMA maps a folio of that anon_vma")


@case("AV710")
def merged_into_nothing(tables: Tables) -> Change:
    deep = pages_of(tables)
    folio = int(np.flatnonzero(deep.folios.kind == MappingKind.KSM)[0])
    nodes = set(tables.stable_nodes.address.tolist())
    nothing = next(
        at for at in itertools.count(int(deep.folios.pointer[folio]), 64) if at not in nodes
    )
    return {word_of(tables, folio, deep.mapping_offset): nothing | 3}


@case("AV708")
def exclusive_and_shared(tables: Tables) -> Change:
    folio, _ = some_folio(tables, shared=True)
    sources = page_sources(CAPTURE.target)
    assert not isinstance(sources, str)
    flags = int(pages_of(tables).folios.flags[folio])
    return {word_of(tables, folio, sources.era.page.offset("flags")): flags | sources.era.exclusive}


def _mapcount_offset() -> int:
    field = CAPTURE.target.layouts.field("page", "_mapcount.counter")
    assert field is not None
    return field.offset


MAPCOUNT = _mapcount_offset()


def changed(change: Mapping[int, int]) -> Target:
    memory = OverlayMemory(CAPTURE.target.memory, dict(change))
    return dataclasses.replace(CAPTURE.target, memory=memory)


def page_record() -> Record:
    sources = page_sources(CAPTURE.target)
    assert not isinstance(sources, str)
    return sources.era.page


def findings_with(change: Mapping[int, int]) -> list[Finding]:
    audited = audit(collect_audit(changed(change), deep=1))
    assert not audited.failures
    return list(audited.findings())


@pytest.mark.parametrize("name", CASES)
def test_found(name: str) -> None:
    code, change = CASES[name]
    words = change(deep_tables(CAPTURE))
    found = findings_with(words)
    assert code in {finding.code for finding in found}
    if name == "mapping_of_a_child":
        # Of each VMA that maps the page and does not have it in its chain.
        assert {finding.code for finding in found} == {code}
    elif len(words) == 1 and code != "AV707":
        # One word is one finding, and what is named is where it stands.
        (finding,) = found
        assert finding.where.pid is not None
        folios = pages_of(deep_tables(CAPTURE)).folios
        assert finding.object_address in folios.address.tolist()
        assert finding.word in (None, *words)


def test_documented_bugs_are_these_cases() -> None:
    text = (Path(__file__).parent.parent / "docs" / "known-bugs.md").read_text()
    rows = re.findall(r"^\|.* \| (AV70[^|]*) \| (`[^|]*`) \|$", text, re.MULTILINE)
    assert len(rows) > 7
    for codes, names in rows:
        assert codes.split("; ") == [CASES[name.strip("`")][0] for name in names.split("; ")]


def test_every_code_has_a_case() -> None:
    # What is about the swap cache is tried in test_swap.py, where something is in swap.
    codes = {each.code for each in rules.INVARIANTS} - {"AV711"}
    assert {code for code, _ in CASES.values()} == codes


def test_a_vma_without_an_anon_vma_is_named() -> None:
    tables = deep_tables(CAPTURE)
    change = pages_moved_into_a_bare_vma(tables)
    (finding,) = [each for each in findings_with(change) if each.code == "AV702"]
    assert finding.object_type == "vm_area_struct"
    assert finding.object_address + tables.era.vma.offset("anon_vma") in change


def test_a_tree_that_is_empty_under_its_lock() -> None:
    # Of a VMA whose bounds are being changed, e.g. that of a stack which exec moves.
    tables, record = deep_tables(CAPTURE), deep_tables(CAPTURE).era.anon_vma
    change = pages_moved_into_a_bare_vma(tables)
    names = {record.offset("rb_node"), record.offset("rb_leftmost")}
    anon_vma = next(
        int(each)
        for each in tables.anon_vmas.address
        if {int(each) + offset for offset in names} <= set(change)
    )
    change = {anon_vma + offset: 0 for offset in names}
    assert "AV701" in {each.code for each in findings_with(change)}
    for name, value in (("rwsem_count", 1), ("rwsem_owner", int(tables.tasks.address[-1]))):
        change |= field_words(CAPTURE.target, record, anon_vma, name, value)
    assert "AV701" not in {each.code for each in findings_with(change)}


def test_a_wrong_page_offset_is_one_finding() -> None:
    # Of a VMA with many pages: its own word is wrong, not theirs. (That the tree is out of order
    # then as well, others say.)
    tables = deep_tables(CAPTURE)
    deep = pages_of(tables)
    vma = int(np.argmax(np.bincount(deep.mappings.vma[deep.mappings.pages == 1])))
    if "anon_pgoff_lo" in tables.era.vma:
        pytest.skip("the key is another word")
    at = int(tables.vmas.address[vma]) + tables.era.vma.offset("vm_pgoff")
    found = findings_with({at: int(tables.vmas.vm_pgoff[vma]) + 7})
    of_index = [finding for finding in found if finding.code == "AV703"]
    assert len(of_index) == 1
    assert "more pages of the VMA" in of_index[0].actual
    assert of_index[0].word is None


# ---- what is on its way


def entry_of(target: Target, tables: Tables, mapping: int, down_to: int = 1) -> tuple[int, int]:
    """Address and value of the entry that maps a page, or of that of a higher level."""
    sources = page_sources(target)
    assert not isinstance(sources, str)
    form, deep = sources.form, pages_of(tables)
    mm = int(tables.vmas.mm[deep.mappings.vma[mapping]])
    address = int(deep.mappings.address[mapping])
    at = int(tables.mms.address[mm]) + tables.era.mm.offset("pgd")
    table = words_of(target, at)
    for level in range(form.levels, down_to - 1, -1):
        at = table + 8 * (address >> form.shift(level) & 511)
        entry = words_of(target, at)
        physical = form.physical(np.array([entry], dtype=np.uint64))
        table = (int(physical[0]) + target.space.direct_map) % 2**64
    return at, entry


def test_who_migrates_a_page_holds_its_anon_vma() -> None:
    target, tables = CAPTURE.target, deep_tables(CAPTURE)
    deep = pages_of(tables)
    folio, (mapping, *_) = some_folio(tables)
    at, _ = entry_of(target, tables, int(mapping))
    frame, record = int(deep.folios.pfn[folio]), tables.era.anon_vma
    # __swp_entry() of SWP_MIGRATION_WRITE, arch/x86/include/asm/pgtable_64.h.
    entry = ((~frame << 14) & (2**64 - 1)) >> 5 | 30 << 59
    count = int(deep.folios.anon_vma_refcount[folio])
    words = field_words(target, record, int(deep.folios.pointer[folio]), "refcount", count + 1)
    unmapped = field_words(
        *(target, page_record(), int(deep.folios.address[folio]), "mapcount", -1)
    )
    assert {each.code for each in findings_with(words)} == {"AV404"}
    assert findings_with({**words, **unmapped, at: entry}) == []
    found = pages_of(collect_pages(changed({at: entry}), tables))
    assert found.coverage.waiting == 1
    row = int(np.flatnonzero(~found.mappings.present)[0])
    assert int(found.mappings.pfn[row]) == frame
    walk = read_rmap(changed({at: entry}), frame).walk
    assert (walk.mapped.sum(), walk.waiting.sum()) == (0, 1)


def test_a_page_in_the_swap_cache() -> None:
    target, tables = CAPTURE.target, deep_tables(CAPTURE)
    folio, (mapping, *_) = some_folio(tables)
    at, _ = entry_of(target, tables, int(mapping))
    sources = page_sources(target)
    assert not isinstance(sources, str)
    address = int(pages_of(tables).folios.address[folio])
    flags = int(pages_of(tables).folios.flags[folio]) | sources.era.flags["swapcache"]
    # swp_entry(2, 0x1234), include/linux/swapops.h; and as x86 has it in page tables.
    words = {
        **field_words(target, page_record(), address, "flags", flags),
        **field_words(target, page_record(), address, "private", 2 << 58 | 0x1234),
    }
    entry = ((~0x1234 << 14) & (2**64 - 1)) >> 5 | 2 << 59
    frame = int(pages_of(tables).folios.pfn[folio])
    walk = read_rmap(changed({**words, at: entry}), frame).walk
    assert (walk.mapped.sum(), walk.swapped.sum()) == (0, 1)
    # In another slot, it is another page's.
    walk = read_rmap(changed({**words, at: entry ^ 1 << 9}), frame).walk
    assert walk.swapped.sum() == 0


def test_what_a_swapped_page_is_told_as() -> None:
    target, tables = CAPTURE.target, deep_tables(CAPTURE)
    _, (mapping, *_) = some_folio(tables)
    at, _ = entry_of(target, tables, int(mapping))
    mappings = pages_of(tables).mappings
    vma, address = int(mappings.vma[mapping]), int(mappings.address[mapping])
    for entry, said in (
        (((~0x1234 << 14) & (2**64 - 1)) >> 5 | 2 << 59, "in slot 4660 of swap area 2"),
        (((~4 << 14) & (2**64 - 1)) >> 5 | 31 << 59, "a marker stands there"),
        (0, "nothing was faulted in there"),
    ):
        with pytest.raises(NotFoundError, match=said):
            frame_at(changed({at: entry}), tables, vma, address)


# ---- kernels that run


def audit_views(monkeypatch: pytest.MonkeyPatch, *views: Change) -> Audit:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return audit_running(running(CAPTURE.target, views), deep=1)


@pytest.mark.parametrize("name", ["mapping_of_another_family", "wrong_index", "count_too_low"])
def test_what_stays_is_confirmed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, change = CASES[name]
    audited = audit_views(monkeypatch, change(deep_tables(CAPTURE)))
    assert {finding.code for finding in audited.findings()} == {code}
    assert not audited.transient_total


@pytest.mark.parametrize("views", [1, 2])
def test_what_goes_is_not(views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # An entry that was read before its page went to somebody else, twice even.
    change = mapping_of_another_family(deep_tables(CAPTURE))
    audited = audit_views(monkeypatch, *[change] * views, {})
    assert audited.findings_total == 0
    assert {finding.code for finding in audited.transients()} == {"AV702"}


def test_what_is_of_another_page_each_time_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = deep_tables(CAPTURE)
    at, value = next(iter(wrong_index(tables).items()))
    audited = audit_views(monkeypatch, *({at: value + step} for step in range(9)))
    assert audited.findings_total == 0
    assert audited.transient_total


# ---- targets that are not what they should be


def page_table_words(target: Target, tables: Tables) -> Iterator[int]:
    """Addresses of entries in the top tables of mms."""
    memory, record = target.memory, tables.era.mm
    at = tables.mms.address + np.uint64(record.offset("pgd"))
    rows, present = memory.gather(at, 8)
    for pgd in rows[present].view("<u8").reshape(-1).tolist():
        entries, there = memory.gather(np.array([pgd], dtype=np.uint64), 2048)
        if there[0]:
            words = entries[0].view("<u8")
            yield from (pgd + 8 * int(slot) for slot in np.flatnonzero(words))


def test_tables_that_lead_to_themselves() -> None:
    # A table below the top that is its own next one, on every level of the way to some address.
    target, tables = CAPTURE.target, deep_tables(CAPTURE)
    sources = page_sources(target)
    assert not isinstance(sources, str)
    address = int(pages_of(tables).mappings.address[0])
    levels = sources.form.levels
    table = entry_of(target, tables, 0, levels - 1)[0] & ~0xFFF
    change = {
        table + 8 * (address >> sources.form.shift(level) & 511): (
            (table - target.space.direct_map) % 2**64 | 0x67
        )
        for level in range(2, levels)
    }
    broken = dataclasses.replace(target, memory=OverlayMemory(target.memory, change))
    pages = pages_of(collect_pages(broken, tables))
    assert pages.coverage.page_tables_lost > 0
    assert pages.coverage.page_tables < pages_of(tables).coverage.page_tables


@pytest.mark.parametrize("seed", range(4))
def test_garbage_in_page_tables(seed: int) -> None:
    rng = random.Random(seed)
    target, tables = CAPTURE.target, deep_tables(CAPTURE)
    folios = pages_of(tables).folios
    words = [*page_table_words(target, tables), *folios.address.tolist()]
    change = {
        word + 8 * rng.randrange(8): rng.choice(
            [rng.getrandbits(64), rng.getrandbits(48) | 0x67, 2**64 - 1, 1, rng.getrandbits(20)]
        )
        for word in rng.sample(words, 12)
    }
    broken = dataclasses.replace(target, memory=OverlayMemory(target.memory, change))
    audited = audit(collect_audit(broken, deep=1))
    assert not audited.failures


def test_a_tail_without_a_head() -> None:
    # What its words say is not about a folio.
    folios = pages_of(deep_tables(CAPTURE)).folios
    sources = page_sources(CAPTURE.target)
    assert not isinstance(sources, str)
    large = int(np.flatnonzero(folios.pages > 1)[0])
    size = sources.era.page.size
    for tail in (1, 2, 9):
        page = int(folios.address[large]) + tail * size
        for wrong in (1, page + size * (1 << 13) + 1, 2**64 - 1):
            findings = findings_with({page + sources.era.page.offset("head"): wrong})
            assert {finding.code for finding in findings} <= {"AV709"}


def test_missing_page_tables_are_holes() -> None:
    class Without:
        def gather(
            self, addresses: np.ndarray[tuple[int], np.dtype[np.uint64]], size: int
        ) -> tuple[
            np.ndarray[tuple[int, int], np.dtype[np.uint8]],
            np.ndarray[tuple[int], np.dtype[np.bool_]],
        ]:
            rows, present = CAPTURE.target.memory.gather(addresses, size)
            if size == CAPTURE.target.page_size:
                rows, present = np.zeros_like(rows), np.zeros_like(present)
            return rows, present

        def uncached(self) -> Without:
            return self

    target = dataclasses.replace(CAPTURE.target, memory=Without())
    tables = collect_pages(target, deep_tables(CAPTURE))
    assert not tables.complete
    assert set(tables.holes.needed_for.tolist()) == {"page table"}
    audited = audit(tables)
    assert list(audited.findings()) == []
    states = {result.invariant.code: result.state for result in audited.results}
    assert states["AV709"] is State.NOT_CHECKED


# ---- some of it


def test_a_sample_has_all_mappings_of_its_folios() -> None:
    tables = deep_tables(CAPTURE)
    whole = pages_of(tables)
    pairs = set(zip(whole.mappings.pfn.tolist(), whole.mappings.address.tolist(), strict=True))
    seen = set()
    for sample in (2, 3, 7):
        some = pages_of(collect_pages(CAPTURE.target, tables, sample=sample))
        assert some.coverage.sample == sample
        assert set(some.folios.address.tolist()) <= set(whole.folios.address.tolist())
        here = set(zip(some.mappings.pfn.tolist(), some.mappings.address.tolist(), strict=True))
        assert here == {pair for pair in pairs if pair[0] in set(some.mappings.pfn.tolist())}
        seen.add(len(here))
    assert min(seen) < len(pairs)


def test_a_sample_without_a_page(cli: Cli) -> None:
    """Nothing was looked at: that is neither in order nor a finding."""
    tables = deep_tables(CAPTURE)
    sizes = {}
    for sample in range(2, 30):
        some = collect_pages(CAPTURE.target, tables, sample=sample)
        sizes[sample] = len(pages_of(some).mappings.vma)
    empty = next(sample for sample, size in sizes.items() if not size)
    core, codes = str(CAPTURE.core), {rule.code for rule in rules.INVARIANTS}
    ran = cli("-q", "-c", core, "--format", "json", "audit", "--deep", "--sample", str(empty))
    assert ran.code == 0
    checked = {each["code"]: each for each in json.loads(ran.out)["checked"]}
    assert codes <= set(checked)
    reason = f"nothing to check fell into the sample (--sample {empty})"
    for code in codes:
        assert (checked[code]["state"], checked[code]["reason"]) == ("not checked", reason)
    ran = cli("-q", "-c", core, "audit", "--deep", "--sample", str(empty))
    assert "\nno page fell into the sample: with a smaller N it is larger\n" in ran.out
    # As of all that is not done, the code says so if it was named.
    ran = cli("-q", "-c", core, "audit", "--deep", "--sample", str(empty), "--only", "AV701")
    assert ran.code == 4
    assert ran.out.splitlines()[-1] == "incomplete: 0 checks, 0 findings, AV701 not checked"
    # Nor is a check of which only others' objects did.
    ran = cli("-q", "-c", core, "--format", "json", "audit", "--deep", "--sample", "8")
    checked = {each["code"]: each for each in json.loads(ran.out)["checked"]}
    assert (checked["AV701"]["state"], checked["AV701"]["objects"]) == ("ok", 1)
    assert checked["AV710"]["state"] == "not checked"
    found = next(sample for sample, size in sizes.items() if size)
    ran = cli("-q", "-c", core, "audit", "--deep", "--sample", str(found), "--only", "AV701")
    assert ran.code == 0
    assert "fell into" not in ran.out


def test_one_process() -> None:
    tables = deep_tables(CAPTURE)
    mappings = pages_of(tables).mappings
    mm = int(tables.vmas.mm[mappings.vma[len(mappings.vma) // 2]])
    pid = int(tables.tasks.tgid[tables.mms.task[mm]])
    one = collect_audit(CAPTURE.target, [pid], deep=1)
    addresses = mappings.address[tables.vmas.mm[mappings.vma] == mm]
    assert pages_of(one).mappings.address.tolist() == addresses.tolist()
    audited = audit(one)
    assert list(audited.findings()) == []
    states = {result.invariant.code: result.state for result in audited.results}
    assert states["AV704"] is State.OK
    # Whoever else maps the same folios was not looked at.
    assert states["AV709"] is State.NOT_CHECKED


# ---- snapshots


def test_a_snapshot_has_pages_only_if_asked(tmp_path: Path) -> None:
    for pages in (False, True):
        path = tmp_path / f"{pages}.core"
        save_snapshot(CAPTURE.target, str(path), pages=pages)
        again = open_target(TargetOptions(core=str(path)))
        tables = collect_audit(again, deep=1)
        audited = audit(tables)
        assert tables.pages is not None
        if pages:
            old = pages_of(deep_tables(CAPTURE))
            assert tables.pages.mappings.address.tolist() == old.mappings.address.tolist()
            assert tables.pages.coverage == old.coverage
            assert tables.complete
        else:
            reasons = {result.invariant.code: result.reason for result in audited.results}
            assert reasons["AV701"] == "not in this snapshot: it was taken without --pages"
            with pytest.raises(TargetError, match="taken without --pages"):
                find_frame(again, 1)


# ---- the reverse walk


@EACH
def test_the_reverse_walk_finds_what_page_tables_have(capture: Capture) -> None:
    tables = deep_tables(capture)
    pages = pages_of(tables)
    folios, mappings = pages.folios, pages.mappings
    chosen = [*np.flatnonzero(folios.pages > 1), *range(0, len(folios.address), 9)]
    assert {int(folios.kind[row]) for row in chosen} == {MappingKind.ANON, MappingKind.KSM}
    for row in chosen:
        rmap = read_rmap(capture.target, int(folios.pfn[row]))
        walk = rmap.walk
        found: Counter[int] = Counter()
        for vma, mapped in zip(walk.vma, walk.mapped, strict=True):
            found[int(rmap.tables.vmas.address[vma])] += int(mapped)
        said: Counter[int] = Counter()
        for mapping in np.flatnonzero((mappings.folio == row) & mappings.present):
            said[int(tables.vmas.address[mappings.vma[mapping]])] += int(mappings.pages[mapping])
        assert +found == said
        assert walk.known.all()


def test_a_slab_is_no_folio() -> None:
    # Its words are others: what stands where a folio has its mapping may look like an anon_vma.
    tables, target = deep_tables(CAPTURE), CAPTURE.target
    shift = target.page_size.bit_length() - 1
    for address in tables.vmas.address[::40].tolist():
        frame = find_frame(target, address)
        assert frame == ((address - target.space.direct_map) % 2**64) >> shift
        rmap = read_rmap(target, frame)
        assert rmap.kind is MappingKind.OTHER
        assert not len(rmap.walk.vma)


def test_what_names_a_page() -> None:
    tables, target = deep_tables(CAPTURE), CAPTURE.target
    pages = pages_of(tables)
    frame, page = int(pages.folios.pfn[0]), int(pages.folios.address[0])
    in_memory = (target.space.direct_map + frame * target.page_size + 0x123) % 2**64
    assert [find_frame(target, number) for number in (frame, page, in_memory)] == [frame] * 3
    for number in (page + 4, 1 << 45, 2**64 - 8):
        with pytest.raises(NotFoundError):
            find_frame(target, number)
    mapping = int(np.flatnonzero(pages.mappings.folio == 0)[0])
    vma, address = int(pages.mappings.vma[mapping]), int(pages.mappings.address[mapping])
    assert frame_at(target, tables, vma, address + 5) == frame
    with pytest.raises(NotFoundError, match="nothing was faulted in"):
        frame_at(target, tables, vma, 0x1000)


def test_helper() -> None:
    prog = program(CAPTURE)
    pages = pages_of(deep_tables(CAPTURE))
    row, rows = some_folio(deep_tables(CAPTURE), shared=True)
    page = drgn.Object(prog, "struct page *", int(pages.folios.address[row]))
    found = {
        (each.vma.value_(), each.address) for each in for_each_page_mapping(page) if each.mapped
    }
    vmas = deep_tables(CAPTURE).vmas.address
    assert found == {
        (int(vmas[pages.mappings.vma[each]]), int(pages.mappings.address[each])) for each in rows
    }
    with pytest.raises(ValidationError, match="neither a struct page"):
        list(for_each_page_mapping(drgn.Object(prog, "struct page *", page.value_() + 8)))


# ---- the command line


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_audit_says_what_was_looked_at(cli: Cli) -> None:
    core = str(CAPTURE.core)
    ran = cli("-c", core, "audit", "--deep")
    assert ran.code == 0
    coverage = pages_of(deep_tables(CAPTURE)).coverage
    assert f"pages: {coverage.anonymous:,} mappings of " in ran.out
    ran = cli("-c", core, "audit", "--deep", "--sample", "5")
    assert "all but one in 5 blocks of memory (--sample)" in ran.out
    # Without it, nothing is said of pages.
    assert "AV701" not in cli("-c", core, "audit").out
    assert cli("-c", core, "audit", "--only", "AV701").code == 4
    assert cli("-c", core, "audit", "--sample", "5").code == 2


def test_what_arm64_does_not_tell() -> None:
    """A guard's marker is absent there, as a swapped page is."""
    pages = pages_of(deep_tables(CAPTURE))
    coverage = dataclasses.replace(pages.coverage, absent=2)
    lines = list(describe_coverage(dataclasses.replace(pages, coverage=coverage)))
    assert "2 pages swapped, in migration, or markers" in lines[-1]


def test_rmap_answers(cli: Cli) -> None:
    tables = deep_tables(CAPTURE)
    pages = pages_of(tables)
    row, (first, *others) = some_folio(tables, shared=True)
    mm = int(tables.vmas.mm[pages.mappings.vma[first]])
    pid = str(int(tables.tasks.tgid[tables.mms.task[mm]]))
    address = hex(int(pages.mappings.address[first]))
    core = str(CAPTURE.core)
    by_pid = cli("-c", core, "--format", "json", "rmap", pid, address)
    by_frame = cli("-c", core, "--format", "json", "rmap", str(int(pages.folios.pfn[row])))
    assert by_pid.code == by_frame.code == 0
    assert by_pid.out == by_frame.out
    text = cli("-c", core, "rmap", pid, address).out
    assert f"; {1 + len(others)} of them map the folio" in text
    assert f"mapped {int(pages.folios.mapcount[row])}, " in text
    assert cli("-c", core, "rmap", "12ab").code == 2
    assert cli("-c", core, "rmap", "1", "0x10").code == 2
    assert collect(CAPTURE.target).pages is None
