"""The ``anon_vma_chain`` lists of VMAs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.kernel.era import Era
from anonvma_inspect.tables import ChainEnd, I64Column, RowColumn, U8Column
from anonvma_inspect.target.memory import ByteRows, U64Column

__all__ = ("ChainWalk", "walk_chains")

# A step of all lists: which VMA's, the entry (address of its same_vma), the one before it, and the
# mark of the cycle finding.
_FRONT = np.dtype([("vma", "i8"), ("node", "u8"), ("origin", "u8"), ("mark", "u8")])


@dataclass(frozen=True)
class ChainWalk:
    """What a walk of lists met.

    :ivar end: A :class:`ChainEnd` for each VMA.
    :ivar length: Entries met before it.
    :ivar vma: For each entry, the place in the arguments of the VMA whose list it is on.
    :ivar position: For each entry, 0 for the first behind the head.
    :ivar address: For each entry, the AVC.
    :ivar rows: For each entry, its bytes.
    """

    end: U8Column
    length: I64Column
    vma: RowColumn
    position: I64Column
    address: U64Column
    rows: ByteRows


def walk_chains(reader: Reader, era: Era, vma: U64Column, first: U64Column) -> ChainWalk:
    """Walk the lists of many VMAs by ``next``, a step of all of them a round.

    An entry is followed if it agrees with the list in one of two words: its ``vma`` is this one, or
    its ``prev`` is where the walk comes from. One wrong word then does not hide what is behind it,
    and a wild turn ends at once.

    :param vma: The VMAs.
    :param first: The first pointer of each list, ``anon_vma_chain.next``.
    """
    avc = era.avc
    list_offset = np.uint64(avc.offset("same_vma"))
    head = vma + np.uint64(era.vma.offset("anon_vma_chain"))
    end = np.full(len(vma), ChainEnd.CLOSED, dtype=np.uint8)
    length = np.zeros(len(vma), dtype=np.int64)
    met: list[tuple[RowColumn, int, U64Column, ByteRows]] = []
    listed = np.flatnonzero(first != head)
    front = np.empty(len(listed), dtype=_FRONT)
    front["vma"] = listed
    front["node"] = front["mark"] = first[listed]
    front["origin"] = head[listed]
    step = 0
    while len(front):
        reader.progress("anon_vma_chains", int(length.sum()))
        wild = reader.space.wild(front["node"] - list_offset, avc.size)
        end[front["vma"][wild]] = ChainEnd.WILD
        front = front[~wild]
        rows, present = reader.rows(avc, front["node"] - list_offset)
        ours = avc.column(rows, "vma") == vma[front["vma"]]
        linked = avc.column(rows, "same_vma_prev") == front["origin"]
        end[front["vma"][~present]] = ChainEnd.HOLE
        end[front["vma"][present & ~ours & ~linked]] = ChainEnd.STRANGER
        kept = present & (ours | linked)
        front, rows = front[kept], rows[kept]
        met.append((front["vma"], step, front["node"] - list_offset, rows))
        length[front["vma"]] += 1
        front["origin"] = front["node"]
        front["node"] = avc.column(rows, "same_vma_next")
        front = front[front["node"] != head[front["vma"]]]
        # Brent's cycle finding: a list that comes back to the mark never reaches its head.
        loops = front["node"] == front["mark"]
        end[front["vma"][loops]] = ChainEnd.LOOP
        front = front[~loops]
        step += 1
        if step & (step - 1) == 0:
            front["mark"] = front["node"]
    walk = ChainWalk(
        end=end,
        length=length,
        vma=np.concatenate([entry[0] for entry in met] or [np.empty(0, np.int64)]),
        position=np.repeat(
            np.array([entry[1] for entry in met], dtype=np.int64),
            [len(entry[0]) for entry in met],
        ),
        address=np.concatenate([entry[2] for entry in met] or [np.empty(0, np.uint64)]),
        rows=np.concatenate([entry[3] for entry in met] or [np.empty((0, avc.size), np.uint8)]),
    )
    return _without_repeats(walk) if (end == ChainEnd.LOOP).any() else walk


# A list that loops is walked round more than once before that is noticed: keep the first round.
def _without_repeats(walk: ChainWalk) -> ChainWalk:
    order = np.lexsort((walk.position, walk.address, walk.vma))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (walk.vma[order[1:]] != walk.vma[order[:-1]]) | (
        walk.address[order[1:]] != walk.address[order[:-1]]
    )
    looping = walk.end[walk.vma] == ChainEnd.LOOP
    kept = np.sort(order[new | ~looping[order]])
    return ChainWalk(
        end=walk.end,
        length=np.bincount(walk.vma[kept], minlength=len(walk.end)),
        vma=walk.vma[kept],
        position=walk.position[kept],
        address=walk.address[kept],
        rows=walk.rows[kept],
    )
