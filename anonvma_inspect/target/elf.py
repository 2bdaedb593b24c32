"""The ELF core file format, as far as dumps of a kernel use it: reading headers, writing snapshots.

Follows the ELF-64 specification and the kernel's ``/proc/kcore`` and ``/proc/vmcore``
(``fs/proc/kcore.c``, ``fs/proc/vmcore.c``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError

__all__ = (
    "EM_AARCH64",
    "EM_X86_64",
    "NO_PADDR",
    "ElfCore",
    "LoadSegments",
    "Note",
    "head_size",
    "parse_core",
    "write_core",
)

EM_X86_64 = 62
EM_AARCH64 = 183
#: Physical address of a segment that does not tell it, as in /proc/kcore.
NO_PADDR = np.uint64(2**64 - 1)

_MACHINES = {
    2: "sparc",
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    EM_X86_64: "x86_64",
    EM_AARCH64: "aarch64",
    243: "riscv",
    258: "loongarch",
}
_ET_CORE = 4
_PT_LOAD = 1
_PT_NOTE = 4
# With 0xffff segments or more, e_phnum is PN_XNUM and the count is in section header 0.
_PN_XNUM = 0xFFFF
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
_SHDR = struct.Struct("<IIQQQQIIQQ")
_MAX_NOTE_BYTES = 1 << 28
# A dump has one or two for each CPU.
_MAX_NOTES = 1 << 16


@dataclass(frozen=True)
class Note:
    """One entry of a ``PT_NOTE`` segment."""

    name: bytes
    type: int
    desc: bytes


@dataclass(frozen=True)
class LoadSegments:
    """The ``PT_LOAD`` program headers, as columns of ``uint64``, in file order."""

    offset: NDArray[np.uint64]
    vaddr: NDArray[np.uint64]
    paddr: NDArray[np.uint64]
    filesz: NDArray[np.uint64]
    memsz: NDArray[np.uint64]


@dataclass(frozen=True)
class ElfCore:
    """What the headers of a core file say.

    :ivar machine: The name of the architecture, as ``uname -m`` has it.
    :ivar complete: False if the file ends before its last segment does.
    """

    machine: str
    load: LoadSegments
    notes: tuple[Note, ...]
    complete: bool


def head_size(head: bytes) -> int:
    """How much of a core file is needed to parse it, as far as its beginning tells.

    For a file that can be read but not mapped, such as ``/proc/kcore``.

    :param head: What was read of it so far, from its beginning.
    :return: Bytes; at most ``len(head)`` if that is enough.
    """
    if len(head) < _EHDR.size:
        return _EHDR.size
    fields: tuple[int, ...] = _EHDR.unpack_from(head)
    phoff, phnum = fields[5], fields[10]
    end = phoff + phnum * _PHDR.itemsize
    if end > len(head):
        return end
    phdrs = np.frombuffer(head, dtype=_PHDR, count=phnum, offset=phoff)
    notes = phdrs[phdrs["type"] == _PT_NOTE]
    return max([end, *(int(note["offset"]) + int(note["filesz"]) for note in notes)])


def parse_core(data: NDArray[np.uint8], path: str) -> ElfCore:
    """Read the headers and notes of a little-endian ELF-64 core file.

    :param data: The whole file.
    :param path: For messages.
    :raises TargetError: if it is no such file; the message says what it is instead.
    """
    if len(data) < _EHDR.size:
        raise TargetError(f"{path}: truncated: {len(data)} bytes are too few for an ELF header")
    fields = _EHDR.unpack(data[: _EHDR.size].tobytes())
    ident, e_type, e_machine = fields[0], fields[1], fields[2]
    if ident[:4] != b"\x7fELF":
        raise TargetError(f"{path}: not an ELF file")
    machine = _MACHINES.get(e_machine, f"machine {e_machine}")
    if ident[4] != 2 or ident[5] != 1:
        raise TargetError(
            f"{path}: a {'64' if ident[4] == 2 else '32'}-bit "
            f"{'little' if ident[5] == 1 else 'big'}-endian ELF file ({machine}); only 64-bit "
            "little-endian kernels are understood"
        )
    if e_type != _ET_CORE:
        hint = " (a vmlinux goes with -s)" if e_type in (2, 3) else ""
        raise TargetError(f"{path}: an ELF file, but not a core dump{hint}")
    if e_machine not in (EM_X86_64, EM_AARCH64):
        raise TargetError(
            f"{path}: a core dump of {machine}; the architectures understood are x86_64 and aarch64"
        )
    phdrs = _program_headers(data, path, fields)
    load = phdrs[phdrs["type"] == _PT_LOAD]
    end = load["offset"] + load["filesz"]
    if np.any(end < load["offset"]) or np.any(load["vaddr"] + load["filesz"] < load["vaddr"]):
        raise TargetError(f"{path}: damaged: a segment of the core wraps around")
    notes: list[Note] = []
    notes_whole = True
    note_bytes = 0
    for phdr in phdrs[phdrs["type"] == _PT_NOTE]:
        start, size = int(phdr["offset"]), int(phdr["filesz"])
        notes_whole = notes_whole and start + size <= len(data)
        # Of all together: many segments can have the same bytes.
        note_bytes += size
        if note_bytes > _MAX_NOTE_BYTES:
            raise TargetError(f"{path}: damaged: note segments of {note_bytes} bytes")
        notes += _parse_notes(data[start : start + size].tobytes())
    return ElfCore(
        machine=machine,
        load=LoadSegments(
            **{
                name: np.ascontiguousarray(load[name])
                for name in ("offset", "vaddr", "paddr", "filesz", "memsz")
            }
        ),
        notes=tuple(notes),
        complete=notes_whole and not np.any(end > len(data)),
    )


def _program_headers(
    data: NDArray[np.uint8], path: str, fields: tuple[int, ...]
) -> NDArray[np.void]:
    phoff, shoff, phentsize, phnum = fields[5], fields[6], fields[9], fields[10]
    if phnum == _PN_XNUM and 0 < shoff <= len(data) - _SHDR.size:
        phnum = _SHDR.unpack(data[shoff : shoff + _SHDR.size].tobytes())[7]
    end = phoff + phnum * _PHDR.itemsize
    if phnum == 0 or phentsize != _PHDR.itemsize or end > len(data):
        raise TargetError(
            f"{path}: truncated or damaged: its {phnum} program headers are not in the file"
        )
    return np.frombuffer(data[phoff:end].tobytes(), dtype=_PHDR)


def _parse_notes(data: bytes) -> list[Note]:
    notes: list[Note] = []
    at = 0
    while at + 12 <= len(data) and len(notes) < _MAX_NOTES:
        namesz, descsz, kind = struct.unpack_from("<III", data, at)
        desc_at = at + 12 + (namesz + 3) // 4 * 4
        if desc_at + descsz > len(data):
            break
        name = data[at + 12 : at + 12 + namesz].rstrip(b"\0")
        notes.append(Note(name, kind, data[desc_at : desc_at + descsz]))
        at = desc_at + (descsz + 3) // 4 * 4
    return notes


def write_core(
    machine: str,
    notes: list[Note],
    vaddr: NDArray[np.uint64],
    paddr: NDArray[np.uint64],
    sizes: NDArray[np.uint64],
) -> bytes:
    """Build everything of a core file that stands before the data of its segments.

    :param machine: "x86_64" or "aarch64".
    :param vaddr: Start of each ``PT_LOAD`` segment; their data follow each other in this order.
    :param paddr: Its physical address; ``2**64 - 1`` where there is none.
    :param sizes: Bytes of each segment.
    :return: The head of the file, padded to a page; the segments' data come straight behind it.
    """
    note_data = b"".join(
        struct.pack("<III", len(note.name) + 1, len(note.desc), note.type)
        + (note.name + b"\0").ljust((len(note.name) + 4) // 4 * 4, b"\0")
        + note.desc.ljust((len(note.desc) + 3) // 4 * 4, b"\0")
        for note in notes
    )
    count = len(vaddr) + 1
    extended = count >= _PN_XNUM
    phoff = _EHDR.size + (_SHDR.size if extended else 0)
    note_at = phoff + count * _PHDR.itemsize
    data_at = (note_at + len(note_data) + 4095) // 4096 * 4096
    phdrs = np.zeros(count, dtype=_PHDR)
    phdrs[0]["type"] = _PT_NOTE
    phdrs[0]["offset"] = note_at
    phdrs[0]["filesz"] = len(note_data)
    load = phdrs[1:]
    load["type"] = _PT_LOAD
    load["flags"] = 4
    load["vaddr"] = vaddr
    load["filesz"] = load["memsz"] = sizes
    load["offset"] = data_at + np.cumsum(sizes) - sizes
    load["paddr"] = paddr
    load["align"] = 8
    code = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}[machine]
    ehdr = _EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), _ET_CORE, code, 1, 0, phoff,
        _EHDR.size if extended else 0, 0, _EHDR.size, _PHDR.itemsize,
        _PN_XNUM if extended else count, _SHDR.size if extended else 0, int(extended), 0,
    )  # fmt: skip
    shdr = _SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0) if extended else b""
    return (ehdr + shdr + phdrs.tobytes() + note_data).ljust(data_at, b"\0")
