"""Pages in swap: what page tables and the swap cache say, against the guest's own word.

``/proc/PID/pagemap`` told the guest what is in which slot of which swap area, ``/proc/kpageflags``
which mapped pages are in the swap cache, and ``mincore()`` each process for which of its pages
something is in memory, be it only in the swap cache.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anonvma_inspect.collect import collect_audit, frame_at, read_rmap, save_snapshot
from anonvma_inspect.collect.page_tables import look_up
from anonvma_inspect.collect.pages import page_sources
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.swap_cache import find_swap_cache
from anonvma_inspect.confirm import audit_running
from anonvma_inspect.errors import NotFoundError
from anonvma_inspect.in_flight import audit
from anonvma_inspect.invariants.base import Finding, Severity, State
from anonvma_inspect.kernel.folio import MappingKind
from anonvma_inspect.tables import NO_ROW, Pages, Swapped, Tables
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.memory import (
    BoolColumn,
    ByteRows,
    Memory,
    OverlayMemory,
    U64Column,
)

from .captures import CAPTURES, Capture
from .clirun import Cli
from .running import running

SWAP = [capture for capture in CAPTURES if "deep-swap" in capture.name]
EACH = pytest.mark.parametrize("capture", SWAP, ids=[capture.name for capture in SWAP])
#: A process and a page, as a number.
Place = tuple[int, int]


@functools.cache
def _tables(core: Path) -> Tables:
    capture = next(capture for capture in SWAP if capture.core == core)
    return collect_audit(capture.target, deep=1)


def tables_of(capture: Capture) -> Tables:
    return _tables(capture.core)


def pages_of(tables: Tables) -> Pages:
    assert tables.pages is not None
    assert tables.pages.not_read is None
    return tables.pages


def swapped_of(tables: Tables) -> Swapped:
    swapped = pages_of(tables).swapped
    assert swapped.not_read is None
    return swapped


def places(capture: Capture) -> dict[Place, int]:
    """Rows in swapped, by where they are."""
    tables = tables_of(capture)
    swapped, shift = swapped_of(tables), capture.target.page_size.bit_length() - 1
    tgid = dict(zip(tables.tasks.mm.tolist(), tables.tasks.tgid.tolist(), strict=True))
    pids = [tgid[mm] for mm in tables.vmas.mm[swapped.vma].tolist()]
    numbers = (swapped.address >> np.uint64(shift)).tolist()
    return {place: row for row, place in enumerate(zip(pids, numbers, strict=True))}


def events(capture: Capture, name: str) -> list[Any]:
    return [each for each in capture.manifest["word"]["log"] if each["event"] == name]


# ---- the guest's word


@EACH
def test_slots_are_those_of_pagemap(capture: Capture) -> None:
    said: dict[Place, tuple[int, int]] = {}
    for process in capture.processes():
        for run in process.get("swapped", ()):
            page, area, slot, count = run.split()
            for step in range(int(count)):
                said[process["pid"], int(page, 16) + step] = int(area), int(slot) + step
    swapped = swapped_of(tables_of(capture))
    found = {
        place: (int(swapped.area[row]), int(swapped.slot[row]))
        for place, row in places(capture).items()
    }
    assert found == said
    assert len(said) > 1000
    assert {area for area, _ in said.values()} == {0, 1}
    assert pages_of(tables_of(capture)).coverage.swapped == len(said)


@EACH
def test_each_mapping_has_as_much_in_swap_as_smaps_says(capture: Capture) -> None:
    found: Counter[Place] = Counter()
    tables = tables_of(capture)
    for (pid, _), row in places(capture).items():
        found[pid, int(tables.vmas.vm_start[swapped_of(tables).vma[row]])] += 4
    said: dict[Place, int] = {}
    for process in capture.processes():
        for line, kilobytes in zip(process["maps"], process.get("swap", ()), strict=False):
            if kilobytes:
                said[process["pid"], int(line.split("-")[0], 16)] = kilobytes
    assert dict(found) == said


@EACH
def test_the_swap_cache_has_what_mincore_says(capture: Capture) -> None:
    rows, tables = places(capture), tables_of(capture)
    swapped = swapped_of(tables)
    seen: Counter[bool] = Counter()
    for event in events(capture, "stay"):
        first = int(event["base"], 16) // capture.target.page_size
        assert len(event["memory"]) == event["pages"]
        for step, letter in enumerate(event["memory"]):
            row = rows.get((event["pid"], first + step))
            if row is not None:
                assert swapped.known[row]
                assert (swapped.folio[row] != NO_ROW) == (letter == "r"), (event["what"], step)
                seen[letter == "r"] += 1
    assert min(seen.values()) > 50


@EACH
def test_mapped_pages_are_in_the_swap_cache_if_kpageflags_says_so(capture: Capture) -> None:
    said = {
        (process["pid"], int(page, 16))
        for process in capture.processes()
        for page in process.get("cached", ())
    }
    tables = tables_of(capture)
    sources = page_sources(capture.target)
    assert not isinstance(sources, str)
    pages, shift = pages_of(tables), capture.target.page_size.bit_length() - 1
    tgid = dict(zip(tables.tasks.mm.tolist(), tables.tasks.tgid.tolist(), strict=True))
    bit = np.uint64(sources.era.flags["swapcache"])
    mappings = pages.mappings
    cached = (pages.folios.flags[mappings.folio] & bit) != 0
    found = {
        (tgid[int(tables.vmas.mm[mappings.vma[row]])], (int(mappings.address[row]) >> shift) + step)
        for row in np.flatnonzero(cached & mappings.present)
        for step in range(int(mappings.pages[row]))
    }
    assert found == said
    assert len(said) > 15


@EACH
def test_the_folio_is_the_one_that_the_other_process_maps(capture: Capture) -> None:
    # Parent and child have the same slots at the same addresses: what one of them maps, says
    # pagemap, is what the swap cache has for the other.
    tables, rows = tables_of(capture), places(capture)
    swapped = swapped_of(tables)
    seen = 0
    for one, other in (("both", "both-child"), ("inner-child", "inner"), ("huge", "huge-child")):
        mapping, waiting = (
            (each for each in capture.processes() if each["comm"] == one),
            (each for each in capture.processes() if each["comm"] == other),
        )
        process, pid = next(mapping), next(waiting)["pid"]
        cached = {int(page, 16) for page in process["cached"]}
        for run in process["pages"]:
            page, frame, length, _ = run.split()
            for step in range(int(length)):
                row = rows.get((pid, int(page, 16) + step))
                if int(page, 16) + step in cached:
                    assert row is not None
                    folio = swapped.folio[row]
                    assert int(swapped.folios.pfn[folio]) == int(frame, 16) + step
                    seen += 1
    assert seen > 15


@EACH
def test_the_swap_cache_is_as_large_as_meminfo_says(capture: Capture) -> None:
    # But for what no page table names any more. (5.10 does not say it in the same file: the sum of
    # all address_spaces is what it is told as there.)
    said = re.fullmatch(r"SwapCached: +(\d+) kB", capture.manifest["word"]["facts"]["swap_cached"])
    assert said is not None
    folios = swapped_of(tables_of(capture)).folios
    assert int(folios.pages.sum()) * 4 == int(said[1])


@EACH
def test_entries_of_one_process_alone_are_marked(capture: Capture) -> None:
    # fork takes the mark away, and KSM's pages have none.
    swapped, rows = swapped_of(tables_of(capture)), places(capture)
    if not swapped.exclusive_known:
        assert capture.manifest["kernel"]["release"].startswith("5.10")
        return
    alone = {"gone", "pinned", "moved", "second"}
    shared = {"both", "both-child", "left-child", "inner", "huge-child", "merged-one"}
    seen = set()
    for event in events(capture, "stay"):
        first = int(event["base"], 16) // capture.target.page_size
        for step in range(event["pages"]):
            row = rows.get((event["pid"], first + step))
            if row is not None and event["what"] in alone | shared:
                assert bool(swapped.exclusive[row]) == (event["what"] in alone), event["what"]
                seen.add(event["what"])
    assert seen >= alone | {"both", "inner"}


@EACH
def test_clean(capture: Capture) -> None:
    audited = audit(tables_of(capture))
    assert list(audited.findings()) == []
    result = next(each for each in audited.results if each.invariant.code == "AV711")
    assert result.state is State.OK
    assert result.objects > 50
    assert audited.complete


@EACH
def test_merged_pages_lead_to_folios_of_other_places(capture: Capture) -> None:
    # What the check must not take for an error: KSM's pages were swapped, and one process has read
    # some again, so that these are its own; the other's entries still lead to them.
    merged = [each for each in events(capture, "stay") if each["what"] == "merged-one"]
    if not merged:
        assert capture.manifest["kernel"]["release"].startswith("5.10")
        return
    tables, rows = tables_of(capture), places(capture)
    swapped, vmas = swapped_of(tables), tables.vmas
    first = int(merged[0]["base"], 16) // capture.target.page_size
    strange = 0
    for step in range(merged[0]["pages"]):
        row = rows[merged[0]["pid"], first + step]
        folio = int(swapped.folio[row])
        if folio != NO_ROW and swapped.folios.kind[folio] == MappingKind.ANON:
            own = int(tables.anon_vmas.root_row[vmas.active[swapped.vma[row]]])
            strange += int(tables.anon_vmas.root_row[swapped.folios.anon_vma[folio]]) != own
    assert strange >= 4


@EACH
def test_rmap_of_a_swapped_page(capture: Capture) -> None:
    tables = tables_of(capture)
    swapped, rows = swapped_of(tables), places(capture)
    pids = {each["what"]: each["pid"] for each in events(capture, "stay")}
    seen = set()
    for what in ("both-child", "left-child", "inner", "pinned", "moved"):
        for (pid, _), row in rows.items():
            if pid != pids[what]:
                continue
            vma, address = int(swapped.vma[row]), int(swapped.address[row])
            folio = int(swapped.folio[row])
            if folio == NO_ROW:
                place = f"in slot {swapped.slot[row]} of swap area {swapped.area[row]}, and no"
                with pytest.raises(NotFoundError, match=place):
                    frame_at(capture.target, tables, vma, address)
                seen.add("none")
                continue
            frame = frame_at(capture.target, tables, vma, address)
            assert frame == int(swapped.folios.pfn[folio])
            rmap = read_rmap(capture.target, frame)
            assert rmap.swap == (int(swapped.area[row]), int(swapped.slot[row]))
            if rmap.kind is MappingKind.NONE:
                # Read ahead from the disk: nobody's yet.
                seen.add("nobody's")
                continue
            walk = rmap.walk
            waits = {
                int(rmap.tables.vmas.address[each])
                for each, count in zip(walk.vma, walk.swapped, strict=True)
                if count
            }
            assert int(tables.vmas.address[vma]) in waits
            if what in ("both-child", "inner"):
                assert int(walk.mapped.sum()) == int(swapped.folios.mapcount[folio]) == 1
            seen.add(what)
    assert seen >= {"none", "both-child", "left-child", "inner", "pinned", "moved"}


# ---- words changed

CAPTURE = next(capture for capture in SWAP if capture.name == "deep-swap-6.12")
NEWER = next(capture for capture in SWAP if capture.name == "deep-swap-7.3")
BOTH = pytest.mark.parametrize("capture", [CAPTURE, NEWER], ids=["6.12", "7.3"])
#: New words by address.
Change = dict[int, int]


def changed(capture: Capture, change: Mapping[int, int]) -> Target:
    memory = OverlayMemory(capture.target.memory, dict(change))
    return dataclasses.replace(capture.target, memory=memory)


def findings_with(capture: Capture, change: Mapping[int, int]) -> list[Finding]:
    audited = audit(collect_audit(changed(capture, change), deep=1))
    assert not audited.failures
    return list(audited.findings())


def word_at(target: Target, address: int) -> int:
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), 8)
    assert present.all()
    return int.from_bytes(rows[0].tobytes(), "little")


def entry_of(capture: Capture, vma: int, address: int) -> int:
    """Where the entry for an address stands."""
    tables, target = tables_of(capture), capture.target
    sources = page_sources(target)
    assert not isinstance(sources, str)
    at = int(tables.mms.address[tables.vmas.mm[vma]]) + tables.era.mm.offset("pgd")
    table = word_at(target, at)
    for level in range(sources.form.levels, 0, -1):
        slot = address >> sources.form.shift(level)
        place = table + 8 * (slot & ((1 << sources.form.index_bits) - 1))
        word = np.array([word_at(target, place)], dtype=np.uint64) if level > 1 else None
        if word is not None:
            table = int(sources.form.physical(word)[0]) + target.space.direct_map
    return place


def rows_of(capture: Capture, what: str, cached: bool = True) -> list[int]:
    """Entries of the process of a case, for which the swap cache has an anonymous folio."""
    pid = next(each["pid"] for each in events(capture, "stay") if each["what"] == what)
    swapped = swapped_of(tables_of(capture))
    fits = swapped.folios.kind == MappingKind.ANON
    return [
        row
        for (owner, _), row in places(capture).items()
        if owner == pid
        and (swapped.folio[row] != NO_ROW and bool(fits[swapped.folio[row]])) == cached
    ]


def field_of(capture: Capture, row: int, name: str) -> tuple[int, int]:
    """Address of a field of the folio for an entry, and what is there."""
    sources = page_sources(capture.target)
    assert not isinstance(sources, str)
    swapped = swapped_of(tables_of(capture))
    at = int(swapped.folios.address[swapped.folio[row]]) + sources.era.page.offset(name)
    return at, word_at(capture.target, at)


def moved_without_its_folio(capture: Capture) -> Change:
    # What UFFDIO_MOVE left before c50f8e6053b0: the second half of the area has not been moved, so
    # the room for it is there; the entry goes, the folio in the swap cache stays as it is.
    move = events(capture, "move")[0]
    source, there = int(move["from"], 16), int(move["to"], 16)
    swapped = swapped_of(tables_of(capture))
    row = next(
        row for row in rows_of(capture, "uffd") if int(swapped.address[row]) >= source + 0x8000
    )
    address = int(swapped.address[row])
    vmas = tables_of(capture).vmas
    target = there + address - source
    mm = int(vmas.mm[swapped.vma[row]])
    inside = (vmas.mm == mm) & (vmas.vm_start <= target) & (vmas.vm_end > target)
    old = entry_of(capture, int(swapped.vma[row]), address)
    new = entry_of(capture, int(np.flatnonzero(inside)[0]), target)
    assert word_at(capture.target, new) == 0
    return {new: word_at(capture.target, old), old: 0}


def index_of_another_place(capture: Capture) -> Change:
    at, index = field_of(capture, rows_of(capture, "pinned")[0], "index")
    return {at: index + 1}


def anon_vma_of_another_family(capture: Capture) -> Change:
    at, _ = field_of(capture, rows_of(capture, "pinned")[0], "mapping")
    _, other = field_of(capture, rows_of(capture, "moved")[0], "mapping")
    return {at: other}


def anon_vma_of_a_child(capture: Capture) -> Change:
    # What ea90002b0fa7 mended: the child has read the page and given it its own anon_vma; the
    # parent's entry still leads there, and it is the same root and index.
    tables = tables_of(capture)
    row = rows_of(capture, "inner")[0]
    pid = next(each["pid"] for each in events(capture, "stay") if each["what"] == "inner-child")
    mm = tables.tasks.mm[tables.tasks.tgid == pid][0]
    address = swapped_of(tables).address[row]
    vmas = tables.vmas
    inside = (vmas.mm == mm) & (vmas.vm_start <= address) & (vmas.vm_end > address)
    child = int(vmas.active[np.flatnonzero(inside)[0]])
    at, old = field_of(capture, row, "mapping")
    assert tables.anon_vmas.address[child] != old & ~3
    return {at: int(tables.anon_vmas.address[child]) | 1}


#: What they are found by.
CODES = ("AV711",)

CASES: dict[str, Callable[[Capture], Change]] = {
    each.__name__: each
    for each in (
        moved_without_its_folio,
        index_of_another_place,
        anon_vma_of_another_family,
        anon_vma_of_a_child,
    )
}


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_found(capture: Capture, name: str) -> None:
    words = CASES[name](capture)
    found = findings_with(capture, words)
    assert {finding.code for finding in found} == set(CODES)
    assert {finding.severity for finding in found} == {Severity.WARNING}
    swapped = swapped_of(tables_of(capture))
    for finding in found:
        assert finding.object_address in swapped.folios.address.tolist()
        assert finding.where.pid is not None
        assert "of swap area 0" in finding.actual
        if len(words) == 1:
            assert finding.word in words


def test_documented_bugs_are_these_cases() -> None:
    text = (Path(__file__).parent.parent / "docs" / "known-bugs.md").read_text()
    rows = re.findall(r"^\|.* \| AV711 \| `([^`]*)` \|$", text, re.MULTILINE)
    assert rows == ["moved_without_its_folio", "anon_vma_of_a_child"]
    assert set(rows) <= set(CASES)


@BOTH
def test_what_somebody_has_locked_is_not_judged(capture: Capture) -> None:
    # UFFDIO_MOVE, and whoever maps the folio, holds its lock meanwhile.
    sources = page_sources(capture.target)
    assert not isinstance(sources, str)
    for name in ("index_of_another_place", "anon_vma_of_another_family", "anon_vma_of_a_child"):
        row = rows_of(capture, "inner" if name.endswith("child") else "pinned")[0]
        at, flags = field_of(capture, row, "flags")
        lock = {at: flags | sources.era.flags["locked"]}
        assert findings_with(capture, {**CASES[name](capture), **lock}) == []


@BOTH
def test_what_a_fault_copies_is_not_judged(capture: Capture) -> None:
    # An entry without the mark, whose folio has another index or root.
    for name in ("index", "mapping"):
        row = rows_of(capture, "left-child")[0]
        at, word = field_of(capture, row, name)
        _, other = field_of(capture, rows_of(capture, "moved")[0], "mapping")
        assert findings_with(capture, {at: word + 1 if name == "index" else other}) == []
    # The same as anon_vma_of_a_child(), but at another index.
    at, word = field_of(capture, rows_of(capture, "inner")[0], "index")
    found = findings_with(capture, {**anon_vma_of_a_child(capture), at: word + 1})
    assert "AV711" not in {finding.code for finding in found}


@BOTH
def test_what_is_no_folio_of_that_slot_is_not_known(capture: Capture) -> None:
    # Another slot, another area, no longer in the swap cache, or used for something else.
    sources = page_sources(capture.target)
    assert not isinstance(sources, str)
    flags = sources.era.flags
    row = rows_of(capture, "pinned")[0]
    private, place = field_of(capture, row, "private")
    at, own = field_of(capture, row, "flags")
    for change in (
        {private: place + 1},
        {private: place | 1 << 58},
        {at: own & ~flags["swapcache"]},
        {at: own & ~flags["swapbacked"]},
    ):
        tables = collect_audit(changed(capture, change), deep=1)
        swapped = swapped_of(tables)
        assert swapped.folio[row] == NO_ROW
        assert not swapped.known[row]
        assert pages_of(tables).coverage.swap_not_known == 1
        assert list(audit(tables).findings()) == []
        vma, address = int(swapped.vma[row]), int(swapped.address[row])
        with pytest.raises(NotFoundError, match="whether the swap cache has it is not known"):
            frame_at(changed(capture, change), tables, vma, address)


def test_what_stays_is_confirmed_and_what_goes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    change = index_of_another_place(CAPTURE)
    audited = audit_running(running(CAPTURE.target, [change]), deep=1)
    assert {finding.code for finding in audited.findings()} == {"AV711"}
    audited = audit_running(running(CAPTURE.target, [change, {}]), deep=1)
    assert audited.findings_total == 0
    assert {finding.code for finding in audited.transients()} == {"AV711"}


# ---- kernels and areas that no fixture has


def test_tables_of_addresses() -> None:
    # As v6.18 has them; from v7.0 on a word is a number of a page frame, with flags.
    tables, target = tables_of(NEWER), NEWER.target
    found = find_swap_cache(target)
    assert not isinstance(found, str)
    era, variable = found
    assert era.area is not None
    assert era.cluster is not None
    row = rows_of(NEWER, "pinned")[0]
    swapped = swapped_of(tables)
    slot, folio = int(swapped.slot[row]), int(swapped.folio[row])
    clusters = word_at(target, word_at(target, variable) + era.area.offset("cluster_info"))
    cluster = clusters + slot // 512 * era.cluster.size
    at = word_at(target, cluster + era.cluster.offset("table")) + slot % 512 * 8
    assert word_at(target, at) >> 2 & (1 << 40) - 1 == int(swapped.folios.pfn[folio])
    address = int(swapped.folios.address[folio])
    for word, is_known in ((address, True), (address + 64, False), (2**64 - 8, False)):
        again = swapped_of(collect_audit(changed(NEWER, {at: word}), deep=1))
        assert bool(again.known[row]) == is_known
        assert (again.folio[row] != NO_ROW) == is_known
    # A slot that is free, or whose page is only on the disk.
    for word in (0, 1, 1 << 63 | 0x77 << 3 | 1):
        again = swapped_of(collect_audit(changed(NEWER, {at: word}), deep=1))
        assert again.known[row]
        assert again.folio[row] == NO_ROW


class WithOneMore:
    """Another memory with a word where that has none."""

    def __init__(self, memory: Memory, address: int, word: int) -> None:
        self._memory, self._address, self._word = memory, np.uint64(address), word

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = self._memory.gather(addresses, size)
        for row in np.flatnonzero((addresses == self._address) & (size == 8)):
            rows[row] = np.frombuffer(self._word.to_bytes(8, "little"), dtype=np.uint8)
            present[row] = True
        return rows, present

    def uncached(self) -> WithOneMore:
        return self


def test_an_area_with_several_address_spaces() -> None:
    # The second one of the area, in which indexes begin anew (since v6.12): here it has the nodes
    # of the first.
    tables, target = tables_of(CAPTURE), CAPTURE.target
    found = find_swap_cache(target)
    assert not isinstance(found, str)
    era, variable = found
    assert era.space is not None
    row = rows_of(CAPTURE, "pinned")[0]
    swapped = swapped_of(tables)
    slot = int(swapped.slot[row]) + (1 << 14)
    top = word_at(target, variable) + era.space.offset("xa_head")
    at, place = field_of(CAPTURE, row, "private")
    entry = entry_of(CAPTURE, int(swapped.vma[row]), int(swapped.address[row]))
    words = {entry: ((~slot << 14) & (2**64 - 1)) >> 5 | 8, at: place + (1 << 14)}
    memory = WithOneMore(changed(CAPTURE, words).memory, top + era.space.size, word_at(target, top))
    again = swapped_of(collect_audit(dataclasses.replace(target, memory=memory), deep=1))
    assert int(again.slot[row]) == slot
    assert again.folio[row] != NO_ROW
    assert int(again.folios.address[again.folio[row]]) == int(
        swapped.folios.address[swapped.folio[row]]
    )


# ---- targets that are not what they should be


def words_of_the_cache(capture: Capture) -> Iterator[int]:
    """Addresses of the words that lead to the folios."""
    found = find_swap_cache(capture.target)
    assert not isinstance(found, str)
    era, variable = found
    target = capture.target
    for area in (0, 1):
        yield variable + 8 * area
        top = word_at(target, variable + 8 * area)
        if era.space is not None:
            assert era.node is not None
            yield top + era.space.offset("xa_head")
            nodes = [word_at(target, top + era.space.offset("xa_head"))]
            while nodes:
                node = nodes.pop() & ~3
                yield node + era.node.offset("shift") & ~7
                for slot in range(64):
                    at = node + era.node.offset("slots") + 8 * slot
                    rows, there = target.memory.gather(np.array([at], dtype=np.uint64), 8)
                    if there[0]:
                        yield at
                        word = int(rows[0].view("<u8")[0])
                        nodes += [word] if word & 3 == 2 and word > 4096 else []
        else:
            assert era.area is not None
            assert era.cluster is not None
            yield top + era.area.offset("max") & ~7
            yield top + era.area.offset("cluster_info")
            clusters = word_at(target, top + era.area.offset("cluster_info"))
            for cluster in range(8):
                at = clusters + cluster * era.cluster.size + era.cluster.offset("table")
                rows, there = target.memory.gather(np.array([at], dtype=np.uint64), 8)
                if there[0]:
                    yield at
                    table = int(rows[0].view("<u8")[0])
                    yield from (table + 8 * slot for slot in range(0, 512, 40) if table)


@BOTH
@pytest.mark.parametrize("seed", range(6))
def test_garbage_in_the_swap_cache(capture: Capture, seed: int) -> None:
    # It ends, it makes no finding, and a folio is only taken for one that knows its slot.
    rng = random.Random(seed)
    words = list(words_of_the_cache(capture))
    good = swapped_of(tables_of(capture))
    folios = good.folios.address.tolist()
    pointers = [*words, *folios, capture.target.space.direct_map + (rng.getrandbits(16) << 12)]
    change = {
        word: rng.choice(
            [
                *(rng.getrandbits(64), 2**64 - 8, 2**64 - 1, 0, 0x1001, 6, 0x402, 1 << 63),
                *(rng.choice(pointers), rng.choice(pointers) | 2, rng.getrandbits(20) << 2 | 2),
            ]
        )
        for word in rng.sample(words, 12)
    }
    tables = collect_audit(changed(capture, change), deep=1)
    swapped = swapped_of(tables)
    audited = audit(tables)
    assert not audited.failures
    assert list(audited.findings()) == []
    held = np.append(swapped.folios.address, np.uint64(0))[swapped.folio]
    was = np.append(good.folios.address, np.uint64(0))[good.folio]
    assert ((held == was) | (held == 0)).all()


@BOTH
def test_nodes_that_lead_to_themselves(capture: Capture) -> None:
    change = {}
    for word in words_of_the_cache(capture):
        change[word] = word & ~7 | 2
    tables = collect_audit(changed(capture, change), deep=1)
    assert not (swapped_of(tables).folio != NO_ROW).any()
    assert list(audit(tables).findings()) == []


@BOTH
def test_without_the_variable(capture: Capture) -> None:
    found = find_swap_cache(capture.target)
    assert not isinstance(found, str)
    symbols = {
        name: address for name, address in capture.target.symbols.items() if name != found[0].symbol
    }
    tables = collect_audit(dataclasses.replace(capture.target, symbols=symbols), deep=1)
    result = next(each for each in audit(tables).results if each.invariant.code == "AV711")
    assert result.state is State.NOT_CHECKED
    assert result.reason == f"the swap cache: {found[0].symbol} not found"


# ---- snapshots


def test_a_snapshot_of_before(tmp_path: Path) -> None:
    path = tmp_path / "s.core"
    walks = CAPTURE.target.walks
    assert walks is not None
    older = dataclasses.replace(CAPTURE.target, walks=walks - {"swap cache"})
    save_snapshot(older, str(path), pages=True)
    again = open_target(TargetOptions(core=str(path)))
    tables = collect_audit(again, deep=1)
    assert tables.complete
    assert pages_of(tables).coverage.swapped == len(swapped_of(tables_of(CAPTURE)).slot)
    result = next(each for each in audit(tables).results if each.invariant.code == "AV711")
    assert result.reason == "the swap cache: not in this snapshot"


def test_a_snapshot_has_the_swap_cache(tmp_path: Path) -> None:
    for capture in (CAPTURE, NEWER):
        path = tmp_path / f"{capture.name}.core"
        save_snapshot(capture.target, str(path), pages=True)
        again = collect_audit(open_target(TargetOptions(core=str(path))), deep=1)
        assert again.complete
        for name in ("slot", "known", "folio"):
            old = getattr(swapped_of(tables_of(capture)), name)
            assert getattr(swapped_of(again), name).tolist() == old.tolist()


def test_a_sample_has_all_entries_of_its_slots() -> None:
    whole = swapped_of(tables_of(CAPTURE))
    places_of = Counter(zip(whole.area.tolist(), whole.slot.tolist(), strict=True))
    seen = set()
    for sample in (2, 3, 5):
        some = swapped_of(collect_audit(CAPTURE.target, deep=sample))
        found = Counter(zip(some.area.tolist(), some.slot.tolist(), strict=True))
        assert found == Counter({each: places_of[each] for each in found})
        seen.add(len(found))
    assert min(seen) < len(places_of)


# ---- the command line


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_commands(cli: Cli) -> None:
    core = str(CAPTURE.core)
    swapped = swapped_of(tables_of(CAPTURE))
    ran = cli("-c", core, "audit", "--deep")
    assert ran.code == 0
    count = int(np.count_nonzero(swapped.folio != NO_ROW))
    assert f"swap cache: {len(swapped.folios.address)} folios for {count} swapped pages" in ran.out
    row = rows_of(CAPTURE, "both-child")[0]
    pid = next(pid for (pid, _), each in places(CAPTURE).items() if each == row)
    text = cli("-c", core, "rmap", str(pid), hex(int(swapped.address[row]))).out
    assert f"slot {int(swapped.slot[row])} of swap area 0" in text
    assert "1 page swapped out" in text
    assert "; 1 of them maps the folio" in text
    lost = next(
        (pid, each) for (pid, _), each in places(CAPTURE).items() if swapped.folio[each] == NO_ROW
    )
    ran = cli("-c", core, "rmap", str(lost[0]), hex(int(swapped.address[lost[1]])))
    assert ran.code == 2
    assert "no folio in the swap cache" in ran.err


def test_one_address_as_all() -> None:
    # What a single look-up takes an entry for is what the walk does.
    target, tables = CAPTURE.target, tables_of(CAPTURE)
    sources = page_sources(target)
    assert not isinstance(sources, str)
    swapped = swapped_of(tables)
    reader = Reader(target)
    pgd, _ = reader.words(tables.era.mm, tables.mms.address, "pgd")
    found = look_up(reader, sources.form, pgd[tables.vmas.mm[swapped.vma]], swapped.address)
    area, slot = sources.form.swap_slots(found.entry)
    assert area.tolist() == swapped.area.tolist()
    assert slot.tolist() == swapped.slot.tolist()
