"""Finding objects by address: for each of millions of pointers, the object that it leads to.

A binary search in as many sorted addresses misses the cache at every step. Slab objects lie close
together, so a radix tree over RAM is both small and fast: two indexings for the line of memory that
an address lies in, one for the object in that line.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import NO_ROW, RowColumn
from anonvma_inspect.target.memory import WORD, AddressSpace, U64Column, distinct, starts_run

__all__ = ("AddressIndex", "batches", "ranks")

# So many addresses are worked on at a time that what is made of them on the way stays in the cache.
_BATCH = 1 << 14
_WORD_SHIFT, _LINE_SHIFT, _BLOCK_SHIFT = 3, 9, 21
_LINE_WORDS = 1 << (_LINE_SHIFT - _WORD_SHIFT)
_BLOCK_LINES = 1 << (_BLOCK_SHIFT - _LINE_SHIFT)


def batches(count: int) -> Iterator[slice]:
    """Cut long columns into pieces that fit the processor's cache."""
    for first in range(0, count, _BATCH):
        yield slice(first, min(first + _BATCH, count))


def ranks(order: RowColumn) -> RowColumn:
    """For each number, its place in an order of them.

    :param order: A permutation.
    """
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


class AddressIndex:
    """Objects numbered in the order in which they were met, to be found by address.

    :param space: Where objects can lie.
    """

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._count = 0
        self._addresses: list[U64Column] = []
        # By block of RAM, where its lines begin in the next table; by line, where its words begin
        # in the last one; by word, one more than the object's number. 0 is where those lead that
        # hold no object. Blocks that are never touched, most of a large machine's, take no memory.
        self._block = np.zeros((space.room >> _BLOCK_SHIFT) + 1, dtype=np.int32)
        self._line = np.zeros(_BLOCK_LINES, dtype=np.int32)
        self._next = np.zeros(_LINE_WORDS, dtype=np.int32)
        self._blocks = self._lines = 1

    def __len__(self) -> int:
        return self._count

    @property
    def address(self) -> U64Column:
        """Addresses of all objects, by number."""
        if len(self._addresses) != 1:
            self._addresses = [np.concatenate([np.empty(0, np.uint64), *self._addresses])]
        return self._addresses[0]

    def find(self, addresses: U64Column) -> RowColumn:
        """Numbers of the objects at these addresses, NO_ROW where none is known.

        :param addresses: Any values at all.
        """
        numbers = np.empty(len(addresses), dtype=np.int64)

        def look_up(part: slice) -> None:
            numbers[part] = self._next[self._words(addresses[part])]
            numbers[part] -= 1

        run_parallel(look_up, batches(len(addresses)))
        return numbers

    def unknown(self, addresses: U64Column) -> U64Column:
        """Those of the addresses that have no number yet, sorted, each once."""
        if len(self):
            addresses = addresses[self.find(addresses) == NO_ROW]
        return distinct(addresses)

    def number(self, addresses: U64Column) -> None:
        """Give numbers to objects that have none yet.

        :param addresses: In RAM, sorted, each once: as :meth:`unknown` returned them.
        """
        self._make_lines(addresses)
        before = self._count + 1

        def write(part: slice) -> None:
            self._next[self._words(addresses[part])] = np.arange(
                before + part.start, before + part.stop
            )

        run_parallel(write, batches(len(addresses)))
        self._count += len(addresses)
        self._addresses.append(addresses)

    def sort(self) -> RowColumn:
        """Number all objects anew, in order of address.

        :return: For each new number the old one.
        """
        order = np.arange(self._count)
        if (self.address[1:] < self.address[:-1]).any():
            order = np.argsort(self.address)
            taken = np.flatnonzero(self._next)
            self._next[taken] = ranks(order)[self._next[taken] - 1] + 1
            self._addresses = [self.address[order]]
        return order

    # Where the words at these addresses are in the table of numbers.
    def _words(self, addresses: U64Column) -> NDArray[np.int64]:
        place = self._space.place(addresses)
        lost = (place < 0) | ((place & (WORD - 1)) != 0)
        place[lost] = 0
        words: NDArray[np.int64] = self._line[self._line_at(place)].astype(np.int64)
        words *= _LINE_WORDS
        words += (place >> _WORD_SHIFT) & (_LINE_WORDS - 1)
        words[lost] = 0
        return words

    # Where the lines of these places are in the table of lines.
    def _line_at(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        at: NDArray[np.int64] = self._block[place >> _BLOCK_SHIFT].astype(np.int64)
        at *= _BLOCK_LINES
        at += (place >> _LINE_SHIFT) & (_BLOCK_LINES - 1)
        return at

    # Makes room in the tables for what is at these addresses, which are sorted.
    def _make_lines(self, addresses: U64Column) -> None:
        place = self._one_in_each_line(addresses)
        block = place >> _BLOCK_SHIFT
        block = block[starts_run(block)]
        block = block[self._block[block] == 0]
        self._block[block] = self._blocks + np.arange(len(block))
        self._blocks += len(block)
        self._line = _grown(self._line, self._blocks * _BLOCK_LINES)
        line = self._line_at(place)
        line = line[self._line[line] == 0]
        self._line[line] = self._lines + np.arange(len(line))
        self._lines += len(line)
        self._next = _grown(self._next, self._lines * _LINE_WORDS)

    def _one_in_each_line(self, addresses: U64Column) -> NDArray[np.int64]:
        def begin_lines(part: slice) -> NDArray[np.int64]:
            place = self._space.place(addresses[part])
            return place[starts_run(place >> _LINE_SHIFT)]

        parts = run_parallel(begin_lines, batches(len(addresses)))
        place = np.concatenate([np.empty(0, np.int64), *parts])
        # A line that goes on in the next part has begun there, too.
        return place[starts_run(place >> _LINE_SHIFT)]


# Grown by half at least, so that growing often costs no more than the whole.
def _grown(table: NDArray[np.int32], needed: int) -> NDArray[np.int32]:
    if needed <= len(table):
        return table
    grown = np.zeros(max(needed, len(table) + len(table) // 2), dtype=np.int32)
    grown[: len(table)] = table
    return grown
