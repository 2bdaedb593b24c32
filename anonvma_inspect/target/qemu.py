"""A guest of QEMU, read from outside through QMP while it goes on running.

QEMU gives physical memory. What lies where in it is found as the guest itself would find it: by the
page tables of its processors, then by VMCOREINFO, to which the kernel's image leads. Neither the
vmcoreinfo device nor a dump is needed for that, and the guest is stopped at no time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial

import drgn
import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.connection import Connection
from anonvma_inspect.target.describe import Kernel
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.find_vmcoreinfo import (
    find_vmcoreinfo,
    is_vmcoreinfo_of,
    search_ram,
    x86_image,
)
from anonvma_inspect.target.live import live_target, metered, understand_live, view_limit
from anonvma_inspect.target.memory import AddressSpace, Memory
from anonvma_inspect.target.page_tables import translate_x86
from anonvma_inspect.target.paged import Meter, PagedMemory
from anonvma_inspect.target.program import ARCHITECTURES, read_program
from anonvma_inspect.target.qemu_memory import QemuMemory
from anonvma_inspect.target.qmp import Qmp
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo

__all__ = ("open_qemu",)

_PAGE = 4096
# Kernels map themselves with a few; more are what somebody else makes us read.
_MOST_TABLES = 4096
# So much RAM is searched for VMCOREINFO in half a minute.
_MOST_SEARCHED = 64 << 30
# x86_cpu_dump_state(), target/i386/cpu-dump.c, QEMU 7.2. (For arm64 the monitor does not say it.)
_CR3_AND_CR4 = re.compile(r"\bCR3=([0-9a-f]{8,16}) CR4=([0-9a-f]{8,16})\b")
_CR4_LA57 = 1 << 12
# With page-table isolation, a process's own table lies in the page behind the kernel's, and the low
# 12 bits are no part of the address (kaiser: X86_CR3_PTI_PCID_USER_BIT, PTI_USER_PGTABLE_BIT).
_CR3_TABLE, _PTI_TABLE = ((1 << 52) - 1) & ~0xFFF, 1 << 12


class _Guest:
    """A guest's memory, physical and virtual."""

    def __init__(self, memory: QemuMemory, machine: str) -> None:
        self.memory = memory
        self._machine = machine
        self._tables: dict[int, bytes] = {}

    # Reads an entry of a page table; they are asked for again and again, and hardly ever change.
    def read_table(self, address: int, size: int) -> bytes:
        page, inside = address & -_PAGE, address % _PAGE
        if inside + size > _PAGE:
            return self.memory.read(address, size)
        if page not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self.forget()
            self._tables[page] = self.memory.read(page, _PAGE)
        return self._tables[page][inside : inside + size]

    def forget(self) -> None:
        self._tables = {}

    # By the tables of a processor, before anything is known of the kernel.
    def read_through(self, root: int, levels: int, address: int, size: int) -> bytes:
        # Neighbours are read at once: each command of QEMU's takes its time, however little it
        # brings.
        pieces: list[tuple[int, int]] = []
        while size:
            physical = translate_x86(self.read_table, root, levels, address)
            if physical is None:
                raise LookupError("not mapped")
            length = min(size, _PAGE - address % _PAGE)
            if pieces and sum(pieces[-1]) == physical:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
            else:
                pieces.append((physical, length))
            address, size = address + length, size - length
        return b"".join(self.memory.read(start, length) for start, length in pieces)

    # A program that translates addresses by the kernel's own page tables.
    def program(self, vmcoreinfo: bytes) -> drgn.Program:
        prog = drgn.Program(drgn.Platform(ARCHITECTURES[self._machine]))
        prog.set_linux_kernel_custom(vmcoreinfo, is_live=True)

        def read(address: int, count: int, offset: int, physical: bool) -> bytes:
            try:
                small = self.read_table if count <= 8 else self.memory.read
                return small(address, count)
            except LookupError as error:
                raise drgn.FaultError(str(error), address) from None

        for start, end in self.memory.ranges:
            prog.add_memory_segment(start, end - start, read, True)
        return prog


def open_qemu(address: str, options: TargetOptions) -> Target:
    """Open a guest of QEMU.

    :param address: Of its QMP socket: a path, or ``host:port``.
    :raises TargetError: if that cannot be used, or the guest's kernel not be understood.
    """
    qmp = Qmp(Connection(address, "--qemu"))
    name = qmp.connection.name
    answer = qmp.execute("query-target")
    machine = answer.get("arch") if isinstance(answer, dict) else None
    if machine not in ARCHITECTURES:
        raise TargetError(
            f"{name}: a guest of {machine}; the architectures understood are x86_64 and aarch64"
        )
    guest = _Guest(QemuMemory(qmp), machine)
    vmcoreinfo = read_vmcoreinfo(options.vmcoreinfo) or _find_vmcoreinfo(guest, qmp, machine)
    if vmcoreinfo is None:
        raise TargetError(
            f"{name}: no Linux kernel's VMCOREINFO is found in this guest's memory: it has not "
            "booted as far as that, or is no Linux; else give VMCOREINFO with --vmcoreinfo"
        )
    facts = parse_vmcoreinfo(vmcoreinfo, options.vmcoreinfo or name)
    prog = guest.program(vmcoreinfo)
    meter = Meter()

    read_by_tables = partial(read_program, prog)
    kernel = Kernel(name, machine, metered(read_by_tables, meter), facts)
    known = understand_live(kernel, vmcoreinfo, options)
    shift = kernel.direct_map(known.symbols, known.layouts, guest.memory.read)

    # Neither QMP nor drgn is made for several threads.
    lock = threading.Lock()

    def read(address: int, size: int) -> bytes:
        with lock:
            try:
                return guest.memory.read((address - shift) % 2**64, size)
            except LookupError:
                return read_by_tables(address, size)

    page_size = int(facts["PAGESIZE"])

    def renew() -> tuple[Memory, AddressSpace]:
        # Memory can be plugged in.
        guest.memory.look_again()
        guest.forget()
        ram = np.array(guest.memory.ranges, dtype=np.uint64) + np.uint64(shift)
        view = PagedMemory(read, page_size, meter=meter, limit=view_limit())
        return view, AddressSpace(ram, page_size, shift)

    slow = PagedMemory(read_by_tables, page_size)
    return live_target("qemu", kernel, vmcoreinfo, known, renew, meter, slow=slow)


def _find_vmcoreinfo(guest: _Guest, qmp: Qmp, machine: str) -> bytes | None:
    for root, levels in _roots(qmp):
        read = partial(guest.read_through, root, levels)
        start = x86_image(read)
        found = None if start is None else find_vmcoreinfo(read, start)
        if found is not None:
            return found
    # Text would take hours.
    total = sum(end - start for start, end in guest.memory.ranges)
    if guest.memory.way == "text" or total > _MOST_SEARCHED:
        return None
    for text in search_ram(guest.memory.read, guest.memory.ranges):
        if is_vmcoreinfo_of(partial(read_program, guest.program(text)), text):
            return text
    return None


# The top page tables of the guest's processors, and how many levels they have.
def _roots(qmp: Qmp) -> Iterator[tuple[int, int]]:
    seen = set()
    for cr3, cr4 in _CR3_AND_CR4.findall(qmp.monitor("info registers -a")):
        levels = 5 if int(cr4, 16) & _CR4_LA57 else 4
        table = int(cr3, 16) & _CR3_TABLE
        for root in (table, table & ~_PTI_TABLE):
            if root and (root, levels) not in seen:
                seen.add((root, levels))
                yield root, levels
