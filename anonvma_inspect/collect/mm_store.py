"""The mms met so far, and the VMAs in their trees."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.mms import MmFields, SlotColumns, read_mms
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.vma_maple import walk_maple_trees
from anonvma_inspect.collect.vma_rb import walk_rb_trees
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import NO_ROW, RowColumn, find_rows
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("MmStore",)


class MmStore:
    """``mm_struct`` objects, each read once, numbered in the order in which they were met."""

    def __init__(self, reader: Reader, era: Era) -> None:
        self._reader, self._era = reader, era
        self.address: U64Column = np.empty(0, dtype=np.uint64)
        self.walked: BoolColumn = np.empty(0, dtype=bool)
        self.whole: BoolColumn = np.empty(0, dtype=bool)
        self.fields: list[MmFields] = []
        self.slots: list[SlotColumns] = []
        self._sorted = self.address
        self._order: RowColumn = np.empty(0, dtype=np.int64)

    def find(self, addresses: U64Column) -> RowColumn:
        """Numbers of the mms at these addresses."""
        row = find_rows(self._sorted, addresses)
        return np.where(row == NO_ROW, NO_ROW, self._order[row]) if len(self.address) else row

    def _walk(
        self, number: RowColumn, mms: U64Column, roots: U64Column
    ) -> tuple[SlotColumns, BoolColumn]:
        if self._era.maple_node is None:
            return walk_rb_trees(self._reader, self._era, number, mms, roots)
        return walk_maple_trees(self._reader, self._era.maple_node, number, mms, roots)

    def add(self, addresses: U64Column, walk: BoolColumn) -> SlotColumns:
        """Add mms, and enumerate the VMAs of those that are to be walked."""
        number = len(self.address) + np.arange(len(addresses))
        fields = read_mms(self._reader, self._era, addresses)
        walk = walk & fields.present
        slots, whole = self._walk(number[walk], addresses[walk], fields.vma_root[walk])
        self.address = np.concatenate([self.address, addresses])
        self.walked = np.concatenate([self.walked, walk])
        all_whole = np.zeros(len(addresses), dtype=bool)
        all_whole[walk] = whole
        self.whole = np.concatenate([self.whole, all_whole])
        self.fields.append(fields)
        self.slots.append(slots)
        self._order = np.argsort(self.address)
        self._sorted = self.address[self._order]
        return slots
