"""A machine of which physical memory can be read, and what its processors' registers hold.

What lies where is found as the machine itself would find it: by page tables.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from functools import partial

import drgn

from anonvma_inspect.target.find_vmcoreinfo import find_vmcoreinfo, x86_image
from anonvma_inspect.target.page_tables import translate_x86
from anonvma_inspect.target.program import ARCHITECTURES, read_program

__all__ = ("PhysicalMachine",)

_PAGE = 4096
# Physical addresses end here on every architecture that is understood.
_END = 1 << 52
# Kernels map themselves with a few; more are what somebody else makes us read.
_MOST_TABLES = 4096
# x86_cpu_dump_state(), target/i386/cpu-dump.c, QEMU 7.2. (For arm64 the monitor does not say it.)
_CR3_AND_CR4 = re.compile(r"\bCR3=([0-9a-f]{8,16}) CR4=([0-9a-f]{8,16})\b")
_CR4_LA57 = 1 << 12
# With page-table isolation, a process's own table lies in the page behind the kernel's, and the low
# 12 bits are no part of the address (PTI_USER_PGTABLE_BIT, arch/x86/include/asm/pgtable.h, v6.12).
_CR3_TABLE, _PTI_TABLE = (_END - 1) & ~0xFFF, 1 << 12


class PhysicalMachine:
    """A machine's memory by virtual address.

    :param read: Reads ``(address, size)`` of RAM; raises :class:`LookupError` where there is none.
    :param architecture: ``uname -m``.
    """

    def __init__(self, read: Callable[[int, int], bytes], architecture: str) -> None:
        self.read = read
        self._architecture = architecture
        self._tables: dict[int, bytes] = {}

    def forget(self) -> None:
        """Read page tables anew when they are needed next."""
        self._tables = {}

    def reader(self, vmcoreinfo: bytes) -> Callable[[int, int], bytes]:
        """What reads virtual memory by the kernel's own page tables, as drgn walks them.

        :return: Reads ``(address, size)``; raises :class:`LookupError` where there is nothing.
        """
        prog = drgn.Program(drgn.Platform(ARCHITECTURES[self._architecture]))
        prog.set_linux_kernel_custom(vmcoreinfo, is_live=True)

        def read_physical(address: int, count: int, offset: int, physical: bool) -> bytes:
            try:
                return self._read_table(address, count) if count <= 8 else self.read(address, count)
            except LookupError as error:
                raise drgn.FaultError(str(error), address) from None

        prog.add_memory_segment(0, _END, read_physical, True)
        # A program walks one table at a time.
        lock = threading.Lock()

        def read(address: int, size: int) -> bytes:
            with lock:
                return read_program(prog, address, size)

        return read

    def find_vmcoreinfo(self, registers: str) -> bytes | None:
        """Find VMCOREINFO by the page tables that processors use.

        :param registers: What QEMU's monitor says to ``info registers``.
        :return: ``None`` if these lead to none.
        """
        for root, levels in _roots(registers):
            read = partial(self._read_through, root, levels)
            start = x86_image(read)
            found = None if start is None else find_vmcoreinfo(read, start)
            if found is not None:
                return found
        return None

    # Entries of page tables are read again and again, and hardly ever change.
    def _read_table(self, address: int, size: int) -> bytes:
        page, inside = address & -_PAGE, address % _PAGE
        if inside + size > _PAGE:
            return self.read(address, size)
        if page not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self.forget()
            self._tables[page] = self.read(page, _PAGE)
        return self._tables[page][inside : inside + size]

    def _read_through(self, root: int, levels: int, address: int, size: int) -> bytes:
        # Neighbours are read at once: asking takes its time, however little it brings.
        pieces: list[tuple[int, int]] = []
        while size:
            physical = translate_x86(self._read_table, root, levels, address)
            if physical is None:
                raise LookupError("not mapped")
            length = min(size, _PAGE - address % _PAGE)
            if pieces and sum(pieces[-1]) == physical:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
            else:
                pieces.append((physical, length))
            address, size = address + length, size - length
        return b"".join(self.read(start, length) for start, length in pieces)


# The top page tables of processors, and how many levels they have.
def _roots(registers: str) -> Iterator[tuple[int, int]]:
    seen = set()
    for cr3, cr4 in _CR3_AND_CR4.findall(registers):
        levels = 5 if int(cr4, 16) & _CR4_LA57 else 4
        table = int(cr3, 16) & _CR3_TABLE
        for root in (table, table & ~_PTI_TABLE):
            if root and (root, levels) not in seen:
                seen.add((root, levels))
                yield root, levels
