"""User page tables, as far as they tell which page frame is mapped where.

Follows ``arch/x86/include/asm/pgtable*.h`` and ``arch/arm64/include/asm/pgtable*.h`` (v5.10, v6.1,
v6.12, and Debian's 7.2 and 7.3), for entries that a process's own tables can have. What cannot be
told for sure is :attr:`EntryKind.OTHER`: nothing may follow from such an entry.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.target.memory import U64Column

__all__ = ("EntryKind", "PageTableFormat", "resolve_page_tables")

_PAGE_BITS = 12
# x86-64: _PAGE_BIT_PRESENT, _PSE, _PROTNONE (which is _GLOBAL) and _SPECIAL (which is _SOFTW1).
_PRESENT, _PSE, _PROTNONE, _SPECIAL = (np.uint64(1 << bit) for bit in (0, 7, 8, 9))
# __swp_type() and __swp_offset(): the type is in the five upper bits, the offset inverted.
# Since v5.19, of an entry for a swap area: _PAGE_SWP_EXCLUSIVE, which is _PAGE_PWT.
_SWAP_EXCLUSIVE = np.uint64(1 << 3)
_TYPE_SHIFT, _OFFSET_UP, _OFFSET_DOWN = np.uint64(59), np.uint64(5), np.uint64(14)
# arm64: PTE_VALID, the bit that tells a table or page from a block, and PTE_SPECIAL.
_VALID, _TABLE, _ARM_SPECIAL = (np.uint64(1 << bit) for bit in (0, 1, 56))
_PHYSICAL = (1 << 52) - 1
# include/linux/swap.h: of 32 types, those above the swap areas' mean something else, and which of
# them means what depends on the configuration. No configuration has more of these.
_MOST_SPECIAL_TYPES = 10
_FIRST_SPECIAL_TYPE = np.uint64(32 - _MOST_SPECIAL_TYPES)
# A marker holds a few flags, an entry of another kind the number of a page frame.
_MOST_MARKER = np.uint64(1 << 4)


class EntryKind(enum.IntEnum):
    """What an entry of a page table is."""

    NONE = 0
    #: The next lower table.
    TABLE = 1
    #: A page, or a block of pages, that counts as mapped (PROT_NONE too).
    PAGE = 2
    #: A page that is mapped without being counted: the zero page, device memory.
    SPECIAL = 3
    #: A page in a swap area.
    SWAP = 4
    #: A page that is being migrated, or a device's, or a poisoned one: an entry with a page frame.
    FRAME = 5
    #: No page at all: a guard region, a poisoned place, a note for userfaultfd.
    MARKER = 6
    OTHER = 7
    #: Not mapped: swapped, in migration, or a marker, which cannot be told apart.
    ABSENT = 8


_NONE, _NEXT, _OTHER = (
    np.uint8(kind) for kind in (EntryKind.NONE, EntryKind.TABLE, EntryKind.OTHER)
)


@dataclass(frozen=True)
class PageTableFormat:
    """How entries are read.

    :ivar x86: Of x86-64; else of arm64.
    :ivar levels: Of tables; the top one is of this level, one that maps pages of level 1.
    :ivar page_shift: Binary logarithm of the page size.
    :ivar address_bits: Of a user address.
    :ivar frame_bits: Of the number of a page frame in an entry that is not present.
    :ivar encrypted: Bits that memory encryption sets in physical addresses.
    """

    x86: bool
    levels: int
    page_shift: int
    address_bits: int
    frame_bits: int
    encrypted: int = 0

    @property
    def index_bits(self) -> int:
        """Of the address, what chooses an entry of a table; the top table may have fewer."""
        return self.page_shift - 3

    def shift(self, level: int) -> int:
        """Binary logarithm of the bytes that an entry of a level stands for."""
        return self.page_shift + (level - 1) * self.index_bits

    def kinds(self, entries: U64Column, level: int) -> NDArray[np.uint8]:
        """What entries are.

        :return: An :class:`EntryKind` each.
        """
        return self._x86_kinds(entries, level) if self.x86 else self._arm64_kinds(entries, level)

    def _x86_kinds(self, entries: U64Column, level: int) -> NDArray[np.uint8]:
        present = (entries & _PRESENT) != 0
        shown = present | ((entries & _PROTNONE) != 0)
        if level > 1:
            huge = (entries & _PSE) != 0
            if level > 2:
                table = present & ~huge
                return np.select([entries == 0, table], [_NONE, _NEXT], _OTHER).astype(np.uint8)
            # An entry that is only marked as huge is being split.
            kinds = np.select(
                [entries == 0, present & ~huge, shown & huge, ~shown & ~huge],
                [EntryKind.NONE, EntryKind.TABLE, EntryKind.PAGE, self._not_present(entries)],
                EntryKind.OTHER,
            )
        else:
            special = (entries & _SPECIAL) != 0
            kinds = np.select(
                [entries == 0, shown & special, shown],
                [EntryKind.NONE, EntryKind.SPECIAL, EntryKind.PAGE],
                self._not_present(entries),
            )
        return kinds.astype(np.uint8)

    def _arm64_kinds(self, entries: U64Column, level: int) -> NDArray[np.uint8]:
        valid = (entries & _VALID) != 0
        table = (entries & _TABLE) != 0
        if level > 1:
            found = np.where(table, EntryKind.TABLE, EntryKind.PAGE if level == 2 else _OTHER)
            return np.select([entries == 0, valid], [_NONE, found], _OTHER).astype(np.uint8)
        # PROT_NONE is not valid either, and how that is told from what is swapped has changed (in
        # v6.11) without a trace in any field; but in every form the second bit stays with a page,
        # and an entry that maps none has neither.
        special = (entries & _ARM_SPECIAL) != 0
        kinds = np.select(
            [entries == 0, ~valid & ~table, special],
            [EntryKind.NONE, EntryKind.ABSENT, EntryKind.SPECIAL],
            EntryKind.PAGE,
        )
        return kinds.astype(np.uint8)

    def _not_present(self, entries: U64Column) -> NDArray[np.int64]:
        area = entries >> _TYPE_SHIFT < _FIRST_SPECIAL_TYPE
        marker = self._offset(entries) < _MOST_MARKER
        return np.where(area, EntryKind.SWAP, np.where(marker, EntryKind.MARKER, EntryKind.FRAME))

    def _offset(self, entries: U64Column) -> U64Column:
        return (~entries << _OFFSET_UP) >> _OFFSET_DOWN

    def swap_slots(self, entries: U64Column) -> tuple[U64Column, U64Column]:
        """Number of the swap area, and of the slot in it, of entries of kind SWAP."""
        return entries >> _TYPE_SHIFT, self._offset(entries)

    @staticmethod
    def swap_exclusive(entries: U64Column) -> NDArray[np.bool_]:
        """Which entries of kind SWAP are marked as those of a page that belonged to one process, on
        a kernel that marks them (``pte_swp_exclusive()``).
        """
        marked: NDArray[np.bool_] = (entries & _SWAP_EXCLUSIVE) != 0
        return marked

    def physical(self, entries: U64Column) -> U64Column:
        """Physical address that entries of the kinds TABLE and PAGE lead to."""
        if not self.x86:
            return self._arm64_physical(entries)
        # Against speculation, an entry that is not present has its address inverted
        # (__pte_needs_invert(), arch/x86/include/asm/pgtable-invert.h).
        shown = np.where((entries & _PRESENT) != 0, entries, ~entries)
        return shown & np.uint64(_PHYSICAL & ~((1 << _PAGE_BITS) - 1) & ~self.encrypted)

    def _arm64_physical(self, entries: U64Column) -> U64Column:
        low = self.page_shift
        if low == 16:
            # PTE_ADDR_HIGH: four bits of an address of 52 are in the place of the page's own.
            base = entries & np.uint64((1 << 48) - (1 << low))
            return base | (entries & np.uint64(0xF << 12)) << np.uint64(36)
        if self.address_bits > 48:
            base = entries & np.uint64((1 << 50) - (1 << low))
            return base | (entries & np.uint64(3 << 8)) << np.uint64(42)
        return entries & np.uint64((1 << 48) - (1 << low))

    def frames(self, entries: U64Column, kinds: NDArray[np.uint8], level: int) -> U64Column:
        """Number of the first page frame of entries of the kinds PAGE and FRAME; of others, 0."""
        # The lowest bits of the address of a block are flags.
        block = np.uint64(2**64 - (1 << self.shift(level)))
        frame = (self.physical(entries) & block) >> np.uint64(self.page_shift)
        frame = np.where(kinds == EntryKind.PAGE, frame, np.uint64(0))
        waiting = kinds == EntryKind.FRAME
        if waiting.any():
            mask = np.uint64((1 << self.frame_bits) - 1)
            frame[waiting] = self._offset(entries[waiting]) & mask
        return frame


def resolve_page_tables(
    architecture: str, page_size: int, vmcoreinfo: Mapping[str, str]
) -> PageTableFormat | str:
    """Find how the page tables of processes are built.

    :param architecture: ``uname -m``.
    :param page_size: Bytes.
    :param vmcoreinfo: As key and value.
    :return: Or why that is not known.
    """

    def number(key: str) -> int | None:
        try:
            return int(vmcoreinfo[f"NUMBER({key})"], 0)
        except (KeyError, ValueError):
            return None

    shift = page_size.bit_length() - 1
    memory_bits = number("MAX_PHYSMEM_BITS")
    if architecture == "x86_64":
        levels = 5 if number("pgtable_l5_enabled") == 1 else 4
        bits = memory_bits or (52 if levels == 5 else 46)
        encrypted = number("sme_mask") or 0
        # TASK_SIZE_MAX: the lower half.
        user = shift + levels * (shift - 3) - 1
        return PageTableFormat(True, levels, shift, user, _frame_bits(bits, shift), encrypted)
    unused = number("TCR_EL1_T1SZ")
    # Without the register's value, VA_BITS is what the kernel was built for, and may be more.
    if unused is None and (number("VA_BITS") or 64) > 48:
        return "how many bits user addresses have (TCR_EL1_T1SZ) is not known"
    user = number("VA_BITS") or 48 if unused is None else 64 - unused
    if not shift < user <= 52 or page_size not in (1 << 12, 1 << 14, 1 << 16):
        return "the form of the page tables is not known"
    levels = -(-(user - shift) // (shift - 3))
    return PageTableFormat(False, levels, shift, user, _frame_bits(memory_bits or 48, shift))


def _frame_bits(memory_bits: int, shift: int) -> int:
    return min(max(memory_bits, shift + 1), 52) - shift
