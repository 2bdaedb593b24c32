"""A drgn program as a target: one that somebody else has opened.

What :mod:`anonvma_inspect.target.dump` does with a program of its own on a file is done here with
whatever a program is about: a dump, a live kernel, a guest, with types and symbols from wherever
its finders take them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Mapping

import drgn
import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.describe import Kernel
from anonvma_inspect.target.dwarf import DwarfLayouts
from anonvma_inspect.target.elf import parse_core
from anonvma_inspect.target.files import map_file
from anonvma_inspect.target.left_out import RangesLeftOut, unwritten
from anonvma_inspect.target.memory import (
    KERNEL_HALF,
    AddressSpace,
    BoolColumn,
    ByteRows,
    Memory,
    U64Column,
)
from anonvma_inspect.target.paged import PagedMemory
from anonvma_inspect.target.ram import system_ram
from anonvma_inspect.target.symbols import SYMBOLS, Symbols
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo

__all__ = (
    "ARCHITECTURES",
    "DRGN_ERRORS",
    "MACHINES",
    "ProgramMemory",
    "debug_info_of",
    "hide_unwritten",
    "program_symbols",
    "program_without_memory",
    "read_program",
    "remember_target",
    "target_of",
)

#: ``uname -m`` of the architectures that are understood.
MACHINES = {drgn.Architecture.X86_64: "x86_64", drgn.Architecture.AARCH64: "aarch64"}
#: The same, the other way.
ARCHITECTURES = {name: architecture for architecture, name in MACHINES.items()}
#: What drgn raises about a file that is damaged, cut short or of a kind that it does not read.
DRGN_ERRORS = (
    *(drgn.FaultError, drgn.BadDataError, OSError, ValueError, LookupError),
    OverflowError,  # of an address that the target led to, beyond the last one
)
# What is known of a program is kept in its own cache, and goes when it goes.
_CACHE_KEY = "anonvma_inspect.target"


def read_program(prog: drgn.Program, address: int, size: int, *, physical: bool = False) -> bytes:
    """Read memory of a program.

    :param physical: Whether the address is a physical one.
    :raises LookupError: if it is not there.
    """
    try:
        return bytes(prog.read(address, size, physical))
    except DRGN_ERRORS as error:
        # What libkdumpfile and a cut file raise differs; for a reader it is all one.
        raise LookupError(str(error)) from None


def hide_unwritten(prog: drgn.Program, left_out: RangesLeftOut) -> None:
    """Let a program fault where an ELF core has no bytes for a page; drgn reads it as zero."""

    def fault(address: int, count: int, offset: int, physical: bool) -> bytes:
        raise drgn.FaultError("left out of the dump", address)

    ranges = left_out.ranges.tolist()
    # drgn keeps segments in a tree that ascending addresses make a list of.
    random.Random(0).shuffle(ranges)
    for start, end in ranges:
        prog.add_memory_segment(start, end - start, fault)


def program_symbols(prog: drgn.Program) -> dict[str, int]:
    """Addresses of those of :data:`SYMBOLS` that a program's symbol finders know."""
    found = {}
    for name in SYMBOLS:
        with contextlib.suppress(LookupError):
            found[name] = prog.symbol(name).address
    return found


def debug_info_of(
    prog: drgn.Program, vmlinux: str, facts: Mapping[str, str]
) -> tuple[DwarfLayouts, Symbols]:
    """Layouts and symbols from a vmlinux, for the kernel that a program is about.

    :param facts: VMCOREINFO, as key and value.
    :raises TargetError: if it is another kernel's, or has no debugging information.
    """
    map_file(vmlinux)
    # Whether it worked shows in what is known afterwards; what libelf says comes in no class of its
    # own.
    with contextlib.suppress(Exception):
        prog.load_debug_info([vmlinux])
    try:
        prog.type("struct vm_area_struct")
    except LookupError:
        build_id = facts.get("BUILD-ID", "unknown")
        raise TargetError(
            f"{vmlinux}: not the vmlinux of this kernel, or without debugging information; needed "
            f"is that of {facts['OSRELEASE']}, build id {build_id}"
        ) from None
    return DwarfLayouts(prog), Symbols(program_symbols(prog), "dwarf")


def program_without_memory(machine: str, vmcoreinfo: bytes) -> drgn.Program:
    """A program to load the debugging information of a kernel into that drgn cannot open.

    :param machine: ``uname -m``.
    """
    prog = drgn.Program(drgn.Platform(ARCHITECTURES[machine]))
    prog.set_linux_kernel_custom(vmcoreinfo, is_live=False)

    # drgn asks for the list of modules, which is a word that points to itself if there are none.
    def no_modules(address: int, count: int, offset: int, physical: bool) -> bytes:
        if count != 8:
            raise drgn.FaultError("no memory", address)
        return address.to_bytes(8, "little")

    prog.add_memory_segment(KERNEL_HALF, 2**64 - KERNEL_HALF, no_modules)
    return prog


class ProgramMemory:
    """The memory of a program, as its finders, overlays and debugging stubs show it.

    Pages are cached, so it is a view of one moment: make another one for the next question. Where a
    page is not there as a whole, what is wanted of it is read by itself, since segments that
    somebody added to a program need not end with pages.

    :param prog: The program.
    :param page_size: Bytes.
    """

    def __init__(self, prog: drgn.Program, page_size: int) -> None:
        self._prog, self._page_size = prog, page_size
        self._paged = PagedMemory(self._read, page_size)
        self._lock = threading.Lock()

    def gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        """See :meth:`anonvma_inspect.target.memory.Memory.gather`."""
        with self._lock:
            return self._gather(addresses, size)

    def _gather(self, addresses: U64Column, size: int) -> tuple[ByteRows, BoolColumn]:
        rows, present = self._paged.gather(addresses, size)
        for row in np.flatnonzero(~present & (addresses >= np.uint64(KERNEL_HALF))):
            with contextlib.suppress(LookupError, OverflowError):
                data = self._read(int(addresses[row]), size)
                rows[row] = np.frombuffer(data, dtype=np.uint8)
                present[row] = True
        return rows, present

    def uncached(self) -> ProgramMemory:
        """See :meth:`anonvma_inspect.target.memory.Memory.uncached`."""
        return ProgramMemory(self._prog, self._page_size)

    def _read(self, address: int, size: int) -> bytes:
        return read_program(self._prog, address, size)


def remember_target(prog: drgn.Program, target: Target) -> None:
    """Keep what is known of a program already, for :func:`target_of`."""
    prog.cache[_CACHE_KEY] = target


def target_of(prog: drgn.Program) -> Target:
    """Look at a program as a target.

    All but its memory is found once a program; memory is read anew each time, so that a live
    kernel, or an overlay, is seen as it is now.

    :param prog: A program on a Linux kernel, with types and symbols.
    :raises TargetError: if it is none, or something of these is missing.
    """
    target = prog.cache.get(_CACHE_KEY)
    if not isinstance(target, Target):
        target = _find_out(prog)
        remember_target(prog, target)
    known = target

    def renew(before: Memory | None) -> tuple[ProgramMemory, AddressSpace]:
        return ProgramMemory(prog, known.page_size), known.space

    return dataclasses.replace(known, memory=renew(None)[0], renew=renew if known.live else None)


def _find_out(prog: drgn.Program) -> Target:
    name = str(prog.core_dump_path or "this program")
    if drgn.ProgramFlags.IS_LINUX_KERNEL not in prog.flags:
        raise TargetError(f"{name}: not a Linux kernel")
    machine = MACHINES.get(prog.platform.arch) if prog.platform is not None else None
    if machine is None:
        raise TargetError(f"{name}: the architectures understood are x86_64 and aarch64")
    vmcoreinfo = bytes(prog["VMCOREINFO"].string_())
    facts = parse_vmcoreinfo(vmcoreinfo, name)
    page_size = int(facts["PAGESIZE"])
    symbols = program_symbols(prog)
    layouts = DwarfLayouts(prog)
    if layouts.size("vm_area_struct") is None:
        raise TargetError(
            f"{name}: this program has no types: load debugging information (load_debug_info()), "
            "or open the dump with anonvma_inspect.helpers.open_core(), which needs none"
        )
    memory = ProgramMemory(prog, page_size)
    kernel = Kernel(name, machine, lambda address, size: read_program(prog, address, size), facts)
    shift = kernel.direct_map(Symbols(symbols, "program"), layouts)
    left_out = _unwritten(prog, shift)
    ram = system_ram(memory, layouts, symbols, shift)
    if not len(ram):
        raise TargetError(
            f"{name}: where its RAM is cannot be told: iomem_resource cannot be found or read"
        )

    return Target(
        kind="program",
        release=facts["OSRELEASE"],
        architecture=machine,
        page_size=page_size,
        path=name,
        live=drgn.ProgramFlags.IS_LIVE in prog.flags,
        memory=memory,
        space=AddressSpace(ram, page_size, shift),
        layouts=layouts,
        symbols=symbols,
        symbols_source="program",
        vmcoreinfo=vmcoreinfo,
        load_btf=lambda: kernel.btf(symbols),
        left_out=left_out,
    )


# What is left out is the file's, so it is left out of the program for whoever has it.
def _unwritten(prog: drgn.Program, shift: int) -> RangesLeftOut | None:
    path = prog.core_dump_path
    if path is None or drgn.ProgramFlags.IS_LIVE in prog.flags:
        return None
    try:
        left_out = unwritten(parse_core(map_file(path), path), shift)
    except TargetError:
        return None  # no ELF core
    if left_out is not None:
        hide_unwritten(prog, left_out)
    return left_out
