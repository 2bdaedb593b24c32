"""Entries of page tables, put together here as the kernel's macros do it, and taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from anonvma_inspect.kernel.folio import MappingKind, decode_mapping
from anonvma_inspect.kernel.page_table import EntryKind, PageTableFormat, resolve_page_tables

ALL = (1 << 64) - 1
PRESENT, RW, USER, ACCESSED, DIRTY, PSE, PROTNONE, SPECIAL = (
    1 << bit for bit in (0, 1, 2, 5, 6, 7, 8, 9)
)
NX = 1 << 63
FRAME = 0x12345


def form(architecture: str = "x86_64", page_size: int = 4096, **facts: str) -> PageTableFormat:
    found = resolve_page_tables(
        architecture, page_size, {f"NUMBER({key})": value for key, value in facts.items()}
    )
    assert isinstance(found, PageTableFormat)
    return found


def swapped(kind: int, offset: int) -> int:
    # __swp_entry(), arch/x86/include/asm/pgtable_64.h.
    return ((~offset << 14) & ALL) >> 5 | kind << 59


def read(tables: PageTableFormat, entry: int, level: int = 1) -> tuple[EntryKind, int]:
    entries = np.array([entry], dtype=np.uint64)
    kinds = tables.kinds(entries, level)
    return EntryKind(int(kinds[0])), int(tables.frames(entries, kinds, level)[0])


@pytest.mark.parametrize(
    ("entry", "level", "kind", "frame"),
    [
        (0, 1, EntryKind.NONE, 0),
        (FRAME << 12 | PRESENT | RW | USER | ACCESSED | DIRTY | NX, 1, EntryKind.PAGE, FRAME),
        # PROT_NONE: not present for the processor, and the address inverted (pte_pfn()).
        ((~(FRAME << 12) & ((1 << 52) - 4096)) | PROTNONE, 1, EntryKind.PAGE, FRAME),
        (FRAME << 12 | PRESENT | USER | SPECIAL, 1, EntryKind.SPECIAL, 0),
        (swapped(1, 0x55), 1, EntryKind.SWAP, 0),
        # A migration entry of a kernel with few special types, and one with more; with the bits
        # that keep accessed and dirty behind the frame (SWP_MIG_YOUNG_BIT).
        (swapped(30, FRAME), 1, EntryKind.FRAME, FRAME),
        (swapped(26, FRAME | 3 << 34), 1, EntryKind.FRAME, FRAME),
        # PTE_MARKER_GUARD.
        (swapped(31, 1 << 2), 1, EntryKind.MARKER, 0),
        (0x12345067, 2, EntryKind.TABLE, 0),
        (0x40000000 | PSE | PRESENT | RW | USER | 1 << 12, 2, EntryKind.PAGE, 0x40000),
        ((~0x40000000 & ((1 << 52) - 4096)) | PSE | PROTNONE, 2, EntryKind.PAGE, 0x40000),
        (swapped(30, 0x40000), 2, EntryKind.FRAME, 0x40000),
        # Neither present nor PROT_NONE, but huge: pmdp_invalidate() before a split.
        ((~0x40000000 & ((1 << 52) - 4096)) | PSE | RW | USER, 2, EntryKind.OTHER, 0),
        (0x12345067, 4, EntryKind.TABLE, 0),
        (0x40000000 | PSE | PRESENT, 3, EntryKind.OTHER, 0),
    ],
)
def test_x86(entry: int, level: int, kind: EntryKind, frame: int) -> None:
    assert read(form(MAX_PHYSMEM_BITS="46"), entry, level) == (kind, frame)


def test_swap_slots() -> None:
    area, slot = form().swap_slots(np.array([swapped(3, 0x1234567)], dtype=np.uint64))
    assert (int(area[0]), int(slot[0])) == (3, 0x1234567)


VALID, BLOCK_OR_TABLE, ARM_SPECIAL = 1 << 0, 1 << 1, 1 << 56
SHAREABLE, ACCESS, NOT_GLOBAL = 3 << 8, 1 << 10, 1 << 11
PAGE = VALID | BLOCK_OR_TABLE | SHAREABLE | ACCESS | NOT_GLOBAL


@pytest.mark.parametrize(
    ("entry", "level", "kind", "frame"),
    [
        (0, 1, EntryKind.NONE, 0),
        (FRAME << 12 | PAGE, 1, EntryKind.PAGE, FRAME),
        (FRAME << 12 | PAGE | ARM_SPECIAL, 1, EntryKind.SPECIAL, 0),
        (FRAME << 12 | PAGE, 2, EntryKind.TABLE, 0),
        (0x40000000 | PAGE & ~BLOCK_OR_TABLE, 2, EntryKind.PAGE, 0x40000),
        # PROT_NONE: PTE_PROT_NONE is bit 58; from v6.11 on PTE_PRESENT_INVALID, which is
        # PTE_NG.
        (FRAME << 12 | (PAGE & ~VALID) | 1 << 58, 1, EntryKind.PAGE, FRAME),
        (FRAME << 12 | (PAGE & ~VALID), 1, EntryKind.PAGE, FRAME),
        # __swp_entry(3, 0x1234), to v6.10 and since v6.11.
        (3 << 3 | 0x1234 << 8, 1, EntryKind.ABSENT, 0),
        (3 << 6 | 0x1234 << 12, 1, EntryKind.ABSENT, 0),
    ],
)
def test_arm64(entry: int, level: int, kind: EntryKind, frame: int) -> None:
    assert read(form("aarch64", TCR_EL1_T1SZ="0x10"), entry, level) == (kind, frame)


def test_arm64_with_more_bits() -> None:
    # 52 bits of user addresses with pages of 4 KiB: bits 50 and 51 of an address stand in 8 and 9.
    wide = form("aarch64", TCR_EL1_T1SZ="0xc")
    high = 3 << 50 | FRAME << 12
    entry = (high & ((1 << 50) - 4096)) | 3 << 8 | VALID | BLOCK_OR_TABLE | ACCESS
    assert read(wide, entry) == (EntryKind.PAGE, high >> 12)
    # Pages of 64 KiB: bits 48 to 51 stand in 12 to 15.
    large = form("aarch64", 1 << 16, TCR_EL1_T1SZ="0xc")
    entry = 0x7654 << 16 | 0xA << 12 | VALID | BLOCK_OR_TABLE | ACCESS
    assert read(large, entry) == (EntryKind.PAGE, (0xA << 48 | 0x7654 << 16) >> 16)


@pytest.mark.parametrize(
    ("architecture", "size", "facts", "levels", "bits", "shifts"),
    [
        ("x86_64", 4096, {"pgtable_l5_enabled": "0"}, 4, 47, [12, 21, 30, 39]),
        ("x86_64", 4096, {"pgtable_l5_enabled": "1"}, 5, 56, [12, 21, 30, 39, 48]),
        ("aarch64", 4096, {"TCR_EL1_T1SZ": "0x10", "VA_BITS": "52"}, 4, 48, [12, 21, 30, 39]),
        ("aarch64", 4096, {"TCR_EL1_T1SZ": "0xc"}, 5, 52, [12, 21, 30, 39, 48]),
        ("aarch64", 4096, {"VA_BITS": "39"}, 3, 39, [12, 21, 30]),
        ("aarch64", 1 << 16, {"TCR_EL1_T1SZ": "0x10"}, 3, 48, [16, 29, 42]),
    ],
)
def test_levels(
    architecture: str, size: int, facts: dict[str, str], levels: int, bits: int, shifts: list[int]
) -> None:
    found = form(architecture, size, **facts)
    assert (found.levels, found.address_bits) == (levels, bits)
    assert [found.shift(level) for level in range(1, levels + 1)] == shifts


def test_memory_encryption() -> None:
    found = form(sme_mask=hex(1 << 47))
    assert read(found, FRAME << 12 | 1 << 47 | PRESENT) == (EntryKind.PAGE, FRAME)


def test_not_known() -> None:
    assert isinstance(resolve_page_tables("aarch64", 4096, {"NUMBER(VA_BITS)": "52"}), str)


@pytest.mark.parametrize(
    ("word", "pointer", "kind"),
    [
        (0, 0, MappingKind.NONE),
        (0xFFFF888000001000, 0xFFFF888000001000, MappingKind.FILE),
        (0xFFFF888000001001, 0xFFFF888000001000, MappingKind.ANON),
        (0xFFFF888000001003, 0xFFFF888000001000, MappingKind.KSM),
        # try_to_merge_one_page() marks a page as KSM's before it has a stable node.
        (3, 0, MappingKind.KSM),
        # PAGE_MAPPING_DAX_SHARED; PAGE_MAPPING_MOVABLE.
        (1, 0, MappingKind.OTHER),
        (0xFFFF888000001002, 0xFFFF888000001000, MappingKind.OTHER),
    ],
)
def test_mapping(word: int, pointer: int, kind: MappingKind) -> None:
    pointers, kinds = decode_mapping(np.array([word], dtype=np.uint64))
    assert (int(pointers[0]), MappingKind(int(kinds[0]))) == (pointer, kind)
