"""The kernel's page tables, where no symbol tells at which address the direct map begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ("direct_map_base",)

_PRESENT, _PSE = 1 << 0, 1 << 7
_ADDRESS = (1 << 52) - 1
# kernel_randomize_memory(), arch/x86/mm/kaslr.c, v6.12: bases are multiples of PUD_SIZE.
_PUD_SIZE = 1 << 30


def direct_map_base(
    read: Callable[[int, int], bytes],
    read_physical: Callable[[int, int], bytes],
    vmcoreinfo: Mapping[str, str],
    address: int,
) -> int | None:
    """Where the direct map of an x86-64 kernel begins: the value of ``page_offset_base``.

    :param read: Reads ``(address, size)`` of the kernel's memory; raises :class:`LookupError` where
        there is nothing.
    :param read_physical: Reads physical memory likewise.
    :param vmcoreinfo: VMCOREINFO, as key and value.
    :param address: Of anything that lies in the direct map.
    :return: ``None`` if the page tables do not tell.
    """
    try:
        physical = _translate(read, read_physical, vmcoreinfo, address)
    except (LookupError, ValueError):
        return None
    base = None if physical is None else address - physical
    return base if base is not None and base >= 1 << 63 and base % _PUD_SIZE == 0 else None


# Follows arch/x86/include/asm/pgtable_types.h, v6.12.
def _translate(
    read: Callable[[int, int], bytes],
    read_physical: Callable[[int, int], bytes],
    vmcoreinfo: Mapping[str, str],
    address: int,
) -> int | None:
    levels = 5 if vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
    mask = _ADDRESS & ~int(vmcoreinfo.get("NUMBER(sme_mask)", "0")) & ~0xFFF
    table = int(vmcoreinfo["SYMBOL(swapper_pg_dir)"], 16)
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        at = table + 8 * (address >> shift & 511)
        entry = int.from_bytes((read if level == levels else read_physical)(at, 8), "little")
        if not entry & _PRESENT:
            return None
        if level == 1 or (entry & _PSE and level in (2, 3)):
            return (entry & mask & -(1 << shift)) | address & (1 << shift) - 1
        table = entry & mask
    return None
