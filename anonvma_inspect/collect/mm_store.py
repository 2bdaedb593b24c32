"""The mms met so far, and the VMAs in their trees."""

from __future__ import annotations

import numpy as np

from anonvma_inspect.collect.index import AddressIndex
from anonvma_inspect.collect.mms import MmFields, SlotColumns, read_mms
from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.vma_maple import walk_maple_trees
from anonvma_inspect.collect.vma_rb import walk_rb_trees
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import RowColumn
from anonvma_inspect.target.memory import BoolColumn, U64Column

__all__ = ("MmStore",)


class MmStore(AddressIndex):
    """``mm_struct`` objects, each read once."""

    def __init__(self, reader: Reader, era: Era) -> None:
        super().__init__(reader.space)
        self._reader, self._era = reader, era
        self.walked: BoolColumn = np.empty(0, dtype=bool)
        self.whole: BoolColumn = np.empty(0, dtype=bool)
        self.fields: list[MmFields] = []
        self.slots: list[SlotColumns] = []

    def _walk(
        self, number: RowColumn, mms: U64Column, roots: U64Column
    ) -> tuple[SlotColumns, BoolColumn]:
        if self._era.maple_node is None:
            return walk_rb_trees(self._reader, self._era, number, mms, roots)
        return walk_maple_trees(self._reader, self._era.maple_node, number, mms, roots)

    def add(self, addresses: U64Column, walk: BoolColumn) -> SlotColumns:
        """Add mms, and enumerate the VMAs of those that are to be walked."""
        number = len(self) + np.arange(len(addresses))
        fields = read_mms(self._reader, self._era, addresses)
        walk = walk & fields.present
        slots, whole = self._walk(number[walk], addresses[walk], fields.vma_root[walk])
        self.number(addresses)
        self.walked = np.concatenate([self.walked, walk])
        all_whole = np.zeros(len(addresses), dtype=bool)
        all_whole[walk] = whole
        self.whole = np.concatenate([self.whole, all_whole])
        self.fields.append(fields)
        self.slots.append(slots)
        return slots
