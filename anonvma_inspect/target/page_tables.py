"""The kernel's page tables, where no symbol tells at which address the direct map begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ("direct_map_base", "translate_x86")

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
    entry = read(table + 8 * (address >> 12 + 9 * (levels - 1) & 511), 8)
    return _walk(read_physical, entry, levels, mask, address)


def translate_x86(
    read_physical: Callable[[int, int], bytes], root: int, levels: int, address: int
) -> int | None:
    """Walk page tables of an x86-64 processor.

    :param read_physical: Reads ``(address, size)``; raises :class:`LookupError` where there is
        nothing.
    :param root: Physical address of the top table (CR3 without its low bits).
    :param levels: 4 or 5.
    :return: Physical address; ``None`` if nothing is mapped there.
    """
    try:
        entry = read_physical(root + 8 * (address >> 12 + 9 * (levels - 1) & 511), 8)
        return _walk(read_physical, entry, levels, _ADDRESS & ~0xFFF, address)
    except LookupError:
        return None


# From an entry of the top table down.
def _walk(
    read_physical: Callable[[int, int], bytes], top: bytes, levels: int, mask: int, address: int
) -> int | None:
    entry = int.from_bytes(top, "little")
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        if not entry & _PRESENT:
            return None
        if level == 1 or (entry & _PSE and level in (2, 3)):
            return (entry & mask & -(1 << shift)) | address & (1 << shift) - 1
        at = (entry & mask) + 8 * (address >> shift - 9 & 511)
        entry = int.from_bytes(read_physical(at, 8), "little")
    return None
