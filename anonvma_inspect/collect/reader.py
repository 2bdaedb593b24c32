"""Reading objects of the target, with a memory for what was missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import NO_ROW, Broken, Holes, RowColumn, find_rows
from anonvma_inspect.target.memory import BoolColumn, ByteRows, U64Column, distinct
from anonvma_inspect.target.target import Target

__all__ = ("AddressIndex", "ObjectStore", "Progress", "Reader")

Progress = Callable[[str, int], None]


class Reader:
    """Reads records of a target, and keeps account of holes and of broken structures.

    :param progress: Called with what is being read and how many of it so far.
    """

    def __init__(self, target: Target, progress: Progress | None = None) -> None:
        self.memory = target.memory
        self.space = target.space
        self._progress = progress
        self._holes: list[tuple[U64Column, int, str]] = []
        self._broken: list[tuple[int, int, str, int, str]] = []

    def progress(self, what: str, count: int) -> None:
        """Tell whoever waits."""
        if self._progress is not None:
            self._progress(what, count)

    def rows(self, record: Record, addresses: U64Column) -> tuple[ByteRows, BoolColumn]:
        """Read whole objects; one that should be there and is not is noted as a hole.

        :param addresses: Pointers that are not wild.
        :return: Shape (n, record.size), and which are there.
        """
        rows, present = self.memory.gather(addresses, record.size)
        self.hole(addresses[~present], record.size, record.struct)
        return rows, present

    def words(
        self, record: Record, addresses: U64Column, name: str
    ) -> tuple[NDArray[np.uint64], BoolColumn]:
        """Read one field of many objects.

        :return: The values, 0 where not there, and which are there.
        """
        field = record.fields[name]
        at = addresses + np.uint64(field.offset)
        rows, present = self.memory.gather(at, field.size)
        self.hole(at[~present], field.size, record.struct)
        return record.column(rows, name, field.offset), present

    def hole(self, addresses: U64Column, size: int, needed_for: str) -> None:
        """Note that the target lacks something."""
        if len(addresses):
            self._holes.append((addresses, size, needed_for))

    def broken(self, mm: int, address: int, type_: str, value: int, problem: str) -> None:
        """Note a word that cannot be right; see :class:`anonvma_inspect.tables.Broken`."""
        self._broken.append((mm, address, type_, value, problem))

    def holes(self) -> Holes:
        """All holes, sorted, each once."""
        address = np.concatenate([hole[0] for hole in self._holes] or [np.empty(0, np.uint64)])
        size = np.repeat(
            np.array([hole[1] for hole in self._holes], dtype=np.int64),
            [len(hole[0]) for hole in self._holes],
        )
        needed_for = np.repeat(
            np.array([hole[2] for hole in self._holes], dtype=np.str_),
            [len(hole[0]) for hole in self._holes],
        )
        order = np.lexsort((needed_for, size, address))
        address, size, needed_for = address[order], size[order], needed_for[order]
        new = np.ones(len(address), dtype=bool)
        new[1:] = (
            (address[1:] != address[:-1])
            | (size[1:] != size[:-1])
            | (needed_for[1:] != needed_for[:-1])
        )
        return Holes(address[new], size[new], needed_for[new])

    def broken_words(self, mm_rows: RowColumn) -> Broken:
        """All broken words, sorted, each once.

        :param mm_rows: Row in the tables of each mm that :meth:`broken` was told of.
        """
        rows = sorted(
            (NO_ROW if mm == NO_ROW else int(mm_rows[mm]), *rest) for mm, *rest in set(self._broken)
        )
        return Broken(
            mm=np.array([row[0] for row in rows], dtype=np.int64),
            address=np.array([row[1] for row in rows], dtype=np.uint64),
            type=np.array([row[2] for row in rows], dtype=np.str_),
            value=np.array([row[3] for row in rows], dtype=np.uint64),
            problem=np.array([row[4] for row in rows], dtype=np.str_),
        )


class AddressIndex:
    """Objects numbered in the order in which they were met, to be found by address."""

    def __init__(self) -> None:
        self.address: U64Column = np.empty(0, dtype=np.uint64)
        self._sorted: U64Column = self.address
        self._order: RowColumn = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.address)

    def number(self, addresses: U64Column) -> None:
        """Give numbers to objects that have none yet, each once."""
        self.address = np.concatenate([self.address, addresses])
        self._order = np.argsort(self.address, kind="stable")
        self._sorted = self.address[self._order]

    def find(self, addresses: U64Column) -> RowColumn:
        """Numbers of the objects at these addresses, NO_ROW for those not in the store."""
        row = find_rows(self._sorted, addresses)
        return np.where(row == NO_ROW, NO_ROW, self._order[row]) if len(self) else row


class ObjectStore(AddressIndex):
    """Objects of one kind, each read once.

    :param record: Layout of the struct.
    """

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.rows: ByteRows = np.empty((0, record.size), dtype=np.uint8)

    def row_of(self, addresses: U64Column) -> RowColumn:
        """Rows that the objects at these addresses have in a table sorted by address."""
        return find_rows(self._sorted, addresses)

    def missing(self, addresses: U64Column) -> U64Column:
        """Those of the addresses that are not in the store, sorted, each once."""
        each = distinct(addresses)
        if not len(self):
            return each
        missing: U64Column = each[find_rows(self._sorted, each) == NO_ROW]
        return missing

    def add(self, addresses: U64Column, rows: ByteRows, present: BoolColumn | None = None) -> None:
        """Add objects that are not in the store yet.

        :param addresses: Each once.
        :param present: Which of them to add; ``None``: all.
        """
        if present is not None and not present.all():
            addresses, rows = addresses[present], rows[present]
        self.number(addresses)
        self.rows = np.concatenate([self.rows, rows]) if len(self.rows) else rows

    def add_new(self, addresses: U64Column, rows: ByteRows) -> None:
        """Add those objects that are not in the store yet.

        :param addresses: Any of them several times.
        """
        order = np.argsort(addresses, kind="stable")
        ordered = addresses[order]
        new = find_rows(self._sorted, ordered) == NO_ROW
        new[1:] &= ordered[1:] != ordered[:-1]
        self.add(ordered[new], rows[order[new]])

    def column(self, name: str, first: int = 0) -> U64Column:
        """A field of the objects from number ``first`` on."""
        return self.record.column(self.rows[first:], name)

    def signed(self, name: str) -> NDArray[np.int64]:
        """A field of all objects, as a signed number."""
        return self.record.signed(self.rows, name)

    def ranks(self) -> tuple[RowColumn, RowColumn]:
        """How the objects lie by address.

        :return: Numbers in order of address, and for each number its place in that order.
        """
        place = np.empty(len(self), dtype=np.int64)
        place[self._order] = np.arange(len(self))
        return self._order, place
