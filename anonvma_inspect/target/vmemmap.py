"""Where the structs of page frames are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anonvma_inspect.target.memory import WORD
from anonvma_inspect.target.target import Target

__all__ = ("find_vmemmap",)

# arch/x86/include/asm/pgtable_64_types.h, __VMEMMAP_BASE_L4 and _L5.
_X86_4_LEVELS, _X86_5_LEVELS = 0xFFFFEA0000000000, 0xFFD4000000000000


def find_vmemmap(target: Target, vmcoreinfo: Mapping[str, str]) -> int | None:
    """Address of the ``struct page`` of page frame 0; that of frame n is n structs behind it.

    Follows ``__pfn_to_page()`` in ``include/asm-generic/memory_model.h`` for
    CONFIG_SPARSEMEM_VMEMMAP, and ``vmemmap`` in ``arch/x86/include/asm/pgtable_64.h`` and
    ``arch/arm64/include/asm/pgtable.h`` (v5.10, v6.12).

    :param vmcoreinfo: As key and value.
    :return: Modulo 2**64; ``None`` if the target does not tell.
    """
    # v6.1 does not say it, v6.12 does.
    said = _number(vmcoreinfo, "SYMBOL(vmemmap)", 16)
    if said is not None:
        return said
    if target.architecture == "x86_64":
        if "vmemmap_base" in target.symbols:
            return _word(target, target.symbols["vmemmap_base"])
        if "page_offset_base" in target.symbols:
            return None
        # Without CONFIG_DYNAMIC_MEMORY_LAYOUT it is where it always was.
        five_levels = vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1"
        return _X86_5_LEVELS if five_levels else _X86_4_LEVELS
    # The array begins with the first frame of RAM.
    start = _number(vmcoreinfo, "NUMBER(VMEMMAP_START)", 0)
    first = _number(vmcoreinfo, "NUMBER(PHYS_OFFSET)", 0)
    size = target.layouts.size("page")
    if start is None or first is None or size is None:
        return None
    return (start - first // target.page_size * size) % 2**64


def _number(vmcoreinfo: Mapping[str, str], key: str, base: int) -> int | None:
    try:
        number = int(vmcoreinfo[key], base)
    except (KeyError, ValueError):
        return None
    return number if -(2**63) <= number < 2**64 else None


def _word(target: Target, address: int) -> int | None:
    rows, present = target.memory.gather(np.array([address], dtype=np.uint64), WORD)
    return int.from_bytes(rows[0].tobytes(), "little") if present[0] else None
