"""What is no target, or not a whole one, is named in one sentence: what it is, and what to do."""

from __future__ import annotations

import lzma
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from anonvma_inspect.collect import collect
from anonvma_inspect.errors import TargetError, UsageError
from anonvma_inspect.target import Target, TargetOptions, open_target
from anonvma_inspect.target.elf import Note, write_core
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.snapshot import decompress
from anonvma_inspect.target.symbols import SYMBOLS
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

from .captures import CAPTURES, Capture
from .dumps import PlainDump, make_plain_dump
from .kallsyms_image import Image, Layout

CAPTURE = next(capture for capture in CAPTURES if capture.name == "forktree-6.12")


def open_core(path: Path, **options: str) -> Target:
    return open_target(TargetOptions(core=str(path), **options))


def refused(path: Path, **options: str) -> str:
    with pytest.raises(TargetError) as caught:
        open_core(path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PlainDump:
    return make_plain_dump(CAPTURE.core, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    path = tmp_path / "unpacked.core"
    path.write_bytes(decompress(CAPTURE.core).tobytes())
    return path


def elf(machine: int = 62, kind: int = 4, bits: int = 2, order: int = 1) -> bytes:
    ident = b"\x7fELF" + bytes((bits, order, 1))
    return struct.pack(
        "<16sHHIQQQIHHHHHH", ident, kind, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"hello, world, this is a text", "neither a vmcore (ELF or kdump) nor a snapshot"),
        (b"\x7fELF\x02\x01\x01", "truncated: 7 bytes are too few"),
        (elf(), "its 1 program headers are not in the file"),
        (elf(machine=22), "a core dump of s390x; the architectures understood are x86_64 and"),
        (elf(kind=2), "not a core dump (a vmlinux goes with -s)"),
        (elf(bits=1, machine=3), "a 32-bit little-endian ELF file (i386)"),
        (elf(order=2, machine=22), "only 64-bit little-endian kernels"),
        (b"\x1f\x8b" + bytes(20), "gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "unzstd"),
        (b"makedumpfile" + bytes(4084), "makedumpfile -R"),
        (b"KDUMP   " + bytes(8000), "drgn cannot open it"),
        (b"KDUMP   " + bytes(100), "drgn cannot open it"),
        (
            (b"KDUMP   ".ljust(428, b"\0") + (4096).to_bytes(4, "little")).ljust(4108, b"\0")
            + b"\1\0\0\0",
            "one part of a split dump",
        ),
        (b"\xfd7zXZ\0" + bytes(40), "damaged compressed data"),
        (lzma.compress(b"hello, world, this is a text" * 10), "not an ELF file"),
        (write_core("x86_64", [], *[np.empty(0, np.uint64)] * 3), "no dump of a Linux kernel"),
        (lzma.compress(elf(kind=4) + bytes(56)), "a compressed core that is no snapshot: unpack"),
        # Unpacking all of it would only be found out to have been in vain.
        (lzma.compress(bytes(1 << 26)), "not an ELF file"),
    ],
)
def test_not_a_core(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "core"
    path.write_bytes(content)
    message = refused(path)
    assert sentence in message
    assert str(path) in message


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nothing")
    assert "a directory" in refused(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot be read" in refused(loop)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every file can be read: let the system call say no."""
    path = tmp_path / "core"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "no permission to read it" in refused(path)


def test_pipe_and_device(tmp_path: Path) -> None:
    """Opening a pipe would wait for somebody to write to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), Path("/dev/zero")):
        assert "a pipe or a device" in refused(path)


def test_files_of_the_kernel_can_be_read() -> None:
    """They say that they are empty, and cannot be mapped."""
    assert map_file("/proc/self/status").tobytes().startswith(b"Name:")


def test_nothing_named() -> None:
    with pytest.raises(UsageError, match="-c PATH"):
        open_target(TargetOptions())


def test_core_of_a_process(tmp_path: Path) -> None:
    made = make_plain_dump(CAPTURE.core, tmp_path, notes=[Note(b"CORE", 1, bytes(336))])
    assert "of a user process, not of a kernel" in refused(made.core)


def test_qemu_dump_without_vmcoreinfo(tmp_path: Path) -> None:
    notes = [Note(b"CORE", 1, bytes(336)), Note(b"QEMU", 0, bytes(432))]
    made = make_plain_dump(CAPTURE.core, tmp_path, notes=notes)
    message = refused(made.core)
    assert "-device vmcoreinfo" in message
    assert "--vmcoreinfo" in message
    target = open_core(
        made.core,
        vmcoreinfo=str(made.vmcoreinfo),
        btf=str(made.btf),
        system_map=str(made.system_map),
    )
    assert target.release == CAPTURE.target.release


def test_vmcoreinfo_that_is_none(plain: PlainDump, tmp_path: Path) -> None:
    other = tmp_path / "vmcoreinfo"
    other.write_text("hello\n")
    message = refused(plain.core, vmcoreinfo=str(other))
    assert str(plain.core) in message or str(other) in message


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_snapshot(unpacked: Path, kept: float) -> None:
    data = unpacked.read_bytes()
    unpacked.write_bytes(data[: int(len(data) * kept)])
    assert "truncated" in refused(unpacked)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_truncated_compressed_snapshot(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.core.xz"
    data = CAPTURE.core.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert "truncated" in refused(path)


def test_compressed_snapshot_that_says_to_be_enormous(unpacked: Path, tmp_path: Path) -> None:
    data = bytearray(unpacked.read_bytes())
    struct.pack_into("<Q", data, 64 + 56 + 32, 1 << 33)
    path = tmp_path / "enormous.core.xz"
    path.write_bytes(lzma.compress(data))
    assert "unpacks to 8 GiB, more than is unpacked here" in refused(path)
    path.write_bytes(lzma.compress(unpacked.read_bytes() + bytes(1 << 25)))
    assert "longer than its headers say" in refused(path)


@pytest.mark.parametrize("kind", [2, 3])
def test_snapshot_without_one_of_its_notes(unpacked: Path, kind: int) -> None:
    """Another type makes two notes of one."""
    data = bytearray(unpacked.read_bytes())
    at = data.index(struct.pack("<I", kind) + b"ANONVMA\0")
    struct.pack_into("<I", data, at, 77)
    unpacked.write_bytes(data)
    assert "this snapshot is not whole" in refused(unpacked)


def test_many_note_segments_with_the_same_bytes(tmp_path: Path) -> None:
    """A small file must not fill the memory."""
    note = struct.pack("<4sIQQQQQQ", b"\4\0\0\0", 0, 64, 0, 0, 1 << 24, 1 << 24, 4)
    ehdr = bytearray(elf())
    struct.pack_into("<H", ehdr, 56, 1000)
    path = tmp_path / "notes.core"
    path.write_bytes((bytes(ehdr) + note * 1000).ljust(1 << 24, b"\0"))
    assert "damaged: note segments of" in refused(path)


def test_snapshot_brings_its_own(plain: PlainDump) -> None:
    with pytest.raises(UsageError, match="--btf is not for it"):
        open_core(CAPTURE.core, btf=str(plain.btf))


def test_snapshot_of_a_newer_form(unpacked: Path) -> None:
    data = unpacked.read_bytes()
    unpacked.write_bytes(data.replace(b"inspect/snapshot/1", b"inspect/snapshot/9"))
    assert "use a newer anonvma-inspect" in refused(unpacked)


def test_snapshot_with_a_damaged_description(unpacked: Path) -> None:
    data = unpacked.read_bytes()
    for old, new in ((b'"page_size": 4096', b'"page_size": 4097'), (b'"ram": [[', b'"ram": [["')):
        unpacked.write_bytes(data.replace(old, new))
        assert "damaged" in refused(unpacked)


def test_plain_dump_with_the_files_that_describe_it(plain: PlainDump) -> None:
    target = open_core(plain.core, btf=str(plain.btf), system_map=str(plain.system_map))
    ours, theirs = collect(target), CAPTURE.tables
    assert target.kind == "elf-core"
    assert np.array_equal(ours.vmas.address, theirs.vmas.address)
    assert np.array_equal(ours.avcs.address, theirs.avcs.address)
    assert np.array_equal(ours.anon_vmas.refcount, theirs.anon_vmas.refcount)


def test_no_btf(plain: PlainDump, tmp_path: Path) -> None:
    bare = tmp_path / "map"
    lines = plain.system_map.read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if "BTF" not in line) + "\n")
    message = refused(plain.core, system_map=str(bare))
    assert "no BTF" in message
    assert "-s" in message
    cut = tmp_path / "cut.core"
    cut.write_bytes(plain.core.read_bytes()[:-4096])
    assert "no BTF in it (the file is truncated" in refused(cut, system_map=str(bare))


def test_no_symbols(plain: PlainDump, tmp_path: Path) -> None:
    bare = tmp_path / "vmcoreinfo"
    lines = plain.vmcoreinfo.read_text().splitlines()
    bare.write_text("\n".join(line for line in lines if "kallsyms" not in line) + "\n")
    message = refused(plain.core, vmcoreinfo=str(bare), btf=str(plain.btf))
    assert "init_task is not known" in message
    assert "--system-map" in message


class Silent:
    """A dump whose VMCOREINFO does not name the symbol table that is in it."""

    def __init__(self, capture: Capture, directory: Path, *, tables: int = 1) -> None:
        facts = parse_vmcoreinfo(capture.target.vmcoreinfo, capture.name)
        stext = int(facts["SYMBOL(_stext)"], 16)
        symbols = {f"function_{row:x}": stext + 16 * row for row in range(2100)}
        symbols |= {name: int(facts[f"SYMBOL({name})"], 16) for name in ("_stext", "init_uts_ns")}
        symbols |= capture.target.symbols
        ordered = sorted(symbols.items(), key=lambda symbol: symbol[1])
        more = {}
        for number in range(tables):
            start = stext + 0x100000 * (number + 1)
            listed = [(name, "d", address) for name, address in ordered]
            image = Image(listed, layout=Layout(True), start=start, base=stext)
            more[start] = bytes(image.memory).ljust(1 << 17, b"\0")
        others = [
            line for line in capture.target.vmcoreinfo.splitlines() if b"kallsyms" not in line
        ]
        notes = [Note(b"VMCOREINFO", 0, b"\n".join(others) + b"\n")]
        self.made = make_plain_dump(capture.core, directory, notes=notes, more=more)


@pytest.mark.parametrize("name", ["forktree-5.10", "forktree-6.12", "forktree-6.12-arm64"])
def test_symbol_table_that_nothing_names(name: str, tmp_path: Path) -> None:
    capture = next(capture for capture in CAPTURES if capture.name == name)
    made = Silent(capture, tmp_path).made
    target = open_core(made.core, btf=str(made.btf))
    assert target.symbols_source == "kallsyms-search"
    assert target.symbols == {
        name: capture.target.symbols[name] for name in SYMBOLS if name in capture.target.symbols
    }
    ours, theirs = collect(target), capture.tables
    assert np.array_equal(ours.vmas.address, theirs.vmas.address)
    assert np.array_equal(ours.avcs.address, theirs.avcs.address)
    given = open_core(made.core, btf=str(made.btf), system_map=str(made.system_map))
    assert given.symbols_source == "system-map"
    assert np.array_equal(given.space.ram, target.space.ram)


def test_two_symbol_tables(tmp_path: Path) -> None:
    made = Silent(CAPTURE, tmp_path, tables=2).made
    message = refused(made.core, btf=str(made.btf))
    assert "more than one place in this dump looks like the kernel's symbol table" in message
    assert "--system-map" in message
    open_core(made.core, btf=str(made.btf), system_map=str(made.system_map))


def test_kallsyms_not_in_the_dump(plain: PlainDump) -> None:
    assert "the kernel's own data at" in refused(plain.core, btf=str(plain.btf))


def test_map_of_another_kernel(plain: PlainDump, tmp_path: Path) -> None:
    other = tmp_path / "map"
    lines = [line.split() for line in plain.system_map.read_text().splitlines()]
    other.write_text(
        "".join(
            f"{int(address, 16) + 0x1000 * (index % 7):016x} {kind} {name}\n"
            for index, (address, kind, name) in enumerate(lines)
        )
    )
    message = refused(plain.core, btf=str(plain.btf), system_map=str(other))
    assert "another kernel" in message


def test_btf_that_is_none(plain: PlainDump, tmp_path: Path) -> None:
    other = tmp_path / "btf"
    other.write_bytes(b"hello, world, this is no BTF at all")
    message = refused(plain.core, btf=str(other), system_map=str(plain.system_map))
    assert str(other) in message


def test_vmlinux_of_another_build(plain: PlainDump) -> None:
    """Any ELF file without the types of this kernel will do: the interpreter itself."""
    message = refused(plain.core, symbols="/proc/self/exe", system_map=str(plain.system_map))
    assert "not the vmlinux of this kernel" in message
    assert CAPTURE.target.release in message


def test_dump_cut_in_its_notes(tmp_path: Path) -> None:
    """What libelf says of it, drgn raises as an Exception of no class of its own."""
    vmcoreinfo = Note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nPAGESIZE=4096\n")
    notes = [vmcoreinfo, Note(b"CORE", 1, bytes(8192))]
    path = tmp_path / "cut.core"
    path.write_bytes(write_core("x86_64", notes, *[np.array([0], np.uint64)] * 3)[:4096])
    assert "drgn cannot open it" in refused(path)


def test_truncated_dump(plain: PlainDump, tmp_path: Path) -> None:
    """The kernel's image lies in the last segments: without it no symbol has a value."""
    data = plain.core.read_bytes()
    answers = []
    for kept in (0.02, 0.2, 0.6, 0.99):
        cut = tmp_path / "cut.core"
        cut.write_bytes(data[: int(len(data) * kept)])
        try:
            target = open_core(cut, btf=str(plain.btf), system_map=str(plain.system_map))
            answers.append("complete" if collect(target).complete else "incomplete")
        except TargetError as error:
            answers.append(str(error))
    assert all(answer == "incomplete" or "truncated" in answer for answer in answers), answers
