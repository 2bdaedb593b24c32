"""Snapshot files: a sparse core that holds only what an audit reads.

A snapshot is an ELF core with ``PT_LOAD`` segments by kernel virtual address, in whole pages, as in
``/proc/kcore``; drgn opens it. Beside ``VMCOREINFO`` it carries three notes of our own: what the
file is (:class:`SnapshotHeader`, JSON), the BTF of the types that are needed, and one bit for every
word of the segments that says whether it was captured. A word that was not captured is zero in the
file and a hole for this tool. A name that ends in ``.xz`` is compressed.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.elf import ElfCore, Note, parse_core, write_core
from anonvma_inspect.target.memory import WORD, AddressSpace, Memory, SegmentMemory, U64Column

__all__ = (
    "Snapshot",
    "SnapshotHeader",
    "decompress",
    "pack",
    "parse_snapshot",
)

SCHEMA = "anonvma-inspect/snapshot/1"
_NOTE_NAME = b"ANONVMA"
_NOTE_HEADER, _NOTE_BTF, _NOTE_CAPTURED = 1, 2, 3
_PAGE = 4096
# More segments than an ELF header counts without an extension; neighbours are joined before that.
_MAX_SEGMENTS = 60000
# A compressed file may not unpack to more than this: it could be made to fill all memory.
_MAX_UNPACKED = 2 << 30
_PIECE = 1 << 24
_XZ_MAGIC = b"\xfd7zXZ\0"


@dataclass(frozen=True)
class SnapshotHeader:
    """What a snapshot says about itself and about the target that it was taken from.

    :ivar release: ``uname -r`` of the target.
    :ivar machine: ``uname -m`` of the target.
    :ivar page_size: Bytes.
    :ivar ram: Virtual ranges of the direct map, as :attr:`AddressSpace.ram`.
    :ivar direct_map: As :attr:`AddressSpace.direct_map`.
    :ivar symbols: Addresses of the symbols that the walks need.
    :ivar walks: The names of the walks whose reads are in the file.
    :ivar anonymized: Whether names of commands and files were left out.
    :ivar functions: Start and end of functions that can be on the stacks of tasks.
    :ivar registers: As :attr:`Target.registers`.
    """

    release: str
    machine: str
    page_size: int
    ram: list[list[int]]
    direct_map: int
    symbols: dict[str, int]
    walks: list[str]
    anonymized: bool
    functions: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    registers: list[list[int]] = dataclasses.field(default_factory=list)
    schema: str = SCHEMA


@dataclass(frozen=True)
class Snapshot:
    """A snapshot file, opened.

    :ivar btf: The types that the walks need, as BTF.
    """

    header: SnapshotHeader
    btf: bytes
    vmcoreinfo: bytes
    memory: Memory


def decompress(path: Path) -> NDArray[np.uint8]:
    """Unpack a snapshot out of an ``.xz`` file.

    :raises TargetError: if it is damaged, cut short, no snapshot, or absurdly large.
    """
    try:
        with lzma.open(path) as file:
            head = file.read(_PIECE)
            size = _unpacked_size(head, path)
            data = bytearray(head)
            while len(data) < size and (piece := file.read(min(_PIECE, size - len(data)))):
                data += piece
            # The sums are checked at the end of the compressed data.
            if file.read(1):
                raise TargetError(f"{path}: damaged: longer than its headers say")
    except EOFError:
        raise TargetError(f"{path}: truncated: the compressed data end too early") from None
    except lzma.LZMAError as error:
        raise TargetError(f"{path}: damaged compressed data ({error})") from None
    return np.frombuffer(data, dtype=np.uint8)


# How long a snapshot is by its headers, all of which, and its own description, are in `head`:
# what is none, or says to be enormous, is not unpacked to find that out.
def _unpacked_size(head: bytes, path: Path) -> int:
    core = parse_core(np.frombuffer(head, dtype=np.uint8), str(path))
    if not any(note.name == _NOTE_NAME and note.type == _NOTE_HEADER for note in core.notes):
        raise TargetError(f"{path}: a compressed core that is no snapshot: unpack it first (unxz)")
    ends = core.load.offset + core.load.filesz
    size = max([len(head), *(int(end) for end in ends)])
    if size > _MAX_UNPACKED:
        raise TargetError(
            f"{path}: unpacks to {size >> 30} GiB, more than is unpacked here: unpack it first "
            "(unxz)"
        )
    return size


def is_compressed(head: bytes) -> bool:
    """Whether a file that starts with these bytes is an ``.xz`` file."""
    return head.startswith(_XZ_MAGIC)


def parse_snapshot(core: ElfCore, data: NDArray[np.uint8], path: str) -> Snapshot | None:
    """Open a core file as a snapshot.

    :return: ``None`` if it is another core file.
    :raises TargetError: if it is a damaged snapshot, or a newer one than this.
    """
    notes = {note.type: note.desc for note in core.notes if note.name == _NOTE_NAME}
    if _NOTE_HEADER not in notes:
        return None
    header = _parse_header(notes[_NOTE_HEADER], path)
    if not core.complete or not {_NOTE_BTF, _NOTE_CAPTURED} <= notes.keys():
        raise TargetError(f"{path}: truncated: this snapshot is not whole; copy it again")
    load = core.load
    order = np.argsort(load.vaddr)
    start, size, offset = load.vaddr[order], load.filesz[order], load.offset[order]
    data_at = int(load.offset.min()) if len(order) else len(data)
    words = int(load.filesz.sum()) // WORD
    if np.any(start[1:] < (start + size)[:-1]) or data_at + words * WORD > len(data):
        raise TargetError(f"{path}: damaged: the segments of this snapshot overlap")
    bits = np.frombuffer(notes[_NOTE_CAPTURED], dtype=np.uint8)
    if len(bits) * 8 < words:
        raise TargetError(f"{path}: damaged: the map of captured words is too short")
    vmcoreinfo = next((note.desc for note in core.notes if note.name == b"VMCOREINFO"), b"")
    return Snapshot(
        header=header,
        btf=notes[_NOTE_BTF],
        vmcoreinfo=vmcoreinfo,
        memory=SegmentMemory(
            data,
            start,
            size,
            offset,
            captured=np.unpackbits(bits, count=words, bitorder="little").view(bool),
            captured_from=data_at,
        ),
    )


def _parse_header(desc: bytes, path: str) -> SnapshotHeader:
    try:
        content: Any = json.loads(desc)
        schema = content["schema"]
        if schema != SCHEMA:
            raise TargetError(
                f"{path}: a snapshot of the form {str(schema)!r}; this version reads {SCHEMA!r}: "
                "use a newer anonvma-inspect"
            )
        header = SnapshotHeader(**content)
        ram = np.array(header.ram, dtype=np.uint64).reshape(-1, 2)
        sound = (
            bool(np.all(ram[:, 0] < ram[:, 1]) and np.all(ram[1:, 0] >= ram[:-1, 1]))
            and all(
                isinstance(text, str) for text in (header.release, header.machine, *header.walks)
            )
            and all(
                isinstance(name, str) and isinstance(address, int) and 0 <= address < 2**64
                for name, address in header.symbols.items()
            )
            and all(
                isinstance(name, str) and len(ends) == 2 and 0 <= ends[0] < ends[1] < 2**64
                for name, ends in header.functions.items()
            )
            and all(
                len(cpu) == 2 and min(cpu) >= 0 and max(cpu) < 2**64 for cpu in header.registers
            )
            and isinstance(header.direct_map, int)
            and 0 <= header.direct_map < 2**64
            and header.page_size in (1 << shift for shift in range(12, 17))
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise TargetError(f"{path}: damaged: the snapshot's own description cannot be read")
    return header


def pack(
    header: SnapshotHeader,
    btf: bytes,
    vmcoreinfo: bytes,
    memory: Memory,
    ranges: U64Column,
    replacements: Mapping[int, bytes] | None = None,
) -> bytes:
    """Build a snapshot file.

    :param memory: Where the bytes come from.
    :param ranges: What to capture: shape (n, 2), half-open, in whole words, sorted, disjoint.
    :param replacements: Bytes to store instead of the target's, by address, all within ``ranges``.
    """
    pages = _page_runs(ranges)
    sizes = pages[:, 1] - pages[:, 0]
    at = np.cumsum(sizes) - sizes
    body = np.zeros(int(sizes.sum()), dtype=np.uint8)
    captured = np.zeros(len(body) // WORD, dtype=bool)
    counts = ((ranges[:, 1] - ranges[:, 0]) // np.uint64(WORD)).astype(np.int64)
    # Some millions of words at a time, so that the memory this takes stays bounded.
    for batch in np.split(
        np.arange(len(counts)), np.flatnonzero(np.diff(np.cumsum(counts) >> 21)) + 1
    ):
        count = counts[batch]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        address = np.repeat(ranges[batch, 0], count) + (within * WORD).astype(np.uint64)
        rows, present = memory.gather(address, WORD)
        run = np.searchsorted(pages[:, 0], address, side="right") - 1
        word = ((at[run] + address - pages[run, 0]) // np.uint64(WORD)).astype(np.int64)
        body.reshape(-1, WORD)[word] = rows
        captured[word] = present
    for address_of, data in (replacements or {}).items():
        run_of = int(np.searchsorted(pages[:, 0], np.uint64(address_of), side="right")) - 1
        to = int(at[run_of]) + address_of - int(pages[run_of, 0])
        body[to : to + len(data)] = np.frombuffer(data, dtype=np.uint8)
    notes = [
        Note(b"VMCOREINFO", 0, vmcoreinfo),
        Note(
            _NOTE_NAME,
            _NOTE_HEADER,
            json.dumps(dataclasses.asdict(header), sort_keys=True).encode(),
        ),
        Note(_NOTE_NAME, _NOTE_BTF, btf),
        Note(_NOTE_NAME, _NOTE_CAPTURED, np.packbits(captured, bitorder="little").tobytes()),
    ]
    space = AddressSpace(
        np.array(header.ram, dtype=np.uint64).reshape(-1, 2), header.page_size, header.direct_map
    )
    paddr = np.where(
        space.in_ram(pages[:, 0]),
        pages[:, 0] - np.uint64(header.direct_map),
        np.uint64(2**64 - 1),
    )
    return write_core(header.machine, notes, pages[:, 0], paddr, sizes) + body.tobytes()


# The pages that hold the ranges, in runs; few enough of them for an ELF file, if need be by taking
# in the pages of the smallest gaps.
def _page_runs(ranges: U64Column) -> U64Column:
    mask = np.uint64(2**64 - _PAGE)
    low = ranges[:, 0] & mask
    high = (ranges[:, 1] + np.uint64(_PAGE - 1)) & mask
    gap = low[1:] - np.minimum(high[:-1], low[1:])
    allowed = np.uint64(0)
    if np.count_nonzero(gap) >= _MAX_SEGMENTS:
        allowed = np.sort(gap)[-_MAX_SEGMENTS]
    breaks = np.flatnonzero(gap > allowed)
    first = np.append(0, breaks + 1)[: len(low)]
    last = np.append(breaks, len(low) - 1)[: len(low)]
    return np.stack([low[first], high[last]], axis=1)


def compress(data: bytes) -> bytes:
    """Compress as ``.xz``, the same bytes for the same input."""
    return lzma.compress(data, preset=6)
