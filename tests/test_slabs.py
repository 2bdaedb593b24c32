"""What is read of slabs equals what drgn, the kernel's own counters and its rules say."""

from __future__ import annotations

import dataclasses
import random
import re

import drgn
import numpy as np
import pytest
from drgn.helpers.linux.slab import slab_cache_for_each_allocated_object

from anonvma_inspect.collect import collect_audit, collect_slabs
from anonvma_inspect.helpers import open_core
from anonvma_inspect.invariants.base import Finding
from anonvma_inspect.invariants.catalogue import audit, select
from anonvma_inspect.kernel.slab import resolve_slab_era
from anonvma_inspect.tables import NO_ROW, Allocation, ObjectState, Placement, Tables
from anonvma_inspect.target import Target
from anonvma_inspect.target.memory import (
    BoolColumn,
    ByteRows,
    Memory,
    OverlayMemory,
    RecordingMemory,
    U64Column,
)
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

from .captures import CAPTURES, Capture, few_or_all

every = pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
BY_NAME = {capture.name: capture for capture in CAPTURES}
DUMPS = [capture for capture in CAPTURES if capture.core.suffix == ".core"]
# Variable that points to the cache, type, and the table and the column of unreached ones.
KINDS = (
    ("vm_area_cachep", "struct vm_area_struct", "vmas"),
    ("anon_vma_chain_cachep", "struct anon_vma_chain", "avcs"),
    ("anon_vma_cachep", "struct anon_vma", "anon_vmas"),
)


def allocation_of(tables: Tables) -> Allocation:
    assert tables.allocation is not None
    return tables.allocation


def allocated(tables: Tables, kind: str) -> set[int]:
    """All allocated objects of a cache: those in the table, and the rest."""
    allocation = allocation_of(tables)
    assert allocation.unreached is not None
    state = getattr(allocation, kind).state
    reached = getattr(tables, kind).address[state == ObjectState.ALLOCATED]
    return {*reached.tolist(), *getattr(allocation.unreached, kind).tolist()}


@every
def test_every_object_is_found_in_its_cache(capture: Capture) -> None:
    tables = capture.tables
    allocation = allocation_of(tables)
    assert allocation.not_read is None
    assert allocation.free_not_read is None
    assert not len(allocation.broken_word)
    for variable, _, kind in KINDS:
        placement: Placement = getattr(allocation, kind)
        assert (placement.state == ObjectState.ALLOCATED).all(), kind
        assert (placement.slab != NO_ROW).all()
        # Merged caches have the name of the first of them; nothing is merged with these two.
        if kind != "avcs":
            name = variable.removesuffix("_cachep").replace("vm_area", "vm_area_struct")
            assert allocation.cache_names[placement.cache] == name.encode()
    assert allocation.unreached is not None
    assert not len(allocation.unreached.anon_vmas)
    assert not allocation.unreached.avc_linked.any()


# ---- drgn's slab helpers


def program_of(capture: Capture) -> drgn.Program:
    beside = capture.manifest_path.with_suffix(".map")
    prog = open_core(capture.core, system_map=beside if beside.exists() else None)
    # Kernels that do not name it in VMCOREINFO: it is the variable's value on x86-64, and begins
    # with the first frame of RAM on arm64.
    vmcoreinfo = dict(
        line.split("=", 1) for line in capture.target.vmcoreinfo.decode().split() if "=" in line
    )
    if "SYMBOL(vmemmap)" not in vmcoreinfo:
        if "NUMBER(VMEMMAP_START)" in vmcoreinfo:
            first = int(vmcoreinfo["NUMBER(PHYS_OFFSET)"], 0) // capture.target.page_size
            start = int(vmcoreinfo["NUMBER(VMEMMAP_START)"], 0) - 64 * first
        else:
            start = prog["vmemmap_base"].value_()

        def find(
            prog: drgn.Program, name: str, flags: drgn.FindObjectFlags, file: str | None
        ) -> drgn.Object | None:
            if name != "vmemmap":
                return None
            return drgn.Object(prog, "struct page *", start)

        prog.register_object_finder("vmemmap", find, enable_index=0)
    return prog


def fenced(prog: drgn.Program, address: int) -> bool:
    """Whether an address lies in KFENCE's pool; CONFIG_KFENCE_NUM_OBJECTS is Debian's 255."""
    try:
        pool = drgn.Object(prog, "unsigned long", address=prog.symbol("__kfence_pool").address)
    except LookupError:
        return False
    return bool(0 <= address - pool.value_() < 256 * 2 * 4096)


@pytest.mark.parametrize("capture", DUMPS, ids=lambda capture: capture.name)
@pytest.mark.parametrize(("variable", "type_", "kind"), KINDS, ids=lambda value: value)
def test_allocated_objects_are_those_of_drgn(
    capture: Capture, variable: str, type_: str, kind: str
) -> None:
    # drgn does not know KFENCE: of each of its pages that was ever of the cache, free or not, it
    # names the beginning.
    prog = program_of(capture)
    try:
        prog.symbol("__cpu_online_mask"), prog.symbol("__highest_present_section_nr")
    except LookupError as error:
        pytest.skip(f"drgn needs a symbol that is not known here: {error}")
    cache = drgn.Object(prog, "struct kmem_cache *", address=prog.symbol(variable).address)
    objects = slab_cache_for_each_allocated_object(cache.read_(), type_)
    theirs = {object_.value_() for object_ in objects}
    ours = allocated(capture.tables, kind)
    assert {a for a in ours if not fenced(prog, a)} == {a for a in theirs if not fenced(prog, a)}
    pages = {address & ~0xFFF for address in ours if fenced(prog, address)}
    assert pages <= theirs
    for address in pages:
        state = metadata_state(prog, address)
        assert state == "KFENCE_OBJECT_ALLOCATED"
    for address in {a for a in theirs if fenced(prog, a)} - pages:
        assert metadata_state(prog, address) != "KFENCE_OBJECT_ALLOCATED"


def metadata_state(prog: drgn.Program, page: int) -> str:
    """What KFENCE itself says of one of its pages."""
    pool = drgn.Object(prog, "unsigned long", address=prog.symbol("__kfence_pool").address)
    array = drgn.Object(
        prog, "struct kfence_metadata *", address=prog.symbol("kfence_metadata").address
    )
    return str(array[(page - pool.value_()) // (2 * 4096) - 1].state.format_(type_name=False))


# ---- the kernel's own counters


@every
@pytest.mark.parametrize(("variable", "type_", "kind"), KINDS, ids=lambda value: value)
def test_counts_are_those_of_slabinfo(
    capture: Capture, variable: str, type_: str, kind: str
) -> None:
    """Objects on lists of CPUs count as used there, as do those that were freed since."""
    word = capture.manifest["word"]
    figures = word["slab"][type_.removeprefix("struct ")]
    figure = {name: int(text.split()[0].split("(")[0]) for name, text in figures.items()}
    ours = allocated(capture.tables, kind)
    fenced = re.search(r"currently allocated: (\d+)", word["facts"].get("kfence", ""))
    assert len(ours) <= figure["objects"] + (int(fenced[1]) if fenced else 0)
    # The caches' lists are empty right after they were shrunk.
    if "shrink=1" in capture.manifest["guest"]["witness"]:
        slack = figure["objs_per_slab"] * (figure["cpu_slabs"] + capture.manifest["guest"]["cpus"])
        assert len(ours) >= figure["objects"] - slack
    cache = getattr(allocation_of(capture.tables), kind).cache
    assert word_of_cache(capture.target, cache, "size") == figure["slab_size"]


@every
def test_totals_are_those_of_sysfs(capture: Capture) -> None:
    """Slabs and objects, to the last one where the caches were shrunk before."""
    word = capture.manifest["word"]
    totals = allocation_of(capture.tables).totals
    assert len(totals) == len(KINDS)
    for total, (_, type_, kind) in zip(totals, KINDS, strict=True):
        figures = word["slab"][type_.removeprefix("struct ")]
        figure = {name: int(text.split()[0].split("(")[0]) for name, text in figures.items()}
        assert total.size == figure["slab_size"]
        assert total.bytes == total.slabs * (4096 << figure["order"])
        assert total.allocated + total.guarded == len(allocated(capture.tables, kind))
        assert total.reached <= total.allocated + total.guarded
        if "shrink=1" in capture.manifest["guest"]["witness"]:
            per_cpu = figure["cpu_slabs"] + capture.manifest["guest"]["cpus"]
            assert abs(total.slabs - figure["slabs"]) <= per_cpu
            slack = per_cpu * figure["objs_per_slab"]
            assert abs(total.objects - figure["total_objects"]) <= slack
            assert abs(total.allocated - figure["objects"]) <= slack


# ---- one wrong word


BROKEN = ("forktree-5.10", "forktree-6.1", "forktree-6.12", "forktree-7.2", "forktree-6.12-arm64")


def word_of(target: Target, address: int) -> int:
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), 8)
    assert present[0]
    return int.from_bytes(rows[0].tobytes(), "little")


def broken(capture: Capture, words: dict[int, int]) -> list[Finding]:
    """Findings about slabs, once some words are changed."""
    memory = OverlayMemory(capture.target.memory, words)
    tables = collect_audit(dataclasses.replace(capture.target, memory=memory), leaks=True)
    result = audit(tables, select(["AV5"]))
    assert not result.failures
    return list(result.findings())


def brief(findings: list[Finding]) -> set[tuple[str, int, int | None]]:
    return {(finding.code, finding.object_address, finding.word) for finding in findings}


@dataclasses.dataclass(frozen=True)
class Place:
    """The word ``anon_vma`` of an AVC whose anon_vma is that of many."""

    avc: int
    word: int
    anon_vma: int


def a_place(capture: Capture) -> Place:
    tables = capture.tables
    avcs = tables.avcs
    rows = np.flatnonzero(avcs.anon_vma == tables.anon_vmas.address[tables.anon_vmas.root_row[3]])
    row = int(rows[len(rows) // 2])
    address = int(avcs.address[row])
    word = address + tables.era.avc.offset("anon_vma")
    return Place(address, word, int(avcs.anon_vma[row]))


broken_ones = pytest.mark.parametrize("name", BROKEN)


@broken_ones
def test_pointer_to_a_free_object(name: str) -> None:
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    unreached = allocation_of(capture.tables).unreached
    assert unreached is not None
    if not len(unreached.free_anon_vmas):
        pytest.skip("no anon_vma is free here")
    free = int(unreached.free_anon_vmas[0])
    findings = broken(capture, {place.word: free})
    assert brief(findings) == {("AV503", place.avc, place.word)}
    assert f"{free:#x}, in the page at " in findings[0].actual


@broken_ones
def test_pointer_into_an_object(name: str) -> None:
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    inside = place.anon_vma + 48
    findings = broken(capture, {place.word: inside})
    assert brief(findings) == {("AV502", place.avc, place.word)}
    assert f"{inside:#x}, in the page at {inside & -4096:#x}" in findings[0].actual


@broken_ones
def test_pointer_into_another_cache(name: str) -> None:
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    vma = int(capture.tables.vmas.address[7])
    findings = broken(capture, {place.word: vma})
    assert brief(findings) == {("AV501", place.avc, place.word)}
    assert "(anon_vma)" in findings[0].expected
    assert "(vm_area_struct)" in findings[0].actual


@broken_ones
def test_pointer_to_no_slab(name: str) -> None:
    # A page of a process, say: the struct of its page is not in the snapshot, so here it is one
    # that is, a tail's or a head's, with the mark of slabs taken off.
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    allocation = allocation_of(capture.tables)
    row = int(allocation.anon_vmas.slab[capture.tables.anon_vmas.address == place.anon_vma][0])
    page = int(allocation.slabs.address[row])
    findings = broken(capture, unmarked(capture.target, page))
    assert brief(findings) == {("AV501", page, None)}
    (finding,) = findings
    assert (finding.object_type, finding.code) == ("page", "AV501")
    assert "lie in a page that is no slab" in finding.message


def unmarked(target: Target, page: int) -> dict[int, int]:
    """The word of a ``struct page`` that says that it is a slab, so that it does not."""
    if b"NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)" in target.vmcoreinfo:
        field = target.layouts.field("page", "_mapcount")
        assert field is not None
        word = word_of(target, page + field.offset)
        # include/linux/page-flags.h: no type at all.
        return {page + field.offset: word & ~0xFFFFFFFF | 0xFFFFFFFF}
    return {page: word_of(target, page) & ~(1 << 9)}


@broken_ones
def test_slab_of_another_cache(name: str) -> None:
    """One word of the struct of a page, and all objects in that page are elsewhere."""
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    allocation = allocation_of(capture.tables)
    mine = allocation.anon_vmas.slab
    slab = int(mine[capture.tables.anon_vmas.address == place.anon_vma][0])
    page = int(allocation.slabs.address[slab])
    word = page + allocation.cache_offset
    (finding,) = broken(capture, {word: allocation.vmas.cache})
    assert (finding.code, finding.object_address, finding.word) == ("AV501", page, word)
    assert finding.object_type == ("page" if name.endswith("5.10") else "slab")
    assert finding.actual.startswith(f"{np.count_nonzero(mine == slab)} of them in ")


@broken_ones
def test_variable_of_a_cache(name: str) -> None:
    """All objects are where they were; one variable is wrong."""
    capture = BY_NAME[name]
    placement = allocation_of(capture.tables).anon_vmas
    assert word_of(capture.target, placement.variable) == placement.cache
    other = allocation_of(capture.tables).vmas.cache
    (finding,) = broken(capture, {placement.variable: other})
    assert (finding.code, finding.word) == ("AV501", placement.variable)
    assert finding.actual == hex(other)


@broken_ones
def test_object_in_use_is_free(name: str) -> None:
    """A slab's list of free objects, or a CPU's sheaf, has one that is in use."""
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    allocation = allocation_of(capture.tables)
    slab = int(allocation.anon_vmas.slab[capture.tables.anon_vmas.address == place.anon_vma][0])
    target = capture.target
    field = target.layouts.field("slab", "freelist") or target.layouts.field("page", "freelist")
    assert field is not None
    word = int(allocation.slabs.address[slab]) + field.offset
    findings = broken(capture, {word: place.anon_vma})
    assert ("AV503", place.anon_vma, None) in brief(findings)
    assert {finding.code for finding in findings} <= {"AV503", "AV504", "AV505"}


@broken_ones
def test_freelist_astray(name: str) -> None:
    capture = BY_NAME[name]
    allocation, target = allocation_of(capture.tables), capture.target
    field = target.layouts.field("slab", "freelist") or target.layouts.field("page", "freelist")
    assert field is not None
    slabs = allocation.slabs
    slab = int(slabs.address[slabs.cache == allocation.avcs.cache][1])
    base = int(slabs.base[slabs.address == slab][0])
    for wrong in (base + 8, base + 4096, 0x4141414141414148):
        (finding,) = broken(capture, {slab + field.offset: wrong})
        assert (finding.code, finding.object_address) == ("AV504", slab)
        assert (finding.word, finding.actual) == (slab + field.offset, hex(wrong))


@pytest.mark.parametrize("name", ["mixed-6.12", "mixed-7.3"])
def test_new_slab(name: str) -> None:
    """allocate_slab() names the cache before it sets up the objects and links them."""
    capture = BY_NAME[name]
    allocation, target = allocation_of(capture.tables), capture.target
    slab_era = resolve_slab_era(target.layouts, parse_vmcoreinfo(target.vmcoreinfo, target.path))
    assert not isinstance(slab_era, str)
    slab = int(allocation.slabs.address[allocation.slabs.cache == allocation.vmas.cache][0])
    # A page that holds nothing: one of KFENCE's whose object is free, with the struct of another.
    vmemmap = find_vmemmap(target, parse_vmcoreinfo(target.vmcoreinfo, target.path))
    assert vmemmap is not None
    frames = int(target.space.ram[-1, 1] - np.uint64(target.space.direct_map)) // 4096
    pages = np.uint64(vmemmap) + np.arange(frames, dtype=np.uint64) * np.uint64(64)
    rows, present = target.memory.gather(pages, 64)
    unused = present & (slab_era.slab.column(rows, "slab_cache") == allocation.vmas.cache)
    unused &= ~np.isin(pages, allocation.slabs.address)
    page = int(pages[unused][0])
    words = {page + at: word_of(target, slab + at) for at in range(0, 64, 8)}
    inuse, freelist = (page + slab_era.slab.offset(field) for field in ("inuse", "freelist"))
    # Of the counters, inuse is the lower half. The list's head is what was there before.
    words |= {inuse: words[inuse] & ~0xFFFF, freelist: 0x7FF123456}
    assert not broken(capture, words)
    words[inuse] |= 1
    assert ("AV504", page, freelist) in brief(broken(capture, words))


def word_of_cache(target: Target, cache: int, name: str) -> int:
    field = target.layouts.field("kmem_cache", name)
    assert field is not None
    rows, _ = target.memory.gather(np.array([cache + field.offset], dtype=np.uint64), field.size)
    return int.from_bytes(rows[0].tobytes(), "little")


@broken_ones
def test_free_object_is_written_to(name: str) -> None:
    """The count of a free anon_vma is raised: somebody has used it after it was freed."""
    capture = BY_NAME[name]
    unreached = allocation_of(capture.tables).unreached
    assert unreached is not None
    if not len(unreached.free_anon_vmas):
        pytest.skip("no anon_vma is free here")
    free = int(unreached.free_anon_vmas[0])
    word = free + capture.tables.era.anon_vma.offset("refcount")
    aligned = word & ~7
    value = word_of(capture.target, aligned) + (1 << 8 * (word - aligned))
    (finding,) = broken(capture, {aligned: value})
    assert (finding.code, finding.object_address, finding.word) == ("AV505", free, word)
    assert (finding.expected, finding.actual) == ("0", "1")


def cut_off(capture: Capture) -> tuple[int, int, dict[int, int]]:
    """A VMA that is alone with its anon_vma loses its list.

    :return: The addresses of its anon_vma and its AVC, and the words to change.
    """
    tables, era = capture.tables, capture.tables.era
    vmas, links = tables.vmas, tables.links
    alone = (vmas.chain_length == 1) & (vmas.active != NO_ROW)
    users = np.bincount(tables.nodes.anon_vma, minlength=len(tables.anon_vmas.address))
    vma = int(np.flatnonzero(alone & (users[vmas.active] == 1))[-1])
    head = int(vmas.chain_head[vma])
    words = {int(vmas.address[vma]) + era.vma.offset("anon_vma"): 0, head: head, head + 8: head}
    avc = int(tables.avcs.address[links.avc[links.vma == vma][0]])
    return int(tables.anon_vmas.address[vmas.active[vma]]), avc, words


@broken_ones
def test_leaked(name: str) -> None:
    """An anon_vma with an empty tree, and an AVC that is on no list and in no tree."""
    capture = BY_NAME[name]
    anon_vma, avc, words = cut_off(capture)
    rb_root = capture.tables.era.anon_vma.offset("rb_node")
    findings = broken(capture, {**words, anon_vma + rb_root: 0})
    assert {
        (finding.code, finding.object_type, finding.object_address) for finding in findings
    } == {
        ("AV506", "anon_vma", anon_vma),
        ("AV506", "anon_vma_chain", avc),
    }


@broken_ones
def test_family_that_no_mm_leads_to(name: str) -> None:
    """It is read as well, and verified as any other."""
    capture = BY_NAME[name]
    anon_vma, avc, words = cut_off(capture)
    memory = OverlayMemory(capture.target.memory, words)
    target = dataclasses.replace(capture.target, memory=memory)
    assert not audit(collect_audit(target)).findings_total
    tables = collect_audit(target, leaks=True)
    assert anon_vma in tables.anon_vmas.address
    found = {(finding.code, finding.object_address) for finding in audit(tables).findings()}
    # Its links disagree with the list that has lost it.
    assert found == {("AV101", avc)}


# ---- sheaves


@dataclasses.dataclass(frozen=True)
class Sheaf:
    """A CPU's sheaf of free anon_vmas: where its lock, its size and its last object are."""

    lock: int
    last: int


def a_sheaf(capture: Capture) -> Sheaf:
    target = capture.target
    cache = allocation_of(capture.tables).anon_vmas.cache

    def offset(struct: str, name: str) -> int:
        field = target.layouts.field(struct, name)
        assert field is not None
        return field.offset

    per_cpu = word_of(target, cache + offset("kmem_cache", "cpu_sheaves"))
    for cpu in range(capture.manifest["guest"]["cpus"]):
        at = per_cpu + word_of(target, target.symbols["__per_cpu_offset"] + 8 * cpu)
        at %= 1 << 64
        sheaf = word_of(target, at + offset("slub_percpu_sheaves", "main"))
        size = word_of(target, sheaf + offset("slab_sheaf", "size")) & 0xFFFFFFFF
        if size:
            objects = sheaf + offset("slab_sheaf", "objects")
            lock = at + offset("slub_percpu_sheaves", "lock.acquired")
            return Sheaf(lock, objects + 8 * (size - 1))
    raise AssertionError("no sheaf of anon_vmas has any")


@pytest.mark.parametrize("name", ["vmaops-7.2", "vmaops-7.3"])
def test_object_in_use_is_in_a_sheaf(name: str) -> None:
    capture, place = BY_NAME[name], a_place(BY_NAME[name])
    sheaf = a_sheaf(capture)
    findings = broken(capture, {sheaf.last: place.anon_vma})
    assert ("AV503", place.anon_vma, None) in brief(findings)
    # While the CPU works on it, the last one may be what was there before: free_to_pcs() may count
    # an object before it stores it.
    assert sheaf.lock % 8 == 0
    assert not broken(capture, {sheaf.last: place.anon_vma, sheaf.lock: 1})


# ---- KFENCE


FENCED = [capture for capture in CAPTURES if "kfence" in capture.manifest["word"]["facts"]]


def guarded(capture: Capture) -> dict[int, tuple[str, int]]:
    """Objects in KFENCE's pool: which table they are in, and the address of their metadata."""
    target, tables = capture.target, capture.tables
    size = target.layouts.size("kfence_metadata")
    if size is None or "__kfence_pool" not in target.symbols:
        return {}
    pool = word_of(target, target.symbols["__kfence_pool"])
    array = word_of(target, target.symbols["kfence_metadata"])
    found = {}
    for _, _, kind in KINDS:
        for address in getattr(tables, kind).address.tolist():
            if 8192 <= address - pool < 256 * 8192:
                found[address] = (kind, array + ((address - pool) // 8192 - 1) * size)
    return found


def test_some_objects_are_guarded() -> None:
    assert FENCED
    places = [address % 4096 for capture in FENCED for address in guarded(capture)]
    # At the beginning of a page, and at its end, where no object of a slab would be.
    assert 0 in places
    assert any(places)


@pytest.mark.parametrize("capture", FENCED, ids=lambda capture: capture.name)
def test_guarded_objects(capture: Capture) -> None:
    target = capture.target
    for address, (kind, metadata) in guarded(capture).items():
        placement = getattr(allocation_of(capture.tables), kind)
        row = int(np.flatnonzero(placement.address == address)[0])
        assert placement.state[row] == ObjectState.ALLOCATED
        state = target.layouts.field("kfence_metadata", "state")
        at = target.layouts.field("kfence_metadata", "addr")
        freed = target.layouts.enumerator("KFENCE_OBJECT_FREED")
        assert state is not None
        assert at is not None
        assert freed is not None
        word = (metadata + state.offset) & ~7
        shift = 8 * ((metadata + state.offset) - word)
        old = word_of(target, word)
        findings = broken(capture, {word: old & ~(0xFFFFFFFF << shift) | freed << shift})
        assert ("AV503", address) in {(f.code, f.object_address) for f in findings}
        elsewhere = address & -4096 | (0 if address % 4096 else 2048)
        findings = broken(capture, {metadata + at.offset: elsewhere})
        assert {finding.code for finding in findings} == {"AV502"}


def test_guarded_objects_without_the_pool() -> None:
    """Where the pool is not known, nothing is said of what may be in it."""
    capture = next(capture for capture in FENCED if guarded(capture))
    tables = collect_audit(without(capture.target, "__kfence_pool"))
    allocation = allocation_of(tables)
    for address, (kind, _) in guarded(capture).items():
        placement = getattr(allocation, kind)
        assert placement.state[placement.address == address] == ObjectState.UNKNOWN
    assert not audit(tables).findings_total


# ---- what is missing


def without(target: Target, *names: str) -> Target:
    symbols = {name: address for name, address in target.symbols.items() if name not in names}
    return dataclasses.replace(target, symbols=symbols)


class Partial:
    """A memory of which some words are missing."""

    def __init__(self, memory: Memory, first: int, last: int) -> None:
        self._memory, self._first, self._last = memory, first, last

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = self._memory.gather(addresses, size)
        lost = (addresses + np.uint64(size) > self._first) & (addresses < np.uint64(self._last))
        rows[lost] = 0
        return rows, present & ~lost

    def uncached(self) -> Memory:
        return self


def reasons(tables: Tables) -> dict[str, str | None]:
    results = audit(tables, select(["AV5"])).results
    assert not any(result.total for result in results)
    return {result.invariant.code: result.reason for result in results}


SOME = BY_NAME["forktree-6.12"]


def test_cache_by_majority() -> None:
    """Kernels without CONFIG_KALLSYMS_ALL do not tell where the variables are."""
    names = [variable for variable, _, _ in KINDS]
    allocation = allocation_of(collect_audit(without(SOME.target, *names)))
    for _, _, kind in KINDS:
        ours, theirs = getattr(allocation, kind), getattr(allocation_of(SOME.tables), kind)
        assert ours.cache == theirs.cache
        assert np.array_equal(ours.state, theirs.state)


def test_unknown_cpus() -> None:
    tables = collect_audit(without(SOME.target, "__per_cpu_offset"), leaks=True)
    said = reasons(tables)
    assert said["AV503"] == "which CPUs there are is not known"
    assert said["AV501"] is None


def test_number_of_cpus() -> None:
    """Where it is not known which CPUs there can be, how many will do."""
    target = without(SOME.target, "__cpu_possible_mask")
    assert SOME.manifest["guest"]["cpus"] == 2
    memory = Known(target.memory, target.symbols["nr_cpu_ids"], b"\x02\0\0\0")
    tables = collect_audit(dataclasses.replace(target, memory=memory), leaks=True)
    assert reasons(tables) == reasons(SOME.tables)


class Known(Partial):
    """A memory with some more bytes."""

    def __init__(self, memory: Memory, address: int, data: bytes) -> None:
        super().__init__(memory, 0, 0)
        self._address, self._data = address, np.frombuffer(data, dtype=np.uint8)

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = super().gather(addresses, size)
        if size == len(self._data):
            here = addresses == np.uint64(self._address)
            rows[here], present[here] = self._data, True
        return rows, present


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        *(("mixed-6.12", variable) for variable, _, _ in KINDS),
        *(("mixed-6.12", variable) for variable in ("__kfence_pool", "kfence_metadata")),
        *(("mixed-7.3", variable) for variable in ("nr_node_ids", "__cpu_possible_mask")),
        ("forktree-5.10", "vmemmap_base"),
    ],
)
def test_variable_is_not_in_the_target(name: str, variable: str) -> None:
    """Something is not looked at for want of it, so that the answer is incomplete."""
    target = BY_NAME[name].target
    at = target.symbols[variable]
    memory = Partial(target.memory, at, at + 8)
    tables = collect_audit(dataclasses.replace(target, memory=memory), leaks=True)
    assert not audit(tables).findings_total
    assert (at, variable) in zip(tables.holes.address, tables.holes.needed_for, strict=True)
    assert not tables.complete


def test_unknown_vmemmap() -> None:
    target = without(SOME.target, "vmemmap_base")
    facts = SOME.target.vmcoreinfo.replace(b"SYMBOL(vmemmap)", b"SYMBOL(xxxxxxx)")
    tables = collect_audit(dataclasses.replace(target, vmcoreinfo=facts))
    assert set(reasons(tables).values()) == {"where struct page is (vmemmap) is not known"}
    assert tables.complete


def test_no_structs_of_pages() -> None:
    """As in a dump that left out all of vmemmap: nothing was asked for in vain."""
    facts = parse_vmcoreinfo(SOME.target.vmcoreinfo, SOME.name)
    start = find_vmemmap(SOME.target, facts)
    assert start is not None
    memory = Partial(SOME.target.memory, start, start + (1 << 40))
    tables = collect_audit(dataclasses.replace(SOME.target, memory=memory), leaks=True)
    said = "the structs of pages (vmemmap) are not in this target"
    assert set(reasons(tables).values()) == {said}
    assert tables.complete


def test_some_structs_of_pages_are_missing() -> None:
    slabs = allocation_of(SOME.tables).slabs
    page = int(slabs.address[slabs.cache == allocation_of(SOME.tables).avcs.cache][3])
    memory = Partial(SOME.target.memory, page, page + 64)
    tables = collect_audit(dataclasses.replace(SOME.target, memory=memory))
    states = allocation_of(tables).avcs.state
    assert set(states.tolist()) == {ObjectState.ALLOCATED, ObjectState.UNKNOWN}
    assert not audit(tables).findings_total
    holes = dict(zip(tables.holes.address.tolist(), tables.holes.needed_for.tolist(), strict=True))
    assert holes == {page: "page"}


def test_snapshot_of_before() -> None:
    """A snapshot says which walks its words serve."""
    old = dataclasses.replace(SOME.target, walks=frozenset({"audit", "file names"}))
    assert set(reasons(collect_audit(old, leaks=True)).values()) == {"not in this snapshot"}
    some = dataclasses.replace(SOME.target, walks=frozenset({"audit", "slabs"}))
    said = reasons(collect_audit(some, leaks=True))
    assert said["AV501"] is None
    assert said["AV506"] == "not in this snapshot"


# ---- no input must break it


@pytest.mark.parametrize("name", ["mixed-6.12", "forktree-5.10", "vmaops-7.3"])
def test_any_word_may_be_wrong(name: str) -> None:
    """Of all words that only slabs are read for."""
    capture = BY_NAME[name]
    target, tables = capture.target, dataclasses.replace(capture.tables, allocation=None)
    recording = RecordingMemory(target.memory)
    collect_slabs(dataclasses.replace(target, memory=recording), tables, leaks=True)
    ranges = recording.ranges()
    words = [at for low, high in ranges.tolist() for at in range(low, high, 8)]
    rng = random.Random(name)
    ours = [int(rng.choice(words)) for _ in range(20)]
    values = (0, 1, 8, 2**64 - 1, 1 << 63, 0x7FFF << 16 | 0x7FFF, 0xDEAD000000000100, *ours)
    # Structs of pages are most of it; all else comes as often.
    start = find_vmemmap(target, parse_vmcoreinfo(target.vmcoreinfo, name))
    assert start is not None
    pages = [at for at in words if start <= at < start + (1 << 32)]
    others = [at for at in words if not start <= at < start + (1 << 32)]
    for turn in range(few_or_all(40, 120)):
        places = rng.sample(others if turn % 2 else pages, rng.choice([1, 1, 5]))
        memory = OverlayMemory(target.memory, {at: rng.choice(values) for at in places})
        changed = dataclasses.replace(target, memory=memory)
        audited = audit(collect_slabs(changed, tables, leaks=True), select(["AV5"]))
        assert not audited.failures
        list(audited.findings())


class Moving:
    """Memory that runs on: whoever looks at it anew sees other words.

    :param views: Words of each view; the first is this one, the others those of ``uncached()``.
    """

    def __init__(self, memory: Memory, views: list[dict[int, int]]) -> None:
        self._below, self._later = memory, iter(views[1:])
        self._last = views[0]
        self._seen = OverlayMemory(memory, self._last)

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        return self._seen.gather(addresses, size)

    def uncached(self) -> Memory:
        self._last = next(self._later, self._last)
        return OverlayMemory(self._below, self._last)


@pytest.mark.parametrize("name", ["forktree-6.12", "forktree-5.10", "mixed-7.3"])
def test_a_list_of_free_objects_that_changes_while_it_is_read(name: str) -> None:
    """The list leads to an object in use, as far as one view tells, and does not when all of it is
    read anew; or it is never the same twice, whatever it says. One that rests is believed."""
    capture = BY_NAME[name]
    allocation, target = allocation_of(capture.tables), capture.target
    field = target.layouts.field("slab", "freelist") or target.layouts.field("page", "freelist")
    assert field is not None
    place = allocation.avcs
    slabs = allocation.slabs
    row = int(np.flatnonzero(slabs.cache[place.slab] == place.cache)[0])
    used, slab = int(place.address[row]), int(slabs.address[place.slab[row]])
    word = slab + field.offset
    wrong, right = {word: used}, {word: word_of(target, word)}
    counters = {word + 8: word_of(target, word + 8) ^ 1}

    def found(*views: dict[int, int]) -> set[str]:
        memory = Moving(target.memory, list(views))
        live = dataclasses.replace(target, memory=memory, live=True)
        return {finding.code for finding in audit(collect_audit(live)).findings()}

    assert not found({}, {})
    assert "AV503" in found(wrong, wrong)
    # Such a list is read in three views: its beginning, its links, its beginning once more.
    assert not found(wrong, right, right, right)
    assert not found(wrong, wrong, wrong, right)
    assert not found(wrong, wrong, wrong, {**wrong, **counters})
