"""What all kernels that run have in common, however their memory is read.

Nothing here or in what it is used by ever writes to a target.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from anonvma_inspect.target.describe import Kernel, Known, check_direct_map
from anonvma_inspect.target.files import TargetOptions
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import AddressSpace, Memory, U64Column
from anonvma_inspect.target.paged import Meter, PagedMemory
from anonvma_inspect.target.symbols import Symbols
from anonvma_inspect.target.target import Target

__all__ = ("asked_of", "live_target", "metered", "understand_live", "view_limit")


def view_limit() -> int:
    """Bytes that a view may keep: a quarter of what this machine has.

    What an audit reads of a sound kernel are the slabs of a few caches, and what it makes of them
    is larger than they are; a view that needs more is led astray, or has no room anyway.
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def metered(read: Callable[[int, int], bytes], meter: Meter) -> Callable[[int, int], bytes]:
    """A function that reads as another does, and counts what it reads."""

    def count(address: int, size: int) -> bytes:
        data = read(address, size)
        meter.add(bytes_read=len(data))
        return data

    return count


def asked_of(memory: Memory | None) -> U64Column | None:
    """The pages that were asked of a view, if it is one: see :meth:`PagedMemory.asked`."""
    return memory.asked() if isinstance(memory, PagedMemory) else None


def understand_live(
    kernel: Kernel,
    vmcoreinfo: bytes,
    options: TargetOptions,
    *,
    symbols: Symbols | None = None,
    btf: str | None = None,
) -> Known:
    """Find symbols and types of a kernel that drgn did not open.

    drgn is only loaded if there is a vmlinux to be read.

    :param symbols: See :meth:`~anonvma_inspect.target.describe.Kernel.understand`.
    :param btf: See there.
    :raises TargetError: See there.
    """

    def debug_info(vmlinux: str) -> tuple[Layouts, Symbols]:
        from anonvma_inspect.target.program import debug_info_of, program_without_memory

        prog = program_without_memory(kernel.machine, vmcoreinfo)
        return debug_info_of(prog, vmlinux, kernel.facts)

    return kernel.understand(options, debug_info, symbols=symbols, btf=btf)


def live_target(
    kind: str,
    kernel: Kernel,
    vmcoreinfo: bytes,
    known: Known,
    renew: Callable[[Memory | None], tuple[Memory, AddressSpace]],
    meter: Meter,
    *,
    slow: Memory | None = None,
) -> Target:
    """Put a target together, with its first view.

    :param renew: See :attr:`Target.renew`.
    :param slow: See :func:`~anonvma_inspect.target.describe.check_direct_map`, if the view reads
        the direct map by arithmetic.
    :raises TargetError: if the direct map is not where it should be.
    """
    memory, space = renew(None)
    target = Target(
        kind=kind,
        release=kernel.facts["OSRELEASE"],
        architecture=kernel.machine,
        page_size=space.page_size,
        path=kernel.path,
        live=True,
        memory=memory,
        space=space,
        layouts=known.layouts,
        symbols=known.symbols.addresses,
        symbols_source=known.symbols.source,
        vmcoreinfo=vmcoreinfo,
        load_btf=known.load_btf,
        kallsyms=known.symbols.kallsyms,
        renew=renew,
        meter=meter,
    )
    check_direct_map(target, memory if slow is None else slow)
    return target
