"""Pages that a dump's filter left out: found in the dump's own headers, and never read as zero."""

from __future__ import annotations

import struct

import drgn
import numpy as np
import pytest
from drgn import Object
from drgn.helpers import ValidationError
from numpy.typing import NDArray

from anonvma_inspect.collect import collect
from anonvma_inspect.helpers import open_core, validate_vma_anon, vma_anon_vma
from anonvma_inspect.helpers.finders import enable_finders
from anonvma_inspect.invariants.catalogue import audit
from anonvma_inspect.target import TargetOptions, open_target, program
from anonvma_inspect.target.elf import ElfCore, LoadSegments, parse_core
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.left_out import PagesLeftOut, parse_kdump, unwritten

from .captures import CAPTURES
from .dumps import PlainDump, make_plain_dump

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")
PAGE = 4096
BASE = 0xFFFF888000000000


def words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


# --- kdump ---------------------------------------------------------------------------------------


def kdump(level: int, there: bytes, dumped: bytes) -> NDArray[np.uint8]:
    """The headers and bitmaps, laid out by makedumpfile's ``diskdump_mod.h``: a block a piece."""
    head = bytearray(PAGE)
    head[:8] = b"KDUMP   "
    # block_size, sub_hdr_size, bitmap_blocks.
    struct.pack_into("<III", head, 428, PAGE, 1, 2)
    # phys_base, dump_level, split.
    sub_header = struct.pack("<Qii", 0, level, 0).ljust(PAGE, b"\0")
    file = bytes(head) + sub_header + there.ljust(PAGE, b"\0") + dumped.ljust(PAGE, b"\0")
    return np.frombuffer(file, dtype=np.uint8)


def left_out(data: NDArray[np.uint8], *pages: int) -> list[bool]:
    header = parse_kdump(data)
    assert header is not None
    addresses = words(*((BASE + page * PAGE + 8) % 2**64 for page in pages))
    found: list[bool] = PagesLeftOut(data, header, BASE).covers(addresses).tolist()
    return found


def test_pages_that_a_kdump_could_have_had() -> None:
    data = kdump(31, b"\xff\x0f", b"\x01\x02")
    wanted = [False, *[True] * 8, False, True, True, False]
    assert left_out(data, *range(13)) == wanted
    # No page of RAM, and no page at all: behind the bitmap, below the direct map.
    assert left_out(data, 8 * PAGE - 1, 8 * PAGE, 1 << 40, -1, -(1 << 40)) == [False] * 5


def test_a_kdump_cut_in_its_bitmaps() -> None:
    data = kdump(31, b"\xff", b"\x01")
    assert left_out(data[: 3 * PAGE], 0, 1) == [True, True]
    assert left_out(data[: 2 * PAGE], 0, 1) == [False, False]


@pytest.mark.parametrize(("written", "level"), [(0, 0), (23, 23), (31, 31), (32, None), (-1, None)])
def test_level_of_a_kdump(written: int, level: int | None) -> None:
    header = parse_kdump(kdump(written, b"", b""))
    assert header is not None
    assert header.level == level


@pytest.mark.parametrize("size", [0, 428, 439, PAGE, PAGE + 15])
def test_a_kdump_cut_in_its_headers(size: int) -> None:
    assert parse_kdump(kdump(31, b"", b"")[:size]) is None


def test_a_kdump_of_empty_blocks() -> None:
    data = kdump(31, b"", b"").copy()
    data[428:432] = 0
    assert parse_kdump(data) is None


# --- ELF -----------------------------------------------------------------------------------------


def ranges_of(*segments: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Of segments (physical address, bytes in the file, bytes in memory), in pages."""
    paddr, filesz, memsz = (
        words(*column) * np.uint64(PAGE) for column in zip(*segments, strict=True)
    )
    load = LoadSegments(offset=paddr, vaddr=paddr, paddr=paddr, filesz=filesz, memsz=memsz)
    found = unwritten(ElfCore("x86_64", load, (), True), BASE)
    if found is None:
        return []
    pages = (found.ranges - np.uint64(BASE)) // np.uint64(PAGE)
    return [(int(start), int(end)) for start, end in pages]


def test_segments_with_less_in_the_file_than_in_memory() -> None:
    assert ranges_of((0, 10, 10), (20, 5, 5)) == []
    assert ranges_of((0, 10, 12), (12, 4, 8)) == [(10, 12), (16, 20)]
    # What another segment has is not left out; neither is what a damaged header takes away.
    assert ranges_of((0, 10, 30), (14, 2, 2), (15, 5, 5)) == [(10, 14), (20, 30)]
    assert ranges_of((0, 10, 5), (20, 5, 2**30)) == [(25, 20 + 2**30)]
    assert ranges_of((0, 10, 5)) == []


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> PlainDump:
    """A dump whose last segment with VMAs has lost its second half."""
    plain = make_plain_dump(CAPTURE.core, tmp_path_factory.mktemp("filtered"))
    data = map_file(str(plain.core))
    core = parse_core(data, str(plain.core))
    index = int(np.searchsorted(core.load.vaddr, CAPTURE.tables.vmas.address[-1], "right")) - 1
    inside = CAPTURE.tables.vmas.address >= core.load.vaddr[index]
    vma = CAPTURE.tables.vmas.address[inside][np.count_nonzero(inside) // 2]
    kept = (vma - core.load.vaddr[index]) & np.uint64(-PAGE % 2**64)
    content = bytearray(data.tobytes())
    # Program headers begin at 64, have 56 bytes, the first is of the notes; p_filesz at 32.
    struct.pack_into("<Q", content, 64 + 56 * (index + 1) + 32, int(kept))
    plain.core.write_bytes(content)
    return plain


def lost_vma(prog: drgn.Program) -> Object:
    """A VMA that is not in the file any more."""
    vmas = CAPTURE.tables.vmas
    for address in vmas.address[vmas.anon_vma != 0].tolist():
        try:
            prog.read(address, 8)
        except drgn.FaultError:
            return Object(prog, "struct vm_area_struct *", address)
    raise AssertionError("all VMAs can be read")


def test_what_was_left_out_is_a_hole(filtered: PlainDump) -> None:
    """drgn reads it as zero, by which VMAs would be found to contradict everything else."""
    options = TargetOptions(
        core=str(filtered.core), btf=str(filtered.btf), system_map=str(filtered.system_map)
    )
    target = open_target(options)
    tables = collect(target)
    result = audit(tables)
    assert not result.findings_total
    assert not result.complete
    assert "vm_area_struct" in tables.holes.needed_for
    assert target.left_out is not None
    assert target.left_out.covers(tables.holes.address).all()


def test_what_was_left_out_faults(filtered: PlainDump) -> None:
    prog = open_core(filtered.core, btf=filtered.btf, system_map=filtered.system_map)
    vma = lost_vma(prog)
    with pytest.raises(drgn.FaultError, match="left out of the dump"):
        vma_anon_vma(vma)
    with pytest.raises((drgn.FaultError, ValidationError)):
        validate_vma_anon(vma)


def test_what_was_left_out_of_a_program_that_drgn_opened(
    filtered: PlainDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TargetOptions(
        core=str(filtered.core), btf=str(filtered.btf), system_map=str(filtered.system_map)
    )
    target = open_target(options)
    # The resource tree is not among what the dump was made of.
    monkeypatch.setattr(program, "system_ram", lambda *_: target.space.ram)
    prog = drgn.Program()
    prog.set_core_dump(str(filtered.core))
    index = drgn.SymbolIndex(
        drgn.Symbol(name, address, 8, drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.OBJECT)
        for name, address in target.symbols.items()
    )
    enable_finders(prog, target, lambda prog: index)
    vmas = CAPTURE.tables.vmas
    there = target.memory.gather(vmas.address, 8)[1]
    # The first question makes it a target.
    whole = vmas.address[there & (vmas.anon_vma == 0)]
    validate_vma_anon(Object(prog, "struct vm_area_struct *", int(whole[0])))
    with pytest.raises(drgn.FaultError, match="left out of the dump"):
        prog.read(int(vmas.address[~there][0]), 8)
