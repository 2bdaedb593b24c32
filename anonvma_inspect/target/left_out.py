"""What was left out of a dump on purpose: pages of RAM that a filter took for user or free memory.

makedumpfile tells of each page whether it was there to be dumped and whether it is in the file: in
a kdump by two bitmaps (``diskdump_mod.h`` of makedumpfile 1.7), in an ELF core by segments whose
``p_memsz`` is more than their ``p_filesz``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.target.elf import NO_PADDR, ElfCore
from anonvma_inspect.target.memory import BoolColumn, U64Column, in_ranges, merge_ranges

__all__ = ("KdumpHeader", "LeftOut", "PagesLeftOut", "RangesLeftOut", "parse_kdump", "unwritten")

# struct disk_dump_header: block_size, sub_hdr_size (in blocks), bitmap_blocks.
_HEADER, _HEADER_AT = struct.Struct("<III"), 428
# struct kdump_sub_header, in the block behind it: dump_level, split.
_SUB_HEADER, _SUB_HEADER_AT = struct.Struct("<ii"), 8
_MAX_LEVEL = 31


class LeftOut(Protocol):
    """What a dump's filter left out.

    :ivar level: makedumpfile's ``-d``, if the dump tells it.
    """

    @property
    def level(self) -> int | None: ...

    def covers(self, addresses: U64Column) -> BoolColumn:
        """Which addresses lie in RAM that was left out.

        :param addresses: Of the direct map; for any others the answer is no.
        """
        ...


@dataclass(frozen=True)
class RangesLeftOut:
    """Of an ELF core.

    :ivar ranges: Shape (n, 2): half-open, of the direct map, sorted and disjoint.
    """

    ranges: U64Column
    level: int | None = None

    def covers(self, addresses: U64Column) -> BoolColumn:
        """See :meth:`LeftOut.covers`."""
        return in_ranges(self.ranges, addresses)


@dataclass(frozen=True)
class KdumpHeader:
    """What the headers of a kdump say, if they are in the file.

    :ivar split: It is one of the files that ``makedumpfile --split`` wrote.
    :ivar page_size: Bytes.
    :ivar bitmap: Where the bitmap of the pages that could be dumped begins in the file. That of the
        pages that were is as long and stands behind it.
    :ivar bitmap_size: Bytes of each.
    """

    split: bool
    level: int | None
    page_size: int
    bitmap: int
    bitmap_size: int


def parse_kdump(data: NDArray[np.uint8]) -> KdumpHeader | None:
    """Read the headers of a kdump.

    :param data: The whole file.
    :return: ``None`` if they are not in it.
    """
    header = data[_HEADER_AT : _HEADER_AT + _HEADER.size].tobytes()
    if len(header) < _HEADER.size:
        return None
    block_size, sub_header_blocks, bitmap_blocks = _HEADER.unpack(header)
    at = block_size + _SUB_HEADER_AT
    sub_header = data[at : at + _SUB_HEADER.size].tobytes()
    if block_size == 0 or len(sub_header) < _SUB_HEADER.size:
        return None
    level, split = _SUB_HEADER.unpack(sub_header)
    return KdumpHeader(
        split=split == 1,
        level=level if 0 <= level <= _MAX_LEVEL else None,
        page_size=block_size,
        bitmap=(1 + sub_header_blocks) * block_size,
        bitmap_size=bitmap_blocks * block_size // 2,
    )


@dataclass(frozen=True)
class PagesLeftOut:
    """Of a kdump.

    :ivar data: The whole file.
    :ivar shift: Virtual address of physical address 0, modulo 2**64.
    """

    data: NDArray[np.uint8]
    header: KdumpHeader
    shift: int

    @property
    def level(self) -> int | None:
        return self.header.level

    def covers(self, addresses: U64Column) -> BoolColumn:
        """See :meth:`LeftOut.covers`."""
        page = (addresses - np.uint64(self.shift)) // np.uint64(self.header.page_size)
        dumped = self._bit(self.header.bitmap + self.header.bitmap_size, page)
        left_out: BoolColumn = self._bit(self.header.bitmap, page) & ~dumped
        return left_out

    def _bit(self, bitmap: int, page: U64Column) -> BoolColumn:
        byte = page // np.uint64(8)
        size = max(min(self.header.bitmap_size, len(self.data) - bitmap), 0)
        known: BoolColumn = byte < np.uint64(size)
        bits = self.data[bitmap + byte[known].astype(np.int64)]
        known[known] = (bits >> (page[known] % np.uint64(8)).astype(np.uint8) & 1) != 0
        return known


def unwritten(core: ElfCore, shift: int) -> RangesLeftOut | None:
    """What an ELF core has segments for, but no bytes.

    :param shift: Virtual address of physical address 0, modulo 2**64.
    :return: ``None`` if there is nothing of the kind.
    """
    load = core.load
    known = load.paddr != NO_PADDR
    start, filesz = load.paddr[known] + np.uint64(shift), load.filesz[known]
    written = merge_ranges(np.stack([start, start + filesz], axis=1))
    rest = merge_ranges(np.stack([start + filesz, start + load.memsz[known]], axis=1))
    # Segments can overlap: that of the kernel's image lies in RAM as well.
    edges = np.unique(np.concatenate([written, rest]))
    pieces = np.stack([edges[:-1], edges[1:]], axis=1)
    lost = in_ranges(rest, pieces[:, 0]) & ~in_ranges(written, pieces[:, 0])
    return RangesLeftOut(merge_ranges(pieces[lost])) if lost.any() else None
