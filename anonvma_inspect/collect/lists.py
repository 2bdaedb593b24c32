"""Linked lists of the kernel's, many of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from anonvma_inspect.collect.index import batches
from anonvma_inspect.collect.reader import Columns, Reader
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.parallel import run_parallel
from anonvma_inspect.tables import ChainEnd, I64Column, RowColumn, U8Column
from anonvma_inspect.target.memory import WORD, BoolColumn, U64Column

__all__ = ("ListWalk", "walk_lists")


@dataclass(frozen=True)
class ListWalk:
    """What a walk of lists met.

    :ivar end: A :class:`ChainEnd` for each list.
    :ivar length: Entries met before it.
    :ivar list: For each entry, the place in the arguments of the list that it is on.
    :ivar position: For each entry, 0 for the first behind the head.
    :ivar address: For each entry, the object.
    :ivar columns: For each entry, the fields of it that were asked for.
    """

    end: U8Column
    length: I64Column
    list: RowColumn
    position: I64Column
    address: U64Column
    columns: Columns


class _Met(NamedTuple):
    """Entries of one step; see :class:`ListWalk`."""

    list: RowColumn
    address: U64Column
    columns: Sequence[U64Column]


class _Front(NamedTuple):
    """A step of all lists that have not ended.

    :ivar list: Which list it is.
    :ivar node: The entry, the address of its node.
    :ivar origin: The one before it.
    :ivar mark: The mark of the cycle finding.
    """

    list: RowColumn
    node: U64Column
    origin: U64Column
    mark: U64Column

    def pick(self, which: BoolColumn | slice) -> _Front:
        return _Front(self.list[which], self.node[which], self.origin[which], self.mark[which])

    @staticmethod
    def join(parts: Sequence[_Front]) -> _Front:
        return _Front(
            np.concatenate([part.list for part in parts]),
            np.concatenate([part.node for part in parts]),
            np.concatenate([part.origin for part in parts]),
            np.concatenate([part.mark for part in parts]),
        )


def walk_lists(
    reader: Reader,
    record: Record,
    node: str,
    first: U64Column,
    head: U64Column,
    owner: tuple[str, U64Column] | None = None,
    *,
    names: Sequence[str] = (),
    open_ended: bool = False,
    ring: bool = False,
) -> ListWalk:
    """Walk many lists by ``next``, a step of all of them a round.

    An entry is followed if it agrees with the list in one of two words: the one that names the
    list's owner, or its ``prev``, which leads to where the walk comes from. One wrong word then
    does not hide what is behind it, and a wild turn ends at once.

    :param record: The struct of the entries.
    :param node: Name in it of the list's node; the record has ``NODE_next`` and ``NODE_prev`` too.
        An ``hlist_node``'s ``pprev``, which leads to a pointer that is the first word of its
        struct, serves as ``prev``.
    :param first: The first pointer of each list.
    :param head: The address of each list's head.
    :param owner: Name in the record of the word that names the owner, and the owner of each list.
    :param names: The fields of the entries that the answer is to have.
    :param open_ended: The lists end with NULL (``hlist``), not with their heads (``list_head``).
    :param ring: They have no heads, and come back to the first entry, which ``head`` is as well; it
        is NULL where there is none.
    """
    stop = np.zeros(len(head), dtype=np.uint64) if open_ended else head
    walker = _Walker(reader, record, node, stop, owner, names)
    listed = np.flatnonzero(first != (0 if ring else stop))
    origin = head[listed]
    if ring:
        # The one before the first is the last; if it is not there, nor is the first.
        at = (
            first[listed]
            - np.uint64(record.offset(node))
            + np.uint64(record.offset(f"{node}_prev"))
        )
        origin = reader.memory.gather(at, WORD)[0].view("<u8").reshape(-1).astype(np.uint64)
    return walker.walk(_Front(listed, first[listed], origin, first[listed]))


class _Walker:
    # stop: behind which pointer each list has no more entries.
    def __init__(
        self,
        reader: Reader,
        record: Record,
        node: str,
        stop: U64Column,
        owner: tuple[str, U64Column] | None,
        names: Sequence[str],
    ) -> None:
        self._reader, self._record, self._node = reader, record, node
        self._stop, self._owner = stop, owner
        self._offset = np.uint64(record.offset(node))
        self._end = np.full(len(stop), ChainEnd.CLOSED, dtype=np.uint8)
        self._names = names

    def walk(self, front: _Front) -> ListWalk:
        no_words = np.empty(0, np.uint64)
        met = [_Met(np.empty(0, np.int64), no_words, [no_words for _ in self._names])]
        # How many entries were met in each step.
        counts: list[int] = []
        total = 0
        while len(front.list):
            self._reader.progress(f"{self._record.struct}s", total)
            parts = [front.pick(part) for part in batches(len(front.list))]
            steps = run_parallel(self._step, parts)
            met += [part for part, _ in steps]
            counts.append(sum(len(part.list) for part, _ in steps))
            total += counts[-1]
            front = _Front.join([ahead for _, ahead in steps])
            step = len(counts)
            if step & (step - 1) == 0:
                front = front._replace(mark=front.node)
        list_ = np.concatenate([part.list for part in met])
        walk = ListWalk(
            end=self._end,
            length=np.bincount(list_, minlength=len(self._end)),
            list=list_,
            position=np.repeat(np.arange(len(counts)), counts),
            address=np.concatenate([part.address for part in met]),
            columns={
                name: np.concatenate([part.columns[place] for part in met])
                for place, name in enumerate(self._names)
            },
        )
        return _without_repeats(walk) if (self._end == ChainEnd.LOOP).any() else walk

    # The entries that are met, and where their lists go on. No list is in two fronts.
    def _step(self, front: _Front) -> tuple[_Met, _Front]:
        record, end = self._record, self._end
        wild = self._reader.space.wild(front.node - self._offset, record.size)
        if wild.any():
            end[front.list[wild]] = ChainEnd.WILD
            front = front.pick(~wild)
        rows, present = self._reader.rows(record, front.node - self._offset)
        agrees = record.column(rows, f"{self._node}_prev") == front.origin
        if self._owner is not None:
            agrees |= record.column(rows, self._owner[0]) == self._owner[1][front.list]
        kept = present & agrees
        if not kept.all():
            end[front.list[~present]] = ChainEnd.HOLE
            end[front.list[present & ~agrees]] = ChainEnd.STRANGER
            front, rows = front.pick(kept), rows[kept]
        met = _Met(
            front.list,
            front.node - self._offset,
            [record.column(rows, name) for name in self._names],
        )
        node = record.column(rows, f"{self._node}_next")
        front = front._replace(node=node, origin=front.node)
        front = front.pick(node != self._stop[front.list])
        # Brent's cycle finding: a list that comes back to the mark never reaches its head.
        loops = front.node == front.mark
        if loops.any():
            end[front.list[loops]] = ChainEnd.LOOP
            front = front.pick(~loops)
        return met, front


# A list that loops is walked round more than once before that is noticed: keep the first round.
def _without_repeats(walk: ListWalk) -> ListWalk:
    order = np.lexsort((walk.position, walk.address, walk.list))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (walk.list[order[1:]] != walk.list[order[:-1]]) | (
        walk.address[order[1:]] != walk.address[order[:-1]]
    )
    looping = walk.end[walk.list] == ChainEnd.LOOP
    kept = np.sort(order[new | ~looping[order]])
    return replace(
        walk,
        length=np.bincount(walk.list[kept], minlength=len(walk.end)),
        list=walk.list[kept],
        position=walk.position[kept],
        address=walk.address[kept],
        columns={name: column[kept] for name, column in walk.columns.items()},
    )
