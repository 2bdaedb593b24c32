"""A machine in the middle of a fixture: its memory as a debugger or an emulator sees it.

Of the pages of a snapshot are made physical memory and, for x86-64, page tables over it, and where
the kernel's image would be the one pointer in it that leads to VMCOREINFO.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anonvma_inspect.target.elf import parse_core
from anonvma_inspect.target.snapshot import decompress, parse_snapshot
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = ("GuestImage", "make_guest")

PAGE = 4096
IMAGE = 0xFFFFFFFF80000000


@dataclass
class GuestImage:
    """A machine's memory.

    :ivar virtual: Pages by virtual address.
    :ivar physical: Pages by physical address.
    :ivar ranges: Of RAM.
    :ivar top_table: Physical address of the top page table.
    :ivar levels: Of page tables.
    :ivar image: Where the kernel's image begins.
    """

    levels: int
    image: int
    top_table: int = 0
    virtual: dict[int, bytes] = field(default_factory=dict)
    physical: dict[int, bytes] = field(default_factory=dict)
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def read(self, address: int, size: int) -> bytes:
        """Read virtual memory; raises LookupError where nothing is mapped."""
        return _read(self.virtual, address, size)

    def read_physical(self, address: int, size: int) -> bytes:
        """Read RAM, which is zero where nothing was captured."""
        if not any(start <= address and address + size <= end for start, end in self.ranges):
            raise LookupError
        data = b"".join(
            self.physical.get(page, bytes(PAGE))
            for page in range(address & -PAGE, address + size, PAGE)
        )
        return data[address % PAGE : address % PAGE + size]


def _read(pages: dict[int, bytes], address: int, size: int) -> bytes:
    data = b"".join(pages[page] for page in range(address & -PAGE, address + size, PAGE))
    return data[address % PAGE : address % PAGE + size]


def make_guest(snapshot_path: Path) -> GuestImage:
    """Make a machine of a snapshot."""
    data = decompress(snapshot_path)
    core = parse_core(data, str(snapshot_path))
    snapshot = parse_snapshot(core, data, str(snapshot_path))
    assert snapshot is not None
    header = snapshot.header
    facts = parse_vmcoreinfo(snapshot.vmcoreinfo, "")
    stext = int(facts["SYMBOL(_stext)"], 16)
    levels = 5 if facts.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
    guest = GuestImage(levels, stext & -(2 << 20))
    load = core.load
    for vaddr, offset, size in zip(load.vaddr, load.offset, load.filesz, strict=True):
        content = data[int(offset) : int(offset + size)].tobytes()
        start = int(vaddr)
        assert start % PAGE == 0
        for at in range(0, len(content), PAGE):
            guest.virtual[start + at] = content[at : at + PAGE].ljust(PAGE, b"\0")
    ram = [(start - header.direct_map, end - header.direct_map) for start, end in header.ram]
    guest.ranges = [(start % 2**64, end % 2**64) for start, end in ram]
    # A page at the end of RAM that nothing uses, and the pointer to it.
    page = guest.ranges[-1][1] & -PAGE
    while (page + header.direct_map) % 2**64 in guest.virtual or page == guest.ranges[-1][
        1
    ] & -PAGE:
        page -= PAGE
    pointer = (page + header.direct_map) % 2**64
    guest.virtual[pointer] = snapshot.vmcoreinfo.ljust(PAGE, b"\0")[:PAGE]
    _write(guest, guest.image + 24, pointer.to_bytes(8, "little"))
    # The third of six names of 65 bytes each.
    names = bytes(2 * 65) + header.release.encode().ljust(4 * 65 + 8, b"\0")
    _write(guest, int(facts["SYMBOL(init_uts_ns)"], 16), names)
    if header.machine == "x86_64":
        phys_base = int(facts["NUMBER(phys_base)"])
        guest.top_table = int(facts["SYMBOL(swapper_pg_dir)"], 16) - IMAGE + phys_base
        _map(guest, header.direct_map, phys_base)
    return guest


def _write(guest: GuestImage, address: int, data: bytes) -> None:
    for at, byte in enumerate(data, address):
        page = bytearray(guest.virtual.get(at & -PAGE, bytes(PAGE)))
        page[at % PAGE] = byte
        guest.virtual[at & -PAGE] = bytes(page)


# Gives each page a physical address and tables that lead there.
def _map(guest: GuestImage, direct_map: int, phys_base: int) -> None:
    starts = [start for start, _ in guest.ranges]
    spare = free = (guest.ranges[-1][1] + (64 << 20)) & -(1 << 20)
    tables: dict[int, np.ndarray[tuple[int], np.dtype[np.uint64]]] = {}
    tables[guest.top_table] = np.zeros(512, np.uint64)
    for virtual, content in guest.virtual.items():
        physical = (virtual - direct_map) % 2**64
        index = bisect.bisect_right(starts, physical) - 1
        if virtual >= IMAGE:
            physical = virtual - IMAGE + phys_base
        elif index < 0 or physical >= guest.ranges[index][1]:
            physical, free = free, free + PAGE
        assert physical not in guest.physical
        guest.physical[physical] = content
        table = guest.top_table
        for level in range(guest.levels, 1, -1):
            entry = virtual >> 12 + 9 * (level - 1) & 511
            if not tables[table][entry]:
                tables[free] = np.zeros(512, np.uint64)
                # Present and writable.
                tables[table][entry] = free | 3
                free += PAGE
            table = int(tables[table][entry]) & -PAGE
        tables[table][virtual >> 12 & 511] = physical | 3
    for at, entries in tables.items():
        assert at not in guest.physical or at == guest.top_table
        guest.physical[at] = entries.tobytes()
    guest.ranges.append((spare, free))
