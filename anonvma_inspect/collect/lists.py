"""Linked lists of the kernel's, many of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.era import Record
from anonvma_inspect.tables import ChainEnd, I64Column, RowColumn, U8Column
from anonvma_inspect.target.memory import ByteRows, U64Column

__all__ = ("ListWalk", "walk_lists")

# A step of all lists: which list, the entry (address of its node), the one before it, and the mark
# of the cycle finding.
_FRONT = np.dtype([("list", "i8"), ("node", "u8"), ("origin", "u8"), ("mark", "u8")])


@dataclass(frozen=True)
class ListWalk:
    """What a walk of lists met.

    :ivar end: A :class:`ChainEnd` for each list.
    :ivar length: Entries met before it.
    :ivar list: For each entry, the place in the arguments of the list that it is on.
    :ivar position: For each entry, 0 for the first behind the head.
    :ivar address: For each entry, the object.
    :ivar rows: For each entry, its bytes.
    """

    end: U8Column
    length: I64Column
    list: RowColumn
    position: I64Column
    address: U64Column
    rows: ByteRows


def walk_lists(
    reader: Reader,
    record: Record,
    node: str,
    first: U64Column,
    head: U64Column,
    owner: tuple[str, U64Column] | None = None,
    *,
    open_ended: bool = False,
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
    :param open_ended: The lists end with NULL (``hlist``), not with their heads (``list_head``).
    """
    list_offset = np.uint64(record.offset(node))
    stop = np.zeros(len(head), dtype=np.uint64) if open_ended else head
    end = np.full(len(head), ChainEnd.CLOSED, dtype=np.uint8)
    length = np.zeros(len(head), dtype=np.int64)
    met: list[tuple[RowColumn, int, U64Column, ByteRows]] = []
    listed = np.flatnonzero(first != stop)
    front = np.empty(len(listed), dtype=_FRONT)
    front["list"] = listed
    front["node"] = front["mark"] = first[listed]
    front["origin"] = head[listed]
    step = 0
    while len(front):
        reader.progress(f"{record.struct}s", int(length.sum()))
        wild = reader.space.wild(front["node"] - list_offset, record.size)
        end[front["list"][wild]] = ChainEnd.WILD
        front = front[~wild]
        rows, present = reader.rows(record, front["node"] - list_offset)
        agrees = record.column(rows, f"{node}_prev") == front["origin"]
        if owner is not None:
            agrees |= record.column(rows, owner[0]) == owner[1][front["list"]]
        end[front["list"][~present]] = ChainEnd.HOLE
        end[front["list"][present & ~agrees]] = ChainEnd.STRANGER
        kept = present & agrees
        front, rows = front[kept], rows[kept]
        met.append((front["list"], step, front["node"] - list_offset, rows))
        length[front["list"]] += 1
        front["origin"] = front["node"]
        front["node"] = record.column(rows, f"{node}_next")
        front = front[front["node"] != stop[front["list"]]]
        # Brent's cycle finding: a list that comes back to the mark never reaches its head.
        loops = front["node"] == front["mark"]
        end[front["list"][loops]] = ChainEnd.LOOP
        front = front[~loops]
        step += 1
        if step & (step - 1) == 0:
            front["mark"] = front["node"]
    walk = ListWalk(
        end=end,
        length=length,
        list=np.concatenate([entry[0] for entry in met] or [np.empty(0, np.int64)]),
        position=np.repeat(
            np.array([entry[1] for entry in met], dtype=np.int64),
            [len(entry[0]) for entry in met],
        ),
        address=np.concatenate([entry[2] for entry in met] or [np.empty(0, np.uint64)]),
        rows=np.concatenate([entry[3] for entry in met] or [np.empty((0, record.size), np.uint8)]),
    )
    return _without_repeats(walk) if (end == ChainEnd.LOOP).any() else walk


# A list that loops is walked round more than once before that is noticed: keep the first round.
def _without_repeats(walk: ListWalk) -> ListWalk:
    order = np.lexsort((walk.position, walk.address, walk.list))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (walk.list[order[1:]] != walk.list[order[:-1]]) | (
        walk.address[order[1:]] != walk.address[order[:-1]]
    )
    looping = walk.end[walk.list] == ChainEnd.LOOP
    kept = np.sort(order[new | ~looping[order]])
    return ListWalk(
        end=walk.end,
        length=np.bincount(walk.list[kept], minlength=len(walk.end)),
        list=walk.list[kept],
        position=walk.position[kept],
        address=walk.address[kept],
        rows=walk.rows[kept],
    )
