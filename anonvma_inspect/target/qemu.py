"""A guest of QEMU, read from outside through QMP while it goes on running.

QEMU gives physical memory. What lies where in it is found as the guest itself would find it: by the
page tables of its processors, then by VMCOREINFO, to which the kernel's image leads. Neither the
vmcoreinfo device nor a dump is needed for that, and the guest is stopped at no time.
"""

from __future__ import annotations

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.connection import Connection
from anonvma_inspect.target.describe import Kernel
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.find_vmcoreinfo import is_vmcoreinfo_of, search_ram
from anonvma_inspect.target.live import asked_of, live_target, metered, understand_live, view_limit
from anonvma_inspect.target.memory import AddressSpace, Memory
from anonvma_inspect.target.paged import Meter, PagedMemory
from anonvma_inspect.target.physical import PhysicalMachine
from anonvma_inspect.target.program import ARCHITECTURES
from anonvma_inspect.target.qemu_memory import QemuMemory
from anonvma_inspect.target.qmp import Qmp
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo, read_vmcoreinfo

__all__ = ("open_qemu",)

# So much RAM is searched for VMCOREINFO in half a minute.
_MOST_SEARCHED = 64 << 30


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
    memory = QemuMemory(qmp)
    guest = PhysicalMachine(memory.read, machine)
    vmcoreinfo = read_vmcoreinfo(options.vmcoreinfo) or _find_vmcoreinfo(guest, memory, qmp)
    facts = parse_vmcoreinfo(vmcoreinfo, options.vmcoreinfo or name)
    meter = Meter()
    read_by_tables = guest.reader(vmcoreinfo)
    kernel = Kernel(name, machine, metered(read_by_tables, meter), facts)
    known = understand_live(kernel, vmcoreinfo, options)
    shift = kernel.direct_map(known.symbols, known.layouts, memory.read)

    def read(address: int, size: int) -> bytes:
        try:
            return memory.read((address - shift) % 2**64, size)
        except LookupError:
            return read_by_tables(address, size)

    page_size = int(facts["PAGESIZE"])

    def renew(before: Memory | None) -> tuple[Memory, AddressSpace]:
        # Memory can be plugged in.
        memory.look_again()
        guest.forget()
        ram = np.array(memory.ranges, dtype=np.uint64) + np.uint64(shift)
        view = PagedMemory(read, page_size, meter=meter, limit=view_limit(), ahead=asked_of(before))
        return view, AddressSpace(ram, page_size, shift)

    slow = PagedMemory(read_by_tables, page_size)
    return live_target("qemu", kernel, vmcoreinfo, known, renew, meter, slow=slow)


def _find_vmcoreinfo(guest: PhysicalMachine, memory: QemuMemory, qmp: Qmp) -> bytes:
    found = guest.find_vmcoreinfo(qmp.monitor("info registers -a"))
    if found is not None:
        return found
    total = sum(end - start for start, end in memory.ranges)
    # Text would take hours.
    searched = memory.way != "text" and total <= _MOST_SEARCHED
    for text in search_ram(memory.read, memory.ranges) if searched else ():
        if is_vmcoreinfo_of(guest.reader(text), text):
            return text
    raise TargetError(
        f"{qmp.connection.name}: "
        + (
            "no VMCOREINFO is found in this guest's memory: it has not booted as far as that, or "
            "is no Linux; else give it with --vmcoreinfo"
            if searched
            else "no processor of this guest leads to VMCOREINFO (those of arm64 never do), and "
            f"{total >> 30} GiB are not searched for it this way: use a Unix socket of a QEMU on "
            "this host, or give VMCOREINFO with --vmcoreinfo"
        )
    )
