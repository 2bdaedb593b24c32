"""Where RAM is: the ranges of the direct map that can hold kernel objects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anonvma_inspect.errors import TargetError
from anonvma_inspect.target.layouts import Layouts
from anonvma_inspect.target.memory import Memory, U64Column, merge_ranges

__all__ = ("direct_map_shift", "system_ram", "whole_direct_map")

# include/linux/ioport.h, v6.12: set on "System RAM" and what lies in it.
_IORESOURCE_SYSRAM = 0x01000000
_MAX_RESOURCES = 65536
_MAX_RAM = 1 << 46


def direct_map_shift(
    machine: str, vmcoreinfo: Mapping[str, str], page_offset_base: int | None
) -> int:
    """What to add to a physical address to get its virtual address in the direct map.

    Follows ``__va()``: ``arch/x86/include/asm/page.h`` and ``arch/arm64/include/asm/memory.h``,
    v6.12.

    :param page_offset_base: Value of that variable (x86-64 with CONFIG_RANDOMIZE_MEMORY).
    :return: Modulo 2**64.
    :raises TargetError: if the dump does not say.
    """
    if machine == "x86_64":
        if page_offset_base is not None:
            return page_offset_base
        five_levels = vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1"
        return 0xFF11000000000000 if five_levels else 0xFFFF888000000000
    try:
        va_bits = int(vmcoreinfo["NUMBER(VA_BITS)"], 0)
        phys_offset = int(vmcoreinfo["NUMBER(PHYS_OFFSET)"], 0)
    except (KeyError, ValueError):
        raise TargetError(
            "VMCOREINFO does not say where the direct map lies (NUMBER(VA_BITS), "
            "NUMBER(PHYS_OFFSET)); give a complete one with --vmcoreinfo"
        ) from None
    if not 36 <= va_bits <= 52:
        raise TargetError(f"VMCOREINFO is damaged: NUMBER(VA_BITS)={va_bits}")
    return (-(1 << va_bits) - phys_offset) % 2**64


def system_ram(
    memory: Memory, layouts: Layouts, symbols: Mapping[str, int], shift: int
) -> U64Column:
    """Ranges of the direct map that are backed by RAM, from the kernel's resource tree.

    Follows ``walk_system_ram_range()``, ``kernel/resource.c``, v6.12.

    :param symbols: Among them ``iomem_resource``, if it is known.
    :param shift: Virtual address of physical address 0, modulo 2**64.
    :return: Shape (n, 2), half-open, sorted; empty if the tree cannot be read.
    """
    names = ("start", "end", "flags", "sibling", "child")
    fields = [layouts.field("resource", name) for name in names]

    def read(address: int) -> list[int] | None:
        values = []
        for field in fields:
            if field is None:
                return None
            at = np.array([address + field.offset], dtype=np.uint64)
            rows, present = memory.gather(at, field.size)
            if not present[0]:
                return None
            values.append(int.from_bytes(rows[0].tobytes(), "little"))
        return values

    found: list[tuple[int, int]] = []
    root = read(symbols["iomem_resource"]) if "iomem_resource" in symbols else None
    address = root[4] if root else 0
    # RAM stands at the first level; what is below it only says who uses which part.
    for _ in range(_MAX_RESOURCES):
        resource = read(address) if address else None
        if resource is None:
            break
        start, end, flags, address, _child = resource
        if flags & _IORESOURCE_SYSRAM and start < end < 2**52:
            found.append((start, end + 1))
    physical = merge_ranges(np.array(found, dtype=np.uint64).reshape(-1, 2))
    return physical + np.uint64(shift)


def whole_direct_map(shift: int) -> U64Column:
    """What counts as RAM where no range of it is known: whatever the direct map could hold.

    :param shift: As for :func:`system_ram`.
    :return: Likewise.
    """
    return np.array([[shift, (shift + _MAX_RAM) % 2**64]], dtype=np.uint64)
