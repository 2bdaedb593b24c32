"""A part of ``stats``: what the slab caches of VMAs, AVCs and anon_vmas come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anonvma_inspect.report.escape import escape, printable
from anonvma_inspect.report.facts import Document
from anonvma_inspect.report.style import Style
from anonvma_inspect.report.words import hex_or_null, table
from anonvma_inspect.tables import Tables

__all__ = ("SlabUsage",)


@dataclass(frozen=True)
class SlabUsage:
    """Objects in all slabs of these caches, reached or not."""

    tables: Tables

    key = "slabs"

    def document(self) -> Document:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        return {"missing": self._missing(), "caches": self._caches()}

    def text(self, style: Style) -> Iterator[str]:
        """See :class:`anonvma_inspect.report.stats.Section`."""
        missing = self._missing()
        if missing is not None:
            yield f"{style.strong('slabs')}: not known ({missing})"
            return
        yield style.strong("slabs, all of memory")
        caches = self._caches()
        columns = ("slabs", "bytes", "objects", "allocated", "free", "guarded", "reached")
        yield from table(
            [
                (
                    str(entry["struct"]),
                    *(f"{entry[name]:,}" for name in columns),
                    f"{entry['unreached']:,}",
                )
                for entry in caches
            ],
            ("STRUCT", *(name.upper() for name in columns), "UNREACHED"),
            ("left", *["right"] * (len(columns) + 1)),
        )
        strangers = next((entry["strangers"] for entry in caches if entry["strangers"]), 0)
        if strangers:
            yield (
                f"of the unreached in the cache of AVCs, {strangers:,} do not look like AVCs: "
                "others share it"
            )

    def _missing(self) -> str | None:
        allocation = self.tables.allocation
        if allocation is None:
            return "not asked for: --slabs"
        if allocation.not_read is not None:
            return printable(allocation.not_read)
        if not allocation.totals:
            return printable(allocation.unreached_not_read or "not asked for: --slabs")
        return None

    def _caches(self) -> list[Document]:
        allocation, era = self.tables.allocation, self.tables.era
        if allocation is None or not allocation.totals or allocation.unreached is None:
            return []
        strange = len(allocation.unreached.avcs) - np.count_nonzero(allocation.unreached.avc_linked)
        kinds = (
            (era.vma.struct, allocation.vmas, 0),
            (era.avc.struct, allocation.avcs, int(strange)),
            (era.anon_vma.struct, allocation.anon_vmas, 0),
        )
        entries: list[Document] = []
        for (struct, placement, strangers), total in zip(kinds, allocation.totals, strict=True):
            name = allocation.cache_names.get(placement.cache)
            entries.append(
                {
                    "struct": struct,
                    "cache": hex_or_null(placement.cache),
                    "name": None if name is None else escape(name),
                    "size": total.size,
                    "slabs": total.slabs,
                    "bytes": total.bytes,
                    "objects": total.objects,
                    "allocated": total.allocated,
                    "free": total.objects - total.allocated,
                    "guarded": total.guarded,
                    "reached": total.reached,
                    "unreached": total.allocated + total.guarded - total.reached,
                    "strangers": strangers,
                }
            )
        return entries
