"""The tree of VMAs of an mm that somebody has locked for write."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anonvma_inspect.in_flight import kinds
from anonvma_inspect.in_flight.draft import Draft
from anonvma_inspect.in_flight.operation import Operation
from anonvma_inspect.in_flight.scene import Scene
from anonvma_inspect.invariants.columns import take
from anonvma_inspect.tables import NO_ROW, RowColumn

__all__ = ("recognise",)


def recognise(scene: Scene) -> Iterator[Operation]:
    """munmap that has marked VMAs and not taken them out yet; a ``map_count`` that lags behind.

    munmap marks the VMAs of its range as detached one by one, from below, before it clears the
    range in the mm's tree in one step (``vms_gather_munmap_vmas()``, mm/vma.c, v6.12 and v7.3;
    ``do_vmi_align_munmap()``, mm/mmap.c, v6.4 on). So they are neighbours. mmap over mappings that
    are there stores the new one over them last of all, when they are unlinked already
    (``__mmap_region()``, mm/mmap.c, v6.12).

    Whoever stores a VMA in the tree counts it after that, and whoever removes some counts them off
    after that (all eras; of munmap in v6.12 and later, many at once): the count may be one too low,
    or too high.
    """
    yield from _gathered(scene)
    yield from _counted_later(scene)


def _gathered(scene: Scene) -> Iterator[Operation]:
    vmas, slots = scene.tables.vmas, scene.tables.slots
    marked = ~vmas.attached & (vmas.slot != NO_ROW) & take(scene.mm_writer, vmas.mm, False)
    rows = np.flatnonzero(marked)
    for mm in np.unique(vmas.mm[rows]).tolist():
        here = rows[vmas.mm[rows] == mm]
        place = np.sort(vmas.slot[here])
        between = slots.mm[place[0] : place[-1] + 1]
        if len(between) != len(here) or (between != mm).any():
            continue

        def settle(draft: Draft, here: RowColumn = here) -> None:
            draft.attach(here)

        yield Operation(
            "munmap",
            scene.mm_lock(mm),
            kinds.DETACHED,
            settle,
            vmas=frozenset(here.tolist()),
            beside=True,
        )


def _counted_later(scene: Scene) -> Iterator[Operation]:
    mms, slots = scene.tables.mms, scene.tables.slots
    number = np.bincount(slots.mm, minlength=len(mms.address))
    late = mms.walked & mms.whole & scene.mm_writer
    late &= (mms.map_count != number) & (mms.map_count >= number - 1)
    late &= mms.map_count <= number + scene.room
    for mm in np.flatnonzero(late).tolist():

        def settle(draft: Draft, mm: int = mm) -> None:
            draft.add_map_count(mm, int(number[mm] - mms.map_count[mm]))

        yield Operation(
            "map_count", scene.mm_lock(mm), kinds.MAP_COUNT, settle, mms=frozenset((mm,))
        )
