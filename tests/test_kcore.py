"""The running kernel: what is read of it, and what is said if it cannot be."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import re
import struct
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import anonvma_inspect.target.open
from anonvma_inspect.collect import collect_audit
from anonvma_inspect.confirm import audit_running
from anonvma_inspect.errors import TargetError
from anonvma_inspect.invariants.catalogue import CATALOGUE, audit
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.elf import NO_PADDR, Note, write_core
from anonvma_inspect.target.kcore import KernelFiles, open_kcore

from .captures import CAPTURES, Capture
from .clirun import Cli
from .kcore_image import make_kernel_files

NOTHING = TargetOptions()
PAGE = 4096
NAMES = (
    "forktree-5.10",
    "forktree-6.1",
    "forktree-6.12",
    "forktree-6.12-rt",
    "forktree-6.12-arm64",
)
OF_NAME = {capture.name: capture for capture in CAPTURES}
CAPTURE = OF_NAME["forktree-6.12"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> KernelFiles:
    return make_kernel_files(CAPTURE.core, tmp_path_factory.mktemp("kernel"))


@pytest.mark.parametrize("name", NAMES)
def test_same_answer_as_of_the_snapshot(name: str, tmp_path: Path) -> None:
    capture: Capture = OF_NAME[name]
    target = open_kcore(NOTHING, make_kernel_files(capture.core, tmp_path))
    assert (target.kind, target.live) == ("kcore", True)
    assert (target.layouts_source, target.symbols_source) == ("btf", "proc-kallsyms")
    assert target.space.direct_map == capture.target.space.direct_map
    assert np.array_equal(target.space.ram, capture.target.space.ram)
    ours, theirs = collect_audit(target), capture.tables
    for table, column in (
        ("tasks", "address"),
        ("mms", "address"),
        ("vmas", "address"),
        ("avcs", "address"),
        ("anon_vmas", "address"),
        ("anon_vmas", "refcount"),
    ):
        assert np.array_equal(
            getattr(getattr(ours, table), column), getattr(getattr(theirs, table), column)
        ), (table, column)
    assert ours.complete
    assert list(audit(ours).findings()) == []


def test_reads_pages_once_and_counts_them(files: KernelFiles) -> None:
    target = open_kcore(NOTHING, files)
    assert target.meter is not None
    collect_audit(target)
    once = target.meter.bytes_read
    collect_audit(target)
    assert target.meter.bytes_read == once > 0
    collect_audit(target.again())
    assert once < target.meter.bytes_read <= 2 * once


def word_of_init_task(target: Target) -> tuple[int, int]:
    """An address that every walk begins with, and what stands there."""
    tasks = target.layouts.field("task_struct", "tasks.next")
    assert tasks is not None
    address = target.symbol("init_task") + tasks.offset
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), 8)
    assert present[0]
    return address, int(rows.view("<u8")[0, 0])


def poke(files: KernelFiles, target: Target, address: int, content: bytes) -> None:
    """Change the running kernel."""
    offset = 0
    with open(files.kcore, "rb") as file:
        data = file.read(4096)
    count = struct.unpack_from("<H", data, 56)[0]
    for row in range(count):
        kind, _, start, vaddr, _, size = struct.unpack_from("<IIQQQQ", data, 64 + 56 * row)
        if kind == 1 and vaddr <= address < vaddr + size:
            offset = start + address - vaddr
    assert offset
    with open(files.kcore, "r+b") as file:
        file.seek(offset)
        file.write(content)


def copied(tmp_path: Path) -> KernelFiles:
    return make_kernel_files(CAPTURE.core, tmp_path)


def test_a_view_stands_still_while_the_kernel_runs(tmp_path: Path) -> None:
    files = copied(tmp_path)
    target = open_kcore(NOTHING, files)
    address, before = word_of_init_task(target)
    poke(files, target, address, struct.pack("<Q", before + 8))
    assert word_of_init_task(target) == (address, before)
    assert word_of_init_task(target.again()) == (address, before + 8)


def test_memory_that_was_plugged_in_is_ram(tmp_path: Path) -> None:
    """Its segment moves all others in the file: what was learnt of them before is wrong."""
    files = copied(tmp_path)
    target = open_kcore(NOTHING, files)
    held = word_of_init_task(target)
    other = make_kernel_files(CAPTURE.core, tmp_path, plugged=1 << 20)
    assert other == files
    fresh = target.again()
    grown = fresh.space.room - target.space.room
    assert grown == 1 << 20
    assert word_of_init_task(fresh) == held
    assert np.array_equal(collect_audit(fresh).vmas.address, CAPTURE.tables.vmas.address)


def test_a_view_is_given_up_as_a_whole(files: KernelFiles) -> None:
    """With what it read, and with the file."""
    held = len(os.listdir("/proc/self/fd"))
    target = open_kcore(NOTHING, files)
    opened = len(os.listdir("/proc/self/fd")) - held
    gc.disable()
    try:
        for _ in range(3):
            collect_audit(target)
            target = target.again()
        assert len(os.listdir("/proc/self/fd")) - held == opened
    finally:
        gc.enable()


def test_an_audit_that_nobody_holds_is_gone(files: KernelFiles) -> None:
    """Round after round of them must not pile up."""
    target = open_kcore(NOTHING, files)
    gc.disable()
    try:
        made = audit_running(target.again(), (), CATALOGUE)
        tables = weakref.ref(made.tables)
        del made
        assert tables() is None
    finally:
        gc.enable()


def frames(target: Target, address: int, flags: int) -> bytes:
    frame = (address - target.space.direct_map) // PAGE
    return bytes(8 * frame) + struct.pack("<Q", flags)


@pytest.mark.parametrize("bit", [19, 20, 23])
def test_a_page_that_the_kernel_does_not_show_is_a_hole(tmp_path: Path, bit: int) -> None:
    """KPF_HWPOISON, KPF_NOPAGE, KPF_OFFLINE: zeros instead of a page with AVCs."""
    files = copied(tmp_path)
    target = open_kcore(NOTHING, files)
    page = int(CAPTURE.tables.avcs.address[0]) // PAGE * PAGE
    poke(files, target, page, bytes(PAGE))
    zeros = audit(collect_audit(target.again()))
    assert zeros.findings_total > 0, "zeros that are really there are no AVCs"
    Path(files.page_flags).write_bytes(frames(target, page, 1 << bit))
    tables = collect_audit(target.again())
    assert list(audit(tables).findings()) == []
    assert not tables.complete
    assert set((tables.holes.address // np.uint64(PAGE) * np.uint64(PAGE)).tolist()) == {page}


def test_a_page_that_is_broken_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older kernel itself would: a machine check."""
    files = copied(tmp_path)
    target = open_kcore(NOTHING, files)
    page = int(CAPTURE.tables.avcs.address[0]) // PAGE * PAGE
    content = target.memory.gather(np.array([page], dtype=np.uint64), PAGE)[0].tobytes()
    Path(files.page_flags).write_bytes(frames(target, page, 1 << 19))
    preadv = os.preadv

    def watch(file: int, into: list[memoryview], offset: int) -> int:
        size = preadv(file, into, offset)
        assert content not in into[0].tobytes()
        return size

    monkeypatch.setattr(os, "preadv", watch)
    assert not collect_audit(target.again()).complete


def test_other_flags_hide_nothing(tmp_path: Path) -> None:
    files = copied(tmp_path)
    target = open_kcore(NOTHING, files)
    page = int(CAPTURE.tables.avcs.address[0]) // PAGE * PAGE
    Path(files.page_flags).write_bytes(frames(target, page, ~(1 << 19 | 1 << 20 | 1 << 23) % 2**64))
    assert collect_audit(target.again()).complete


def test_what_is_in_no_segment_is_not_read(files: KernelFiles) -> None:
    """The kernel answers zeros for it."""
    target = open_kcore(NOTHING, files)
    end = int(target.space.ram[-1, 1])
    places = np.array([end - 8, end - 4, end, 1 << 63, 2**64 - 8], dtype=np.uint64)
    _, present = target.memory.gather(places, 8)
    assert present.tolist() == [True, False, False, False, False]


def test_a_read_that_fails_is_a_hole(files: KernelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    target = open_kcore(NOTHING, files)
    page = CAPTURE.tables.avcs.address[0] // np.uint64(PAGE) * np.uint64(PAGE)
    rows, _ = target.memory.gather(np.array([page]), PAGE)
    preadv = os.preadv

    def fail(file: int, into: list[memoryview], offset: int) -> int:
        size = preadv(file, into, offset)
        if rows[0].tobytes() in into[0].tobytes():
            raise OSError(14, "Bad address")
        return size

    monkeypatch.setattr(os, "preadv", fail)
    fresh = target.again()
    tables = collect_audit(fresh)
    assert list(audit(tables).findings()) == []
    assert set((tables.holes.address // np.uint64(PAGE) * np.uint64(PAGE)).tolist()) == {page}


def refused(files: KernelFiles, **options: str) -> str:
    with pytest.raises(TargetError) as caught:
        open_kcore(TargetOptions(**options), files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "user", "sentence"),
    [
        (PermissionError(13, "Permission denied"), 1000, "only root may read the running kernel"),
        (PermissionError(1, "Operation not permitted"), 0, "it is locked down"),
        (FileNotFoundError(2, "No such file"), 0, "CONFIG_PROC_KCORE"),
        (OSError(12, "Cannot allocate memory"), 0, "cannot be opened: Cannot allocate memory"),
    ],
)
def test_kcore_that_cannot_be_opened(
    files: KernelFiles,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    user: int,
    sentence: str,
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert sentence in refused(files)


def test_no_kcore(files: KernelFiles, tmp_path: Path) -> None:
    assert "CONFIG_PROC_KCORE" in refused(dataclasses.replace(files, kcore=str(tmp_path / "none")))
    # What container engines do.
    assert "as in a container" in refused(dataclasses.replace(files, kcore="/dev/null"))


def test_kcore_that_is_none(files: KernelFiles, tmp_path: Path) -> None:
    path = tmp_path / "kcore"
    other = dataclasses.replace(files, kcore=str(path))
    none = np.empty(0, np.uint64)
    one = np.array([1 << 63], np.uint64)
    for content, sentence in (
        (b"", "truncated: 0 bytes"),
        (bytes(100), "not an ELF file"),
        (write_core("x86_64", [], none, none, none), "where RAM is mapped is not told"),
        (
            write_core("x86_64", [Note(b"VMCOREINFO", 0, b"")], one, one * 0 + NO_PADDR, one * 0),
            "where RAM is mapped is not told",
        ),
        (write_core("x86_64", [], one, none.sum(keepdims=True), one * 0 + PAGE), "no VMCOREINFO"),
    ):
        path.write_bytes(content)
        assert sentence in refused(other)


def test_nothing_that_tells_types(files: KernelFiles, tmp_path: Path) -> None:
    bare = tmp_path / "kallsyms"
    lines = Path(files.kallsyms).read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if "BTF" not in line) + "\n")
    without = dataclasses.replace(files, btf=str(tmp_path / "none"), kallsyms=str(bare))
    assert "no BTF in it (CONFIG_DEBUG_INFO_BTF): give its types with -s" in refused(without)
    target = open_kcore(TargetOptions(btf=files.btf), without)
    assert target.layouts_source == "btf"


def test_symbols_that_are_hidden(files: KernelFiles, tmp_path: Path) -> None:
    """Nor does the image tell, of which a snapshot has next to nothing."""
    hidden = tmp_path / "kallsyms"
    lines = Path(files.kallsyms).read_text().splitlines()
    hidden.write_text("".join(f"{0:016x} {line[17:]}\n" for line in lines))
    without = dataclasses.replace(files, kallsyms=str(hidden))
    assert "kptr_restrict" in refused(without)
    assert "--system-map" in refused(without)
    target = open_kcore(TargetOptions(system_map=files.kallsyms), without)
    assert target.symbols_source == "system-map"


def test_symbols_of_another_kernel(files: KernelFiles, tmp_path: Path) -> None:
    moved = tmp_path / "map"
    symbols = [line.split() for line in Path(files.kallsyms).read_text().splitlines()]
    moved.write_text(
        "".join(
            f"{int(address, 16) + (name == 'init_task') * 4096:016x} {kind} {name}\n"
            for address, kind, name in symbols
        )
    )
    assert "of another kernel" in refused(files, system_map=str(moved))


@pytest.mark.parametrize(
    "command", [["audit"], ["stats", "--slabs"], ["vma", "144"], ["tree", "144", "7ffff7fcb000"]]
)
def test_commands_answer_as_of_the_snapshot(
    files: KernelFiles,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    cli = Cli(capsys)
    monkeypatch.setattr(
        anonvma_inspect.target.open, "open_kcore", functools.partial(open_kcore, files=files)
    )
    ours = cli("-k", *command)
    theirs = cli("-c", str(CAPTURE.core), *command)
    looked = re.sub(r"(?m)^looked for .*\n\n?", "", ours.out)
    assert (looked, ours.code) == (theirs.out, theirs.code)
    assert ", kcore, layouts from btf, symbols from proc-kallsyms, live" in ours.err


def test_snapshot_of_what_runs_is_what_was_audited(files: KernelFiles, tmp_path: Path) -> None:
    from anonvma_inspect.collect import save_snapshot

    target = open_kcore(NOTHING, files)
    path = tmp_path / "saved.core"
    saved = save_snapshot(target, str(path))
    assert target.meter is not None
    once = target.meter.bytes_read
    again = open_target(TargetOptions(core=str(path)))
    assert np.array_equal(collect_audit(again).avcs.address, saved.tables.avcs.address)
    assert list(audit(collect_audit(again, leaks=True)).findings()) == []
    collect_audit(target)
    assert target.meter.bytes_read == once, "all from one view"


def test_drgn_is_not_loaded(files: KernelFiles) -> None:
    """It takes a tenth of a second and 30 MB."""
    program = (
        "import sys\n"
        "from anonvma_inspect.target import TargetOptions\n"
        "from anonvma_inspect.target.kcore import KernelFiles, open_kcore\n"
        f"open_kcore(TargetOptions(), {files!r})\n"
        "assert not {'drgn', '_drgn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_does_not_fit_is_not_read_and_that_is_said(
    files: KernelFiles, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        anonvma_inspect.target.open, "open_kcore", functools.partial(open_kcore, files=files)
    )
    monkeypatch.setattr(anonvma_inspect.target.kcore, "view_limit", lambda: 320 * PAGE)
    ran = Cli(capsys)("-k", "audit")
    assert ran.code == 4
    assert ran.err.count("pages were not read: they do not fit into a quarter") == 1
