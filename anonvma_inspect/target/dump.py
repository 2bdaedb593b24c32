"""Dumps of a kernel: ELF vmcores and kdump files, by way of drgn.

drgn translates addresses and reads every format; for an ELF dump the direct map, where all slab
objects lie, is read from the mapped file by arithmetic.
"""

from __future__ import annotations

import drgn
import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.describe import Kernel, check_direct_map
from anonvma_inspect.target.elf import NO_PADDR, ElfCore
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.left_out import LeftOut, PagesLeftOut, parse_kdump, unwritten
from anonvma_inspect.target.memory import AddressSpace, Memory, SegmentMemory, merge_ranges
from anonvma_inspect.target.paged import PagedMemory
from anonvma_inspect.target.program import (
    MACHINES,
    debug_info_of,
    hide_unwritten,
    read_program,
)
from anonvma_inspect.target.ram import system_ram, whole_direct_map
from anonvma_inspect.target.registers import read_registers
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo

__all__ = ("open_dump",)


def open_dump(
    path: str, core: ElfCore | None, data: NDArray[np.uint8], options: TargetOptions
) -> Target:
    """Open a dump of a kernel.

    :param core: The headers of an ELF dump; ``None`` for a kdump.
    :param data: The whole file, mapped.
    :raises TargetError: if it cannot be understood.
    """
    given = read_vmcoreinfo(options.vmcoreinfo)
    prog = _program(path, core, given)
    vmcoreinfo = given if given is not None else _vmcoreinfo(prog, core)
    facts = parse_vmcoreinfo(vmcoreinfo, options.vmcoreinfo or path)
    assert prog.platform is not None
    machine = MACHINES.get(prog.platform.arch)
    if machine is None:
        raise TargetError(
            f"{path}: a dump of {prog.platform.arch.name}; the architectures understood are "
            "x86_64 and aarch64"
        )
    page_size = int(facts["PAGESIZE"])
    paged = PagedMemory(lambda address, size: read_program(prog, address, size), page_size)
    cut = "" if core is None or core.complete else " (the file is truncated: copy it again)"
    kernel = Kernel(
        path, machine, lambda address, size: read_program(prog, address, size), facts, cut
    )
    known = kernel.understand(options, lambda vmlinux: debug_info_of(prog, vmlinux, facts))
    shift = kernel.direct_map(
        known.symbols,
        known.layouts,
        lambda address, size: read_program(prog, address, size, physical=True),
    )
    left_out: LeftOut | None = None
    if core is not None:
        ranges = left_out = unwritten(core, shift)
        if ranges is not None:
            hide_unwritten(prog, ranges)
        physical = core.load.paddr != NO_PADDR
        start = core.load.paddr[physical] + np.uint64(shift)
        ram = merge_ranges(np.stack([start, start + core.load.memsz[physical]], axis=1))
        memory: Memory = _direct_map_memory(core, data, shift, paged)
    else:
        header = parse_kdump(data)
        if header is not None:
            left_out = PagesLeftOut(data, header, shift)
        memory = paged
        ram = system_ram(paged, known.layouts, known.symbols.addresses, shift)
        if not len(ram):
            ram = whole_direct_map(shift)
    target = Target(
        kind="kdump" if core is None else "elf-core",
        release=facts["OSRELEASE"],
        architecture=machine,
        page_size=page_size,
        path=path,
        live=False,
        memory=memory,
        space=AddressSpace(ram, page_size, shift),
        layouts=known.layouts,
        symbols=known.symbols.addresses,
        symbols_source=known.symbols.source,
        vmcoreinfo=vmcoreinfo,
        load_btf=known.load_btf,
        left_out=left_out,
        kallsyms=known.symbols.kallsyms,
        registers=() if core is None else read_registers(core.notes, machine),
    )
    check_direct_map(target, paged, cut)
    return target


def _program(path: str, core: ElfCore | None, vmcoreinfo: bytes | None) -> drgn.Program:
    names = set() if core is None else {note.name for note in core.notes}
    if core is not None and vmcoreinfo is None and b"VMCOREINFO" not in names:
        if b"QEMU" in names:
            raise TargetError(
                f"{path}: a dump by QEMU without VMCOREINFO: take it again from a guest that has "
                "-device vmcoreinfo and the qemu_fw_cfg module, or give the VMCOREINFO with "
                "--vmcoreinfo"
            )
        if b"CORE" in names:
            raise TargetError(f"{path}: a core dump of a user process, not of a kernel")
        raise TargetError(
            f"{path}: no dump of a Linux kernel: there is no VMCOREINFO in it (--vmcoreinfo gives "
            "one)"
        )
    try:
        prog = drgn.Program(vmcoreinfo=vmcoreinfo)
        prog.set_core_dump(path)
    except Exception as error:  # what libelf and libkdumpfile say comes in no class of its own
        raise TargetError(f"{path}: drgn cannot open it: {error}") from None
    if drgn.ProgramFlags.IS_LINUX_KERNEL not in prog.flags:
        raise TargetError(f"{path}: no dump of a Linux kernel, drgn says")
    return prog


def _vmcoreinfo(prog: drgn.Program, core: ElfCore | None) -> bytes:
    if core is not None:
        for note in core.notes:
            if note.name == b"VMCOREINFO":
                return note.desc
    return bytes(prog["VMCOREINFO"].string_())


# The direct map, by arithmetic over the file's segments. What is not in it (the kernel's image,
# vmemmap, vmalloc) goes the slow way.
def _direct_map_memory(
    core: ElfCore, data: NDArray[np.uint8], shift: int, paged: Memory
) -> SegmentMemory:
    load = core.load
    length = np.uint64(len(data))
    end = np.minimum(load.offset + load.filesz, length)
    size = np.where(end > load.offset, end - load.offset, np.uint64(0))
    size[load.paddr == NO_PADDR] = 0
    start = load.paddr + np.uint64(shift)
    order = np.lexsort((np.uint64(2**64 - 1) - size, start))
    start, size, offset = start[order], size[order], load.offset[order]
    # Segments can overlap (that of the kernel's image lies in RAM as well): each keeps what those
    # before it do not have.
    reach = np.maximum.accumulate(np.append(np.uint64(0), (start + size)[:-1]))
    cut = np.minimum(np.where(reach > start, reach - start, np.uint64(0)), size)
    start, size, offset = start + cut, size - cut, offset + cut
    kept = size > 0
    return SegmentMemory(data, start[kept], size[kept], offset[kept], fallback=paged)
