"""Objects that KFENCE guards: each in a page of its own, at either end of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anonvma_inspect.collect.reader import Reader
from anonvma_inspect.collect.slab_caches import read_variable
from anonvma_inspect.kernel.slab import KfenceEra, SlabEra
from anonvma_inspect.target.memory import BoolColumn, U64Column
from anonvma_inspect.target.target import Target

__all__ = ("Kfence",)


@dataclass(frozen=True)
class Kfence:
    """The pool of guarded pages.

    Follows ``addr_to_metadata()``, ``mm/kfence/kfence.h``, and ``kfence_guarded_alloc()``,
    ``mm/kfence/core.c`` (v6.1, v6.12).

    :ivar pool: Where it begins.
    :ivar arrays: Where the array of ``kfence_metadata`` may be: at the variable, up to v6.5, or
        where that points to.
    """

    reader: Reader
    era: KfenceEra
    pool: int
    arrays: tuple[int, ...]

    @staticmethod
    def of(reader: Reader, era: SlabEra, target: Target) -> Kfence | None:
        """Find the pool.

        :return: ``None`` if this kernel has none, or does not tell where it is.
        """
        if era.kfence is None:
            return None
        pool, metadata = (
            read_variable(reader, target, name) for name in ("__kfence_pool", "kfence_metadata")
        )
        if pool is None or metadata is None or reader.space.wild(pool.view("<u8"))[0]:
            return None
        arrays = (int(metadata.view("<u8")[0]), target.symbols["kfence_metadata"])
        return Kfence(reader, era.kfence, int(pool.view("<u8")[0]), arrays)

    def look_up(self, pages: U64Column) -> tuple[U64Column, BoolColumn, BoolColumn]:
        """The objects that pages hold.

        A page is the pool's if the metadata that it would have there name it.

        :param pages: Where they begin.
        :return: Address of the object in each, 0 for pages that are none of the pool's; whether it
            is in use; and for which pages all of that is known.
        """
        record, size = self.era.metadata, self.reader.space.page_size
        number, rest = np.divmod(pages - np.uint64(self.pool), np.uint64(2 * size))
        address = np.zeros(len(pages), dtype=np.uint64)
        used = np.zeros(len(pages), dtype=bool)
        known = np.ones(len(pages), dtype=bool)
        # The first two pages of the pool hold nothing.
        inside = np.flatnonzero((pages > np.uint64(self.pool)) & (rest == 0))
        for array in self.arrays:
            at = np.uint64(array) + (number[inside] - np.uint64(1)) * np.uint64(record.size)
            rows, present = self.reader.memory.gather(at, record.size)
            found = record.column(rows, "addr")
            named = present & ((found & ~np.uint64(size - 1)) == pages[inside])
            address[inside[named]] = found[named]
            used[inside[named]] = record.column(rows[named], "state") == self.era.allocated
            known[inside[~present]] = False
        known |= address != 0
        lost = inside[~known[inside]]
        at = np.uint64(self.arrays[0]) + (number[lost] - np.uint64(1)) * np.uint64(record.size)
        self.reader.hole(at, record.size, record.struct)
        return address, used, known
