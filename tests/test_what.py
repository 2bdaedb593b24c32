"""What addresses are, and which words of a text are asked for."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import anonvma_inspect.target
from anonvma_inspect.analysis.identify import Identity, Kind, identify
from anonvma_inspect.cli.oops import words_of
from anonvma_inspect.collect import collect_audit, collect_locks, collect_pages
from anonvma_inspect.collect.look_up import look_up
from anonvma_inspect.collect.slab_lookup import look_up_objects
from anonvma_inspect.tables import NO_ROW, Locks, ObjectState, Tables
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.memory import OverlayMemory, U64Column
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

from .captures import CAPTURES, FIXTURES, KERNELS, Capture
from .clirun import Cli

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
CORE = str(CAPTURE.core)
PAGES = next(capture for capture in CAPTURES if capture.name == "pages-6.1")
_KERNELS = pytest.mark.parametrize("capture", KERNELS, ids=lambda capture: capture.name)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def column(*addresses: int) -> U64Column:
    return np.array(addresses, dtype=np.uint64)


def what(capture: Capture, *addresses: int) -> list[Identity]:
    asked = column(*addresses)
    looked_up = look_up(capture.target, capture.tables, asked)
    return identify(capture.tables, asked, looked_up)


# --- texts ---------------------------------------------------------------------------------------

# As these kernels print them; the words are made up.
X86 = """\
[   12.345678] BUG: unable to handle page fault for address: ffffdead00000012
[   12.345679] RIP: 0010:anon_vma_clone+0x6d/0x1a0
[   12.345680] Code: 48 8b 45 08 <48> 8b 50 28 4c 89 e7 e8 12 34 56 78 ff ff ff ff ff ff ff ff
[   12.345681] RSP: 0018:ffffb1a2c0a3fd20 EFLAGS: 00010246
[   12.345682] RAX: dead000000000100 RBX: ffff9d5a01234560 RCX: 0000000000000001
[   12.345683] R10: 0000000000000000 R11: 6b6b6b6b6b6b6b9b R12: ffff9d5a01234560
[   12.345684] FS:  00007f0000000000(0000) GS:ffff9d5a3ec00000(0000) knlGS:0000000000000000
[   12.345685] CR2: ffffdead00000012 CR3: 0000000001234002
[   12.345686]  ? anon_vma_fork+0x12/0x34 page:ffffea0000112240 vma 0xffff9d5a0abcdef0
"""
ARM64 = """\
[    9.000001] pc : unlink_anon_vmas+0x4c/0x1f0
[    9.000002] lr : free_pgtables+0x88/0x104
[    9.000003] sp : ffff80000a1b3c40
[    9.000004] x29: ffff80000a1b3c40 x28: ffff0000021d8000 x27: 0000000000000000
[    9.000005] x2 : dead000000000122 x1 : ffff0000021d8000 x0 : 0000000000000000
"""


def test_words_of_an_oops_of_x86() -> None:
    words, total = words_of(X86, 100)
    assert total == len(words)
    assert [(word.address, word.labels) for word in words] == [
        (0xFFFFDEAD00000012, ("address", "CR2")),
        (0xFFFFB1A2C0A3FD20, ("RSP",)),
        (0xDEAD000000000100, ("RAX",)),
        (0xFFFF9D5A01234560, ("RBX", "R12")),
        (0x6B6B6B6B6B6B6B9B, ("R11",)),
        (0xFFFF9D5A3EC00000, ("GS",)),
        (0xFFFFEA0000112240, ("page",)),
        (0xFFFF9D5A0ABCDEF0, ()),
    ]


def test_words_of_an_oops_of_arm64() -> None:
    words, _ = words_of(ARM64, 100)
    assert [(word.address, word.labels) for word in words] == [
        (0xFFFF80000A1B3C40, ("sp", "x29")),
        (0xFFFF0000021D8000, ("x28", "x1")),
        (0xDEAD000000000122, ("x2",)),
    ]


def test_words_are_bounded() -> None:
    text = " ".join(f"{2**64 - 5000 - number:016x}" for number in range(50))
    words, total = words_of(text, 7)
    assert (len(words), total) == (7, 50)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff" * 40,
        "0xffffffffffffffffff",
        "gffff888000000000",
        "ffff888000000000g",
        "FFFF888000000000",
        "RAX: fffffffffffffdfe",
        "_ffff888000000000",
        ": : :" * 1000,
        "a" * 100_000,
        "R: " * 50_000,
    ],
)
def test_what_is_no_word(text: str) -> None:
    assert words_of(text, 10) == ([], 0)


# --- objects -------------------------------------------------------------------------------------


@_KERNELS
def test_objects_of_the_tables(capture: Capture) -> None:
    tables = capture.tables
    era = tables.era
    avc = len(tables.avcs.address) // 2
    vma = int(tables.avcs.vma_row[avc])
    anon_vma = int(tables.avcs.anon_vma_row[avc])
    at = int(tables.avcs.address[avc])
    rb, head, mm, task, list_head = what(
        capture,
        at + era.avc.offset("rb"),
        at + era.avc.offset("same_vma"),
        int(tables.mms.address[0]),
        int(tables.tasks.address[0]) + 9,
        int(tables.vmas.address[vma]) + era.vma.offset("anon_vma_chain"),
    )
    for identity, name in ((rb, "rb"), (head, "same_vma")):
        assert (identity.struct, identity.start, identity.field) == (era.avc.struct, at, name)
        assert (identity.vma, identity.anon_vma) == (vma, anon_vma)
        assert identity.met
        assert identity.state is ObjectState.ALLOCATED
    assert (mm.struct, mm.start, mm.mm) == ("mm_struct", int(tables.mms.address[0]), 0)
    assert (task.struct, task.start) == ("task_struct", int(tables.tasks.address[0]))
    assert (list_head.struct, list_head.field) == ("vm_area_struct", "anon_vma_chain")
    assert list_head.vma == vma


@_KERNELS
def test_free_objects(capture: Capture) -> None:
    """Those that are on lists of free objects, by the audit's own reading."""
    tables = capture.tables
    assert tables.allocation is not None
    assert tables.allocation.unreached is not None
    free = tables.allocation.unreached.free_anon_vmas[:20]
    if not len(free):
        pytest.skip("no anon_vma is free here")
    for identity, address in zip(what(capture, *(free + np.uint64(8)).tolist()), free, strict=True):
        assert (identity.struct, identity.start) == ("anon_vma", int(address))
        assert identity.state is ObjectState.FREE
        assert not identity.met
        assert identity.cache == tables.allocation.anon_vmas.cache


def test_every_object_of_the_tables_is_found_in_its_slab() -> None:
    """The look-up by address agrees with that by table."""
    tables = CAPTURE.tables
    assert tables.allocation is not None
    for placement, record in (
        (tables.allocation.vmas, tables.era.vma),
        (tables.allocation.avcs, tables.era.avc),
        (tables.allocation.anon_vmas, tables.era.anon_vma),
    ):
        inside = np.uint64(record.size - 1)
        places = look_up_objects(CAPTURE.target, placement.address + inside)
        assert places.not_read is None
        assert (places.start == placement.address).all()
        assert (places.state == placement.state).all()
        assert (places.cache == np.uint64(placement.cache)).all()
        assert places.names[placement.cache]


def test_objects_of_caches_that_are_merged() -> None:
    """What lies in the cache of AVCs and is none."""
    tables = CAPTURE.tables
    assert tables.allocation is not None
    assert tables.allocation.unreached is not None
    unreached = tables.allocation.unreached
    strangers = unreached.avcs[~unreached.avc_linked][:10]
    assert len(strangers)
    for identity in what(CAPTURE, *strangers.tolist()):
        assert identity.kind is Kind.OBJECT
        assert identity.struct is None
        assert identity.note is not None


def test_ksm() -> None:
    tables = PAGES.tables
    records = tables.ksm.records
    assert records is not None
    item, node = what(
        PAGES, int(tables.rmap_items.address[0]) + 8, int(tables.stable_nodes.address[0])
    )
    assert (item.struct, node.struct) == (records.rmap_item.struct, records.stable_node.struct)
    assert item.anon_vma == tables.rmap_items.anon_vma_row[0]


DEEP = [capture for capture in CAPTURES if capture.name.startswith("deep-pages-")]


@pytest.mark.parametrize("capture", DEEP, ids=lambda capture: capture.name)
def test_folios(capture: Capture) -> None:
    """Their struct page, and the memory that they are."""
    tables = collect_pages(capture.target, capture.tables)
    assert tables.pages is not None
    folios = tables.pages.folios
    row = int(np.flatnonzero(folios.anon_vma != NO_ROW)[0])
    memory = tables.space.direct_map + int(folios.pfn[row]) * tables.era.page_size + 0x123
    page, inside = what(capture, int(folios.address[row]) + 8, memory % 2**64)
    for identity in (page, inside):
        assert identity.kind is Kind.FOLIO
        assert identity.anon_vma == folios.anon_vma[row]
        assert identity.state is not ObjectState.ALLOCATED


@pytest.mark.parametrize("capture", DEEP, ids=lambda capture: capture.name)
def test_struct_pages(capture: Capture) -> None:
    """Of tails, too, of which a snapshot has one word; and of what is no anonymous memory."""
    tables = collect_pages(capture.target, capture.tables)
    assert tables.pages is not None
    folios, space = tables.pages.folios, tables.space
    large = int(np.flatnonzero(folios.pages > 1)[0])
    head, pfn = int(folios.address[large]), int(folios.pfn[large])
    size = capture.target.layouts.size("page")
    assert size is not None
    # Where struct page of the frame is that the first anon_vma lies in: as far from that one's.
    at = (int(tables.anon_vmas.address[0]) - space.direct_map) % 2**64
    frame = at // tables.era.page_size
    slab = head + (frame - pfn) * size
    tail, other, inside = what(capture, head + size, slab, slab + 9)
    assert (tail.kind, tail.folio >= 0, tail.head) == (Kind.FOLIO, True, head)
    assert (tail.page, tail.start, tail.anon_vma) == (pfn + 1, head + size, folios.anon_vma[large])
    for identity in (other, inside):
        assert (identity.kind, identity.struct) == (Kind.PAGE, "page")
        assert (identity.page, identity.start, identity.folio) == (frame, slab, NO_ROW)
    # Below that of frame 0, and of a frame that no RAM has.
    first = head - pfn * size
    end = max(int(end) for _, end in space.ram) - space.direct_map
    for address in (first - 1, first + (end // tables.era.page_size + 1) * size):
        (identity,) = what(capture, address)
        assert identity.kind is Kind.ELSEWHERE
        assert (identity.page, identity.start) == (-1, 0)


def test_struct_pages_without_page_data(cli: Cli) -> None:
    """In a snapshot that has none, it is known all the same which page frame's it is."""
    tables = CAPTURE.tables
    vmemmap = find_vmemmap(CAPTURE.target, parse_vmcoreinfo(CAPTURE.target.vmcoreinfo, ""))
    size = CAPTURE.target.layouts.size("page")
    assert vmemmap is not None
    assert size is not None
    frame = (int(tables.mms.address[0]) - tables.space.direct_map) % 2**64 >> 12
    address = vmemmap + frame * size + 8
    (entry,) = answer(cli, hex(address))["addresses"]
    assert entry["kind"] == "page"
    assert entry["object"] == {"type": "page", "address": hex(address - 8)}
    assert (entry["offset"], entry["page"]) == (8, {"pfn": frame, "head": None})
    text = cli("-q", "-c", CORE, "what", hex(address)).out
    # rmap cannot tell of it.
    assert text == f"{address:#x}  struct page + 0x8 of page frame {frame:#x}\n"


def test_struct_pages_in_words(cli: Cli) -> None:
    capture = next(capture for capture in DEEP if capture.name == "deep-pages-6.12")
    core = str(capture.core)
    # A page in the middle of a huge one; rmap says the same.
    text = cli("-q", "-c", core, "what", "ffabf076400d8040").out
    assert "struct page of page frame 0x3601, in a folio of 512 pages, " in text
    assert "    see: anonvma-inspect rmap 0x3601\n" in text
    rmap = cli("-q", "-c", core, "rmap", "0x3601").out
    assert rmap.startswith("page frame 0x3601, struct page 0xffabf076400d8040\n")


def stacks_of(name: str) -> tuple[Target, Tables, Locks]:
    target = open_target(TargetOptions(core=str(FIXTURES / "locks" / f"{name}.core.xz")))
    tables = collect_locks(target, collect_audit(target))
    assert tables.locks is not None
    return target, tables, tables.locks


@pytest.mark.parametrize("name", ["locks-6.12", "locks-6.12-arm64", "locks-5.10"])
def test_kernel_stacks(name: str) -> None:
    """Where the waiters of locks are: each is queued with a struct on its own stack."""
    target, tables, locks = stacks_of(name)
    asked = locks.waiters.address
    assert len(asked) > 2
    looked_up = look_up(target, tables, asked)
    for identity, task in zip(
        identify(tables, asked, looked_up), locks.waiters.task.tolist(), strict=True
    ):
        assert identity.kind is Kind.STACK
        assert looked_up.stacks.pid[identity.stack] == locks.tasks.pid[task]
        assert looked_up.stacks.comm[identity.stack] == locks.tasks.comm[task]
    # What is not between its ends.
    start, size = locks.tasks.stack, np.uint64(locks.tasks.stack_size)
    rows = looked_up.stacks.find(np.concatenate([start, start + size - np.uint64(1)]))
    assert (looked_up.stacks.start[rows] == np.concatenate([start, start])).all()
    beside = looked_up.stacks.find(np.concatenate([start - np.uint64(1), start + size]))
    found = np.where(beside == NO_ROW, np.uint64(0), looked_up.stacks.start[beside])
    assert (found != np.concatenate([start, start])).all()
    assert len(looked_up.stacks.find(asked[:0])) == 0


def test_kernel_stacks_in_words(cli: Cli) -> None:
    _, _, locks = stacks_of("locks-6.12")
    pid, comm = int(locks.tasks.pid[0]), locks.tasks.comm[0].decode()
    address = hex(int(locks.tasks.stack[0]) + 0x1234)
    core = str(FIXTURES / "locks" / "locks-6.12.core.xz")
    ran = cli("-q", "-c", core, "what", address)
    assert ran.out.splitlines()[0] == f"{address}  in the kernel stack of PID {pid} ({comm})"
    # Of a kernel thread a snapshot does not have the name.
    target, tables, _ = stacks_of("locks-6.12")
    stacks = look_up(target, tables, column(1)).stacks
    nameless = int(np.flatnonzero(stacks.comm == b"")[0])
    ran = cli("-q", "-c", core, "what", hex(int(stacks.start[nameless])))
    assert ran.out.splitlines()[0].endswith(f" stack of PID {int(stacks.pid[nameless])}")
    ran = cli("-q", "-c", core, "--format", "json", "what", address)
    (entry,) = json.loads(ran.out)["addresses"]
    assert (entry["kind"], entry["where"]["pid"], entry["where"]["comm"]) == ("stack", pid, comm)


def test_one_bit_changed() -> None:
    """Only of what is nowhere: in RAM, addresses that differ in one bit are no wonder."""
    tables = CAPTURE.tables
    at = int(tables.anon_vmas.address[7])
    field = tables.era.anon_vma.offset("parent")
    high, inside, twice, low = what(
        CAPTURE, at ^ 1 << 46, at + field ^ 1 << 60, at ^ 1 << 46 ^ 1 << 50, at ^ 1 << 3
    )
    for identity, bit, offset in ((high, 46, 0), (inside, 60, field)):
        assert identity.kind in (Kind.ELSEWHERE, Kind.IMPOSSIBLE)
        assert identity.one_bit_from is not None
        other, which = identity.one_bit_from
        assert (other.struct, other.start, other.address, which) == (
            "anon_vma",
            at,
            at + offset,
            bit,
        )
    assert twice.kind in (Kind.ELSEWHERE, Kind.IMPOSSIBLE)
    assert (twice.one_bit_from, low.one_bit_from) == (None, None)
    # What can be read is somewhere, whatever that is.
    asked = column(at ^ 1 << 46)
    looked_up = look_up(CAPTURE.target, tables, asked)
    assert not looked_up.readable.any()
    looked_up = dataclasses.replace(looked_up, readable=np.array([True]))
    assert identify(tables, asked, looked_up)[0].one_bit_from is None


def test_the_bit_between_ram_and_all_else() -> None:
    """On arm64 with addresses of 48 bits, PAGE_OFFSET is 0xffff000000000000, and PAGE_END
    0xffff800000000000: where stacks and modules are, each address is one bit away from RAM's.
    """
    capture = next(capture for capture in CAPTURES if capture.name == "forkchain-6.1-arm64")
    at = int(capture.tables.anon_vmas.address[7])
    assert at >> 47 == 0xFFFF << 1
    above, beside = what(capture, at ^ 1 << 47, at ^ 1 << 46)
    assert above.one_bit_from is None
    assert beside.one_bit_from is not None


def test_folios_in_words(cli: Cli) -> None:
    capture = next(capture for capture in DEEP if capture.name == "deep-pages-6.12")
    tables = collect_pages(capture.target, capture.tables)
    assert tables.pages is not None
    folios = tables.pages.folios
    for mapcount, words in ((1, "mapped 1 time, "), (2, "mapped 2 times, ")):
        row = int(np.flatnonzero(folios.mapcount == mapcount)[0])
        out = cli("-q", "-c", str(capture.core), "what", hex(int(folios.address[row]))).out
        assert words in out


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        (0, Kind.NULL),
        (0x7FFF_FFFF_F000, Kind.USER),
        (0xDEAD000000000100, Kind.POISON),
        (0xDEAD000000000122, Kind.POISON),
        (0xDEAD000000000100 - 16, Kind.POISON),
        (0x6B6B6B6B6B6B6B6B + 0x28, Kind.POISON),
        (0x8000_0000_0000_0000, Kind.IMPOSSIBLE),
        (2**64 - 1, Kind.ERROR),
        (2**64 - 4095, Kind.ERROR),
        (2**64 - 4096, Kind.ELSEWHERE),
        (0xFFFF_FFFF_8100_0000, Kind.ELSEWHERE),
    ],
)
def test_what_is_no_object(address: int, kind: Kind) -> None:
    (identity,) = what(CAPTURE, address)
    assert identity.kind is kind
    assert identity.start == 0


def test_which_poison() -> None:
    first, second = what(CAPTURE, 0xDEAD000000000110, 0xDEAD000000000122)
    assert first.note is not None
    assert second.note is not None
    assert first.note.startswith("LIST_POISON1")
    assert second.note.startswith("LIST_POISON2")


def test_memory_that_is_nothing_known() -> None:
    """RAM in a hole of the snapshot."""
    ram = CAPTURE.tables.space.ram
    (identity,) = what(CAPTURE, int(ram[0][0]) + 0x1000)
    assert identity.kind is Kind.MEMORY


def test_without_slabs() -> None:
    target = dataclasses.replace(CAPTURE.target, walks=frozenset(["audit"]))
    asked = column(int(CAPTURE.tables.avcs.address[0]), 2**64 - 2**20)
    looked_up = look_up(target, CAPTURE.tables, asked)
    assert looked_up.objects.not_read == "not in this snapshot"
    found, nothing = identify(CAPTURE.tables, asked, looked_up)
    assert (found.struct, found.state) == ("anon_vma_chain", ObjectState.UNKNOWN)
    assert nothing.kind is Kind.ELSEWHERE


# --- the command ---------------------------------------------------------------------------------


def answer(cli: Cli, *arguments: str, code: int = 0) -> Any:
    ran = cli("-q", "-c", CORE, "--format", "json", "what", *arguments)
    assert (ran.code, ran.err) == (code, "")
    return json.loads(ran.out)


Serve = Callable[[Target], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    return lambda target: monkeypatch.setattr(
        anonvma_inspect.target, "open_target", lambda options: target
    )


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda text: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))


def test_answer(cli: Cli) -> None:
    tables = CAPTURE.tables
    avc = 5
    at = int(tables.avcs.address[avc])
    vma = int(tables.avcs.vma_row[avc])
    (entry,) = answer(cli, f"{at + 0x20:x}")["addresses"]
    assert entry["object"] == {"type": "anon_vma_chain", "address": hex(at)}
    assert (entry["offset"], entry["field"], entry["state"]) == (0x20, "rb", "allocated")
    assert entry["where"]["vma"] == hex(int(tables.vmas.address[vma]))
    task = int(tables.mms.task[tables.vmas.mm[vma]])
    assert entry["where"]["pid"] == int(tables.tasks.tgid[task])
    anon_vma = int(tables.avcs.anon_vma_row[avc])
    assert entry["anon_vma"] == hex(int(tables.anon_vmas.address[anon_vma]))
    assert entry["root"] == hex(int(tables.anon_vmas.root[anon_vma]))
    assert entry["findings"] == []


def test_findings_that_touch_it(cli: Cli, serve: Serve) -> None:
    """One word too high: it is told of the anon_vma, and of a pointer into it; of nothing else."""
    tables = CAPTURE.tables
    row, other = 3, 4
    at = int(tables.anon_vmas.address[row])
    offset = tables.era.anon_vma.offset("num_active_vmas")
    value = int(tables.anon_vmas.num_active_vmas[row])
    serve(broken(tables, at + offset, value + 1))
    document = answer(cli, hex(at), hex(at + 16), hex(int(tables.anon_vmas.address[other])), code=0)
    codes = [[finding["code"] for finding in e["findings"]] for e in document["addresses"]]
    assert codes == [["AV402"], ["AV402"], []]
    assert document["findings_total"] == 1
    text = cli("-q", "-c", CORE, "what", hex(at)).out
    assert "    AV402 num-active-vmas: " in text
    assert text.endswith("1 finding in this target; see: anonvma-inspect audit\n")


def broken(tables: Tables, address: int, value: int) -> Target:
    memory = OverlayMemory(CAPTURE.target.memory, {address: value})
    return dataclasses.replace(CAPTURE.target, memory=memory)


def test_findings_by_the_word_that_is_wrong(cli: Cli, serve: Serve) -> None:
    """An AVC that names another's anon_vma: whatever the finding is about, the word tells of it."""
    tables = CAPTURE.tables
    avc = int(np.flatnonzero(tables.avcs.anon_vma_row == 3)[0])
    at = int(tables.avcs.address[avc])
    word = at + tables.era.avc.offset("anon_vma")
    serve(broken(tables, word, int(tables.anon_vmas.address[9])))
    (entry,) = answer(cli, hex(word))["addresses"]
    assert entry["field"] == "anon_vma"
    assert entry["findings"]
    collected = collect_audit(broken(tables, word, int(tables.anon_vmas.address[9])))
    assert collected.avcs.anon_vma_row[avc] == 9


def test_an_oops_from_standard_input(cli: Cli, type_in: Callable[[bytes], None]) -> None:
    at = int(CAPTURE.tables.anon_vmas.address[0])
    type_in(f"RBX: {at:016x} RCX: 0000000000000001\nRDX: {at:016x}\xff\n".encode())
    entries = answer(cli, "-")["addresses"]
    assert [(entry["address"], entry["labels"]) for entry in entries] == [(hex(at), ["RBX", "RDX"])]


OOPSES = sorted((FIXTURES / "oops").glob("*.json"))


@pytest.mark.parametrize("manifest", OOPSES, ids=lambda path: path.stem)
def test_a_real_oops(cli: Cli, type_in: Callable[[bytes], None], manifest: Path) -> None:
    """In a guest, one bit of an AVC's anon_vma was changed, and the kernel came upon it.

    Which object that is, and what stood in it, the lab wrote down before the kernel did.
    """
    word = json.loads(manifest.read_text())
    changed = word["changed"]
    type_in("\n".join(word["oops"]).encode())
    core = str(manifest.with_suffix(".core.xz"))
    ran = cli("-q", "-c", core, "--format", "json", "what", "-")
    assert (ran.code, ran.err) == (0, "")
    entries = json.loads(ran.out)["addresses"]
    by_address = {entry["address"]: entry for entry in entries}
    # The kernel stumbled over the wrong pointer, and says so in CR2 (x86-64's).
    wrong = by_address[changed["new"]]
    assert {"CR2", "address"} <= set(wrong["labels"])
    assert (wrong["object"], wrong["kind"]) == (None, "elsewhere")
    old, new = int(changed["old"], 16), int(changed["new"], 16)
    assert wrong["one_bit_from"] == {
        "address": changed["old"],
        "bit": (old ^ new).bit_length() - 1,
        "object": {"type": "anon_vma", "address": changed["old"]},
    }
    assert (old ^ new).bit_count() == 1
    # It had the AVC in a register, and a pointer into it.
    avc = by_address[changed["object"]]
    assert avc["object"] == {"type": "anon_vma_chain", "address": changed["object"]}
    inside = [
        entry
        for entry in entries
        if entry["object"] == avc["object"] and entry["address"] != changed["object"]
    ]
    assert {entry["field"] for entry in inside} == {"same_vma"}
    # And the root, which it had locked, and the head of the VMA's list.
    root = by_address[changed["old"]]
    assert (root["object"]["type"], root["root"]) == ("anon_vma", changed["old"])
    heads = [entry for entry in entries if entry["field"] == "anon_vma_chain"]
    assert [entry["object"]["address"] for entry in heads] == [avc["where"]["vma"]]
    assert heads[0]["root"] == changed["old"]
    # What touches the AVC, what is inside, and the pointer itself, is about that pointer.
    assert {entry["root"] for entry in (avc, *inside)} == {changed["old"]}
    for entry in (avc, *inside, wrong):
        assert {finding["actual"] for finding in entry["findings"]} == {changed["new"]}
    assert {entry["state"] for entry in (avc, root, heads[0])} == {"allocated"}


@pytest.mark.parametrize("manifest", OOPSES, ids=lambda path: path.stem)
def test_numbers_attract_no_findings(cli: Cli, manifest: Path) -> None:
    """Words are expected to be 0, small, or an error number; that is nothing about those asked."""
    core, changed = (
        str(manifest.with_suffix(".core.xz")),
        json.loads(manifest.read_text())["changed"],
    )
    asked = ("0", "1", "8", "4c2000", "ffffffffffffffea", "dead000000000100", changed["new"])
    ran = cli("-q", "-c", core, "--format", "json", "what", *asked)
    document = json.loads(ran.out)
    assert document["findings_total"] == 2
    codes = [[each["code"] for each in entry["findings"]] for entry in document["addresses"]]
    assert codes == [*([[]] * 6), ["AV202"]]
    # Which object that is, and what was expected of it, is told.
    (line,) = [
        line
        for line in cli("-q", "-c", core, "what", changed["new"]).out.splitlines()
        if "AV202" in line
    ]
    assert line.endswith(
        f" (anon_vma_chain {changed['object']}: expected {changed['old']}, actual {changed['new']})"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("what", "xyz"), "'xyz' is no address"),
        (("what", "-"), "there is no address of the kernel's in that text"),
        (("what",), "Missing argument"),
    ],
)
def test_wrong_usage(
    cli: Cli, type_in: Callable[[bytes], None], arguments: tuple[str, ...], message: str
) -> None:
    type_in(b"nothing here: 0x10\n")
    assert message in cli.fails(2, "-c", CORE, *arguments)


def test_more_words_than_are_taken(
    cli: Cli, type_in: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anonvma_inspect.cli.what._MAX_WORDS", 3)
    type_in(b"\n".join(b"%016x" % (2**64 - 5000 - number) for number in range(9)))
    ran = cli("-c", CORE, "what", "-")
    assert ran.out.count("in the kernel, but in no slab") == 3
    assert "9 words in that text: the first 3 are taken" in ran.err
