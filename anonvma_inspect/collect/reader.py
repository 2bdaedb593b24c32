"""Reading objects of the target, with a memory for what was missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.collect.index import AddressIndex, batches
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import NO_ROW, Broken, Holes, RowColumn
from anonvma_inspect.target.memory import BoolColumn, ByteRows, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("Columns", "ObjectStore", "Progress", "Reader")

Progress = Callable[[str, int], None]
Columns = dict[str, U64Column]


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
        if not present.all():
            self.hole(addresses[~present], record.size, record.struct)
        return rows, present

    def columns(
        self, record: Record, addresses: U64Column, names: Sequence[str]
    ) -> tuple[Columns, BoolColumn]:
        """Read some fields of objects that are read as a whole; see :meth:`rows`.

        :param names: Those that the record does not have, the answer does not have either.
        :return: The fields by name, as :meth:`Record.column` has them, 0 where not there; and which
            objects are there.
        """
        columns = {
            name: np.empty(len(addresses), dtype=np.uint64) for name in names if name in record
        }
        present = np.empty(len(addresses), dtype=bool)

        def read(part: slice) -> None:
            rows, present[part] = self.rows(record, addresses[part])
            for name, column in columns.items():
                column[part] = record.column(rows, name)

        run_parallel(read, batches(len(addresses)))
        return columns, present

    def words(
        self, record: Record, addresses: U64Column, name: str
    ) -> tuple[NDArray[np.uint64], BoolColumn]:
        """Read one field of many objects.

        :return: The values, 0 where not there, and which are there.
        """
        field = record.fields[name]
        at = addresses + np.uint64(field.offset)
        rows, present = self.memory.gather(at, field.size)
        if not present.all():
            self.hole(at[~present], field.size, record.struct)
        return record.column(rows, name, field.offset), present

    def optional_words(
        self, record: Record, addresses: U64Column, name: str
    ) -> tuple[NDArray[np.uint64], BoolColumn]:
        """Read one field that a kernel or an older snapshot may lack: that is no hole.

        :return: As :meth:`words`.
        """
        if name not in record:
            return np.zeros(len(addresses), dtype=np.uint64), np.zeros(len(addresses), dtype=bool)
        field = record.fields[name]
        rows, present = self.memory.gather(addresses + np.uint64(field.offset), field.size)
        return record.column(rows, name, field.offset), present

    def hole(self, addresses: U64Column, size: int, needed_for: str) -> None:
        """Note that the target lacks something."""
        self._holes.append((addresses, size, needed_for))

    def broken(self, mm: int, address: int, type_: str, value: int, problem: str) -> None:
        """Note a word that cannot be right; see :class:`anonvma_inspect.tables.Broken`."""
        self._broken.append((mm, address, type_, value, problem))

    def holes(self, known: Holes | None = None) -> Holes:
        """All holes, sorted, each once.

        :param known: Those of another reader, to be among them.
        """
        address = np.concatenate([hole[0] for hole in self._holes] or [np.empty(0, np.uint64)])
        size = np.repeat(
            np.array([hole[1] for hole in self._holes], dtype=np.int64),
            [len(hole[0]) for hole in self._holes],
        )
        needed_for = np.repeat(
            np.array([hole[2] for hole in self._holes], dtype=np.str_),
            [len(hole[0]) for hole in self._holes],
        )
        if known is not None:
            address = np.concatenate([address, known.address])
            size = np.concatenate([size, known.size])
            needed_for = np.concatenate([needed_for, known.needed_for])
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


class ObjectStore(AddressIndex):
    """Objects of one kind, each read once.

    :param record: Layout of the struct.
    :param names: The fields that are kept; those that the record does not have are left out.
    """

    def __init__(self, reader: Reader, record: Record, names: Sequence[str]) -> None:
        super().__init__(reader.space)
        self.record = record
        self.names = names
        self._reader = reader
        self._columns = {name: np.empty(0, dtype=np.uint64) for name in names if name in record}

    def read(self, addresses: U64Column) -> tuple[Columns, BoolColumn]:
        """Read objects that are not in the store yet, to decide which to :meth:`add`.

        :return: See :meth:`Reader.columns`.
        """
        return self._reader.columns(self.record, addresses, self.names)

    def add(self, addresses: U64Column, columns: Columns, chosen: BoolColumn) -> None:
        """Add some of the objects that were read.

        :param addresses: As :meth:`unknown` returned them.
        """
        if not chosen.all():
            addresses = addresses[chosen]
            columns = {name: column[chosen] for name, column in columns.items()}
        if len(self):
            columns = {
                name: np.concatenate([column, columns[name]])
                for name, column in self._columns.items()
            }
        self.number(addresses)
        self._columns = columns

    def sort(self) -> RowColumn:
        """See :meth:`AddressIndex.sort`."""
        order = super().sort()
        if (order[1:] < order[:-1]).any():
            self._columns = {name: column[order] for name, column in self._columns.items()}
        return order

    @property
    def columns(self) -> Columns:
        """The fields of all objects, by number."""
        return self._columns

    def column(self, name: str, first: int = 0) -> U64Column:
        """A field of the objects from number ``first`` on."""
        return self._columns[name][first:]
