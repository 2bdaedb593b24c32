"""A machine behind a gdb remote stub, read by virtual addresses as its processor sees them.

The stub stops the machine while it is attached, so what is read is of one moment, as in a dump.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.connection import Connection
from anonvma_inspect.target.describe import Kernel
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.find_vmcoreinfo import (
    find_vmcoreinfo,
    image_around,
    is_vmcoreinfo_of,
    x86_image,
)
from anonvma_inspect.target.gdb_remote import GdbRemote
from anonvma_inspect.target.live import live_target, metered, understand_live, view_limit
from anonvma_inspect.target.memory import KERNEL_HALF, AddressSpace, Memory
from anonvma_inspect.target.paged import Meter, PagedMemory
from anonvma_inspect.target.ram import system_ram, whole_direct_map
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo

__all__ = ("open_gdb",)

_MOST_THREADS = 1024
# gdb_vm_state_change(), gdbstub/softmmu.c, QEMU 8.1: stop replies are only sent when waited for.
_SILENT_SINCE = (8, 1)

_Read = Callable[[int, int], bytes]


def open_gdb(address: str, options: TargetOptions) -> Target:
    """Open what a gdb remote stub shows.

    :param address: Of the stub: a path, or ``host:port``.
    :return: It stands still while it is held, and runs on when it is given up.
    :raises TargetError: if that cannot be used, or the kernel not be understood.
    """
    stub = GdbRemote(Connection(address, "--gdb"))
    name = f"--gdb {address}"
    _use_virtual_addresses(stub)
    if not stub.stopped_by_us and _found_stopped(stub):
        stub.leave_stopped()
    read, vmcoreinfo = _see_kernel(stub, read_vmcoreinfo(options.vmcoreinfo), name)
    facts = parse_vmcoreinfo(vmcoreinfo, options.vmcoreinfo or name)
    machine = "aarch64" if "NUMBER(kimage_voffset)" in facts else "x86_64"
    meter = Meter()
    kernel = Kernel(name, machine, metered(read, meter), facts)
    known = understand_live(kernel, vmcoreinfo, options)
    shift = kernel.direct_map(known.symbols, known.layouts)
    page_size = int(facts["PAGESIZE"])
    view = PagedMemory(read, page_size, meter=meter, limit=view_limit())
    ram = system_ram(view, known.layouts, known.symbols.addresses, shift)
    if not len(ram):
        ram = whole_direct_map(shift)

    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        return view, AddressSpace(ram, page_size, shift)

    target = live_target("gdb", kernel, vmcoreinfo, known, renew, meter)
    return dataclasses.replace(target, live=False, renew=None)


# QEMU's stub can be switched to physical addresses, and stays so when a client leaves.
def _use_virtual_addresses(stub: GdbRemote) -> None:
    if stub.ask(b"qqemu.PhyMemMode") == b"1" and stub.ask(b"Qqemu.PhyMemMode:0") == b"OK":
        stub.on_leaving(b"Qqemu.PhyMemMode:1")


# Whether the machine stood still before we came, as far as QEMU's monitor tells: it has a reason of
# its own to be stopped, or is of a release that says at once when connecting stops a machine. Of a
# later one it cannot be told whether somebody had paused it.
def _found_stopped(stub: GdbRemote) -> bool:
    if re.search(r"VM status: paused \(", stub.monitor("info status")):
        return True
    version = re.match(r"([0-9]+)\.([0-9]+)\.[0-9]", stub.monitor("info version"))
    return version is not None and (int(version[1]), int(version[2])) < _SILENT_SINCE


# What reads virtual memory, and VMCOREINFO. With page-table isolation a processor that runs a
# process does not see the kernel: another one may, or QEMU shows physical memory.
def _see_kernel(stub: GdbRemote, given: bytes | None, name: str) -> tuple[_Read, bytes]:
    arm = b"aarch64" in stub.ask(b"qXfer:features:read:target.xml:0,3fb")
    seen = False
    for thread in _threads(stub):
        if thread and stub.ask(b"Hg" + thread) != b"OK":
            continue
        if given is not None:
            if is_vmcoreinfo_of(stub.read, given):
                return stub.read, given
            continue
        start = _arm_image(stub) if arm else x86_image(stub.read)
        if start is None:
            continue
        seen = True
        found = find_vmcoreinfo(stub.read, start)
        if found is not None:
            return stub.read, found
    if not arm and not seen:
        physical = _by_physical_addresses(stub, given)
        if physical is not None:
            return physical
    raise TargetError(
        f"{name}: "
        + (
            "no VMCOREINFO is found in the kernel's image: give it with --vmcoreinfo"
            if seen
            else "no processor of it sees a kernel of Linux"
            + (" that the VMCOREINFO given is of" if given is not None else " where those are")
            + ": it has not booted as far, or all run processes from which the kernel is hidden "
            "(page-table isolation): try again, or use --qemu"
        )
    )


# QEMU's stub only.
def _by_physical_addresses(stub: GdbRemote, given: bytes | None) -> tuple[_Read, bytes] | None:
    if stub.ask(b"Qqemu.PhyMemMode:1") != b"OK":
        return None
    stub.on_leaving(b"Qqemu.PhyMemMode:0")
    # drgn takes its time to load.
    from anonvma_inspect.target.physical import PhysicalMachine

    machine = PhysicalMachine(stub.read, "x86_64")
    found = machine.find_vmcoreinfo(stub.monitor("info registers")) if given is None else given
    if found is None:
        return None
    read = machine.reader(found)
    return (read, found) if is_vmcoreinfo_of(read, found) else None


# All processors; of a stub that does not list them, the one that it shows by itself.
def _threads(stub: GdbRemote) -> Iterator[bytes]:
    question, count = b"qfThreadInfo", 0
    while count < _MOST_THREADS:
        answer = stub.ask(question)
        threads = answer[1:].split(b",") if answer[:1] == b"m" else []
        yield from threads
        if not threads:
            break
        question, count = b"qsThreadInfo", count + len(threads)
    if not count:
        yield b""


# Where the program counter is, if that is in the kernel.
def _arm_image(stub: GdbRemote) -> int | None:
    registers = stub.ask(b"g")
    # Behind x0 to x30 and sp (gdb's aarch64-core.xml).
    with contextlib.suppress(ValueError):
        pc = int.from_bytes(bytes.fromhex(registers.decode("ascii"))[256:264], "little")
        if pc >= KERNEL_HALF:
            return image_around(stub.read, pc)
    return None
