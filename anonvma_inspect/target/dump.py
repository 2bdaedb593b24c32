"""Dumps of a kernel: ELF vmcores and kdump files, by way of drgn.

drgn translates addresses and reads every format; for an ELF dump the direct map, where all slab
objects lie, is read from the mapped file by arithmetic.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import drgn
import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.btf import Btf, BtfLayouts
from anonvma_inspect.target.elf import NO_PADDR, ElfCore
from anonvma_inspect.target.files import TargetOptions, map_file
from anonvma_inspect.target.find_btf import find_btf
from anonvma_inspect.target.image import KernelImage
from anonvma_inspect.target.layouts import DwarfLayouts, Layouts
from anonvma_inspect.target.left_out import LeftOut, PagesLeftOut, parse_kdump, unwritten
from anonvma_inspect.target.memory import (
    KERNEL_HALF,
    AddressSpace,
    Memory,
    PagedMemory,
    SegmentMemory,
    merge_ranges,
)
from anonvma_inspect.target.page_tables import direct_map_base
from anonvma_inspect.target.program import (
    MACHINES,
    hide_unwritten,
    program_symbols,
    read_program,
)
from anonvma_inspect.target.ram import direct_map_shift, system_ram
from anonvma_inspect.target.symbols import Symbols, search_data, symbols_of_dump, symbols_of_map
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import MAX_VMCOREINFO, parse_vmcoreinfo

__all__ = ("open_dump",)

_MAX_BTF = 1 << 28
# Where no range of RAM is known, whatever the direct map could hold counts as RAM.
_MAX_RAM = 1 << 46


def open_dump(
    path: str, core: ElfCore | None, data: NDArray[np.uint8], options: TargetOptions
) -> Target:
    """Open a dump of a kernel.

    :param core: The headers of an ELF dump; ``None`` for a kdump.
    :param data: The whole file, mapped.
    :raises TargetError: if it cannot be understood.
    """
    given = None
    if options.vmcoreinfo is not None:
        given = map_file(options.vmcoreinfo)[:MAX_VMCOREINFO].tobytes()
        parse_vmcoreinfo(given, options.vmcoreinfo)
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
    if options.symbols is not None:
        _load_debug_info(prog, options.symbols, path, facts)
    image = _image(prog, facts)
    if options.system_map is not None:
        symbols = symbols_of_map(options.system_map, facts)
    elif options.symbols is not None:
        symbols = Symbols(program_symbols(prog), "dwarf")
    else:
        symbols = symbols_of_dump(
            lambda address, size: _must_read(prog, address, size, path, cut), image, facts
        )

    def load_btf() -> Btf:
        return _btf(prog, symbols.addresses, image, options.btf, path, cut)

    layouts: Layouts
    layouts = DwarfLayouts(prog) if options.symbols is not None else BtfLayouts(load_btf())
    if image is not None and symbols.source not in ("system-map", "dwarf"):
        symbols = search_data(symbols, image, layouts)
    if image is not None:
        image.forget()
    if "init_task" not in symbols.addresses:
        raise TargetError(
            f"{path}: the address of init_task is not known: this kernel "
            f"({facts['OSRELEASE']}) does not tell it in VMCOREINFO or kallsyms, and no search of "
            f"its image finds it{cut}; give its symbols with --system-map (a copy of "
            "/proc/kallsyms) or -s (a vmlinux with debugging information)"
        )
    base = _page_offset_base(prog, machine, facts, symbols, layouts, path, cut)
    shift = direct_map_shift(machine, facts, base)
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
        ram = system_ram(paged, layouts, symbols.addresses, shift)
        if not len(ram):
            ram = np.array([[shift, (shift + _MAX_RAM) % 2**64]], dtype=np.uint64)
    target = Target(
        kind="kdump" if core is None else "elf-core",
        release=facts["OSRELEASE"],
        architecture=machine,
        page_size=page_size,
        path=path,
        live=False,
        memory=memory,
        space=AddressSpace(ram, page_size, shift),
        layouts=layouts,
        symbols=symbols.addresses,
        symbols_source=symbols.source,
        vmcoreinfo=vmcoreinfo,
        load_btf=load_btf,
        left_out=left_out,
        kallsyms=symbols.kallsyms,
    )
    _check_direct_map(target, paged, cut)
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


def _must_read(prog: drgn.Program, address: int, size: int, path: str, cut: str) -> bytes:
    try:
        return read_program(prog, address, size)
    except LookupError:
        raise TargetError(
            f"{path}: the kernel's own data at {address:#x} are not in the dump{cut}"
        ) from None


def _load_debug_info(prog: drgn.Program, vmlinux: str, path: str, facts: Mapping[str, str]) -> None:
    map_file(vmlinux)
    # Whether it worked shows in what is known afterwards.
    with contextlib.suppress(Exception):  # as above
        prog.load_debug_info([vmlinux])
    try:
        prog.type("struct vm_area_struct")
    except LookupError:
        build_id = facts.get("BUILD-ID", "unknown")
        raise TargetError(
            f"{vmlinux}: not the vmlinux of this dump, or without debugging information; needed "
            f"is that of {facts['OSRELEASE']}, build id {build_id}"
        ) from None


def _image(prog: drgn.Program, facts: Mapping[str, str]) -> KernelImage | None:
    text = facts.get("SYMBOL(_stext)", "")
    if not re.fullmatch("[0-9a-f]{16}", text) or int(text, 16) < KERNEL_HALF:
        return None
    return KernelImage(
        lambda address, size: read_program(prog, address, size),
        int(text, 16),
        int(facts["PAGESIZE"]),
    )


def _btf(
    prog: drgn.Program,
    symbols: Mapping[str, int],
    image: KernelImage | None,
    file: str | None,
    path: str,
    cut: str,
) -> Btf:
    if file is not None:
        return Btf(map_file(file), file)
    origin = f"the BTF in {path}"
    start, stop = symbols.get("__start_BTF"), symbols.get("__stop_BTF")
    if start is not None and stop is not None and 0 < stop - start <= _MAX_BTF:
        return Btf(_must_read(prog, start, stop - start, path, cut), origin)
    found = None if image is None else find_btf(image, origin)
    if found is None:
        raise TargetError(
            f"{path}: no BTF in it{cut or ' (CONFIG_DEBUG_INFO_BTF)'}: give its types with "
            "-s (a vmlinux with debugging information) or --btf (a file of raw BTF)"
        )
    return found


# The variable of that name, where the kernel has it; else what the page tables tell of the first
# task, which is a slab object.
def _page_offset_base(
    prog: drgn.Program,
    machine: str,
    facts: Mapping[str, str],
    symbols: Symbols,
    layouts: Layouts,
    path: str,
    cut: str,
) -> int | None:
    addresses = symbols.addresses
    if "page_offset_base" in addresses:
        data = _must_read(prog, addresses["page_offset_base"], 8, path, cut)
        return int.from_bytes(data, "little")
    tasks = layouts.field("task_struct", "tasks.next")
    if machine != "x86_64" or symbols.source != "search" or tasks is None:
        return None
    first = _must_read(prog, addresses["init_task"] + tasks.offset, 8, path, cut)
    return direct_map_base(
        lambda address, size: read_program(prog, address, size),
        lambda address, size: read_program(prog, address, size, physical=True),
        facts,
        int.from_bytes(first, "little"),
    )


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


# The direct map was found by arithmetic; one word read through it must be what the kernel's own
# page tables give.
def _check_direct_map(target: Target, paged: Memory, cut: str) -> None:
    tasks = target.layouts.field("task_struct", "tasks.next")
    if tasks is None:
        return  # the era's answer will say so
    init_task = np.array([target.symbol("init_task") + tasks.offset], dtype=np.uint64)
    rows, present = paged.gather(init_task, 8)
    if not present[0]:
        reason = cut or ": the symbols may be of another kernel"
        raise TargetError(f"{target.path}: init_task cannot be read{reason}")
    first = rows.view("<u8").reshape(1).astype(np.uint64)
    if first[0] == init_task[0]:
        return  # no task but init_task
    slow, slow_present = paged.gather(first, 8)
    fast, fast_present = target.memory.gather(first, 8)
    if target.space.wild(first)[0] or (
        slow_present[0] and not (fast_present[0] and np.array_equal(slow, fast))
    ):
        raise TargetError(
            f"{target.path}: the first task is at {int(first[0]):#x}, outside RAM as far as known: "
            "the symbols or the VMCOREINFO are of another kernel, or the dump is damaged"
        )
