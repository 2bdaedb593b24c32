"""From addresses to the slabs that they lie in."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_caches import read_variable
from anonvma_inspect.errors import TargetError
from anonvma_inspect.kernel.slab import SlabEra, head_of, resolve_slab_era
from anonvma_inspect.tables import NO_ROW, RowColumn, find_rows
from anonvma_inspect.target.memory import BoolColumn, ByteRows, U64Column, distinct, starts_run
from anonvma_inspect.target.target import Target
from anonvma_inspect.target.vmcoreinfo import parse_vmcoreinfo
from anonvma_inspect.target.vmemmap import find_vmemmap

__all__ = ("SlabPages", "open_slab_pages")

# Page frames looked at together.
_BATCH = 1 << 16


def open_slab_pages(reader: Reader, target: Target) -> tuple[SlabEra, SlabPages] | str:
    """Find what it takes to read slabs.

    :param reader: Reads the structs; where they are is a hole of it, if that is not there.
    :return: Or why they cannot be read.
    """
    try:
        facts = parse_vmcoreinfo(target.vmcoreinfo, target.path)
    except TargetError as error:
        return str(error)
    era = resolve_slab_era(target.layouts, facts)
    if isinstance(era, str):
        return era
    vmemmap = find_vmemmap(target, facts)
    if vmemmap is None:
        # If that is because it is not there, it is a hole.
        read_variable(reader, target, "vmemmap_base")
        return "where struct page is (vmemmap) is not known"
    return era, SlabPages(reader, era, vmemmap)


class SlabPages:
    """The structs of page frames, each read once; slabs are numbered in the order they were met.

    :param vmemmap: Address of the struct of page frame 0.
    """

    def __init__(self, reader: Reader, era: SlabEra, vmemmap: int) -> None:
        self._reader, self._era = reader, era
        self._vmemmap = np.uint64(vmemmap)
        self._shift = np.uint64(reader.space.page_size.bit_length() - 1)
        self._direct_map = np.uint64(reader.space.direct_map)
        #: Addresses of ``struct page``, by number.
        self.address: U64Column = np.empty(0, dtype=np.uint64)
        self._rows: ByteRows = np.empty((0, era.page.size), dtype=np.uint8)
        self._sorted: U64Column = self.address
        self._order: RowColumn = np.empty(0, dtype=np.int64)
        self._caches: U64Column | None = None

    def __len__(self) -> int:
        """How many structs were read, those of tails included."""
        return len(self.address)

    def pages_of(self, addresses: U64Column) -> U64Column:
        """Addresses of the ``struct page`` of the frames that addresses lie in."""
        frame = (addresses - self._direct_map) >> self._shift
        return self._vmemmap + frame * np.uint64(self._era.page.size)

    def base_of(self, pages: U64Column) -> U64Column:
        """Where the frames of some ``struct page`` begin."""
        frame = (pages - self._vmemmap) // np.uint64(self._era.page.size)
        return self._direct_map + (frame << self._shift)

    def slabs_of(self, addresses: U64Column) -> RowColumn:
        """The slabs, or other compound pages, that objects lie in.

        :param addresses: In RAM; neighbours should stand together.
        :return: Numbers; NO_ROW where the target does not have the structs.
        """
        pages = self.pages_of(addresses)
        first = starts_run(pages)
        run = np.cumsum(first) - 1
        here = pages[first]
        self._read(here)
        number = self._find(here)
        known = np.flatnonzero(number != NO_ROW)
        info = self._era.page.column(self._rows[number[known]], "head")
        head = head_of(here[known], info, self._era.page.size)
        self._read(head)
        number[known] = self._find(head)
        numbers: RowColumn = number[run]
        return numbers

    def find_slabs(self, caches: U64Column) -> None:
        """Look at all page frames for the slabs of some caches.

        That takes 50 MB of structs for each 3 GiB of RAM; none of them is kept but those of slabs
        that are sought.
        """
        space, era = self._reader.space, self._era
        for start, end in space.ram:
            pages = self.pages_of(np.array([start, end], dtype=np.uint64))
            count = int((pages[1] - pages[0]) // np.uint64(era.page.size))
            for first in range(0, count, _BATCH):
                self._reader.progress("page frames", first)
                number = np.arange(first, min(first + _BATCH, count), dtype=np.uint64)
                page = pages[0] + number * np.uint64(era.page.size)
                rows, present = self._reader.memory.uncached().gather(page, era.page.size)
                sought = np.isin(era.slab.column(rows, "slab_cache"), caches)
                self._read(page[present & sought & era.is_slab(rows)])

    def _read(self, pages: U64Column) -> None:
        new = distinct(pages)
        new = new[find_rows(self._sorted, new) == NO_ROW]
        if not len(new):
            return
        rows, present = self._reader.rows(self._era.page, new)
        self.address = np.concatenate([self.address, new[present]])
        self._rows = np.concatenate([self._rows, rows[present]])
        self._order = np.argsort(self.address)
        self._sorted = self.address[self._order]
        self._caches = None

    def _find(self, pages: U64Column) -> RowColumn:
        row = find_rows(self._sorted, pages)
        return np.where(row == NO_ROW, NO_ROW, self._order[row]) if len(self) else row

    @property
    def is_slab(self) -> BoolColumn:
        """Which of them are slabs."""
        return self._era.is_slab(self._rows)

    @property
    def caches(self) -> U64Column:
        """The cache of each; 0 for what is no slab."""
        if self._caches is None:
            self._caches = np.where(self.is_slab, self.column("slab_cache"), np.uint64(0))
        return self._caches

    def column(self, name: str) -> U64Column:
        """A field of all of them as slabs."""
        return self._era.slab.column(self._rows, name)
