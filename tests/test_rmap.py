"""``rmap``: the pages that are not plain ones, and what it says where it cannot say all.

What is expected is the guest's word, what the workload did, or what the kernel's own walk goes
through (``rmap_walk_anon()`` in ``mm/rmap.c``, ``rmap_walk_ksm()`` in ``mm/ksm.c``).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import drgn
import numpy as np
import pytest

from anonvma_inspect.collect import frame_at, read_rmap
from anonvma_inspect.collect.pages import page_sources
from anonvma_inspect.errors import MissingError
from anonvma_inspect.helpers import for_each_anon_vma_avc
from anonvma_inspect.kernel.folio import FolioEra, MappingKind, resolve_folio_era
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import OverlayMemory
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

from .captures import CAPTURES, Capture
from .clirun import Cli
from .programs import program
from .running import field_words
from .test_pages import (
    CAPTURE,
    DEEP,
    changed,
    deep_tables,
    entry_of,
    lower_half,
    page_record,
    pages_of,
    some_folio,
    word_of,
)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def named(name: str) -> Capture:
    return next(capture for capture in CAPTURES if capture.name == name)


def places_of(capture: Capture) -> dict[int, set[tuple[int, int]]]:
    """The guest's word: by page frame, where it is mapped, as PID and address."""
    shift = capture.target.page_size.bit_length() - 1
    places: dict[int, set[tuple[int, int]]] = {}
    for process in capture.processes():
        for run in process.get("pages", ()):
            page, frame, length, _ = run.split()
            for step in range(int(length)):
                where = process["pid"], (int(page, 16) + step) << shift
                places.setdefault(int(frame, 16) + step, set()).add(where)
    return places


def document(cli: Cli, capture: Capture, *arguments: str) -> Any:
    ran = cli("-c", str(capture.core), "--format", "json", "rmap", *arguments)
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


# ---- folios of lazy VMAs


def test_folios_of_lazy_vmas_are_found_where_they_are_mapped() -> None:
    capture = named("folios-forktree-7.3-lazy")
    found: dict[MappingKind, int] = {}
    for frame, places in places_of(capture).items():
        rmap = read_rmap(capture.target, frame)
        found[rmap.kind] = found.get(rmap.kind, 0) + 1
        tables, walk = rmap.tables, rmap.walk
        if rmap.kind is MappingKind.LAZY_VMA:
            task = tables.mms.task[tables.vmas.mm[walk.vma]]
            pids = tables.tasks.tgid[task].tolist()
            assert set(zip(pids, walk.address.tolist(), strict=True)) == places
            assert walk.mapped.tolist() == [1] * len(places)
            assert tables.vmas.address[rmap.root_vma] == rmap.folio.pointer[0]
    assert found[MappingKind.LAZY_VMA] > 30
    # Which were forked, and so have an anon_vma.
    assert found[MappingKind.ANON] > 30
    assert set(found) <= {MappingKind.LAZY_VMA, MappingKind.ANON, MappingKind.FILE}


def test_a_lazy_folio_is_told(cli: Cli) -> None:
    capture = named("folios-forktree-7.3-lazy")
    answer = document(cli, capture, "1", "4c4000")
    target = answer["folio"]["mapping"].pop("target")
    assert answer["folio"]["mapping"] == {"kind": "lazy_vma", "raw": hex(int(target, 16) | 2)}
    assert (answer["visited"], answer["mapping"], answer["anon_vma"]) == (1, 1, None)
    assert answer["vmas"][0]["vma"] == target
    text = cli("-c", str(capture.core), "rmap", "1", "4c4000").out
    assert f"root VMA {target}, PID 1 (witness) 004c2000-004c6000" in text
    assert "1 VMA of that root VMA has these pages; it maps the folio" in text
    # Whoever is given the struct page knows it as well.
    said = cli("-c", str(capture.core), "--format", "json", "what", answer["folio"]["address"])
    folio = json.loads(said.out)["addresses"][0]["folio"]
    assert (folio["kind"], folio["mapping"]) == ("lazy_vma", hex(int(target, 16) | 2))


# ---- KSM


KSM_DEEP = [capture for capture in DEEP if capture.name in ("deep-pages-6.12", "deep-pages-7.3")]


@pytest.mark.parametrize("capture", KSM_DEEP, ids=[capture.name for capture in KSM_DEEP])
def test_ksm_visits_what_the_kernel_does(capture: Capture) -> None:
    # v7.3 takes of each tree what has the rmap_item's linear_page_index, older ones all.
    tables, prog = deep_tables(capture), program(capture)
    folios = pages_of(tables).folios
    indexed = capture.name == "deep-pages-7.3"
    for row in np.flatnonzero(folios.kind == MappingKind.KSM)[:6].tolist():
        rmap = read_rmap(capture.target, int(folios.pfn[row]))
        visited = 0
        for item in rmap.tables.rmap_items.address[rmap.items].tolist():
            item = drgn.Object(prog, "struct ksm_rmap_item *", item)
            index = item.linear_page_index.value_() if indexed else None
            visited += len(list(for_each_anon_vma_avc(item.anon_vma, index, index)))
        assert rmap.walk.visited == visited
        assert len(rmap.items) > 1


def test_ksm_of_another_index_is_not_visited() -> None:
    # As the kernel would: the VMA is not found, though the rmap_item's address is right.
    capture = named("deep-pages-7.3")
    tables = deep_tables(capture)
    row = int(np.flatnonzero(pages_of(tables).folios.kind == MappingKind.KSM)[0])
    frame = int(pages_of(tables).folios.pfn[row])
    rmap = read_rmap(capture.target, frame)
    field = capture.target.layouts.field("ksm_rmap_item", "linear_page_index")
    assert field is not None
    items = rmap.tables.rmap_items
    words = {int(items.address[item]) + field.offset: 0x10 for item in rmap.items.tolist()}
    memory = OverlayMemory(capture.target.memory, words)
    walk = read_rmap(dataclasses.replace(capture.target, memory=memory), frame).walk
    assert rmap.walk.visited > 0
    assert (walk.visited, len(walk.vma)) == (0, 0)


def test_ksm_adds_up(cli: Cli) -> None:
    # One VMA maps it twice.
    tables = deep_tables(CAPTURE)
    folios, mappings = pages_of(tables).folios, pages_of(tables).mappings
    of_ksm = np.flatnonzero(folios.kind == MappingKind.KSM).tolist()
    vmas = {row: set(mappings.vma[mappings.folio == row].tolist()) for row in of_ksm}
    places = places_of(CAPTURE)
    frames = folios.pfn.tolist()
    row = next(row for row in of_ksm if 1 < len(vmas[row]) < len(places[frames[row]]))
    text = cli("-c", str(CAPTURE.core), "rmap", str(frames[row])).out
    count = len(places[frames[row]])
    assert f"; the folio is mapped at {count} places in {len(vmas[row])} VMAs" in text
    answer = document(cli, CAPTURE, str(frames[row]))
    assert answer["mapping"] == count
    assert answer["folio"]["mapcount"] == count
    items = {each["rmap_item"] for each in answer["vmas"]}
    assert 1 < len(items) <= answer["rmap_items"]
    assert f" for {answer['rmap_items']} rmap_items; " in text


# ---- what it cannot tell


def test_a_struct_page_that_is_missing_is_a_hole(cli: Cli) -> None:
    space, size = CAPTURE.target.space, CAPTURE.target.page_size
    known = set(pages_of(deep_tables(CAPTURE)).folios.pfn.tolist())
    frames = ((start - space.direct_map) % 2**64 // size + 7 for start, _ in space.ram.tolist())
    frame = next(frame for frame in frames if frame not in known)
    said = cli.fails(4, "-q", "-c", str(CAPTURE.core), "rmap", str(frame))
    assert said.startswith(f"the struct page of page frame {frame:#x} is not in this target")
    assert "ask the dump" in said
    with pytest.raises(MissingError):
        read_rmap(CAPTURE.target, frame)


def test_arm64_does_not_tell_absent_entries(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = named("deep-pages-6.12-arm64")
    tables, target = deep_tables(capture), capture.target
    deep = pages_of(tables)
    count = np.bincount(deep.mappings.folio, minlength=len(deep.folios.address))
    fits = (deep.folios.kind == MappingKind.ANON) & (deep.folios.pages == 1) & (count == 1)
    folio = int(np.flatnonzero(fits)[0])
    (mapping,) = np.flatnonzero(deep.mappings.folio == folio).tolist()
    at, _ = entry_of(target, tables, mapping)
    # Neither valid (PTE_VALID) nor a page (PTE_TYPE_PAGE), arch/arm64/include/asm/pgtable-hwdef.h.
    memory = OverlayMemory(target.memory, {at: 0x1230})
    without = dataclasses.replace(target, memory=memory)
    frame = int(deep.folios.pfn[folio])
    walk = read_rmap(without, frame).walk
    assert (walk.mapped.sum(), walk.absent.sum(), walk.unknown.sum()) == (0, 1, 0)
    monkeypatch.setattr("anonvma_inspect.target.open_target", lambda *_, **__: without)
    text = cli("-c", str(capture.core), "rmap", str(frame)).out
    assert "swapped, in migration or a marker: not told on arm64" in text
    assert "does not map it\n" not in text


def test_one_vma_of_several(cli: Cli) -> None:
    deep = pages_of(deep_tables(CAPTURE))
    texts = (
        cli("-c", str(CAPTURE.core), "rmap", str(frame)).out
        for frame in deep.folios.pfn[deep.folios.kind == MappingKind.ANON][::7].tolist()
    )
    said = next(text for text in texts if "; 1 of them " in text)
    assert "; 1 of them maps the folio\n" in said


def test_what_counts_while_somebody_is_at_work() -> None:
    # As AV709, which passes over what is locked or written back.
    tables = deep_tables(CAPTURE)
    folio, rows = some_folio(tables, shared=True)
    record = page_record()
    more = lower_half(word_of(tables, folio, record.offset("mapcount")), len(rows), CAPTURE.target)
    frame = int(pages_of(tables).folios.pfn[folio])
    sources = page_sources(CAPTURE.target)
    assert not isinstance(sources, str)
    address = int(pages_of(tables).folios.address[folio])
    flags = int(pages_of(tables).folios.flags[folio]) | sources.era.flags["locked"]
    locked = field_words(CAPTURE.target, record, address, "flags", flags)
    assert not read_rmap(changed(more), frame).busy
    assert read_rmap(changed({**more, **locked}), frame).busy


def test_family(cli: Cli) -> None:
    row, _ = some_folio(deep_tables(CAPTURE), shared=True)
    frame = str(int(pages_of(deep_tables(CAPTURE)).folios.pfn[row]))
    answer = document(cli, CAPTURE, frame)
    root = answer["anon_vma"]["root"]
    ran = cli("-c", str(CAPTURE.core), "--format", "json", "family", root)
    family = json.loads(ran.out)["family"]
    figures = {name: family[name] for name in ("anon_vmas", "vmas")}
    assert answer["anon_vma"]["family"] == figures
    text = cli("-c", str(CAPTURE.core), "rmap", frame).out
    assert f": see anonvma-inspect family {root}\n" in text


# ---- hugetlb


def era_of(target: Target, **vmcoreinfo: str) -> FolioEra:
    facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
    marks = ("HUGETLB_PAGE_DTOR", "PAGE_HUGETLB_MAPCOUNT_VALUE", "PG_hugetlb")
    kept = {key: value for key, value in facts.items() if key[7:-1] not in marks}
    given = {f"NUMBER({name})": value for name, value in vmcoreinfo.items()}
    era = resolve_folio_era(target.layouts, {**kept, **given})
    assert not isinstance(era, str)
    return era


def test_what_marks_hugetlb() -> None:
    # VMCOREINFO as kernel/crash_core.c and kernel/vmcore_info.c have it: v5.10 to v6.5; v6.6;
    # v6.9, one bit of page_type; v6.12.
    old, new = named("deep-pages-5.10").target, CAPTURE.target
    mark = era_of(old, HUGETLB_PAGE_DTOR="2").hugetlb
    assert mark is not None
    assert (mark.field, mark.value, mark.huge_index) == ("dtor", 2, True)
    mark = era_of(new, PG_hugetlb="6").hugetlb
    assert mark is not None
    assert (mark.field, mark.value, mark.mask, mark.huge_index) == ("flags_1", 64, 64, None)
    mark = era_of(new, PAGE_HUGETLB_MAPCOUNT_VALUE=str(~0x800)).hugetlb
    assert mark is not None
    assert (mark.value, mark.mask, mark.huge_index) == (0xFFFFF7FF, 0xFFFFFFFF, None)
    mark = era_of(new, PAGE_HUGETLB_MAPCOUNT_VALUE="-201326592").hugetlb
    assert mark is not None
    assert (mark.value, mark.mask, mark.huge_index) == (0xF4000000, 0xFF000000, False)


def _with_hugetlb() -> list[Capture]:
    # Snapshots that were taken before those pages were kept do not have them.
    kept = ("deep-pages-5.10", "deep-pages-7.3")
    return [capture for capture in DEEP if capture.name in kept or capture.core.suffix == ".core"]


HUGE = 2 << 20
HUGETLB = pytest.mark.parametrize(
    "capture", _with_hugetlb(), ids=[capture.name for capture in _with_hugetlb()]
)


def hugetlb_of(capture: Capture) -> tuple[int, int, int]:
    """What the workload did: parent, child, and the address of a private mapping.

    Both wrote to the first huge page, so that each has its own; only the parent, before it forked,
    wrote to the second.
    """
    log = capture.manifest["word"]["log"]
    (said,) = (event for event in log if event["event"] == "hugetlb")
    (child,) = (
        process["pid"] for process in capture.processes() if process["comm"] == "hugetlb-child"
    )
    return said["pid"], child, int(said["private"], 16)


@HUGETLB
def test_private_hugetlb(capture: Capture, cli: Cli) -> None:
    parent, child, base = hugetlb_of(capture)
    expected = {(parent, base): {parent}, (child, base): {child}}
    expected |= {(pid, base + HUGE): {parent, child} for pid in (parent, child)}
    folios = {}
    for (pid, address), pids in expected.items():
        answer = document(cli, capture, str(pid), hex(address))
        folio = folios[pid, address] = answer["folio"]
        assert (folio["hugetlb"], folio["mapping"]["kind"]) == (True, "anon_vma")
        assert folio["mapcount"] == folio["entire_mapcount"] == len(pids)
        assert {each["pid"] for each in answer["vmas"] if each["whole"]} == pids
        assert {each["address"] for each in answer["vmas"]} == {hex(address)}
        assert answer["mapping"] == len(pids)
        text = cli("-c", str(capture.core), "rmap", str(pid), hex(address)).out
        assert ", 512 pages, hugetlb, " in text
        assert "audit --deep" not in text
    assert folios[parent, base]["address"] != folios[child, base]["address"]
    assert folios[parent, base + HUGE] == folios[child, base + HUGE]


@HUGETLB
def test_an_index_of_either_unit_is_understood(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on v6.6, whose marks are those of kernels of before and after the change.
    parent, _, base = hugetlb_of(capture)
    sources = page_sources(capture.target)
    assert not isinstance(sources, str)
    assert sources.era.hugetlb is not None
    mark = dataclasses.replace(sources.era.hugetlb, huge_index=None)
    either = dataclasses.replace(sources, era=dataclasses.replace(sources.era, hugetlb=mark))
    for address in (base, base + HUGE):
        tables = capture.tables
        mm = tables.tasks.mm[tables.tasks.tgid == parent][0]
        inside = (tables.vmas.mm == mm) & (tables.vmas.vm_start <= np.uint64(address))
        vma = int(np.flatnonzero(inside & (tables.vmas.vm_end > np.uint64(address)))[0])
        frame = frame_at(capture.target, tables, vma, address)
        with monkeypatch.context() as patched:
            patched.setattr("anonvma_inspect.collect.rmap.page_sources", lambda _: either)
            walk = read_rmap(capture.target, frame).walk
        # The parent's pages are looked for in the child's VMA, too.
        assert walk.address.tolist() == [address] * 2
        assert walk.whole.sum() == (1 if address == base else 2)
